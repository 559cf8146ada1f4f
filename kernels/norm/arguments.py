"""What a norm was called with, in the form in which its backends take it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Norm:
    """Checked arguments of one call; shapes as in `norm` and `add_norm`, any strides.

    A backward gets as x what was normed, the sum where there was a residual, and no residual.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    gate: Tensor | None
    centred: bool
    """Whether the mean is taken off first: LayerNorm."""
    eps: float
    groups: int
    total_dtype: torch.dtype
    """Of the sum of x and residual; without a residual that of x."""

    @property
    def channels(self) -> int:
        """D."""
        return self.x.shape[-1]

    @property
    def width(self) -> int:
        """Channels of a group, D / groups."""
        return self.x.shape[-1] // self.groups

    @property
    def inner(self) -> torch.dtype:
        """Dtype of all sums: float32, float64 if x is."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    def rows(self, tensor: Tensor) -> Tensor:
        """(R, D): `tensor` without its leading axes, in place wherever its strides allow it."""
        return tensor.reshape(-1, self.channels)


class Wanted(NamedTuple):
    """The dtypes in which a backward gives the gradient of what was normed."""

    x: torch.dtype
    residual: torch.dtype | None
    """None where there is no residual, or one of the dtype of x: then both gradients are one."""


class Into(NamedTuple):
    """Where a backward is to write two gradients: of the shape of x, in the dtypes wanted.

    Their last axis is contiguous, one stride leads from each row to the next: slices of wider
    tensors, say. x may be the memory of dy, of the same strides. No option of the public functions.
    """

    x: Tensor
    gate: Tensor


class Gradients(NamedTuple):
    """Gradient of each tensor argument, in its dtype and shape; None where it is not wanted."""

    x: Tensor
    residual: Tensor | None
    gate: Tensor | None
    weight: Tensor
    bias: Tensor | None


def along(
    call: Norm, wanted: Wanted, into: Into | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Room for the gradients of x, residual and gate: new tensors, or those of `into`."""

    def room(dtype: torch.dtype) -> Tensor:
        return torch.empty(call.x.shape, dtype=dtype, device=call.x.device)

    residual = None if wanted.residual is None else room(wanted.residual)
    if into is not None:
        return into.x, residual, into.gate
    return room(wanted.x), residual, None if call.gate is None else room(call.gate.dtype)


def of_parameters(call: Norm, sums: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight and bias from their sums (2, D), or (1, D) without a bias.

    Copies of two: an operator's results share no memory.
    """
    dweight = sums[0].to(call.weight.dtype, copy=call.bias is not None)
    return dweight, None if call.bias is None else sums[1].to(call.bias.dtype, copy=True)
