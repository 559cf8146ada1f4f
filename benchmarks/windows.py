"""Random windows out of a genome store: microseconds per window, beside zarr.

    python -m benchmarks.windows [--out benchmarks/results/windows.json]

A genome of random bases is tokenized and read at random places, hot in memory: 1 kb and 1 Mb as
codes, 1 Mb as int64 tokens of the single-base tokenizer. zarr holds the same codes in chunks of
1 Mi bases with its default compression. In every round each contender runs once; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from benchmarks.tokenize_fasta import write_fasta
from dnassm.artifact import write_json
from dnassm.data.interval import Interval
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizers.single import SingleBaseTokenizer

CASES = {"1 kb": (1_000, 2_000), "1 Mb": (1_000_000, 20), "1 Mb as int64 tokens": (1_000_000, 20)}
"""Bases of a window, and windows of a round."""


def contenders(store: GenomeStore, folder: Path) -> dict[str, Callable[[Interval], object]]:
    """How each reads one interval; zarr only if it is installed."""
    tokenizer = SingleBaseTokenizer()
    found: dict[str, Callable[[Interval], object]] = {
        "store": store.fetch,
        "store, tokens": lambda interval: tokenizer.encode_codes(store.fetch(interval)),
    }
    try:
        import zarr
    except ImportError:
        print("zarr is not installed: without it", file=sys.stderr)
        return found
    offsets = {contig.name: contig.offset for contig in store.contigs}
    codes = np.memmap(store.path / "codes.bin", dtype=np.uint8, mode="r")
    array = zarr.create_array(folder / "zarr", shape=codes.shape, dtype="u1", chunks=(1 << 20,))
    array[:] = codes

    def read(interval: Interval) -> object:
        at = offsets[interval.contig]
        return array[at + interval.start : at + interval.end]

    return found | {"zarr": read}


def measure(store: GenomeStore, folder: Path, rounds: int) -> list[dict[str, object]]:
    """Microseconds per window of every case and contender."""
    readers = contenders(store, folder)
    generator = np.random.default_rng(0)
    rows = []
    for case, (size, count) in CASES.items():
        names = ["store, tokens"] if "tokens" in case else [n for n in readers if "tokens" not in n]
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            windows = []
            for _ in range(count):
                contig = store.contigs[generator.integers(len(store.contigs))]
                start = int(generator.integers(contig.length - size))
                windows.append(Interval(contig.name, start, start + size))
            for name in names:
                begin = time.perf_counter()
                for window in windows:
                    readers[name](window)
                times[name].append((time.perf_counter() - begin) / count * 1e6)
        for name, all_us in times.items():
            row = {"case": case, "reader": name, "us": round(statistics.median(all_us), 2)}
            rows.append(row | {"all_us": [round(us, 2) for us in all_us]})
    return rows


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_fasta(folder / "genome.fa", arguments.megabytes, 60)
        store = build_store([folder / "genome.fa"], folder / "store")
        rows = measure(store, folder, arguments.rounds)
    result = {"what": "random windows of a genome store, us", **describe(), "results": rows}
    for row in rows:
        print(row["case"], row["reader"], row["us"], "us", file=sys.stderr)
    if arguments.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
