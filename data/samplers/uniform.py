"""Windows drawn at random, every admissible start as likely as every other."""

from __future__ import annotations

import bisect

from dnassm.data.admissible import admissible_starts, max_unknown, no_window, unknown_runs
from dnassm.data.interval import Interval
from dnassm.data.sampler import SAMPLERS, Sampler, intervals_of_split
from dnassm.data.store import GenomeStore


@SAMPLERS.register("uniform")
class UniformSampler(Sampler):
    """Draw a start uniformly over all starts of a split whose window is admissible.

    A window stays inside one interval of the split and is never of unknown bases only; intervals
    shorter than `length` are left out. An epoch has as many windows as fit into those intervals
    side by side. Draws are independent: an epoch covers 63 % of the bases, two cover 86 %.

    Args:
        store: the genome.
        split: name of the split whose intervals the windows come from.
        length: L, bases per window.
        rc_probability: share of windows that are read on the minus strand.
        max_n_fraction: most unknown bases in a window, as a share of `length`; None refuses only
            windows of nothing else.

    Raises:
        ConfigError: `length` or `rc_probability` is out of range.
        GenomeError: no such split, or no admissible window in it.
    """

    def __init__(
        self,
        store: GenomeStore,
        *,
        split: str = "train",
        length: int,
        rc_probability: float = 0.5,
        max_n_fraction: float | None = None,
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
        intervals = intervals_of_split(store, split)
        unknown = max_unknown(length, max_n_fraction)
        self._contigs: list[str] = []
        self._shifts: list[int] = []  # start = rank + shift, within each stretch of ranks
        self._last_ranks: list[int] = []
        self._windows = 0
        rank = 0
        for interval in intervals:
            runs = unknown_runs(store, interval)
            stretches = admissible_starts(runs, interval, length, unknown).tolist()
            self._windows += len(interval) // length if stretches else 0
            for first, stop in stretches:
                self._contigs.append(interval.contig)
                self._shifts.append(first - rank)
                rank += stop - first
                self._last_ranks.append(rank)
        if not self._last_ranks:
            raise no_window(store, split, intervals, f"{length} bp with few enough N")

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        place, strand = self._draw(seed, epoch, index)
        rank = (place * self._last_ranks[-1]) >> 64
        stretch = bisect.bisect_right(self._last_ranks, rank)
        start = rank + self._shifts[stretch]
        return Interval(
            self._contigs[stretch],
            start,
            start + self.length,
            "-" if strand < self._minus_below else "+",
        )

    def __len__(self) -> int:
        return self._windows
