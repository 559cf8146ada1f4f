"""The Mamba block as its definition: projections of torch and the public operators, by autograd."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.causal_conv1d import causal_conv1d
from dnassm.kernels.mamba_inner.arguments import Block, State, Walk, splits
from dnassm.kernels.selective_scan import selective_scan

PRIORITY = 0


def supports(block: Block) -> str | None:
    """Runs wherever its operators do."""
    return None


def composed(block: Block) -> tuple[Tensor, list[State]]:
    """y and the states of every walk; shapes as in `mamba_inner`."""
    before, z = F.linear(block.x, block.in_weight).chunk(2, dim=2)
    gated, states = None, []
    for walk in block.walks:
        y, state = _walked(block, walk, before, z)
        gated = y if gated is None else gated + y
        states.append(state)
    assert gated is not None  # noqa: S101  for mypy: there is a walk
    return F.linear(gated, block.out_weight), states


def _walked(block: Block, walk: Walk, before: Tensor, z: Tensor) -> tuple[Tensor, State]:
    u, conv_state = causal_conv1d(
        before,
        walk.conv_weight,
        walk.conv_bias,
        silu=True,
        initial_state=walk.conv_state,
        cu_seqlens=block.cu_seqlens,
        reverse=walk.reverse,
        return_state=True,
        backend=block.backend,
    )
    low, B, C = F.linear(u, walk.x_weight).split(splits(walk), dim=2)
    y, ssm_state = selective_scan(
        u,
        F.linear(low, walk.dt_weight),
        walk.A,
        B.unsqueeze(2),
        C.unsqueeze(2),
        D=walk.D,
        z=z,
        dt_bias=walk.dt_bias,
        initial_state=walk.ssm_state,
        cu_seqlens=block.cu_seqlens,
        reverse=walk.reverse,
        return_state=True,
        exact=block.exact,
        backend=block.backend,
    )
    return y, State(conv_state, ssm_state)
