"""`dnassm fetch`: what it lists, what it prints, what it says to a mistake."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dnassm.data.fetch import job
from dnassm.data.fetch.job import Fetched, default_folder
from dnassm.errors import UnknownNameError
from dnassm.pipelines.fetch import command


@pytest.fixture
def calls(monkeypatch):
    seen = []

    def fetch(entry, out, transfer, **options):
        seen.append((entry.name, out, transfer, options))
        return [Fetched(f"{out}/{entry.name}/x.fa", "0" * 64, 5, "nothing", "https://h/x", True)]

    monkeypatch.setattr(job, "fetch", fetch)
    return seen


def test_the_list_names_every_entry_and_says_that_it_is_untried():
    said = CliRunner().invoke(command, ["--list"], catch_exceptions=False).stdout
    assert "hg38" in said
    assert "traitgym" in said
    listed = json.loads(CliRunner().invoke(command, ["--list", "--json"]).stdout)
    assert all(entry["untried"] for entry in listed)
    assert all(file["url"].startswith("https://") for entry in listed for file in entry["files"])


def test_paths_are_printed_one_per_line_and_json_has_the_checksums(calls, tmp_path):
    arguments = ["hg38", "GUE", "--out", str(tmp_path)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.stdout == f"{tmp_path}/hg38/x.fa\n{tmp_path}/gue/x.fa\n"
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)[0]["sha256"] == "0" * 64


def test_options_and_the_environment_reach_the_download(calls, tmp_path):
    arguments = ["gue", "--only", "prom*", "--max-gb", "0.5", "--trust-first", "--force"]
    environment = {"DNASSM_MIRROR": "http://mirror:8000", "DNASSM_CACHE": str(tmp_path)}
    CliRunner().invoke(command, arguments, env=environment, catch_exceptions=False)
    ((name, out, transfer, options),) = calls
    assert (name, out) == ("gue", tmp_path)
    assert (transfer.mirror, transfer.max_bytes) == ("http://mirror:8000", 500_000_000)
    assert options == {"only": "prom*", "trust_first": True, "force": True}


def test_a_misspelt_name_stops_before_anything_is_fetched(calls):
    with pytest.raises(UnknownNameError, match="Did you mean 'hg38'"):
        CliRunner().invoke(command, ["gue", "hg83"], catch_exceptions=False)
    assert calls == []


def test_no_name_is_a_usage_error():
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 2
    assert "--list" in result.stderr


def test_the_default_folder_is_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("DNASSM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "dnassm"
