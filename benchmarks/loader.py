"""Measure how many tokens per second the data loader delivers, alone.

Usage: ``python -m benchmarks.loader [--out benchmarks/results/loader.json]``. A random genome of
16 Mb with runs of N is built in a temporary folder, so that the numbers need no download; half of
the windows are read on the minus strand. Each number is the best of several rounds in one process.
`grown_mb`: private memory of the loader and its workers after the last round less that after the
first.
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
STEP_TOKENS_PER_S = 10_000
"""What a training step of d_model 128 and 4 layers consumes on two cores; 20 times is asked for."""


def random_genome(folder: Path) -> GenomeStore:
    """Build a store of one random contig with a run of N in every million bases."""
    rng = np.random.default_rng(0)
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)[rng.integers(0, 4, GENOME_BASES)]
    for start in range(0, GENOME_BASES, 1_000_000):
        bases[start : start + 10_000] = ord("N")
    fasta = folder / "random.fa"
    fasta.write_bytes(b">random\n" + bases.tobytes() + b"\n")
    return build_store([fasta], folder / "store")


def measure(store: GenomeStore, length: int, workers: int) -> dict[str, float]:
    """Tokens per second over `ROUNDS` rounds of `TOKENS_PER_ROUND`; workers are started before."""
    sampler = SAMPLERS["uniform"](store, split="train", length=length, rc_probability=0.5)
    dataset = WindowDataset(store, TOKENIZERS["single"](), sampler, seed=0)
    batch_size = BATCH_TOKENS[length] // length
    batches = TOKENS_PER_ROUND[length] // BATCH_TOKENS[length]
    loader = make_loader(dataset, batch_size=batch_size, batches=batches, workers=workers)
    seconds, resident = [], []
    for _ in range(ROUNDS + 1):
        resident.append(_resident_mb())
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
        "grown_mb": round(_resident_mb() - resident[1], 1),
    }


def _resident_mb() -> float:
    """Memory of this process and of its workers, pages that they share counted once each."""
    total = 0.0
    children = [child.pid for child in multiprocessing.active_children()]
    for process in (os.getpid(), *children):
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
        (line,) = (line for line in text.splitlines() if line.startswith("Pss_Anon:"))
        total += int(line.split()[1]) / 1e3
    return total


def main() -> None:
    """Measure every length and number of workers; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file; standard output without it")
    out = parser.parse_args().out
    result: dict[str, object] = {
        "what": "data loader alone: tokens/s, int64 (B, L), uniform sampler, half minus strand",
        "needed_tokens_per_s": 20 * STEP_TOKENS_PER_S,
        **describe(),
    }
    with tempfile.TemporaryDirectory() as folder:
        store = random_genome(Path(folder))
        rows = []
        for length in BATCH_TOKENS:
            for workers in (0, 1, 2):
                rows.append(measure(store, length, workers))
                sys.stderr.write(f"{rows[-1]}\n")
    result["results"] = rows
    if out is None:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        write_json(out, result)


if __name__ == "__main__":
    main()
