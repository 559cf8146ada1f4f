"""`dnassm quickstart`: the whole line, on a simulated genome and on one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dnassm.data.simulate import simulate_genome, write_simulation
from dnassm.errors import ArtifactError, ConfigError
from dnassm.pipelines.cli import cli
from dnassm.quickstart import QuickstartOptions, quickstart

MINUTES = 0.03


def test_one_call_leaves_every_artifact_and_a_report(tmp_path: Path) -> None:
    out = tmp_path / "first"
    page = quickstart(QuickstartOptions(out=out, minutes=MINUTES))
    left = {path.name for path in out.iterdir()}
    assert {"simulation", "genome", "pretraining", "classification", "variants"} <= left
    assert {"embeddings.npy", "embeddings.bed", "windows.csv", "report.html"} <= left
    result = json.loads((out / "classification" / "result.json").read_text())
    assert {"probe", "k-mer logistic regression"} <= {model["name"] for model in result["models"]}
    variants = json.loads((out / "variants" / "variants.json").read_text())
    assert {row["effect"] for row in variants["variants"]} == {"motif_breaking", "silent"}
    text = page.read_text(encoding="utf-8")
    for words in ("bits for a base", "AUROC", "planted variants"):
        assert words in text


def test_it_runs_on_a_genome_of_ones_own(tmp_path: Path) -> None:
    write_simulation(simulate_genome(length=120_000, seed=3), tmp_path / "mine")
    out = tmp_path / "own"
    options = QuickstartOptions(
        out=out,
        genome=tmp_path / "mine" / "genome.fa",
        annotation=tmp_path / "mine" / "genes.gff3",
        minutes=MINUTES,
    )
    assert quickstart(options) == out / "report.html"
    assert not (out / "variants").exists()


@pytest.mark.parametrize("minutes", [0, -1, 2000])
def test_minutes_out_of_range_are_refused(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(ConfigError, match="minutes"):
        QuickstartOptions(out=tmp_path, minutes=minutes)


def test_a_genome_without_an_annotation_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["quickstart", "--genome", "x.fa", "--out", str(tmp_path / "q")])
    assert isinstance(done.exception, ConfigError)
    assert "--annotation" in str(done.exception)


def test_a_folder_that_is_no_quickstart_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not made by quickstart"):
        quickstart(QuickstartOptions(out=tmp_path, force=True))
    with pytest.raises(ArtifactError, match="exists already"):
        quickstart(QuickstartOptions(out=tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
