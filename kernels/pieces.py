"""A call cut along rows and positions, so that what lives for a moment fits in memory."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Whole rows [row, row_end) or a part of one row, positions [begin, end), 0-based half-open."""

    row: int
    row_end: int
    begin: int
    end: int

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of (B, L, ...): a view whose first two axes can be joined."""
        return tensor[self.row : self.row_end, self.begin : self.end]

    def shifted(self, rows: int, positions: int) -> Piece:
        """So many rows and positions further on."""
        begin, end = self.begin + positions, self.end + positions
        return Piece(self.row + rows, self.row_end + rows, begin, end)

    def lies_in(self, other: Piece) -> bool:
        """Whether it is a part of another piece."""
        rows = other.row <= self.row and self.row_end <= other.row_end
        return rows and other.begin <= self.begin and self.end <= other.end


class Cut(NamedTuple):
    """The pieces of a call, row by row in the order of positions."""

    length: int
    pieces: list[Piece]

    @classmethod
    def of(cls, batch: int, length: int, *, row: int, budget: int, multiple: int) -> Cut:
        """As many rows as fit, or a row in equal parts.

        Args:
            batch: B.
            length: L.
            row: bytes of a row.
            budget: bytes of a piece at most.
            multiple: of which a part of a row has its positions, the last one aside.
        """
        if row <= budget:
            rows = budget // row
            starts = range(0, batch, rows)
            return cls(length, [Piece(r, min(r + rows, batch), 0, length) for r in starts])
        steps = -(-length // -(-row // budget) // multiple) * multiple
        parts = [(begin, min(begin + steps, length)) for begin in range(0, length, steps)]
        return cls(length, [Piece(r, r + 1, *part) for r in range(batch) for part in parts])

    def order(self, *, reverse: bool) -> list[tuple[int, Piece]]:
        """The pieces with their numbers in the order in which a walk meets them."""
        numbered = list(enumerate(self.pieces))
        return numbered[::-1] if reverse else numbered

    def first(self, piece: Piece, *, reverse: bool) -> bool:
        """Whether a walk enters its sequence with this piece."""
        return piece.end == self.length if reverse else piece.begin == 0

    def last(self, piece: Piece, *, reverse: bool) -> bool:
        """Whether a walk ends its sequence with this piece."""
        return self.first(piece, reverse=not reverse)


class Sums:
    """Gradients of parameters, added over pieces in float32 at least."""

    def __init__(self) -> None:
        self._sums: dict[Hashable, Tensor] = {}

    def add(self, key: Hashable, value: Tensor | None) -> None:
        """Add to the sum called `key`."""
        if value is None:
            return
        before = self._sums.get(key)
        if before is not None:
            wide = torch.promote_types(value.dtype, torch.float32)
            value = before.to(wide) + value
        self._sums[key] = value

    def get(self, key: Hashable, like: Tensor) -> Tensor:
        """The sum in the dtype of the parameter."""
        return self._sums[key].to(like.dtype)


def flat(tensor: Tensor) -> Tensor:
    """(rows, T, ...) -> (rows T, numbers of a position)."""
    rows = tensor.flatten(0, 1)
    return rows if rows.dim() == 2 else rows.flatten(1)


def inner_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of sums: float64 for float64, float32 for all else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
