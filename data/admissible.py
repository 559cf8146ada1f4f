"""Where a window may start: inside its interval, with few enough unknown bases.

The set is computed once and exactly, so that a sampler draws from it directly: no rejected draws,
no loop that may not end, and a genome without any window is an error before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import BASE, T
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.runs import Positions, Runs
from dnassm.errors import ConfigError, GenomeError

_CHUNK_BASES = 1 << 22


def max_unknown(length: int, max_n_fraction: float | None) -> int:
    """Most unknown bases that a window of `length` may hold: all but one when no fraction is given.

    Raises:
        ConfigError: the fraction lies outside of [0, 1].
    """
    if max_n_fraction is None:
        return length - 1
    if not 0.0 <= max_n_fraction <= 1.0:
        raise ConfigError(f"max_n_fraction: expected a number in [0, 1], got {max_n_fraction}")
    return min(int(max_n_fraction * length), length - 1)


def unknown_runs(store: Genome, interval: Interval) -> Runs:
    """Runs of bases that are not A, C, G or T inside `interval`; read in pieces of 4 Mi bases."""
    return Runs.of_mask(_unknown_masks(store, interval))


def _unknown_masks(
    store: Genome, interval: Interval
) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    counts = store.contig(interval.contig).counts
    if counts["N"] + counts["iupac"] == 0:
        return
    for start in range(interval.start, interval.end, _CHUNK_BASES):
        end = min(start + _CHUNK_BASES, interval.end)
        codes = store.fetch(Interval(interval.contig, start, end))
        yield start, (codes & BASE) > T


def admissible_starts(runs: Runs, interval: Interval, length: int, unknown: int) -> Positions:
    """Stretches (S, 2) ``[first, stop)`` of the starts of windows with few enough unknown bases.

    A window of `length` stays inside `interval` and holds at most `unknown` bases of `runs`.
    Their count is, as a function of the start, a broken line of slope -1, 0 or 1 that bends only
    where an end of the window meets an end of a run. Between two bends it crosses the limit at
    most once, at a start that is plain arithmetic.
    """
    if len(interval) < length:
        return np.zeros((0, 2), dtype=np.int64)
    stop = interval.end - length + 1
    if not runs.starts.size:  # most of the 100,000 intervals of a draft assembly
        return np.array([[interval.start, stop]], dtype=np.int64)
    bends = np.concatenate([runs.starts, runs.ends, runs.starts - length, runs.ends - length])
    inside = bends[(bends > interval.start) & (bends < stop)]
    left = np.unique(np.concatenate([[interval.start], inside]))
    right = np.append(left[1:], stop)
    at_left = runs.covered(left, left + length)
    slope = np.sign(runs.covered(right, right + length) - at_left)
    spare = unknown - at_left
    # Rising: the first `spare + 1` starts. Falling: all but the first `-spare`. Level: all or none.
    first = np.where((slope < 0) & (spare < 0), np.minimum(left - spare, right), left)
    last = np.where(slope > 0, np.clip(left + spare + 1, left, right), right)
    last = np.where((slope >= 0) & (spare < 0), first, last)
    merged = Runs.merge(first, last)
    return np.column_stack([merged.starts, merged.ends])


def no_window(store: Genome, split: str, intervals: Sequence[Interval], what: str) -> GenomeError:
    """Build the error for a split that holds no admissible window."""
    longest = max((len(interval) for interval in intervals), default=0)
    return GenomeError(
        f"{store.path}: split {split!r} has no window of {what}: {len(intervals)} intervals, the "
        f"longest of {longest} bp; take a shorter --length, allow more N, or split otherwise"
    )
