"""What the SSD was called with, in the form in which its backends take it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Ssd:
    """Checked arguments of one call; shapes as in `ssd`, any strides."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    """(S+1,) int32 on the device of x; None when every row of the batch is one sequence."""
    dt_softplus: bool
    dt_min: float
    dt_max: float
    reverse: bool
    chunk: int | None
    """Positions that a backend should take at once; None leaves it to the backend."""

    @property
    def sequences(self) -> int:
        """Number of states: rows of the batch, or sequences packed on its one row."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape of the initial and of the final state, (sequences, H, P, N)."""
        return (self.sequences, self.x.shape[2], self.x.shape[3], self.B.shape[3])

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of the final state: that of A."""
        return self.A.dtype

    @property
    def inner(self) -> torch.dtype:
        """Dtype of the state inside and of all sums: float32; float64 if x or A is."""
        double = torch.float64 in (self.x.dtype, self.A.dtype)
        return torch.float64 if double else torch.float32


class Gradients(NamedTuple):
    """Gradient of each tensor argument, in its dtype and shape; None where it was not given."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor | None


class Into(NamedTuple):
    """Where a backward is to write four gradients: of the shapes and dtypes of x, B, C and dt.

    Their last axis is contiguous, the others have any strides: slices of wider tensors, say. x may
    be the memory of dy, of the same strides, where there is no gate.
    """

    x: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor

    @classmethod
    def new(cls, call: Ssd) -> Into:
        """Tensors of their own."""
        given = (call.x, call.B, call.C, call.dt)
        return cls(*(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in given))

    def filled(self, found: Gradients) -> Gradients:
        """`found` with its four copied here and these returned instead."""
        places = self._asdict()
        for name, place in places.items():
            place.copy_(getattr(found, name))
        return found._replace(**places)
