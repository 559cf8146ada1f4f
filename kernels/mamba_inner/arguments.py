"""What the Mamba block was called with, how it is cut into pieces, and what is kept of each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

from torch import Tensor

from dnassm.kernels.pieces import Cut, Piece

KEEP = ("xz", "u", "x_dbl", "scan", "y")
"""What the forward may keep for the backward: what is not kept is computed again."""
STATES = "states"
"""What is kept at least where there is a backward: the states between pieces."""
# Bytes of one (rows, T, E) tensor of a piece; about six of them are alive at once. A cut costs a
# GPU's scan a look at what its first chunks enter, and threads of a CPU a wait for each other.
PIECE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
# The same of the forward, where four are alive, if the backward can do with parts of its pieces.
FORWARD_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}
# A call of more than this is cut in two at least, so that what lives for a moment is half.
WHOLE_BYTES = 128 << 20
# A GPU keeps xz without being asked where u would take no more than this, and all where xz does.
KEPT_BYTES = 256 << 20
ALIVE = 6
"""Tensors (rows, T, E) of a piece at the worst moment of the backward."""
MULTIPLE = 128
"""Of which a part of a row has its steps: as many lie between two marks of a scan at most."""


def default_keep(x: Tensor, inner: int) -> tuple[str, ...]:
    """What is kept unless the caller says: on a GPU more of small calls than of large ones."""
    if x.device.type == "cpu":
        return ("xz", "x_dbl", "scan")
    size = x.shape[0] * x.shape[1] * inner * x.element_size()
    small = ("xz", "u", "y") if 2 * size <= KEPT_BYTES else ("xz",) if size <= KEPT_BYTES else ()
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

    @functools.cached_property
    def forward_cut(self) -> Cut:
        """Groups of rows of like size, or rows in equal parts; packed sequences stay together."""
        batch, length, _ = self.x.shape
        return Cut(length, self._split(Piece(0, batch, 0, length), self._most(FORWARD_BYTES)))

    @functools.cached_property
    def cut(self) -> Cut:
        """The same in smaller pieces, the backward's: parts of those of the forward."""
        batch, length, _ = self.x.shape
        size = batch * self._row
        budget = min(self._most(PIECE_BYTES), size if size <= WHOLE_BYTES else size // 2)
        pieces = self.forward_cut.pieces
        parts = [part for piece in pieces for part in self._split(piece, budget)]
        directions = {walk.reverse for walk in self.walks}
        if len(pieces) == batch == len(directions) == 1 < len(parts):
            parts = self._longer_first(len(parts), reverse=directions.pop())
        return Cut(length, parts)

    def _longer_first(self, count: int, *, reverse: bool) -> list[Piece]:
        """The only row in so many parts that take the same memory in the backward.

        There is no dx yet beside the first that it comes to, which is as much longer.
        """
        _, length, width = self.x.shape
        longer = length * width // (self.inner * ALIVE)
        steps = -(-(length - longer) // count // MULTIPLE) * MULTIPLE
        edges = [*list(range(0, length, steps))[:count], length]
        if reverse:
            edges = [length - edge for edge in edges[::-1]]
        return [Piece(0, 1, *part) for part in itertools.pairwise(edges)]

    @property
    def _row(self) -> int:
        """Bytes of a row (1, L, E)."""
        return self.x.shape[1] * self.inner * self.x.element_size()

    def _most(self, budgets: dict[str, int]) -> int:
        return budgets.get(self.x.device.type, budgets["cuda"])

    def _split(self, piece: Piece, budget: int) -> list[Piece]:
        rows, length = piece.row_end - piece.row, piece.end - piece.begin
        row = length * self._row // self.x.shape[1]
        if self.cu_seqlens is not None:
            return [piece]
        if row <= budget:
            budget = row * -(-rows // -(-rows // (budget // row)))
        found = Cut.of(rows, length, row=row, budget=budget, multiple=MULTIPLE).pieces
        return [part.shifted(piece.row, piece.begin) for part in found]


def splits(walk: Walk) -> list[int]:
    """Widths of the low-rank step size, of B and of C in what x_weight gives."""
    states = walk.A.shape[1]
    return [walk.dt_weight.shape[1], states, states]
