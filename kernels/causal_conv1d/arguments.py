"""What the causal convolution was called with, in the form in which its backends take it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Conv:
    """Checked arguments of one call; shapes as in `causal_conv1d`, any strides."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    """(S+1,) int32 on the device of x; None when every row of the batch is one sequence."""
    silu: bool
    reverse: bool
    into: Tensor | None = None
    """Where y, in the backward the gradient of x, is written and returned: of the shape and dtype
    of x, its last axis contiguous, no memory of x or dy. No option of the public function."""

    def result(self) -> Tensor:
        """What y, or the gradient of x, is to be written to: a new tensor, or `into`."""
        if self.into is not None:
            return self.into
        return torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)

    def placed(self, found: Tensor) -> Tensor:
        """Of a backend that writes to a tensor of its own: that, or `into`."""
        return found if self.into is None else self.into.copy_(found)

    @property
    def width(self) -> int:
        """Taps K."""
        return self.weight.shape[1]

    @property
    def sequences(self) -> int:
        """Number of states: rows of the batch, or sequences packed on its one row."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Shape of the initial and of the final state, (sequences, K-1, D)."""
        return (self.sequences, self.weight.shape[1] - 1, self.x.shape[2])

    @property
    def inner(self) -> torch.dtype:
        """Dtype of all sums: float32, float64 if x is."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32


class Gradients(NamedTuple):
    """Gradient of each tensor argument, in its dtype and shape; None where it was not given."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_state: Tensor | None


def of_parameters(call: Conv, sums: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight and bias from their sums (K+1, D), the bias in the last row.

    Copies: an operator's results share no memory.
    """
    dtype = call.weight.dtype
    dweight = sums[:-1].t().to(dtype, copy=True, memory_format=torch.contiguous_format)
    return dweight, None if call.bias is None else sums[-1].to(call.bias.dtype, copy=True)
