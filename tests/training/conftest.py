"""A small genome, a small model, and real processes to kill."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dnassm.config import RunConfig
from dnassm.data.store import GenomeStore, build_store

TINY = (
    "model.d_model=16",
    "model.pattern=m",
    "model.dropout=0.1",
    "data.length=64",
    "training.batch_size=2",
    "training.max_steps=24",
    "training.log_every=4",
    "training.valid_every=8",
    "training.valid_windows=4",
    # Not a multiple of log_every: a row then begins before the checkpoint and ends after it.
    "training.checkpoint_every=6",
    "training.keep_checkpoints=3",
)


def write_fasta(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with path.open("w") as fasta:
        for name, size in (("one", 6000), ("two", 2500)):
            bases = rng.choice(list("ACGTacgtNR"), size, p=[0.22] * 4 + [0.02] * 4 + [0.03, 0.01])
            fasta.write(f">{name}\n{''.join(bases)}\n")
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    folder = tmp_path_factory.mktemp("genome")
    return build_store(
        [write_fasta(folder / "genome.fa")], folder / "store", split="blocks:size=500,every=5,gap=3"
    )


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    return RunConfig().override(TINY)


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    return TINY


@dataclasses.dataclass
class Process:
    """A forked `dnassm` that runs."""

    pid: int
    stdout: Path
    stderr: Path
    server: subprocess.Popen

    def wait(self) -> int:
        """Exit code; minus the signal when one killed it."""
        return json.loads(self.server.stdout.readline())

    def until(self, path: Path) -> None:
        """Wait for a file to appear."""
        limit = time.monotonic() + 120
        while not path.exists():
            assert time.monotonic() < limit, f"{path} never came: {self.stderr.read_text()}"
            time.sleep(0.005)


class Dnassm:
    """Starts the command line as real processes, torch imported once for all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, *argv: object, hook: str = "", record: Path | None = None) -> Process:
        self.count += 1
        stdout, stderr = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        stdout.touch()
        stderr.touch()
        job = {
            "argv": [str(word) for word in argv],
            "hook": hook,
            "record": str(record or ""),
            "stdout": str(stdout),
            "stderr": str(stderr),
        }
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return Process(json.loads(self.server.stdout.readline()), stdout, stderr, self.server)

    def run(self, *argv: object, hook: str = "", record: Path | None = None) -> int:
        return self.start(*argv, hook=hook, record=record).wait()


@pytest.fixture(scope="session")
def dnassm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dnassm]:
    started = Dnassm(tmp_path_factory.mktemp("processes"))
    yield started
    started.server.stdin.close()
    started.server.stdout.close()
    started.server.kill()
    started.server.wait()
