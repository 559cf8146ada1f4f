"""What the loss was called with, in the form in which its backends take it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """Checked arguments of one call; shapes as in `linear_cross_entropy`, any strides."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    ignore_index: int
    smoothing: float

    @property
    def x(self) -> Tensor:
        """The main input, by which a backend is chosen."""
        return self.hidden

    @property
    def width(self) -> int:
        """D."""
        return self.hidden.shape[-1]

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    @property
    def inner(self) -> torch.dtype:
        """Dtype of logits, losses and sums: float32, float64 if hidden is."""
        return torch.float64 if self.hidden.dtype == torch.float64 else torch.float32

    @property
    def rows(self) -> Tensor:
        """(T, D): `hidden` without its leading axes, in place wherever its strides allow it."""
        return self.hidden.reshape(-1, self.width)


def largest(dlosses: Tensor) -> Tensor:
    """The scalar by which gradients of losses are divided before they are rounded to 16 bits.

    1 / tokens, which every one of them is in a mean, would be nothing in float16.
    """
    found = dlosses.abs().amax()
    return found.where(found > 0, 1.0)


class Gradients(NamedTuple):
    """Gradient of each tensor argument, in its dtype and shape; None where it was not given."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def of_parameters(call: Loss, dweight: Tensor, dbias: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight (V, D) and bias (V,) from their sums.

    Copies: an operator's results share no memory.
    """
    of_weight = dweight.to(call.weight.dtype, copy=True, memory_format=torch.contiguous_format)
    return of_weight, None if call.bias is None else dbias.to(call.bias.dtype, copy=True)
