"""`dnassm list`: every registered name, with where it comes from."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dnassm.catalogue import KINDS, catalogue
from dnassm.errors import UnknownNameError
from dnassm.pipelines.cli import cli


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["list", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_mixers_are_listed_with_their_papers():
    lines = run("mixers").splitlines()
    assert lines[0].split() == ["kind", "name", "source"]
    assert any("mamba" in line and "arXiv:2312.00752" in line for line in lines)
    assert any("s4d" in line for line in lines)


def test_without_a_kind_every_kind_is_listed():
    assert {entry["kind"] for entry in json.loads(run("--json"))} == set(KINDS)


def test_json_has_the_names_of_the_table():
    entries = json.loads(run("presets", "--json"))
    table = run("presets")
    assert entries
    assert all(entry["name"] in table for entry in entries)


@pytest.mark.parametrize("kind", KINDS)
def test_every_registered_thing_says_what_it_is(kind):
    for entry in catalogue(kind):
        assert entry.about, (
            f"{kind} {entry.name}: write a docstring, or a comment in the first line"
        )
        if kind == "mixers":
            assert entry.source, f"{entry.name}: name the paper and the equation or section"


def test_a_misspelt_kind_is_answered_with_the_nearest_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'mixers'"):
        catalogue("mixer")
