"""Windows drawn at random, every admissible start as likely as every other."""

from __future__ import annotations

from dnassm.data.admissible import admissible_starts, max_unknown, no_window, unknown_runs
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.places import Places
from dnassm.data.sampler import SAMPLERS, Sampler, intervals_of_split


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
        store: Genome,
        *,
        split: str = "train",
        length: int,
        rc_probability: float = 0.5,
        max_n_fraction: float | None = None,
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
        intervals = intervals_of_split(store, split)
        unknown = max_unknown(length, max_n_fraction)
        self._places = Places()
        self._windows = 0
        for interval in intervals:
            runs = unknown_runs(store, interval)
            starts = admissible_starts(runs, interval, length, unknown)
            self._places.add(interval.contig, starts)
            self._windows += len(interval) // length if len(starts) else 0
        if not len(self._places):
            raise no_window(store, split, intervals, f"{length} bp with few enough N")

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        place, strand = self._draw(seed, epoch, index)
        contig, start = self._places.draw(place)
        return Interval(contig, start, start + self.length, self._strand(strand))

    def __len__(self) -> int:
        return self._windows
