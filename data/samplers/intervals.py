"""One window per interval of a BED file and epoch: the sampling of HyenaDNA."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.places import Places
from dnassm.data.runs import Positions
from dnassm.data.sampler import SAMPLERS, Sampler, permuted, stream_of
from dnassm.data.segments import Segments
from dnassm.errors import ConfigError

Place = Literal["start", "centre", "random"]

_PLACES = ("start", "centre", "random")


@SAMPLERS.register("intervals")
class IntervalsSampler(Sampler):
    """Read one window of every interval in every epoch, in an order that is new in each.

    The sampling of HyenaDNA (Nguyen et al. 2023, arXiv:2306.15794; hg38_dataset.py): an epoch has
    as many windows as there are intervals, whatever `length` is. The window of a longer interval
    lies inside it, where `place` says; a shorter interval grows by half of what it lacks, rounded
    down, to its left, and by the rest to its right. Where that crosses a border the window moves
    inward and keeps its length; HyenaDNA's is cut short there. Intervals whose window would have
    too many unknown bases, or no room, or which would touch a row of another split, are left out.

    Args:
        store: the genome.
        split: name of the split.
        length: L, bases per window.
        rc_probability: share of windows that are read on the minus strand.
        max_n_fraction: most unknown bases in a window, as a share of `length`; None refuses only
            windows of nothing else.
        bed: BED file of the intervals; which rows are of `split`, and what their windows stay
            inside of, see `Segments`. None: the intervals of the store's split.
        place: "start", as HyenaDNA; "centre": base ``len(interval) // 2`` of any interval is base
            ``length // 2`` of its window; or "random": drawn anew in each epoch.
        apart: leave out windows that touch a row of another split of the file; HyenaDNA reads them.

    Raises:
        ConfigError: a number or `place` is out of range.
        GenomeError: no such split, a row lies outside of the genome, or there is no window.
    """

    files: ClassVar[tuple[str, ...]] = ("bed",)

    def __init__(
        self,
        store: Genome,
        *,
        split: str = "train",
        length: int,
        rc_probability: float = 0.5,
        max_n_fraction: float | None = None,
        bed: Path | str | None = None,
        place: Place = "start",
        apart: bool = True,
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
        if place not in _PLACES:
            raise ConfigError(f"place: expected one of {', '.join(_PLACES)}, got {place!r}")
        self.place = place
        segments = Segments(
            store,
            split=split,
            length=length,
            max_n_fraction=max_n_fraction,
            bed=bed,
            apart=apart,
        )
        self._rows: list[Places] = []
        for interval, bounds in segments.rows:
            places = Places()
            places.add(bounds.contig, self._starts(segments, interval, bounds))
            if len(places):
                self._rows.append(places)
        segments.check(len(self._rows))

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        place, strand = self._draw(seed, epoch, index)
        row = permuted(index, len(self._rows), stream_of(seed, epoch))
        contig, start = self._rows[row].draw(place)
        return Interval(contig, start, start + self.length, self._strand(strand))

    def __len__(self) -> int:
        return len(self._rows)

    def _starts(self, segments: Segments, interval: Interval, bounds: Interval) -> Positions:
        spare = len(interval) - self.length
        if self.place == "centre":
            start = interval.start + len(interval) // 2 - self.length // 2
        elif spare < 0:
            start = interval.start - -spare // 2
        elif self.place == "random":
            return segments.starts(interval, bounds)
        else:
            start = interval.start
        return segments.starts(segments.moved_inward(start, bounds), bounds)
