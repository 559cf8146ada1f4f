"""What the two operators of the Mamba block are called with."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.causal_conv1d.arguments import Conv
from dnassm.kernels.mamba_inner.arguments import Block, Walk, splits
from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.selective_scan.op import BACKENDS as SCAN


def conv_call(
    block: Block, walk: Walk, before: Tensor, state: Tensor | None, into: Tensor | None = None
) -> Conv:
    """The convolution of `before` (rows, T, E)."""
    return Conv(
        x=before,
        weight=walk.conv_weight,
        bias=walk.conv_bias,
        initial_state=state,
        cu_seqlens=block.cu_seqlens,
        silu=True,
        reverse=walk.reverse,
        into=into,
    )


def scan_call(
    block: Block, walk: Walk, u: Tensor, gate: Tensor, x_dbl: Tensor, state: Tensor | None
) -> Scan:
    """The scan of u (rows, T, E); dt is nobody else's, so that it may be written over."""
    low, *_ = x_dbl.split(splits(walk), dim=2)
    return _scan(block, walk, (u, F.linear(low, walk.dt_weight), gate, x_dbl), state)


def scan_like(block: Block, walk: Walk, x: Tensor) -> Scan:
    """The scan of a piece x (rows, T, M) as far as shapes and dtypes go: no memory, no values."""
    wide = x[:, :, :1].expand(*x.shape[:2], block.inner)
    x_dbl = x[:, :, :1].expand(*x.shape[:2], sum(splits(walk)))
    return _scan(block, walk, (wide, wide, wide, x_dbl), None)


def _scan(
    block: Block, walk: Walk, along: tuple[Tensor, Tensor, Tensor, Tensor], state: Tensor | None
) -> Scan:
    u, dt, gate, x_dbl = along
    _, B, C = x_dbl.split(splits(walk), dim=2)
    return Scan(
        x=u,
        dt=dt,
        A=walk.A,
        B=B.unsqueeze(2),
        C=C.unsqueeze(2),
        D=walk.D,
        z=gate,
        dt_bias=walk.dt_bias,
        initial_state=state,
        cu_seqlens=block.cu_seqlens,
        dt_softplus=True,
        reverse=walk.reverse,
        exact=block.exact,
        overwrite=("dt",),
        frugal=u.shape[:2] != block.x.shape[:2],
    )


def backend_of(block: Block, scan: Scan) -> Any:
    """Which runs this scan."""
    return SCAN.choose(block.backend, scan)


def gives_output(block: Block, scan: Scan) -> bool:
    """Whether the backward of this scan gives y once more, so that nobody has to keep it."""
    return hasattr(backend_of(block, scan), "backward_and_output")


def shares_marks(block: Block, scan: Scan) -> bool:
    """Whether a part of a row finds its own marks among those of the row (`mark_steps`)."""
    return hasattr(backend_of(block, scan), "mark_steps")
