"""The kernel of `dnassm.kernels.mamba_inner.triton`: a program has one row of the batch.

Convolution, low-rank step size, B and C, scan and gate of that row follow one another without a
way through memory, and the states are written over those they come from.
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

from dnassm.kernels.mamba_inner.arguments import Walk
from dnassm.kernels.mamba_inner.triton import padded
from dnassm.kernels.triton_scalars import _decay, _sigmoid, _softplus

_PER_THREAD = 16
"""States of a thread: all that a row needs is loaded at once and lies in registers."""


@triton.jit
def _rows(matrix, first, count, channels, channel, block: tl.constexpr):
    """Rows [first, first + count) of matrix (.., E) as a tile (block, E), 0 beyond."""
    row = tl.arange(0, block)[:, None]
    inside = (row < count) & (channel < channels)[None, :]
    return tl.load(matrix + (first + row) * channels + channel[None, :], mask=inside, other=0.0)


@triton.jit
def _product(matrix, u):
    return tl.sum(matrix.to(tl.float32) * u[None, :], 1)


@triton.jit
def _of_channels(vector, channel, real):
    return tl.load(vector + channel, mask=real, other=0.0).to(tl.float32)


@triton.jit
def _step_kernel(
    xz, conv_weight, x_weight, dt_weight, A, conv_bias, dt_bias, D, conv_state, ssm_state, y,
    channels, states, rank, width,
    block: tl.constexpr, state_block: tl.constexpr, rank_block: tl.constexpr,
    width_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, block)
    real = channel < channels
    # What comes late is loaded early: a row is too little work to hide a way to memory.
    of_low = _rows(x_weight, 0, rank, channels, channel, rank_block)
    of_inflow = _rows(x_weight, rank, states, channels, channel, state_block)
    of_outflow = _rows(x_weight, rank + states, states, channels, channel, state_block)

    k = tl.arange(0, width_block)[None, :]
    past = conv_state + row * (width - 1) * channels + channel[:, None] + k * channels
    before = tl.load(past, mask=real[:, None] & (k < width - 1), other=0.0).to(tl.float32)
    now = tl.load(xz + row * 2 * channels + channel, mask=real, other=0.0).to(tl.float32)
    window = tl.where(k == width - 1, now[:, None], before)
    taps = conv_weight + channel[:, None] * width + k
    taps = tl.load(taps, mask=real[:, None] & (k < width), other=0.0).to(tl.float32)
    u = tl.sum(window * taps, 1)
    if conv_bias is not None:
        u += _of_channels(conv_bias, channel, real)
    u *= _sigmoid(u)

    n = tl.arange(0, state_block)[None, :]
    tile = real[:, None] & (n < states)
    at = channel[:, None] * states + n
    own = ssm_state + row * channels * states + at
    h = tl.load(own, mask=tile, other=0.0)
    decay = tl.load(A + at, mask=tile, other=0.0).to(tl.float32)
    r = tl.arange(0, rank_block)[:, None]
    of_step = dt_weight + channel[None, :] * rank + r
    of_step = tl.load(of_step, mask=(r < rank) & real[None, :], other=0.0)
    z = _of_channels(xz + (row * 2 + 1) * channels, channel, real)
    tl.debug_barrier()  # several threads may load a number that one of them then stores over
    tl.store(past - channels, window, mask=real[:, None] & (k > 0) & (k < width))

    low, inflow, outflow = _product(of_low, u), _product(of_inflow, u), _product(of_outflow, u)
    d = tl.sum(of_step.to(tl.float32) * low[:, None], 0)
    if dt_bias is not None:
        d += _of_channels(dt_bias, channel, real)
    d = _softplus(d)
    h = _decay(d[:, None] * decay) * h.to(tl.float32) + (d * u)[:, None] * inflow[None, :]
    tl.store(own, h, mask=tile)
    total = tl.sum(h * outflow[None, :], 1)
    if D is not None:
        total += u * _of_channels(D, channel, real)
    tl.store(y + row * channels + channel, total * z * _sigmoid(z), mask=real)


def step(xz: Tensor, walk: Walk) -> Tensor:
    """Gated y (B, E) of xz (B, 2E); the states of `walk` become the next. Float32 inside."""
    channels, states = walk.A.shape
    rank, width = walk.dt_weight.shape[1], walk.conv_weight.shape[1]
    y = torch.empty((xz.shape[0], channels), dtype=xz.dtype, device=xz.device)
    tensors = walk.tensors()
    block, state_block = padded(channels), padded(states)
    with _on(xz.device):
        _step_kernel[(xz.shape[0],)](
            xz,
            **tensors,
            y=y,
            channels=channels,
            states=states,
            rank=rank,
            width=width,
            block=block,
            state_block=state_block,
            rank_block=padded(rank),
            width_block=padded(width),
            num_warps=max(1, min(16, block * state_block // (32 * _PER_THREAD))),
        )
    return y


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    found: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return found
