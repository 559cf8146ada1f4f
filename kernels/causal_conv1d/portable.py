"""Causal convolution in plain torch: one multiply-add over (B, L, D) per tap, no transposes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PRIORITY = 10


def supports(tensors: Sequence[Tensor]) -> str | None:
    """Runs everywhere."""
    return None


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,  # noqa: FBT001  positional as in every backend
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute `causal_conv1d`; shapes as there. Sums are float32, or float64 for float64 input."""
    inner = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, length, channels = x.shape
    width = weight.shape[1]
    past = x.new_zeros(batch, width - 1, channels) if initial_state is None else initial_state
    inputs = torch.cat([past.to(x.dtype), x], dim=1)
    # Widened once, before the taps: their gradients then add up in `inner` as well.
    wide, taps = inputs.to(inner), weight.to(inner)
    y = wide[:, :length] * taps[:, 0]
    for k in range(1, width):
        y = torch.addcmul(y, wide[:, k : k + length], taps[:, k])
    if bias is not None:
        y = y + bias.to(inner)
    state = inputs[:, inputs.shape[1] - (width - 1) :].clone()  # a view keeps (B, L, D) alive
    return (F.silu(y) if silu else y).to(x.dtype), state
