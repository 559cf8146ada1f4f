"""The Mamba block one position at a time: `mamba_inner_step`."""

from __future__ import annotations

import importlib

import torch.nn.functional as F
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.causal_conv1d import causal_conv1d_step
from dnassm.kernels.mamba_inner import triton
from dnassm.kernels.mamba_inner.arguments import State, Walk, splits
from dnassm.kernels.selective_scan import selective_scan_step


def mamba_inner_step(
    x: Tensor, in_weight: Tensor, out_weight: Tensor, walk: Walk, *, in_place: bool = False
) -> tuple[Tensor, State]:
    """Advance by one position: the shapes of `mamba_inner` without L, one walk with its states.

    Args:
        x: (B, M) input.
        in_weight: (2E, M).
        out_weight: (M, E).
        walk: parameters, and the states before this position.
        in_place: the next states may be written over those of `walk`, which saves their copies
            and, on a GPU where no gradient is asked for, all launches between the projections but
            one. The values are the same.

    Returns:
        y (B, M) and the next states.

    Raises:
        ShapeError: a shape, dtype or device does not fit, or the walk has no states.
    """
    conv, ssm = walk.conv_state, walk.ssm_state
    if x.dim() != 2 or conv is None or ssm is None:
        raise ShapeError(
            f"mamba_inner_step: expected x (B, M) and a walk with both states, got "
            f"{tuple(x.shape)} and {'none' if conv is None else 'conv_state'}, "
            f"{'none' if ssm is None else 'ssm_state'}"
        )
    xz = F.linear(x, in_weight)
    if in_place and triton.fits(xz, walk):
        kernel = importlib.import_module("dnassm.kernels.mamba_inner.triton.step")
        return F.linear(kernel.step(xz, walk), out_weight), State(conv, ssm)
    v, z = xz.chunk(2, dim=1)
    u, conv = causal_conv1d_step(v, walk.conv_weight, walk.conv_bias, conv, silu=True)
    low, B, C = F.linear(u, walk.x_weight).split(splits(walk), dim=1)
    dt = F.linear(low, walk.dt_weight)
    maps = (B.unsqueeze(1), C.unsqueeze(1))
    y, ssm = selective_scan_step(u, dt, walk.A, *maps, ssm, D=walk.D, z=z, dt_bias=walk.dt_bias)
    return F.linear(y, out_weight), State(conv, ssm)
