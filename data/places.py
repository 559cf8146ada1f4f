"""Places: the starts that windows may have, as one line of ranks that a number is drawn from.

`common` and `without` are for such starts; the algebra of intervals is `dnassm.data.intervals`,
which says why these are something else.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from dnassm.data.runs import Positions, Runs
from dnassm.errors import ConfigError

_WHOLE = 1 << 64


class Places:
    """Stretches of starts, one after the other; rank r is the r-th start of them all."""

    def __init__(self) -> None:
        self._contigs: list[str] = []
        self._shifts: list[int] = []  # start = rank + shift, within each stretch of ranks
        self._last_ranks: list[int] = []

    def add(self, contig: str, stretches: Positions) -> None:
        """Append stretches (S, 2) ``[first, stop)`` of starts on a contig."""
        for first, stop in stretches.tolist():
            if stop > first:
                rank = len(self)
                self._contigs.append(contig)
                self._shifts.append(first - rank)
                self._last_ranks.append(rank + stop - first)

    def __len__(self) -> int:
        """How many starts there are."""
        return self._last_ranks[-1] if self._last_ranks else 0

    def draw(self, number: int) -> tuple[str, int]:
        """Contig and start that a 64-bit number stands for, every start as likely as another."""
        rank = (number * len(self)) >> 64
        stretch = bisect.bisect_right(self._last_ranks, rank)
        return self._contigs[stretch], rank + self._shifts[stretch]


class Choice:
    """One of some things by weight, from a 64-bit number; exact, no sum of floats decides.

    Raises:
        ConfigError: a weight is negative or no number, or all are 0.
    """

    def __init__(self, weights: Sequence[float], *, of: str) -> None:
        if any(not math.isfinite(weight) or weight < 0 for weight in weights):
            raise ConfigError(f"{of}: expected weights of at least 0, got {list(weights)}")
        exact = [Fraction(weight) for weight in weights]
        total = sum(exact)
        if total == 0:
            raise ConfigError(f"{of}: expected a weight above 0, got {list(weights)}")
        self._below = [int(part * _WHOLE / total) for part in itertools.accumulate(exact)]

    def draw(self, number: int) -> int:
        """Index of the thing that a 64-bit number stands for; never one of weight 0."""
        return bisect.bisect_right(self._below, number)


def stretches(runs: Runs) -> Positions:
    """Runs as stretches (S, 2) ``[first, stop)``."""
    return np.column_stack([runs.starts, runs.ends])


def common(one: Runs, other: Runs) -> Runs:
    """Positions that lie in both."""
    return _select(one, other, inside=True)


def without(one: Runs, other: Runs) -> Runs:
    """Positions of `one` that do not lie in `other`."""
    return _select(one, other, inside=False)


def _select(one: Runs, other: Runs, *, inside: bool) -> Runs:
    # Between two neighbouring edges, membership in either is constant.
    edges = np.unique(np.concatenate([one.starts, one.ends, other.starts, other.ends]))
    first, last = edges[:-1], edges[1:]
    keep = (one.covered(first, last) > 0) & ((other.covered(first, last) > 0) == inside)
    return Runs.merge(first[keep], last[keep])
