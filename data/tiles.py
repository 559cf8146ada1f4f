"""Tiles: windows at equal distances, kept as stretches: a whole genome of them is small."""

from __future__ import annotations

import bisect

from dnassm.data.interval import Interval
from dnassm.data.runs import Positions


class Tiles:
    """Stretches of windows, one after the other; number r is the r-th window of them all.

    Args:
        step: bases from one window of a stretch to the next.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._first: list[Interval] = []
        self._last_numbers: list[int] = []

    def add(self, first: Interval, count: int = 1) -> None:
        """Append `count` windows, the first of them `first`."""
        if count > 0:
            self._first.append(first)
            self._last_numbers.append(len(self) + count)

    def add_from(self, origin: Interval, starts: Positions, length: int) -> None:
        """Append the windows of `length` at ``origin.start + i step`` whose starts are allowed.

        Args:
            origin: says the contig, and where the first window would start.
            starts: (S, 2) stretches ``[first, stop)`` of allowed starts.
            length: bases per window.
        """
        for first, stop in starts.tolist():
            tile = -(-(first - origin.start) // self.step)
            stop_tile = -(-(stop - origin.start) // self.step)
            start = origin.start + tile * self.step
            self.add(Interval(origin.contig, start, start + length), stop_tile - tile)

    def __len__(self) -> int:
        """How many windows there are."""
        return self._last_numbers[-1] if self._last_numbers else 0

    def __getitem__(self, number: int) -> Interval:
        """Window `number`, from 0, on the plus strand."""
        stretch = bisect.bisect_right(self._last_numbers, number)
        first = self._first[stretch]
        rank = number - (self._last_numbers[stretch - 1] if stretch else 0)
        start = first.start + rank * self.step
        return Interval(first.contig, start, start + len(first))
