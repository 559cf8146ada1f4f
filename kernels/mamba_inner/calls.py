"""What the two operators of the Mamba block are called with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.causal_conv1d.arguments import Conv
from dnassm.kernels.mamba_inner.arguments import Block, Walk, splits
from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.selective_scan.op import BACKENDS as SCAN


class Room(NamedTuple):
    """Where a scan may write, as `Scan` has it."""

    overwrite: tuple[str, ...]
    dz: Tensor | None = None
    y: Tensor | None = None


DT_ALONE = Room(("dt",))


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
    block: Block,
    walk: Walk,
    along: tuple[Tensor, Tensor, Tensor],
    state: Tensor | None,
    room: Room = DT_ALONE,
) -> Scan:
    """The scan along u, z (rows, T, E) and x_dbl; dt is nobody else's: it may be written over."""
    u, gate, x_dbl = along
    low, B, C = x_dbl.split(splits(walk), dim=2)
    return _scan(block, walk, (u, F.linear(low, walk.dt_weight), gate, B, C), state, room)


def scan_like(block: Block, walk: Walk, x: Tensor) -> Scan:
    """The scan of a piece x (rows, T, M) as far as shapes and dtypes go: no memory, no values."""
    first, (*sizes, _) = x[:, :, :1], x.shape
    wide, maps = first.expand(*sizes, block.inner), first.expand(*sizes, walk.A.shape[1])
    return _scan(block, walk, (wide, wide, wide, maps, maps), None, DT_ALONE)


def _scan(
    block: Block, walk: Walk, along: tuple[Tensor, ...], state: Tensor | None, room: Room
) -> Scan:
    u, dt, gate, B, C = along
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
        overwrite=room.overwrite,
        dz_into=room.dz,
        y_into=room.y,
        whole=block.x.shape[0] * block.x.shape[1],
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
