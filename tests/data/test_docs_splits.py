"""The examples of the documentation on intervals, leakage and simulation run and say what is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from dnassm.data.split import parse_split
from dnassm.pipelines.cli import cli

DOCS = Path(__file__).parents[2] / "docs"


def section(page: str, name: str) -> str:
    text = (DOCS / page).read_text(encoding="utf-8")
    return text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("page", "name"), [("data.md", "Algebra of intervals"), ("simulation.md", "Long range")]
)
def test_the_examples_of_python_run_and_their_comments_are_true(page, name):
    (block,) = re.findall(r"```python\n(.*?)```", section(page, name), re.DOTALL)
    scope: dict[str, object] = {}
    for line in block.splitlines():
        code, _, says = line.partition("  # ")
        if not says:
            exec(code, scope)
            continue
        found = eval(code, scope)
        if says == "True":
            assert found is True
        elif isinstance(found, tuple):
            assert says.startswith(repr(found))
        elif "by the rule" not in says:
            assert says == ", ".join(str(interval).removesuffix("(+)") for interval in found)


def test_every_rule_of_the_table_is_a_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("chr1\t0\t9\ttrain\nchr1\t9\t20\ttest\n")
    rules = re.findall(r"^\| `([^`]+)` \|", section("data.md", "Splits"), re.MULTILINE)
    assert len(rules) == 7
    for rule in rules:
        assert parse_split(parse_split(rule).text).text


def test_the_commands_on_simulation_are_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "simulation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines():
        words = shlex.split(line, comments=True)[1:]
        small = {"5000000": "200000", "1000000": "20000", "4000000": "20000", "500000": "2000"}
        words = [small.get(word, word) for word in words]
        length = [] if "--length" in words else ["--length", "100000"]
        result = CliRunner().invoke(cli, [*words, *length, "--force"])
        assert result.exit_code == 0, result.output
