"""A run that is killed and resumed ends as if nothing had happened. Real processes and signals."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OBJECTIVES = {
    "next": (),
    "masked": ("objective.name=masked", "model.bidirectional=true", "training.seed=7"),
    "packed": (
        "objective.name=next",
        "data.tokenizer=kmer",
        "data.tokenizer.options.k=2",
        "data.packing=true",
        "data.soft_masked_weight=0.1",
    ),
}


@pytest.fixture(scope="module")
def options(store, tiny_settings):
    """Options of the command for a small run of an objective."""

    def of(objective: str, *more: str) -> list[str]:
        settings = (*tiny_settings, *OBJECTIVES[objective], *more)
        words = [word for setting in settings for word in ("--set", setting)]
        return ["pretrain", "--genome", str(store.path), "--no-evaluate", "--devices", "1", *words]

    return of


@pytest.fixture(scope="module")
def whole(dnassm, options, tmp_path_factory):
    """Uninterrupted runs by objective, each trained once."""
    runs: dict[str, Path] = {}

    def of(objective: str) -> Path:
        if objective not in runs:
            out = tmp_path_factory.mktemp("whole") / objective
            record = out.with_suffix(".batches")
            assert dnassm.run(*options(objective), "--out", out, record=record) == 0
            runs[objective] = out
        return runs[objective]

    return of


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what the clock decides."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {key: row[key] for key in row if key not in ("seconds", "tokens_per_s")}
            for row in csv.DictReader(file)
        ]


def batches(record: Path) -> dict[str, str]:
    """Step -> digest of its batch; a step that was taken twice must have seen one batch."""
    seen: dict[str, str] = {}
    for line in record.read_text().splitlines():
        step, batch = line.split()
        assert seen.setdefault(step, batch) == batch, f"step {step} saw two batches"
    return seen


def newest(run: Path) -> str:
    return max(path.name for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_killed_run_resumes_to_the_same_weights_rows_and_batches(
    dnassm, options, whole, objective, tmp_path
):
    out, record = tmp_path / "run", tmp_path / "batches"
    resume = ["pretrain", "--resume", "--no-evaluate", "--out", out]
    # In the middle of step 9; then between the two files of a checkpoint; then at any moment.
    start = [*options(objective), "--out", out]
    assert dnassm.run(*start, record=record, hook="kill_in_step:9") == -signal.SIGKILL
    assert newest(out) == "step-00000006"
    assert dnassm.run(*resume, record=record, hook="kill_in_save:4") == -signal.SIGKILL
    assert newest(out) == "step-00000012", "a checkpoint that was cut short must not count"
    process = dnassm.start(*resume, record=record)
    process.until(out / "checkpoints" / "step-00000018")
    time.sleep(random.Random(objective).uniform(0, 0.05))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    assert dnassm.run(*resume, record=record) == 0
    assert digest(out) == digest(whole(objective))
    assert rows(out) == rows(whole(objective))
    assert batches(record) == batches(whole(objective).with_suffix(".batches"))
    assert [path.name for path in (out / "checkpoints").iterdir() if "partial" in path.name] == []


def test_a_run_that_was_never_checkpointed_resumes_from_its_beginning(
    dnassm, options, whole, tmp_path
):
    out = tmp_path / "run"
    start = [*options("next"), "--out", out]
    assert dnassm.run(*start, hook="kill_in_step:2") == -signal.SIGKILL
    assert dnassm.run(*start, "--resume") == 0, "the same options may be given again"
    assert digest(out) == digest(whole("next"))


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(dnassm, options, whole, tmp_path):
    out = tmp_path / "my run"
    process = dnassm.start(*options("next", "data.workers=2"), "--out", out)
    process.until(out / "checkpoints" / "step-00000006")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: loader workers get it too
    code, said = process.wait(), process.stderr.read_text()
    assert code == 130, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("dnassm: stopped after step ")
    assert last.endswith(f"go on with: dnassm pretrain --resume --out '{out}'")
    step = int(last.split()[4])
    assert newest(out) == f"step-{step:08d}"
    resumed = dnassm.run("pretrain", "--resume", "--no-evaluate", "--out", out)
    assert resumed == 0
    assert digest(out) == digest(whole("next")), "neither the break nor the workers change weights"
    assert rows(out) == rows(whole("next"))


def test_a_second_ctrl_c_stops_at_once(dnassm, options, tmp_path):
    out = tmp_path / "run"
    process = dnassm.start(*options("next"), "--out", out, hook="hang_in_step:3")
    while "hangs" not in process.stderr.read_text():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.kill(process.pid, 0)  # the first one waits for the end of the step
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.read_text().splitlines()[-1] == "dnassm: stopped"


def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_can_go_on(
    dnassm, options, whole, tmp_path
):
    out = tmp_path / "run"
    process = dnassm.start(*options("next"), "--out", out, hook="disk_full_in_save:3")
    assert process.wait() == 1
    last = process.stderr.read_text().strip().splitlines()[-1]
    assert last.startswith("dnassm: error: ")
    assert "step-00000012: cannot be written" in last
    assert "--resume" in last
    assert newest(out) == "step-00000006"
    assert dnassm.run("pretrain", "--resume", "--no-evaluate", "--out", out) == 0
    assert digest(out) == digest(whole("next"))


def test_two_processes_train_together_and_one_of_them_writes(options, tmp_path):
    out = tmp_path / "run"
    start = options("next")
    start[start.index("--devices") + 1] = "2"
    # Lightning starts the further processes from argv, so that a fork will not do.
    done = subprocess.run(
        [sys.executable, "-m", "dnassm", *start, "--strategy", "ddp", "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(out)] == ["4", "8", "12", "16", "20", "24"]
    assert done.stdout.count("parameters") == 1
