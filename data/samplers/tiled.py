"""Every window of a split once, in genome order: what an evaluation reads."""

from __future__ import annotations

from dnassm.data.admissible import admissible_starts, max_unknown, no_window, unknown_runs
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.runs import Runs
from dnassm.data.sampler import SAMPLERS, Sampler, intervals_of_split
from dnassm.data.tiles import Tiles
from dnassm.errors import ConfigError


@SAMPLERS.register("tiled")
class TiledSampler(Sampler):
    """Windows at every `step` bases from the start of each interval of a split, in order.

    Every epoch is the same, but for the strand when `rc_probability` is above 0. Windows of
    unknown bases only are left out; nothing else is, except what `keep_partial` says.

    Args:
        store: the genome.
        split: name of the split whose intervals are tiled.
        length: L, bases per window.
        step: bases from one window to the next; `length` when None, so that windows touch.
        rc_probability: share of windows that are read on the minus strand.
        max_n_fraction: most unknown bases in a window, as a share of its length; None refuses
            only windows of nothing else.
        keep_partial: also return the last window of an interval when it is shorter than `length`,
            if it holds bases that no other window holds.

    Raises:
        ConfigError: `length`, `step` or `rc_probability` is out of range.
        GenomeError: no such split, or no admissible window in it.
    """

    def __init__(
        self,
        store: Genome,
        *,
        split: str = "valid",
        length: int,
        step: int | None = None,
        rc_probability: float = 0.0,
        max_n_fraction: float | None = None,
        keep_partial: bool = False,
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
        self.step = length if step is None else step
        if self.step < 1:
            raise ConfigError(f"step: expected at least 1 base, got {step}")
        intervals = intervals_of_split(store, split)
        self._tiles = Tiles(self.step)
        for interval in intervals:
            runs = unknown_runs(store, interval)
            unknown = max_unknown(length, max_n_fraction)
            starts = admissible_starts(runs, interval, length, unknown)
            self._tiles.add_from(interval, starts, length)
            if keep_partial:
                self._add_partial(interval, runs, max_n_fraction)
        if not len(self._tiles):
            raise no_window(store, split, intervals, f"{length} bp with few enough N")

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        _, strand = self._draw(seed, epoch, index)
        window = self._tiles[index]
        return Interval(window.contig, window.start, window.end, self._strand(strand))

    def __len__(self) -> int:
        return len(self._tiles)

    def _add_partial(self, interval: Interval, runs: Runs, max_n_fraction: float | None) -> None:
        tiles = max(0, (len(interval) - self.length) // self.step + 1)
        start = interval.start + tiles * self.step
        seen = start - self.step + self.length if tiles else interval.start
        if start >= interval.end or seen >= interval.end:
            return
        partial = Interval(interval.contig, start, interval.end)
        unknown = int(runs.covered(partial.start, partial.end))
        if unknown <= max_unknown(len(partial), max_n_fraction):
            self._tiles.add(partial)
