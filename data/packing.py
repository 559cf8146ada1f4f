"""Packing: short contigs side by side on rows of one length, with the borders between them kept.

A window of a genome with thousands of short contigs (a draft assembly, viruses, plasmids) would be
mostly padding, or would leave the short ones out. Packed rows are full of bases, and `cu_seqlens`
says where each sequence begins, so that a kernel starts it from an empty state.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dnassm.data.admissible import max_unknown, no_window, unknown_runs
from dnassm.data.batch import Batch, check_weight, weights_of
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.sampler import (
    check_index,
    check_window,
    intervals_of_split,
    permuted,
    splitmix64,
    stream_of,
)
from dnassm.data.tokenizer import Tokenizer
from dnassm.errors import ConfigError


class PackedRows:
    """Maps (seed, epoch, index) to the Intervals of a row; together at most `length` bases.

    Every interval of a split comes in every epoch, in pieces of `length` and a shorter last one
    where it is longer. Pieces are packed best fit, the longest first, once: which pieces share a
    row is fixed, and means nothing to a model that begins anew at every border. The order of the
    rows, the order of the pieces in a row, and the strand of each piece are drawn anew in each
    epoch. Like a `Sampler`, a pure function: the state of a loader is one integer.

    Args:
        store: the genomes.
        split: name of the split whose intervals are packed.
        length: L, bases per row.
        rc_probability: share of pieces that are read on the minus strand.
        max_n_fraction: most unknown bases in a piece, as a share of its length; None refuses only
            pieces of nothing else.
        min_bases: shortest piece to keep.
        multiple: a piece takes up the next multiple of so many bases; set it to the tokenizer's
            ``bases_per_token``, so that the shorter last token of a piece has its room.

    Raises:
        ConfigError: a number is out of range.
        GenomeError: no such split, or nothing in it to pack.
    """

    def __init__(
        self,
        store: Genome,
        *,
        split: str = "train",
        length: int,
        rc_probability: float = 0.5,
        max_n_fraction: float | None = None,
        min_bases: int = 1,
        multiple: int = 1,
    ) -> None:
        check_window(length, rc_probability)
        if not 1 <= min_bases <= length:
            raise ConfigError(f"min_bases: expected 1 to length={length}, got {min_bases}")
        if multiple < 1 or length % multiple:
            raise ConfigError(f"multiple: expected a divisor of length={length}, got {multiple}")
        max_unknown(length, max_n_fraction)
        self.length = length
        self.multiple = multiple
        self._minus_below = round(rc_probability * (1 << 64))
        intervals = intervals_of_split(store, split)
        pieces = [
            piece
            for interval in intervals
            for piece in _pieces(store, interval, length, max_n_fraction)
            if len(piece) >= min_bases
        ]
        if not pieces:
            raise no_window(store, split, intervals, f"{min_bases} bp or more with few enough N")
        self._rows = _best_fit(pieces, length, multiple)

    def __call__(self, seed: int, epoch: int, index: int) -> tuple[Interval, ...]:
        """Return the pieces of row `index` of `epoch`, left to right.

        Raises:
            ConfigError: `index` lies outside of the epoch.
        """
        check_index(index, len(self))
        stream = stream_of(seed, epoch)
        row = self._rows[permuted(index, len(self), stream)]
        numbers = splitmix64(stream, 2 * index), splitmix64(stream, 2 * index + 1)
        order = (permuted(i, len(row), numbers[0]) for i in range(len(row)))
        return tuple(
            Interval(piece.contig, piece.start, piece.end, "-" if minus else "+")
            for i, piece in enumerate(row[place] for place in order)
            for minus in [splitmix64(numbers[1], i) < self._minus_below]
        )

    def __len__(self) -> int:
        """Rows per epoch."""
        return len(self._rows)

    @property
    def fill(self) -> float:
        """Share of the positions of all rows that hold a base."""
        bases = sum(len(piece) for row in self._rows for piece in row)
        return bases / (len(self) * self.length)


class PackedDataset:
    """Row `i` is row ``i % len(rows)`` of epoch ``i // len(rows)``; the rows never end.

    Args:
        store: the genomes; pickles as its path, so that a worker opens it for itself.
        tokenizer: turns bases into tokens; each piece by itself.
        rows: say which pieces are on a row.
        seed: of the rows.
        soft_masked_weight: weight of soft-masked bases in the loss; 1 leaves the weights out.

    Raises:
        ConfigError: a token of the tokenizer could cross the border between two pieces, or the
            weight is out of range.
    """

    def __init__(
        self,
        store: Genome,
        tokenizer: Tokenizer,
        rows: PackedRows,
        *,
        seed: int,
        soft_masked_weight: float = 1.0,
    ) -> None:
        check_weight(soft_masked_weight)
        if not tokenizer.fixed_size or rows.multiple % tokenizer.bases_per_token:
            raise ConfigError(
                f"tokenizer {tokenizer.name}: expected tokens of a fixed number of bases that "
                f"divides multiple={rows.multiple}, got {tokenizer.bases_per_token} bases per "
                "token; pack with multiple=bases_per_token"
            )
        self.store = store
        self.tokenizer = tokenizer
        self.rows = rows
        self.seed = seed
        self.soft_masked_weight = soft_masked_weight

    def __len__(self) -> int:
        """Rows of one epoch."""
        return len(self.rows)

    def batch(self, first: int, stop: int) -> Batch:
        """Return the rows ``[first, stop)`` end to end."""
        L = self.rows.length // self.tokenizer.bases_per_token
        tokens = np.full((stop - first) * L, self.tokenizer.pad_id, dtype=np.int64)
        weights = np.ones(tokens.size, dtype=np.float32)
        edges = {0, tokens.size}
        for number, index in enumerate(range(first, stop)):
            epoch, row = divmod(index, len(self.rows))
            at = number * L
            edges.add(at)
            for piece in self.rows(self.seed, epoch, row):
                codes = self.store.fetch(piece)
                found = self.tokenizer.encode_codes(codes)
                here = slice(at, at + found.size)
                tokens[here] = found
                weights[here] = weights_of(self.tokenizer, codes, found, self.soft_masked_weight)
                at += found.size
                edges.add(at)
        return Batch(
            torch.from_numpy(tokens[None]),
            torch.tensor(sorted(edges), dtype=torch.int32),
            None if self.soft_masked_weight == 1 else torch.from_numpy(weights[None]),
        )


def _pieces(
    store: Genome, interval: Interval, length: int, max_n_fraction: float | None
) -> Iterator[Interval]:
    runs = unknown_runs(store, interval)
    for start in range(interval.start, interval.end, length):
        piece = Interval(interval.contig, start, min(start + length, interval.end))
        unknown = int(runs.covered(piece.start, piece.end))
        if unknown <= max_unknown(len(piece), max_n_fraction):
            yield piece


def _best_fit(pieces: Sequence[Interval], length: int, multiple: int) -> list[tuple[Interval, ...]]:
    """Put each piece, the longest first, on the row where the least room is left over."""
    rows: list[list[Interval]] = []
    rooms: list[int] = []  # sorted, each once
    with_room: dict[int, list[int]] = {}
    for piece in sorted(pieces, key=len, reverse=True):
        size = -(-len(piece) // multiple) * multiple
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        rows[row].append(piece)
        if room > size:
            if room - size not in with_room:
                bisect.insort(rooms, room - size)
            with_room.setdefault(room - size, []).append(row)
    return [tuple(row) for row in rows]
