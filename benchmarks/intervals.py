"""Seconds of the algebra of intervals, from lists of intervals to lists, on one core.

    taskset -c 0 python -m benchmarks.intervals --out benchmarks/results/intervals.json

Random intervals of 1 to 2,000 bases on contigs of 100 Mb. The import of the library is timed by
itself, in the same process, before anything else. The best of several runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.data.interval import Interval

CASES = [(100_000, 24), (1_000_000, 24), (10_000, 5_000)]
"""Intervals, contigs."""
LENGTH = 100_000_000


def intervals(count: int, contigs: int, seed: int) -> list[Interval]:
    """So many at random places, in no order."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, LENGTH - 2_000, count).tolist()
    widths = rng.integers(1, 2_001, count).tolist()
    on = rng.integers(0, contigs, count).tolist()
    return [
        Interval(f"chr{contig}", start, start + width)
        for contig, start, width in zip(on, starts, widths, strict=True)
    ]


def best_of(repeats: int, call: Callable[[], object]) -> float:
    """Seconds by the clock of the fastest call."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return round(min(found), 4)


def measure(count: int, contigs: int, repeats: int) -> dict[str, Any]:
    """Every operation on lists of `count` intervals."""
    from dnassm.data.intervals import intersect, merge, nearest, subtract

    one, other = (intervals(count, contigs, seed) for seed in (0, 1))
    return {
        "intervals": count,
        "contigs": contigs,
        "merge_s": best_of(repeats, lambda: merge(one)),
        "intersect_s": best_of(repeats, lambda: intersect(one, other)),
        "subtract_s": best_of(repeats, lambda: subtract(one, other)),
        "nearest_s": best_of(repeats, lambda: nearest(one, other)),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    header = describe()
    begin = time.perf_counter()
    import bioframe  # noqa: F401

    result = {
        "what": "algebra of intervals, seconds",
        **header,
        "import_s": round(time.perf_counter() - begin, 3),
        "results": [measure(*case, options.repeats) for case in CASES],
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
