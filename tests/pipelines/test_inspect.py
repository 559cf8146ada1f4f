"""`dnassm inspect`: stores and runs, from their headers."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from dnassm.data.store import build_store
from dnassm.errors import ArtifactError
from dnassm.pipelines.cli import cli


@pytest.fixture
def store(tmp_path):
    (tmp_path / "a.fa").write_text("".join(f">c{i}\nACGU\n" for i in range(40)))
    return build_store([tmp_path / "a.fa"], tmp_path / "store")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    save_file(
        {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {"format": "dnassm-run", "version": 1, "model": {"d_model": 4, "pattern": "mm"}}
    (folder / "config.json").write_text(json.dumps(config))
    facts = {"command": "pretrain", "seed": 7, "created": "2026-01-01", "device": "cpu"}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "metrics.csv").write_text("step,train_bits,valid_bits\n1,2.0,\n2,1.9,\n")
    return folder


def invoke(*arguments):
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def test_a_store_shows_its_contigs_and_says_how_many_it_leaves_out(store):
    text = invoke(store.path).stdout
    assert "... 10 more, --json shows all" in text
    assert "RNA     40 U read as T" in text
    assert store.digest in text


def test_json_of_a_store_holds_every_contig_and_source(store):
    facts = json.loads(invoke(store.path, "--json", "--verify").stdout)
    assert facts["kind"] == "store"
    assert len(facts["contigs"]) == 40
    assert facts["contigs"][0]["sha256"] == store.contigs[0].sha256
    assert facts["sources"][0]["bytes"] > 0


def test_verify_refuses_a_changed_base(store):
    codes = bytearray((store.path / "codes.bin").read_bytes())
    codes[0] ^= 1
    (store.path / "codes.bin").write_bytes(codes)
    assert invoke(store.path).exit_code == 0
    assert isinstance(invoke(store.path, "--verify").exception, ArtifactError)


def test_a_run_shows_its_parameters_from_the_header_of_the_weights(run):
    facts = json.loads(invoke(run, "--json").stdout)
    assert (facts["kind"], facts["parameters"], facts["tensors"]) == ("run", 17, 2)
    assert facts["last_metrics"] == {"step": "2", "train_bits": "1.9"}
    text = invoke(run).stdout
    assert "d_model 4, pattern mm" in text
    assert "dnassm pretrain, 2026-01-01, cpu" in text


def test_an_unfinished_run_says_so(run):
    (run / "model.safetensors").unlink()
    assert "unfinished" in invoke(run).stdout
    assert json.loads(invoke(run, "--json").stdout)["finished"] is False


@pytest.mark.parametrize("kept", [4, 20, -3])
def test_cut_weights_are_refused(run, kept):
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    error = invoke(run).exception
    assert isinstance(error, ArtifactError)
    assert "no intact safetensors file" in str(error)


def test_what_is_neither_is_refused(tmp_path, store):
    for path, words in [
        (tmp_path / "nothing", "does not exist"),
        (tmp_path, "neither a genome store"),
        (tmp_path / "a.fa", "expected a genome store; make one with"),
    ]:
        error = invoke(path).exception
        assert isinstance(error, ArtifactError)
        assert words in str(error)


def test_inspecting_a_run_loads_no_torch(run):
    code = (
        "import sys; from pathlib import Path; from dnassm.inspection import describe\n"
        f"describe(Path({str(run)!r}))\n"
        "assert not {'torch', 'pydantic', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_belongs_to_the_store_is_said_to(store, tmp_path):
    (tmp_path / "a.bed").write_text("c0\t0\t4\nc39\t1\t2\n")
    done = CliRunner().invoke(
        cli, ["inspect", str(store.path), "--against", str(tmp_path / "a.bed")]
    )
    assert done.exit_code == 0, done.output
    assert "a.bed" in done.stdout


def test_a_file_of_another_genome_is_an_error_that_names_the_first_mismatch(store, tmp_path):
    vcf = tmp_path / "a.vcf"
    vcf.write_text(
        "##fileformat=VCFv4.3\n##contig=<ID=c0,length=5>\n"
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    )
    done = CliRunner().invoke(cli, ["inspect", str(store.path), "--against", str(vcf), "--json"])
    assert done.exit_code != 0
    assert "c0" in str(done.exception)
    assert json.loads(done.stdout)["against"]
