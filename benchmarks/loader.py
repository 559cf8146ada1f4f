"""Measure how many tokens per second the data loader delivers, alone, and follow its memory.

Usage: ``python -m benchmarks.loader [--out benchmarks/results/loader.json]``. A random genome of
16 Mb with runs of N is built in a temporary folder, so that the numbers need no download; half of
the windows are read on the minus strand. Each number is the best of several rounds in one process.

Memory is followed over an epoch of 512 windows of 1 Mb of a genome 32 times as large. `held_mb` is
what the loader holds: the anonymous and the shared memory of this process and its workers, a page
that several have counted once, and what of the shared memory is on its way between them.
`mapped_mb` are pages of the store that were looked at; they are the disk cache's, which takes them
back, and grow until the whole store was seen. `slope_kb_per_batch` is the least-squares line
through `held_mb` after the first eighth of the epoch, in which the queues fill.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.data.windows import WindowDataset, make_loader

GENOME_BASES = 1 << 24
BATCH_TOKENS = {1024: 1 << 16, 131072: 1 << 19, 1 << 20: 1 << 20}
TOKENS_PER_ROUND = {1024: 1 << 26, 131072: 1 << 26, 1 << 20: 1 << 28}
ROUNDS = 3
EPOCH_LENGTH, EPOCH_CONTIGS, SAMPLE_EVERY = 1 << 20, 32, 8
STEP_TOKENS_PER_S = 10_000
"""What a training step of d_model 128 and 4 layers consumes on two cores; 20 times is asked for."""


def random_genome(folder: Path, *, contigs: int = 1) -> GenomeStore:
    """Build a store of a random contig with a run of N in every million bases, so many times."""
    rng = np.random.default_rng(0)
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)[rng.integers(0, 4, GENOME_BASES)]
    for start in range(0, GENOME_BASES, 1_000_000):
        bases[start : start + 10_000] = ord("N")
    folder.mkdir()
    fasta = folder / "random.fa"
    with fasta.open("wb") as file:
        for number in range(contigs):
            file.write(b">random%d\n%b\n" % (number, bases.tobytes()))
    return build_store([fasta], folder / "store")


def measure(store: GenomeStore, length: int, workers: int) -> dict[str, float]:
    """Tokens per second over `ROUNDS` rounds of `TOKENS_PER_ROUND`; workers are started before."""
    sampler = SAMPLERS["uniform"](store, split="train", length=length, rc_probability=0.5)
    dataset = WindowDataset(store, TOKENIZERS["single"](), sampler, seed=0)
    batch_size = BATCH_TOKENS[length] // length
    batches = TOKENS_PER_ROUND[length] // BATCH_TOKENS[length]
    loader = make_loader(dataset, batch_size=batch_size, batches=batches, workers=workers)
    seconds = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        for batch in loader:
            if batch.tokens.shape != (batch_size, length):
                raise RuntimeError(
                    f"expected {(batch_size, length)}, got {tuple(batch.tokens.shape)}"
                )
        seconds.append(time.perf_counter() - begin)
    # The first round starts workers and warms caches.
    best = TOKENS_PER_ROUND[length] / min(seconds[1:])
    return {
        "length": length,
        "batch_size": batch_size,
        "workers": workers,
        "tokens_per_s": round(best),
        "times_the_training_step": round(best / STEP_TOKENS_PER_S),
    }


def follow_memory(store: GenomeStore, workers: int) -> dict[str, Any]:
    """Memory during one epoch of windows of `EPOCH_LENGTH`, one per batch."""
    sampler = SAMPLERS["uniform"](store, split="train", length=EPOCH_LENGTH, rc_probability=0.5)
    dataset = WindowDataset(store, TOKENIZERS["single"](), sampler, seed=0)
    loader = make_loader(dataset, batch_size=1, workers=workers)
    others_mb = _shared_mb()
    samples = [
        {"batch": number} | _memory_mb(others_mb)
        for number, _ in enumerate(loader)
        if number % SAMPLE_EVERY == 0
    ]
    settled = [sample for sample in samples if sample["batch"] >= len(dataset) // 8]
    held = np.array([sample["held_mb"] for sample in settled])
    slope, _ = np.polyfit([sample["batch"] for sample in settled], held, 1)
    return {
        "length": EPOCH_LENGTH,
        "workers": workers,
        "batches": len(dataset),
        "slope_kb_per_batch": round(float(slope) * 1e3, 2),
        "held_mb_least_and_most": [float(held.min()), float(held.max())],
        "samples": {name: [sample[name] for sample in samples] for name in samples[0]},
    }


def _memory_mb(others_mb: float) -> dict[str, float]:
    """Memory of this process and its workers: proportional shares, and all that each has mapped."""
    workers = [child.pid for child in multiprocessing.active_children()]
    processes = [_smaps_mb(process) for process in (os.getpid(), *workers)]
    share = {kind: sum(p[f"Pss_{kind}"] for p in processes) for kind in ("Anon", "File")}
    return {
        "held_mb": round(share["Anon"] + _shared_mb() - others_mb, 1),
        "mapped_mb": round(share["File"], 1),
        "rss_mb": round(processes[0]["Rss"], 1),
        "workers_rss_mb": round(sum(p["Rss"] for p in processes[1:]), 1),
    }


def _smaps_mb(process: int | None) -> dict[str, float]:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    return {line.partition(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


def _shared_mb() -> float:
    """Shared memory in use by anybody, mapped or on its way through a socket."""
    room = os.statvfs("/dev/shm")
    return (room.f_blocks - room.f_bfree) * room.f_frsize / 1e6


def main() -> None:
    """Measure every length and number of workers; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file; standard output without it")
    out = parser.parse_args().out
    result: dict[str, Any] = {
        "what": "data loader alone: tokens/s, int64 (B, L), uniform sampler, half minus strand",
        "needed_tokens_per_s": 20 * STEP_TOKENS_PER_S,
        **describe(),
    }
    with tempfile.TemporaryDirectory() as folder:
        store = random_genome(Path(folder) / "speed")
        rows = []
        for length in BATCH_TOKENS:
            for workers in (0, 1, 2):
                rows.append(measure(store, length, workers))
                sys.stderr.write(f"{rows[-1]}\n")
        store = random_genome(Path(folder) / "epoch", contigs=EPOCH_CONTIGS)
        result["memory_over_an_epoch"] = [follow_memory(store, workers) for workers in (0, 1, 2)]
    result["results"] = rows
    if out is None:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        write_json(out, result)


if __name__ == "__main__":
    main()
