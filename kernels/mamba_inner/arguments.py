"""What the Mamba block was called with, how it is cut into pieces, and what is kept of each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from dnassm.kernels.pieces import Cut

KEEP = ("xz", "u", "x_dbl", "scan")
"""What the forward may keep for the backward: what is not kept is computed again."""
STATES = "states"
"""What is kept at least where there is a backward: the states between pieces."""
# Bytes of one (rows, T, E) tensor of a piece; about six of them are alive at once. A cut costs a
# GPU's scan a look at what its first chunks enter, and threads of a CPU a wait for each other.
PIECE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
# A call of more than this is cut in two at least: what lives for a moment is then half.
WHOLE_BYTES = 128 << 20
# A GPU keeps xz, and u, without being asked where it takes no more than this.
KEPT_BYTES = 256 << 20


def default_keep(x: Tensor, inner: int) -> tuple[str, ...]:
    """What is kept unless the caller says: on a GPU more of small calls than of large ones."""
    if x.device.type == "cpu":
        return ("xz", "x_dbl", "scan")
    size = x.shape[0] * x.shape[1] * inner * x.element_size()
    small = [name for name, bytes_ in (("xz", 2 * size), ("u", size)) if bytes_ <= KEPT_BYTES]
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

    @functools.cached_property
    def cut(self) -> Cut:
        """Groups of rows of like size, or rows in equal parts; packed sequences stay together."""
        batch, length, _ = self.x.shape
        row = length * self.inner * self.x.element_size()
        most = PIECE_BYTES.get(self.x.device.type, PIECE_BYTES["cuda"])
        budget = min(most, max(batch * row // 2, WHOLE_BYTES))
        if self.cu_seqlens is not None:
            budget = row
        if row <= budget:
            budget = row * -(-batch // -(-batch // (budget // row)))
        # A multiple of 128: as many steps lie between two marks of a scan.
        return Cut.of(batch, length, row=row, budget=budget, multiple=128)

    def leaves(self) -> Iterator[Key]:
        """Of what is kept, in the order in which the operator returns it."""
        for number, piece in enumerate(self.cut.pieces if self.keep else []):
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
                if not self.cut.first(piece, reverse=walk.reverse):
                    yield Key("conv", index, number)
                    yield Key("ssm", index, number)


def splits(walk: Walk) -> list[int]:
    """Widths of the low-rank step size, of B and of C in what x_weight gives."""
    states = walk.A.shape[1]
    return [walk.dt_weight.shape[1], states, states]
