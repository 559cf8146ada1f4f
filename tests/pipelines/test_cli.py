"""What every command has in common: one line where the system refuses a path."""

from __future__ import annotations

import sys

import pytest

from dnassm.pipelines import cli

TOO_LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--length", "20000", "--out", TOO_LONG],
        ["tokenize", TOO_LONG, "--out", "genome"],
        ["doctor", "--length", "8", "--device", "cpu", "--op", "norm", "--out", TOO_LONG],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_path_that_the_system_refuses_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dnassm", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("dnassm: error: ")
    assert line.endswith(f"{TOO_LONG}: File name too long; check the path and the disk")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_that_names_no_path_is_not_hidden(monkeypatch):
    def broken(**_):
        raise OSError("something else")

    monkeypatch.setattr(cli.cli, "main", broken)
    with pytest.raises(OSError, match="something else"):
        cli.main()
