"""One position of the convolution in one launch: `causal_conv1d_step` on a GPU.

A program has one row of the batch and a block of channels. Imported by the first step on a GPU.
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

from dnassm.kernels.causal_conv1d.arguments import Conv

_BLOCK = 128
"""Channels of a program at most: at batch 1 and some hundred channels, a few programs of a warp."""


@triton.jit
def _step_kernel(
    x, weight, bias, state, y, following, strides, weight_strides, state_strides, channels,
    width: tl.constexpr, has_bias: tl.constexpr, silu: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    real = channel < channels
    channel = channel.to(tl.int64)
    now = tl.load(x + row * strides[0] + channel * strides[1], mask=real, other=0.0)
    taps = weight + channel * weight_strides[0]
    total = now.to(tl.float32) * tl.load(
        taps + (width - 1) * weight_strides[1], mask=real, other=0.0
    ).to(tl.float32)
    if has_bias:
        total += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    before = state + row * state_strides[0] + channel * state_strides[2]
    after = following + row * (width - 1) * channels + channel
    for k in tl.static_range(width - 1):
        value = tl.load(before + k * state_strides[1], mask=real, other=0.0)
        tap = tl.load(taps + k * weight_strides[1], mask=real, other=0.0)
        total += value.to(tl.float32) * tap.to(tl.float32)
        if k > 0:
            tl.store(after + (k - 1) * channels, value, mask=real)
    if width > 1:
        tl.store(after + (width - 2) * channels, now, mask=real)
    if silu:
        total = total / (1.0 + tl.exp(-total))
    tl.store(y + row * channels + channel, total, mask=real)


def step(call: Conv) -> tuple[Tensor, Tensor]:
    """y (B, D) and the next state; x of `call` is (B, D), every sum float32."""
    x, state, weight = call.x, call.initial_state, call.weight
    assert state is not None  # noqa: S101  for mypy: a step always has one
    batch, channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    following = torch.empty(state.shape, dtype=x.dtype, device=x.device)
    bias = x if call.bias is None else call.bias.contiguous()
    block = min(_BLOCK, triton.next_power_of_2(channels))
    with _on(x.device):
        _step_kernel[(batch, triton.cdiv(channels, block))](
            x,
            weight,
            bias,
            state,
            y,
            following,
            x.stride(),
            weight.stride(),
            state.stride(),
            channels,
            width=call.width,
            has_bias=call.bias is not None,
            silu=call.silu,
            block=block,
            num_warps=max(1, min(4, block // 32)),
        )
    return y, following


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    found: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return found
