"""Laws over every command: instant help, no torch for it, honest exit codes, near-miss hints."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import dnassm
from dnassm.pipelines import cli as entry
from dnassm.pipelines.cli import LazyGroup, cli, main

FOLDER = Path(entry.__file__).resolve().parent
COMMANDS = LazyGroup().list_commands(click.Context(cli))
HEAVY = (
    "torch",
    "lightning",
    "numpy",
    "sklearn",
    "Bio",
    "matplotlib",
    "pydantic",
    "rich",
    "dnassm.data",
)

# One fresh interpreter per command: prints what was loaded and the CPU time that it took, which
# other work on the machine does not stretch as it stretches wall time.
PROBE = """
import json, resource, sys
from dnassm.pipelines.cli import cli
try:
    cli.main(sys.argv[1:], prog_name="dnassm")
except SystemExit as end:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime
    facts = {"code": end.code, "cpu_s": cpu_s, "modules": sorted(sys.modules)}
    print(json.dumps(facts), file=sys.stderr)
"""


def probe(*arguments: str) -> tuple[str, dict]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "100"},
    )
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def load(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def leaves(command: click.Command) -> list[click.Command]:
    """The command, or the commands of a group."""
    if isinstance(command, click.Group):
        return [leaf for child in command.commands.values() for leaf in leaves(child)]
    return [command]


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dnassm", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_answers_at_once_and_imports_nothing_heavy(arguments):
    said, facts = probe(*arguments, "--help")
    assert facts["code"] == 0
    assert said.startswith(" ".join(["Usage: dnassm", *arguments]))
    assert [name for name in HEAVY if name in facts["modules"]] == []
    # The promise of the README. Measured: 0.07 s; torch alone would take 2 s.
    assert facts["cpu_s"] < 0.3


def test_help_shows_every_command_with_its_short_help():
    said, _ = probe("--help")
    for name in COMMANDS:
        assert f"  {name}  " in said


def test_version_is_the_package_version():
    said, facts = probe("--version")
    assert facts["code"] == 0
    assert dnassm.__version__ in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    for command in leaves(load(name)):
        assert command.help, f"{name}: the function needs a docstring"
        assert command.short_help, f"{name}: pass short_help to click.command"
        assert len(command.short_help) <= 66, f"{name}: short_help fits one line of --help"
        assert command.short_help.endswith(".")
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[0]}: pass help="


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_a_usage_error(name, monkeypatch, capsys):
    assert run_main(monkeypatch, name, "--no-such-option") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "no-such-option" in said.err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_command_is_answered_with_the_nearest_name(name, monkeypatch, capsys):
    for misspelt in (name[:-2] + name[-1], name + "e", name[:2] + name[1:]):
        if misspelt not in COMMANDS:
            assert run_main(monkeypatch, misspelt) == 2
            assert f"Did you mean {name!r}?" in capsys.readouterr().err


def test_an_unknown_command_without_a_near_name_is_a_usage_error(monkeypatch, capsys):
    assert run_main(monkeypatch, "xyzzyx") == 2
    said = capsys.readouterr().err
    assert "xyzzyx" in said
    assert "Did you mean" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_only_click_and_small_standard_modules_at_its_top(name):
    tree = ast.parse((FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    foreign = {m for m in imported if m.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign <= {"click"}, "import inside the command function: --help stays instant"
    assert ast.get_docstring(tree), "the module needs a docstring"


def test_every_file_of_the_folder_is_a_command_of_the_same_name():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "cli"}
    assert {name.replace("-", "_") for name in COMMANDS} == files
    for name in COMMANDS:
        assert isinstance(load(name), click.Command)
