"""One position of the Mamba block, without its projections in and out, in one Triton kernel.

Triton and the kernel are imported by the first step that runs them, not with dnassm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnassm.kernels.mamba_inner.arguments import Walk
from dnassm.kernels.triton_runtime import DTYPES, unavailable

# What a program holds at once: a row of the batch with all its channels, in registers.
_STATES, _RANKS = 1 << 14, 1 << 15


def fits(xz: Tensor, walk: Walk) -> bool:
    """Whether the kernel takes xz (B, 2E) and `walk`: their sizes, and how they lie in memory."""
    channels, states = walk.A.shape
    conv, ssm = walk.conv_state, walk.ssm_state
    if conv is None or ssm is None or xz.shape[1] != 2 * channels:
        return False
    rank, width = walk.dt_weight.shape[1], walk.conv_weight.shape[1]
    tensors = [tensor for tensor in (xz, *walk.tensors().values()) if tensor is not None]
    return (
        conv.shape == (xz.shape[0], width - 1, channels)
        and ssm.shape == (xz.shape[0], channels, states)
        and padded(channels) * padded(states) <= _STATES
        and padded(channels) * padded(rank) <= _RANKS
        and all(t.is_contiguous() and t.device == xz.device for t in tensors)
        and all(t.dtype in DTYPES for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and unavailable(xz.device) is None
    )


def padded(size: int) -> int:
    """The power of two from `size` on: Triton's tiles have no other sizes."""
    return 1 << (size - 1).bit_length()
