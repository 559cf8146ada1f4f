"""What the Mamba-2 block was called with, how it is cut into pieces, and what is kept of each."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from torch import Tensor

from dnassm.kernels.pieces import Cut, Piece

KEEP = {
    "projected": ("projected",),
    "convolved": ("convolved",),
    "scan": ("scanned", "marks"),
    "normed": ("normed",),
}
"""What the forward may keep for the backward, and of which tensors it consists."""
STATES = "states"
"""What is kept at least where there is a backward: the states between pieces."""
# A GPU keeps what else there is without being asked where it takes no more than this.
KEPT_BYTES = 256 << 20
PIECE_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Of one (rows, T, E) tensor of a piece; about six of them are alive at once."""
_MULTIPLE = 64
"""Positions of a chunk of SSD."""


def default_keep(x: Tensor, inner: int, convolved: int) -> tuple[str, ...]:
    """What is kept unless the caller says: on a GPU more of small calls than of large ones."""
    if x.device.type == "cpu":
        return tuple(KEEP)
    position = x.shape[0] * x.shape[1] * x.element_size()
    widths = {"projected": 0, "convolved": convolved, "scan": 0, "normed": inner}
    return tuple(name for name, width in widths.items() if position * width <= KEPT_BYTES)


TENSORS = (
    "x",
    "in_weight",
    "conv_weight",
    "A",
    "norm_weight",
    "out_weight",
    "conv_bias",
    "dt_bias",
    "D",
    "conv_state",
    "ssm_state",
)
"""The tensors of a call that may have a gradient, in the order of the operator."""


class State(NamedTuple):
    """What the block remembers."""

    conv: Tensor
    """(S, K-1, E + 2GN) last inputs of the convolution."""
    ssm: Tensor
    """(S, H, P, N) state of the recurrence."""


class Key(NamedTuple):
    """A tensor that is kept: its name, of which piece."""

    name: str
    piece: int


@dataclasses.dataclass(frozen=True)
class Block:
    """Checked arguments of one call; shapes as in `mamba2_inner`."""

    x: Tensor
    in_weight: Tensor
    conv_weight: Tensor
    A: Tensor
    norm_weight: Tensor
    out_weight: Tensor
    conv_bias: Tensor | None
    dt_bias: Tensor | None
    D: Tensor | None
    conv_state: Tensor | None
    ssm_state: Tensor | None
    cu_seqlens: Tensor | None
    """(S+1,) int32 on the device of x; None when every row of the batch is one sequence."""
    groups: int
    dt_min: float
    dt_max: float
    eps: float
    reverse: bool
    keep: tuple[str, ...]
    """Names of `KEEP` and `STATES`; none of them where there is no backward."""
    backend: str

    @property
    def inner(self) -> int:
        """E."""
        return self.out_weight.shape[1]

    @property
    def heads(self) -> int:
        """H."""
        return self.A.shape[0]

    @property
    def convolved(self) -> int:
        """E + 2GN, channels of the convolution."""
        return self.conv_weight.shape[0]

    @property
    def splits(self) -> list[int]:
        """Widths of the gate, of what is convolved and of the step size in the projection."""
        return [self.inner, self.convolved, self.heads]

    @property
    def padded(self) -> int:
        """W: numbers in a row of the projection, so that every row begins where 16 of them do."""
        return -(-sum(self.splits) // 16) * 16

    def parts(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Gate, what is convolved and step size, as slices of the projection."""
        parts: tuple[Tensor, ...] = projected[..., : sum(self.splits)].split(self.splits, dim=-1)
        return parts

    @property
    def sequences(self) -> int:
        """Rows of the batch, or sequences packed on its one row."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the states of the convolution and of the recurrence."""
        states = (self.convolved - self.inner) // (2 * self.groups)
        conv = (self.sequences, self.conv_weight.shape[1] - 1, self.convolved)
        return conv, (self.sequences, self.heads, self.inner // self.heads, states)

    def maps(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (.., H, P), B and C (.., G, N) as slices of what is convolved, or of its gradient."""
        each = (self.convolved - self.inner) // 2
        x, B, C = convolved.split([self.inner, each, each], dim=-1)
        B, C = (tensor.unflatten(-1, (self.groups, -1)) for tensor in (B, C))
        return x.unflatten(-1, (self.heads, -1)), B, C

    def cut(self) -> Cut:
        """As many rows as fit, or a row in equal parts; packed sequences stay together."""
        batch, length, _ = self.x.shape
        budget = PIECE_BYTES.get(self.x.device.type, PIECE_BYTES["cuda"])
        row = length * self.inner * self.x.element_size()
        if self.cu_seqlens is not None:
            budget = max(budget, row)
        return Cut.of(batch, length, row=row, budget=budget, multiple=_MULTIPLE)

    def leaves(self) -> list[Key]:
        """Of what is kept, in the order in which the operator returns it."""
        if not self.keep:
            return []
        cut, found = self.cut(), []
        names = [name for part in self.keep if part != STATES for name in KEEP[part]]
        for number, piece in enumerate(cut.pieces):
            inside = not cut.first(piece, reverse=self.reverse)
            of_piece = [*names, *(("conv", "ssm") if inside else ())]
            found += [Key(name, number) for name in of_piece]
        return found

    def rows(self, states: States, piece: Piece) -> States:
        """The states of the rows of a piece."""
        if self.cu_seqlens is not None:
            return states
        rows = slice(piece.row, piece.row_end)
        return States(*(None if state is None else state[rows] for state in states))


class States(NamedTuple):
    """States at a border of a piece, or their gradients; None where a sequence starts anew."""

    conv: Tensor | None
    ssm: Tensor | None
