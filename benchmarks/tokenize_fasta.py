"""Speed and memory of `dnassm tokenize` on one core: MB of FASTA per second, peak RSS, stages.

    taskset -c 0 python -m benchmarks.tokenize_fasta --out benchmarks/results/tokenize.json

Every measurement is a process of its own with one thread. `cpu` is the time the process computed,
`wall` includes waiting for the disk (the store is flushed to it) and for other programs.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import ROOT, describe

CONTIGS = 5
SOFT_MASKED, N_RUN = (0.30, 0.60), (0.90, 0.93)
"""Stretches of each contig, as fractions of its length."""


def write_fasta(path: Path, megabytes: int, width: int) -> None:
    """A genome of random bases, 30 % soft-masked, 3 % N, with lines of one width."""
    rng = np.random.default_rng(0)
    rows = megabytes * 1_000_000 // CONTIGS // (width + 1)
    with path.open("wb") as file:
        for number in range(CONTIGS):
            file.write(f">chr{number}\n".encode())
            bases = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, rows * width, np.uint8)]
            start, end = (int(part * bases.size) for part in SOFT_MASKED)
            bases[start:end] |= 0x20
            start, end = (int(part * bases.size) for part in N_RUN)
            bases[start:end] = ord("N")
            lines = np.full((rows, width + 1), ord("\n"), np.uint8)
            lines[:, :width] = bases.reshape(rows, width)
            file.write(lines.tobytes())


def read_only(path: Path, folder: Path) -> None:
    """Read the file into one buffer: the floor of everything."""
    buffer = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def parse(path: Path, folder: Path) -> None:
    """Read, find headers, drop line ends, encode, count; no digests, nothing written."""
    from dnassm.data.fasta import read_fasta

    for _ in read_fasta(path):
        pass


def _hash_all(path: Path, kind: str) -> None:
    digest = hashlib.new(kind, usedforsecurity=False)
    buffer = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])


def read_and_md5(path: Path, folder: Path) -> None:
    """MD5 of the file."""
    _hash_all(path, "md5")


def read_and_sha256(path: Path, folder: Path) -> None:
    """Digest of the file with SHA-256."""
    _hash_all(path, "sha256")


def tokenize(path: Path, folder: Path) -> None:
    """All of it, flushed to the disk."""
    from dnassm.data.store import build_store

    build_store([path], folder / "store")


STAGES: dict[str, Callable[[Path, Path], None]] = {
    f.__name__: f for f in (tokenize, read_only, parse, read_and_md5, read_and_sha256)
}


def measure(stage: str, path: Path) -> None:
    """In the child process: run one stage and print what it took."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        STAGES[stage](path, Path(folder))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    # ru_maxrss would be that of the parent, which a child inherits
    status = Path("/proc/self/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_rss_mb": peak_kib * 1024 / 1e6}))


def best_of(stage: str, path: Path, megabytes: float, repeats: int) -> dict[str, float]:
    """The run with the least CPU time, with its rates in MB of plain FASTA per second."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.tokenize_fasta",
        "--stage",
        stage,
        "--input",
        str(path),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [
        json.loads(
            subprocess.run(
                command, capture_output=True, check=True, env=environment, cwd=ROOT
            ).stdout
        )
        for _ in range(repeats)
    ]
    best = min(runs, key=lambda run: run["cpu_s"])
    return {
        "mb_per_cpu_s": round(megabytes / best["cpu_s"], 1),
        "mb_per_wall_s": round(megabytes / min(run["wall_s"] for run in runs), 1),
        "cpu_ns_per_byte": round(best["cpu_s"] * 1000 / megabytes, 3),
        "peak_rss_mb": round(max(run["peak_rss_mb"] for run in runs), 1),
    }


def run(megabytes: int, repeats: int, folder: Path) -> dict[str, object]:
    """Measure every case in `folder`."""
    results: dict[str, object] = {**describe(), "megabytes": megabytes, "cases": {}}
    cases: dict[str, object] = results["cases"]  # type: ignore[assignment]
    for width in (60, 80):
        path = folder / f"lines{width}.fa"
        write_fasta(path, megabytes, width)
        size_mb = path.stat().st_size / 1e6
        cases[f"plain, {width} columns"] = {
            stage: best_of(stage, path, size_mb, repeats) for stage in STAGES
        }
    packed = folder / "lines60.fa.gz"
    with (folder / "lines60.fa").open("rb") as plain, gzip.open(packed, "wb", 1) as file:
        while block := plain.read(1 << 20):
            file.write(block)
    size_mb = (folder / "lines60.fa").stat().st_size / 1e6
    cases["gzip, 60 columns, MB of content"] = {
        stage: best_of(stage, packed, size_mb, repeats) for stage in ("tokenize", "parse")
    }
    return results


def main() -> None:
    """Parse the command line and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        measure(arguments.stage, arguments.input)
        return
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(run(arguments.megabytes, arguments.repeats, Path(folder)), indent=2)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
