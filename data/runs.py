"""Runs: sorted, disjoint stretches of one contig, and how much of a window they cover.

For counting inside of windows: runs of N, genes under labels. The algebra of intervals is
`dnassm.data.intervals`, which says why these are something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Runs:
    """Sorted, disjoint stretches ``[starts[i], ends[i])``, 0-based, half-open.

    Memory is 24 bytes per run, whatever the length of the contig.
    """

    starts: Positions
    ends: Positions
    _before: Positions

    @classmethod
    def merge(cls, starts: npt.ArrayLike, ends: npt.ArrayLike) -> Runs:
        """Union of stretches in any order; overlapping and touching ones become one run."""
        first = np.asarray(starts, dtype=np.int64)
        order = np.argsort(first, kind="stable")
        first = first[order]
        last = np.asarray(ends, dtype=np.int64)[order]
        keep = last > first
        first, last = first[keep], np.maximum.accumulate(last[keep])
        opens = np.ones(first.size, dtype=bool)
        opens[1:] = first[1:] > last[:-1]
        closes = np.ones(first.size, dtype=bool)
        closes[:-1] = opens[1:]
        first, last = first[opens], last[closes]
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(last - first)])
        return cls(first, last, before)

    @classmethod
    def of_mask(cls, chunks: Iterable[tuple[int, npt.NDArray[np.bool_]]]) -> Runs:
        """Runs of True in a mask that arrives in pieces, each with the position it begins at."""
        starts: list[Positions] = []
        ends: list[Positions] = []
        for offset, mask in chunks:
            if not mask.any():
                continue
            steps = np.diff(mask.view(np.int8), prepend=np.int8(0), append=np.int8(0))
            starts.append(np.flatnonzero(steps == 1) + offset)
            ends.append(np.flatnonzero(steps == -1) + offset)
        empty = np.zeros(0, dtype=np.int64)
        return cls.merge(np.concatenate([empty, *starts]), np.concatenate([empty, *ends]))

    def covered_before(self, positions: npt.ArrayLike) -> Positions:
        """Count the covered bases that lie before each position."""
        at = np.asarray(positions, dtype=np.int64)
        index = np.searchsorted(self.starts, at, side="right")
        # The last run that begins at or before `at` may reach past it.
        last = np.maximum(index - 1, 0)
        ends = self.ends[last] if self.ends.size else np.zeros_like(at)
        beyond = np.where(index > 0, np.maximum(ends - at, 0), 0)
        covered: Positions = self._before[index] - beyond
        return covered

    def covered(self, starts: npt.ArrayLike, ends: npt.ArrayLike) -> Positions:
        """Count the covered bases of each window ``[start, end)``."""
        return self.covered_before(ends) - self.covered_before(starts)
