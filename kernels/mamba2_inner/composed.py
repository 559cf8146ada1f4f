"""The Mamba-2 block as its definition: torch's projections, the public operators, autograd."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.causal_conv1d import causal_conv1d
from dnassm.kernels.mamba2_inner.arguments import Block, State
from dnassm.kernels.norm import norm
from dnassm.kernels.ssd import ssd

PRIORITY = 0


def supports(block: Block) -> str | None:
    """Runs wherever its operators do."""
    return None


def composed(block: Block) -> tuple[Tensor, State]:
    """y and the state; shapes as in `mamba2_inner`."""
    z, before, dt = F.linear(block.x, block.in_weight).split(block.splits, dim=2)
    convolved, conv_state = causal_conv1d(
        before,
        block.conv_weight,
        block.conv_bias,
        silu=True,
        initial_state=block.conv_state,
        cu_seqlens=block.cu_seqlens,
        reverse=block.reverse,
        return_state=True,
        backend=block.backend,
    )
    x, B, C = block.maps(convolved)
    y, ssm_state = ssd(
        x,
        dt,
        block.A,
        B,
        C,
        D=block.D,
        dt_bias=block.dt_bias,
        dt_limit=(block.dt_min, block.dt_max),
        initial_state=block.ssm_state,
        cu_seqlens=block.cu_seqlens,
        reverse=block.reverse,
        return_state=True,
        backend=block.backend,
    )
    normed = norm(
        y.flatten(2),
        block.norm_weight,
        eps=block.eps,
        gate=z,
        groups=block.groups,
        backend=block.backend,
    )
    return F.linear(normed, block.out_weight), State(conv_state, ssm_state)
