"""`dnassm pretrain`, from a FASTA file or a store to a run, and what it says to a mistake."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from dnassm.config import RunConfig
from dnassm.data.store import GenomeStore, build_store
from dnassm.pipelines.cli import main
from dnassm.training import command, evaluate
from dnassm.training.command import Request, requested_config
from dnassm.training.learner import Learner

SPLIT = "blocks:size=500,every=5"
SETTINGS = (
    "model.d_model=16",
    "model.pattern=m",
    "data.length=64",
    "training.batch_size=2",
    "training.log_every=2",
    "training.valid_windows=2",
)
SMALL = ["--devices", "1", *(word for setting in SETTINGS for word in ("--set", setting))]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("fasta") / "genome.fa"
    bases = np.random.default_rng(0).choice(list("ACGT"), 6000)
    path.write_text(">chr\n" + "".join(bases) + "\n")
    return path


@pytest.fixture(scope="module")
def store(fasta):
    return build_store([fasta], fasta.with_name("store"), split=SPLIT)


@pytest.fixture
def dnassm(monkeypatch, capsys):
    """Runs the command line as a shell would: exit code, stdout, stderr."""
    monkeypatch.setattr(evaluate, "MARKOV_ORDERS", range(1, 3))
    monkeypatch.setattr(evaluate, "_MIXTURE_ORDERS", (2,))

    def run(*argv: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dnassm", "pretrain", *map(str, argv)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def refused(said: tuple[int, str, str]) -> str:
    """The one line of a mistake."""
    code, out, err = said
    assert code == 1, err
    assert out == ""
    *progress, last = err.splitlines()
    assert last.startswith("dnassm: error: ")
    assert not any(line.startswith(("dnassm", "Traceback")) for line in progress)
    return last


def test_a_fasta_becomes_a_store_a_run_and_a_table(dnassm, fasta, tmp_path):
    out = tmp_path / "run"
    options = ["--genome", fasta, "--split", SPLIT, *SMALL, "--max-steps", 4, "--out", out]
    code, table, said = dnassm(*options)
    assert code == 0, said
    assert GenomeStore.open(tmp_path / "run.genome").lengths == {"chr": 6000}
    assert (out / "model.safetensors").is_file()
    lines = table.splitlines()
    assert lines[0].startswith(f"{out}: ")
    assert lines[2].split() == ["model", "bits", "per", "base"]
    assert lines[3].startswith("this model")
    assert lines[4].startswith("Markov order 1")
    assert lines[-1].endswith("'test' split, never seen in training")
    assert "pretrain 512/512 tokens" in said
    # Once more: the same store serves, and --force replaces the run.
    made = (tmp_path / "run.genome" / "store.json").stat().st_mtime_ns
    assert "pass --force" in refused(dnassm(*options))
    assert dnassm(*options, "--force", "--no-evaluate")[0] == 0
    assert (tmp_path / "run.genome" / "store.json").stat().st_mtime_ns == made


def test_a_store_beside_the_run_of_another_split_is_not_taken(dnassm, fasta, tmp_path):
    build_store([fasta], tmp_path / "run.genome", split="halves")
    options = ["--genome", fasta, "--split", SPLIT, *SMALL, "--max-steps", 1]
    said = refused(dnassm(*options, "--out", tmp_path / "run"))
    assert "was made from another file or with another split" in said
    assert not (tmp_path / "run").exists()


def test_json_is_alone_on_stdout(dnassm, store, tmp_path):
    out = tmp_path / "run"
    code, printed, _ = dnassm(
        "--genome", store.path, *SMALL, "--max-tokens", 600, "--out", out, "--json"
    )
    facts = json.loads(printed)
    assert code == 0
    assert set(facts) == {"run", "parameters", "evaluation"}
    assert facts["evaluation"]["bits_per_base"] > 0
    config = json.loads((out / "config.json").read_text())
    assert config["training"]["max_steps"] == 4, "600 tokens are four whole batches of 128"


def test_ctrl_c_then_resume_without_repeating_any_option(dnassm, store, tmp_path, monkeypatch):
    out = tmp_path / "run"
    step = Learner.step

    def interrupted(self, tokens, *, number, rate):
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, tokens, number=number, rate=rate)

    start = ["--genome", store.path, *SMALL, "--max-steps", 6, "--out", out, "--no-evaluate"]
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", interrupted)
        code, printed, said = dnassm(*start)
    assert (code, printed) == (130, "")
    last = said.splitlines()[-1]
    assert last == (
        f"dnassm: stopped after step 3 of 6; go on with: dnassm pretrain --resume --out {out}"
    )
    assert "unfinished run; go on with --resume" in refused(dnassm(*start))
    code, printed, said = dnassm("--resume", "--out", out)
    assert code == 0, said
    assert "this model" in printed
    # A finished run says so, and its evaluation is read, not measured again.
    monkeypatch.setattr(command, "evaluate_run", None)
    code, again, said = dnassm("--resume", "--out", out)
    assert (code, again) == (0, printed)
    assert "is finished; nothing to resume" in said
    assert "training.max_steps=6, asked for 9" in refused(
        dnassm("--resume", "--max-steps", 9, "--out", out)
    )


def test_a_misspelt_key_of_a_config_file_is_answered_with_the_nearest(dnassm, store, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[training]\nmax_stepz = 10\n")
    said = refused(dnassm("--genome", store.path, "--config", file, "--out", tmp_path / "run"))
    assert str(file) in said
    assert "Did you mean 'max_steps'?" in said
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "preset": (["--model", "mamba-tinny"], "Did you mean 'mamba-tiny'?"),
    "setting": (["--set", "training.lrr=1"], "no setting training.lrr"),
    "two models": (["--model", "mamba-tiny", "--config", "x.toml"], "give one of them"),
    "two lengths": (["--max-tokens", 9, "--max-steps", 9], "give one of them"),
    "no tokens": (["--max-tokens", 0], "--max-tokens: expected at least 1, got 0"),
    "no time": (["--minutes", 0], "minutes: expected a number above 0, got 0"),
    "split of a store": (["--split", "halves"], "--split is for FASTA files"),
    "resume and force": (["--resume", "--force"], "give one of them"),
    "nothing to resume": (["--resume"], "holds no run to resume"),
    "devices": (["--devices", "many"], "--devices: expected auto or a number"),
    "strategy": (["--strategy", "fsdp"], "--strategy: expected auto or ddp"),
    "next needs causal": (["--set", "model.bidirectional=true"], "next needs a causal model"),
}


@pytest.mark.parametrize(("options", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(dnassm, store, tmp_path, options, words):
    out = tmp_path / "run"
    assert words in refused(dnassm("--genome", store.path, *options, "--out", out))
    assert not out.exists()


def test_a_genome_that_is_missing_is_named(dnassm, tmp_path):
    out = tmp_path / "run"
    assert "nothing.fa does not exist" in refused(dnassm("--genome", "nothing.fa", "--out", out))
    assert "--genome is missing" in refused(dnassm("--out", out))
    (tmp_path / "empty").mkdir()
    said = refused(dnassm("--genome", tmp_path / "empty", "--out", out))
    assert "is no genome store" in said
    assert not out.exists()


def test_a_protein_fasta_leaves_neither_store_nor_run(dnassm, tmp_path):
    (tmp_path / "p.fa").write_text(">p\nMKVLITGEFLQERS\n")
    refused(dnassm("--genome", tmp_path / "p.fa", "--split", SPLIT, "--out", tmp_path / "run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.fa"]


def test_an_unknown_objective_is_a_usage_error(dnassm, tmp_path):
    code, _, said = dnassm("--objective", "nxt", "--out", tmp_path / "run")
    assert code == 2
    assert "'next', 'masked'" in said


def test_the_clock_alone_ends_a_run_of_minutes_unless_a_number_of_steps_is_given(tmp_path):
    out = Path("run")
    file = tmp_path / "run.toml"
    file.write_text("[training]\nmax_steps = 10\n")

    def steps(**options) -> int:
        return requested_config(Request(out=out, **options)).training.max_steps

    assert steps() == RunConfig.preset("mamba-tiny").training.max_steps
    assert steps(minutes=1) == 10**9
    assert steps(minutes=1, settings=("training.max_steps=7",)) == 7
    assert steps(minutes=1, config=file) == 10
    assert steps(max_tokens=8 * 1024 * 5) == 5
