"""What the Mamba block was called with, how it is cut into pieces, and what is kept of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

KEEP = ("xz", "u", "x_dbl", "scan")
"""What the forward may keep for the backward: what is not kept is computed again."""
STATES = "states"
"""What is kept at least where there is a backward: the states between pieces."""
# Bytes of one (rows, T, E) tensor of a piece; about six of them are alive at once. A cut costs a
# GPU's scan a look at what its first chunks enter, and threads of a CPU a wait for each other.
PIECE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
# A call of more than this is cut in two at least: what lives for a moment is then half.
WHOLE_BYTES = 128 << 20
# Bytes of what a GPU keeps of a call without being asked.
KEPT_BYTES = {"xz": 512 << 20, "u": 128 << 20}


def default_keep(x: Tensor, inner: int) -> tuple[str, ...]:
    """What is kept unless the caller says: on a GPU more of small calls than of large ones."""
    if x.device.type == "cpu":
        return ("xz", "x_dbl", "scan")
    size = x.shape[0] * x.shape[1] * inner * x.element_size()
    sizes = {"xz": 2 * size, "u": size}
    small = [name for name, most in KEPT_BYTES.items() if sizes[name] <= most]
    return (*small, "x_dbl", "scan")


class Walk(NamedTuple):
    """Parameters of one direction, from the convolution to the gate, and the states before it.

    Letters: E inner width, K taps, R rank of the step size, N states, S sequences.
    """

    conv_weight: Tensor
    """(E, K), as in `causal_conv1d`."""
    x_weight: Tensor
    """(R + 2N, E): of the low-rank step size, B and C."""
    dt_weight: Tensor
    """(E, R)."""
    A: Tensor
    """(E, N), as in `selective_scan`: negative, float32 or float64."""
    conv_bias: Tensor | None = None
    """(E,)."""
    dt_bias: Tensor | None = None
    """(E,)."""
    D: Tensor | None = None
    """(E,) skip connection."""
    conv_state: Tensor | None = None
    """(S, K-1, E) inputs of the convolution before the first position, in the order of the walk."""
    ssm_state: Tensor | None = None
    """(S, E, N) state of the scan before the first position; zeros when None."""
    reverse: bool = False
    """Walk every sequence from its last position to its first."""

    def tensors(self) -> dict[str, Tensor | None]:
        """By name, in the order of `TENSORS`."""
        return {name: getattr(self, name) for name in TENSORS}


TENSORS = Walk._fields[:-1]
"""Names of the tensors of a walk."""


class State(NamedTuple):
    """What a walk remembers."""

    conv: Tensor
    """(S, K-1, E)."""
    ssm: Tensor
    """(S, E, N)."""


class Piece(NamedTuple):
    """Whole rows [row, row_end) or a part of one row, positions [begin, end), 0-based half-open."""

    row: int
    row_end: int
    begin: int
    end: int

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of (B, L, ...): a view whose first two axes can be joined."""
        return tensor[self.row : self.row_end, self.begin : self.end]


class Key(NamedTuple):
    """A tensor that is kept: its name, of which walk (-1: of all together), of which piece."""

    name: str
    walk: int
    piece: int


@dataclasses.dataclass(frozen=True)
class Block:
    """Checked arguments of one call; shapes as in `mamba_inner`."""

    x: Tensor
    in_weight: Tensor
    out_weight: Tensor
    walks: tuple[Walk, ...]
    cu_seqlens: Tensor | None
    """(S+1,) int32 on the device of x; None when every row of the batch is one sequence."""
    exact: bool
    keep: tuple[str, ...]
    """Names of `KEEP` and `STATES`; none of them where there is no backward."""
    backend: str

    @property
    def inner(self) -> int:
        """E."""
        return self.out_weight.shape[1]

    @property
    def sequences(self) -> int:
        """Rows of the batch, or sequences packed on its one row."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def state_shapes(self, walk: Walk) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Of the states of the convolution and of the scan."""
        conv = (self.sequences, walk.conv_weight.shape[1] - 1, self.inner)
        return conv, (self.sequences, *walk.A.shape)

    def pieces(self) -> list[Piece]:
        """As many rows as fit, or a row cut in equal parts; packed sequences stay together."""
        batch, length, _ = self.x.shape
        row = length * self.inner * self.x.element_size()
        most = PIECE_BYTES.get(self.x.device.type, PIECE_BYTES["cuda"])
        budget = min(most, max(batch * row // 2, WHOLE_BYTES))
        if row <= budget or self.cu_seqlens is not None:
            rows = -(-batch // -(-batch // max(1, budget // row)))  # groups of like size
            starts = range(0, batch, rows)
            return [Piece(first, min(first + rows, batch), 0, length) for first in starts]
        # A multiple of 128: as many steps lie between two marks of a scan.
        steps = -(-length // -(-row // budget) // 128) * 128
        return [
            Piece(r, r + 1, begin, min(begin + steps, length))
            for r in range(batch)
            for begin in range(0, length, steps)
        ]

    def order(self, walk: Walk, *, backward: bool = False) -> list[tuple[int, Piece]]:
        """Pieces with their numbers in the order in which the walk meets them, or against it."""
        numbered = list(enumerate(self.pieces()))
        return numbered[::-1] if walk.reverse != backward else numbered

    def first(self, piece: Piece, *, reverse: bool) -> bool:
        """Whether a walk enters its sequence with this piece."""
        return piece.end == self.x.shape[1] if reverse else piece.begin == 0

    def last(self, piece: Piece, *, reverse: bool) -> bool:
        """Whether a walk ends its sequence with this piece."""
        return self.first(piece, reverse=not reverse)

    def leaves(self) -> Iterator[Key]:
        """Of what is kept, in the order in which the operator returns it."""
        pieces = self.pieces() if self.keep else []
        for number, piece in enumerate(pieces):
            if "xz" in self.keep:
                yield Key("xz", -1, number)
            if "scan" in self.keep:
                yield Key("y", -1, number)
            for index, walk in enumerate(self.walks):
                if "u" in self.keep:
                    yield Key("u", index, number)
                if "x_dbl" in self.keep:
                    yield Key("x_dbl", index, number)
                if "scan" in self.keep:
                    yield Key("marks", index, number)
                if not self.first(piece, reverse=walk.reverse):
                    yield Key("conv", index, number)
                    yield Key("ssm", index, number)


def splits(walk: Walk) -> list[int]:
    """Widths of the low-rank step size, of B and of C in what x_weight gives."""
    states = walk.A.shape[1]
    return [walk.dt_weight.shape[1], states, states]


def inner_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of sums: float64 for float64, float32 for all else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
