"""What the selective scan was called with, in the form in which its backends take it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """Checked arguments of one call; shapes as in `selective_scan`, any strides."""

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
    reverse: bool
    exact: bool
    overwrite: tuple[str, ...] = ()
    """Of dt and dy, what the backward may write over, and whether the forward may write y over dt,
    if that saves memory: nobody else reads it, and its elements do not overlap. No option of the
    public function."""
    dz_into: Tensor | None = None
    """Where the backward may write the gradient of z, z itself if nobody else reads that: like z,
    any strides. No option of the public function."""
    y_into: Tensor | None = None
    """Where `backward_and_output` may write y: like `dz_into`, with its strides. No option of the
    public function."""
    whole: int = 0
    """Positions (rows times steps) of the call that this one is a piece of, 0 if it is none: what
    the forward keeps for the backward is kept of all pieces. No option of the public function."""

    @property
    def sequences(self) -> int:
        """Number of states: rows of the batch, or sequences packed on its one row."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Shape of the initial and of the final state, (sequences, D, N)."""
        return (self.sequences, self.A.shape[0], self.A.shape[1])

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of the final state: that of A."""
        return self.A.dtype

    @property
    def inner(self) -> torch.dtype:
        """Dtype of the state inside, of all sums and of the marks: float32; float64 if x or A is.

        Complex of that precision if A is complex.
        """
        if self.A.is_complex():
            return torch.complex128 if self.real == torch.float64 else torch.complex64
        return self.real

    @property
    def real(self) -> torch.dtype:
        """Dtype of x, of the steps and of y inside: the real part of `inner`."""
        double = self.x.dtype == torch.float64 or self.A.dtype in _DOUBLE
        return torch.float64 if double else torch.float32


_DOUBLE = (torch.float64, torch.complex128)


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
