"""`dnassm report`: one line out, one line of error, help at once."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from dnassm.errors import ArtifactError
from dnassm.pipelines.report import command


def store(folder: Path) -> Path:
    counts = {"A": 30, "C": 20, "G": 20, "T": 30, "N": 0, "iupac": 0, "soft_masked": 0}
    contig = {"name": "chr1", "length": 100, "counts": counts, "md5": "0" * 32}
    folder.mkdir()
    (folder / "store.json").write_text(json.dumps({"contigs": [contig], "splits": {}}))
    return folder


def test_the_path_of_the_page_goes_to_stdout(tmp_path):
    out = tmp_path / "report.html"
    arguments = [str(store(tmp_path / "genome")), "--out", str(out), "--title", "A & B"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert "<h1>A &amp; B</h1>" in out.read_text()


def test_an_unknown_path_is_an_error_that_says_what_is_recognised(tmp_path):
    result = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "r.html")])
    assert isinstance(result.exception, ArtifactError)
    assert "genome store (folder with store.json)" in str(result.exception)


def test_no_path_is_a_usage_error(tmp_path):
    assert CliRunner().invoke(command, ["--out", str(tmp_path / "r.html")]).exit_code == 2
