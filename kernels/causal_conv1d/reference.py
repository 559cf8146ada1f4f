"""The definition of the causal convolution: a float64 loop over positions and taps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PRIORITY = 0


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
    """Compute `causal_conv1d` in float64; shapes as there."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    past = x.new_zeros(batch, width - 1, channels) if initial_state is None else initial_state
    inputs = torch.cat([past.double(), x.double()], dim=1)
    columns = inputs.unbind(1)
    taps = weight.double().unbind(1)
    offset = x.new_zeros(channels, dtype=torch.float64) if bias is None else bias.double()
    outputs = []
    for t in range(length):
        y = offset.expand(batch, channels)
        for k, tap in enumerate(taps):
            y = y + tap * columns[t + k]
        outputs.append(y)
    result = torch.stack(outputs, dim=1)
    state = inputs[:, inputs.shape[1] - (width - 1) :]
    return (F.silu(result) if silu else result).to(x.dtype), state.to(x.dtype)
