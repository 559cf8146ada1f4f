"""Rows of a BED file cut into windows, or two long windows of each: the sampling of Mamba's DNA."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.sampler import SAMPLERS, Sampler, permuted, stream_of
from dnassm.data.segments import Segments
from dnassm.data.tiles import Tiles


@SAMPLERS.register("mamba-dna")
class MambaDnaSampler(Sampler):
    """Read the whole of every row, whatever `length` is, in an order that is new in each epoch.

    The sampling of Mamba's pretraining on hg38 (Gu and Dao 2023, arXiv:2312.00752, appendix E.3.1),
    whose rows have 2^17 bases. A row that is at least as long as a window is cut into windows side
    by side, from its start; what does not make a whole one at its end is left out. A shorter row
    gives two windows, one that begins with it and one that ends with it; where that crosses a
    border the window moves inward, of which the paper says nothing. Windows with too many unknown
    bases, or which touch a row of another split, are left out. Mamba's lengths that double during
    training while batches halve (E.3.3) are no part of a sampler.

    Args:
        store: the genome.
        split: name of the split.
        length: L, bases per window.
        rc_probability: share of windows that are read on the minus strand.
        max_n_fraction: most unknown bases in a window, as a share of `length`; None refuses only
            windows of nothing else.
        bed: BED file of the rows; which are of `split`, and what their windows stay inside of, see
            `Segments`. None: the intervals of the store's split.
        apart: leave out windows that touch a row of another split of the file.

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
        apart: bool = True,
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
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
            stretches = [row]
            if len(row) < length:
                places = (row.start, row.end - length)
                stretches = [segments.moved_inward(place, bounds) for place in places]
            for stretch in stretches:
                self._tiles.add_from(stretch, segments.starts(stretch, bounds), length)
        segments.check(len(self._tiles))

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        _, strand = self._draw(seed, epoch, index)
        window = self._tiles[permuted(index, len(self._tiles), stream_of(seed, epoch))]
        return Interval(window.contig, window.start, window.end, self._strand(strand))

    def __len__(self) -> int:
        return len(self._tiles)
