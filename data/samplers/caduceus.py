"""Rows of a BED file, extended and cut into windows side by side: the sampling of Caduceus."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.sampler import SAMPLERS, Sampler, permuted, stream_of
from dnassm.data.segments import Segments
from dnassm.data.tiles import Tiles
from dnassm.errors import ConfigError

_EXTENT = 1 << 20


@SAMPLERS.register("caduceus")
class CaduceusSampler(Sampler):
    """Read every row of a BED file from its start over `extent` bases, in windows side by side.

    The sampling of Caduceus (Schiff et al. 2024, arXiv:2403.03234, appendix C; hg38_dataset.py), in
    an order that is new in each epoch. Rows closer than `extent` give some bases more than once.
    The last window that begins before a border moves inward; Caduceus reads that window again for
    each one that would begin behind the border, which are left out here. So are windows with too
    many unknown bases, or which touch a row of another split.

    Args:
        store: the genome.
        split: name of the split.
        length: L, bases per window; Caduceus's are powers of two.
        rc_probability: share of windows that are read on the minus strand.
        max_n_fraction: most unknown bases in a window, as a share of `length`; None refuses only
            windows of nothing else.
        bed: BED file of the rows; which are of `split`, and what their windows stay inside of, see
            `Segments`. None: the intervals of the store's split.
        extent: bases that are read from the start of a row on; None: the row, and what does not
            make a whole window at its end is left out.
        apart: leave out windows that touch a row of another split of the file. Caduceus reads them:
            rows of hg38's file are 131,072 bases and read over 1,048,576.

    Raises:
        ConfigError: a number is out of range.
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
        extent: int | None = _EXTENT,
        apart: bool = True,
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
        if extent is not None and extent < length:
            raise ConfigError(f"extent: expected at least length={length} bases, got {extent}")
        segments = Segments(
            store,
            split=split,
            length=length,
            max_n_fraction=max_n_fraction,
            bed=bed,
            apart=apart,
        )
        self._tiles = Tiles(length)
        for row, bounds in segments.rows:
            end = row.end if extent is None else row.start + extent
            stretch = Interval(row.contig, row.start, end)
            self._tiles.add_from(stretch, segments.starts(stretch, bounds), length)
            beyond = end - (end - row.start) % length > bounds.end
            rest = (bounds.end - row.start) % length
            if beyond and rest:
                last = segments.moved_inward(bounds.end - rest, bounds)
                self._tiles.add_from(last, segments.starts(last, bounds), length)
        segments.check(len(self._tiles))

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        _, strand = self._draw(seed, epoch, index)
        window = self._tiles[permuted(index, len(self._tiles), stream_of(seed, epoch))]
        return Interval(window.contig, window.start, window.end, self._strand(strand))

    def __len__(self) -> int:
        return len(self._tiles)
