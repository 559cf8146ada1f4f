"""`dnassm embed`: three kinds of input, three formats, mistakes in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dnassm.config import ModelConfig
from dnassm.data.interval import Interval
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.embedding import embed, tile
from dnassm.errors import ArtifactError, ConfigError, DnassmError, GenomeError
from dnassm.model import DNAModel
from dnassm.pipelines.embed import command

TOL = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    DNAModel(ModelConfig(d_model=8, pattern="m")).save_pretrained(folder)
    TOKENIZERS["single"]().save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genome")
    rng = np.random.default_rng(0)
    with (folder / "g.fa").open("w") as file:
        for name, length in (("I", 500), ("II", 300), ("Mito", 40)):
            file.write(f">{name}\n{''.join(rng.choice(list('ACGT'), length))}\n")
    return build_store([folder / "g.fa"], folder / "store", split="halves")


def invoke(*arguments):
    """Output of a call that succeeds; a DnassmError comes through, as `main` would see it."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if isinstance(result.exception, DnassmError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_windows_become_rows_with_coordinates(run, store, tmp_path):
    out = tmp_path / "x.npy"
    options = ["--genome", store.path, "--windows", "100:50", "--out", out, "--json"]
    facts = json.loads(invoke(run, *options))
    rows = [line.split("\t") for line in (tmp_path / "x.bed").read_text().splitlines()[2:]]
    assert facts["rows"] == len(rows) == 9 + 5
    assert rows[1][:3] == ["I", "50", "150"]
    assert rows[-1][:3] == ["II", "200", "300"]
    assert {row[7] for row in rows} == {"train", "test", "."}  # "." lies across a border
    assert facts["genome"] == store.digest
    store = GenomeStore.open(store.path)
    want = embed(run, genome=store, intervals=[Interval("I", 50, 150)]).values[0]
    np.testing.assert_allclose(np.load(out)[1], want, **TOL)


def test_windows_of_a_split_lie_inside_it(store):
    windows = tile(store, 100, 100, split="test")
    assert windows == [
        *(Interval("I", 250, 350), Interval("I", 350, 450), Interval("II", 150, 250))
    ]
    with pytest.raises(ConfigError, match="nothing in split 'valid'; it has train, test"):
        tile(store, 100, 100, split="valid")
    with pytest.raises(GenomeError, match=r"no window of 1000 bp fits.*500 bp"):
        tile(store, 1000, 100)


def test_a_bed_row_is_read_on_its_strand_and_keeps_name_and_label(run, store, tmp_path):
    bed = tmp_path / "in.bed"
    bed.write_text(
        "#chrom\tstart\tend\tname\tscore\tstrand\tlabel\n"
        "II\t10\t60\tone\t0\t-\tpromoter\nI\t0\t30\ttwo\t0\t+\tother\n"
    )
    anndata = pytest.importorskip("anndata")
    invoke(run, "--genome", store.path, "--bed", bed, "--out", tmp_path / "x.h5ad")
    table = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert list(table.obs_names) == ["II:10-60(-)", "I:0-30(+)"]
    assert list(table.obs["name"]) == ["one", "two"]
    assert list(table.obs["label"]) == ["promoter", "other"]
    minus = [Interval("II", 10, 60, "-")]
    want = embed(run, genome=GenomeStore.open(store.path), intervals=minus).values[0]
    np.testing.assert_allclose(table.X[0], want, **TOL)


def test_the_bed_twin_can_be_embedded_again(run, store, tmp_path):
    options = ["--genome", store.path, "--out"]
    invoke(run, "--windows", "100", *options, tmp_path / "a.npy")
    invoke(run, "--bed", tmp_path / "a.bed", *options, tmp_path / "b.npy")
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), **TOL)


def test_a_fasta_of_mixed_lengths_is_embedded(run, tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGTACGTAA\n>b\nAC\n>c\nacgtnn\n")
    text = invoke(run, "--fasta", tmp_path / "x.fa", "--out", tmp_path / "x.npy")
    assert "3 rows, 3 x 8 float32" in text
    want = embed(run, ["AC"]).values[0]
    np.testing.assert_allclose(np.load(tmp_path / "x.npy")[1], want, **TOL)


@pytest.mark.parametrize(
    ("bed", "words"),
    [
        ("I\t0\t10\nI\t490\t501\n", r"in\.bed:2: contig 'I' ends at 500 bp.*\[490, 501\)"),
        ("I\t5\t5\n", r"in\.bed:1: .*is empty"),
        ("chrI\t0\t5\n", r"in\.bed:1: .*names chrI, the genome has I, II, Mito.*'chrI'.*'I' here"),
        ("I\t0\t5\n2\t0\t5\n", r"in\.bed:2: .*\(1 of 2 rows.*'2' there is 'II' here"),
        ("chrM\t0\t5\n", r"'chrM' there is 'Mito' here"),
        ("chrUn\t0\t5\n", "is this the genome of that file"),
    ],
)
def test_an_interval_that_does_not_fit_the_genome_is_named(run, store, tmp_path, bed, words):
    (tmp_path / "in.bed").write_text(bed)
    with pytest.raises(GenomeError, match=words):
        invoke(
            *(run, "--genome", store.path, "--bed", tmp_path / "in.bed"),
            *("--out", tmp_path / "x.npy"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.bed"]


def test_an_input_is_never_replaced(run, store, tmp_path):
    bed = tmp_path / "x.bed"
    bed.write_text("I\t0\t10\n")
    with pytest.raises(ArtifactError, match="would replace an input"):
        invoke(*(run, "--genome", store.path, "--bed", bed, "--out", tmp_path / "x.npy"), "--force")
    assert bed.read_text() == "I\t0\t10\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "expected one source"),
        (["--fasta", "a.fa", "--windows", "10"], "expected one source"),
        (["--windows", "10"], "expected one source"),
        (["--fasta", "a.fa", "--split", "test"], "--split goes with --windows"),
    ],
)
def test_a_source_must_be_one(run, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        invoke(run, *options, "--out", tmp_path / "x.npy")


def test_an_unknown_suffix_is_refused_before_any_work(tmp_path):
    (tmp_path / "x.fa").write_text(">a\nACGT\n")
    with pytest.raises(ConfigError, match=r"no format for '\.csv'; have \.h5ad, \.npy, \.parquet"):
        invoke("no-such-run", "--fasta", tmp_path / "x.fa", "--out", tmp_path / "x.csv")


def test_yeast_names_of_a_bed_file_are_explained(run, real_data, tmp_path):
    folder = real_data / "yeast_s288c"
    store = build_store([next(folder.glob("*.fa.gz"))], tmp_path / "yeast")
    bed = folder / "Scer_transcripts_w_verifiedORFs.bed.gz"
    with pytest.raises(GenomeError, match="'chrI' there is 'I' here"):
        invoke(run, "--genome", store.path, "--bed", bed, "--out", tmp_path / "x.npy")
