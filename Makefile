# Every target creates what it needs: on a fresh machine `make demo` or `make test` is the only command.
# make demo             the whole line on a simulated genome, ends with a report
# make test             lint, types, import rules, tests
# make test PYTHON=...  with another Python (3.11 or newer)
# make fuzz MINUTES=60  look for inputs that the readers do not stand (docs/fuzzing.md)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo
# The first one that runs, is new enough and can make virtual environments; 3.11 is what CI has.
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && { echo "$$python"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types imports pytest fuzz format clean
MINUTES := 10
ATHERIS := atheris==3.0.0

help: ## say what the targets do
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

install: $(STAMP) ## create .venv and install dnassm with its pinned dependencies

demo: $(STAMP) ## run the whole line: genome, model, embeddings, classifier, variants, report
	@$(BIN)/dnassm quickstart --out $(DEMO) --force

test: lint types imports pytest ## everything that CI checks

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP) ## who may import whom
	$(BIN)/lint-imports --no-logo

# After the quick checks also under `make -j`: their answer comes first.
# A file of tests stays in one process: what its tests share is made once.
pytest: lint types imports ## the tests, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Not among the packages of a developer: it is for this target only, and for Linux and macOS.
fuzz: $(STAMP) ## fuzz the readers, coverage-guided; MINUTES of all targets together
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(ATHERIS)'
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the environment, caches and the demo
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv found on PATH; install one" \
		"(Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# The stamp is written last: an installation that was cut short is done again.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing dnassm into $(VENV): some minutes and about 2 GB the first time" >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
