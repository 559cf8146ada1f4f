"""One position of the scan in one launch: `selective_scan_step` on a GPU.

A program has one row of the batch and a block of channels with all their states, (block, states).
Imported by the first step on a GPU.
"""

# Triton compiles `_step_kernel`: it reads no annotations but tl.constexpr, and has no keywords.
# ruff: noqa: ANN001, ANN202
# mypy: ignore-errors

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.triton_scalars import _decay, _sigmoid, _softplus

_BLOCK = 32
"""Channels of a program at most; fewer where they have many states."""
_TILE = 4096


@triton.jit
def _step_kernel(
    x, dt, A, B, C, state, D, z, bias, y, following, strides, channels, states, per_group,
    has_skip: tl.constexpr, has_gate: tl.constexpr, has_bias: tl.constexpr,
    softplus: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    x_strides, dt_strides, z_strides, A_strides, B_strides, C_strides, state_strides = strides
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    state_number = tl.arange(0, padded)
    real = channel < channels
    tile = real[:, None] & (state_number < states)[None, :]
    group = (channel // per_group)[:, None].to(tl.int64)
    channel = channel.to(tl.int64)
    n = state_number[None, :].to(tl.int64)
    u = tl.load(x + row * x_strides[0] + channel * x_strides[1], mask=real, other=0.0)
    d = tl.load(dt + row * dt_strides[0] + channel * dt_strides[1], mask=real, other=0.0)
    u, d = u.to(tl.float32), d.to(tl.float32)
    if has_bias:
        d += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    if softplus:
        d = _softplus(d)
    decay = tl.load(A + channel[:, None] * A_strides[0] + n * A_strides[1], mask=tile, other=0.0)
    at = row * state_strides[0] + channel[:, None] * state_strides[1] + n * state_strides[2]
    h = tl.load(state + at, mask=tile, other=0.0).to(tl.float32)
    at = row * B_strides[0] + group * B_strides[1] + n * B_strides[2]
    inflow = tl.load(B + at, mask=tile, other=0.0).to(tl.float32)
    at = row * C_strides[0] + group * C_strides[1] + n * C_strides[2]
    outflow = tl.load(C + at, mask=tile, other=0.0).to(tl.float32)
    h = _decay(d[:, None] * decay.to(tl.float32)) * h + (d * u)[:, None] * inflow
    at = (row * channels + channel)[:, None] * states + n
    tl.store(following + at, h, mask=tile)
    total = tl.sum(h * outflow, 1)
    if has_skip:
        total += u * tl.load(D + channel, mask=real, other=0.0).to(tl.float32)
    if has_gate:
        at = row * z_strides[0] + channel * z_strides[1]
        gate = tl.load(z + at, mask=real, other=0.0).to(tl.float32)
        total *= gate * _sigmoid(gate)
    tl.store(y + row * channels + channel, total, mask=real)


def step(scan: Scan) -> tuple[Tensor, Tensor]:
    """y (B, D) and the next state; the tensors of `scan` have no L. Float32 inside."""
    x, state = scan.x, scan.initial_state
    assert state is not None  # noqa: S101  for mypy: a step always has one
    batch, channels = x.shape
    states = scan.A.shape[1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    following = torch.empty(state.shape, dtype=scan.state_dtype, device=x.device)
    padded = triton.next_power_of_2(states)
    block = max(1, min(_BLOCK, triton.next_power_of_2(channels), _TILE // padded))
    z = x if scan.z is None else scan.z
    of_channels = [x if t is None else t.contiguous() for t in (scan.D, scan.dt_bias)]
    strided = (x, scan.dt, z, scan.A, scan.B, scan.C, state)
    with _on(x.device):
        _step_kernel[(batch, triton.cdiv(channels, block))](
            *(x, scan.dt, scan.A, scan.B, scan.C, state, of_channels[0], z, of_channels[1]),
            *(y, following, tuple(tensor.stride() for tensor in strided)),
            *(channels, states, channels // scan.B.shape[1]),
            has_skip=scan.D is not None,
            has_gate=scan.z is not None,
            has_bias=scan.dt_bias is not None,
            softplus=scan.dt_softplus,
            padded=padded,
            block=block,
            num_warps=max(1, min(4, padded * block // 128)),
        )
    return y, following


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    found: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return found
