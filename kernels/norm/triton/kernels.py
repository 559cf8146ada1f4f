"""The kernels of the Triton backend; a tile is `steps` rows by the `block` channels of a group."""

# Triton compiles these functions: it reads no annotations but tl.constexpr, and has no keywords.
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(tensor, row_stride, column_stride, at, channel, inside):
    """(steps, block) in float32, 0 outside."""
    place = tensor + at[:, None] * row_stride + channel[None, :] * column_stride
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(tensor, row_stride, at, channel, inside, values):
    place = tensor + at[:, None] * row_stride + channel[None, :]
    tl.store(place, values.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def _normed(value, inside, width, eps, centred: tl.constexpr):
    """The norm before weight and bias, 0 outside, and (steps, 1) its scale."""
    if centred:
        mean = tl.sum(value, 1) / width
        value = tl.where(inside, value - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
    return value * scale, scale


@triton.jit
def forward(
    x, x_row, x_column, gate, gate_row, gate_column, weight, rows, width, groups, eps,
    residual, residual_row, residual_column, bias, y, total,
    centred: tl.constexpr, has_bias: tl.constexpr, gated: tl.constexpr,
    steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    channel = (program % groups) * width + column
    at = (program // groups) * steps + tl.arange(0, steps)
    real = column < width
    inside = (at < rows)[:, None] & real[None, :]
    channels = width * groups
    value = _load(x, x_row, x_column, at, channel, inside)
    if residual is not None:
        value += _load(residual, residual_row, residual_column, at, channel, inside)
        _store(total, channels, at, channel, inside, value)
        value = value.to(total.dtype.element_ty).to(tl.float32)
    if gated:
        z = _load(gate, gate_row, gate_column, at, channel, inside)
        value *= z * tl.sigmoid(z)
    normed, _ = _normed(value, inside, width, eps, centred)
    result = normed * tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    if has_bias:
        result += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    _store(y, channels, at, channel, inside, result)


@triton.jit
def backward(
    x, x_row, x_column, gate, gate_row, gate_column, weight, rows, width, groups, eps,
    dy, dy_row, dy_column, dtotal, dtotal_row, dtotal_column,
    dx, dx_row, dresidual, dgate, dgate_row, partial, each,
    centred: tl.constexpr, has_bias: tl.constexpr, gated: tl.constexpr,
    steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Gradients of `each` tiles; what they add to those of weight and, second, of the bias."""
    program = tl.program_id(0).to(tl.int64)
    run = program // groups
    column = tl.arange(0, block)
    channel = (program % groups) * width + column
    real = column < width
    channels = width * groups
    scales = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    of_weight = tl.zeros((steps, block), tl.float32)
    of_bias = tl.zeros((steps, block), tl.float32)
    for tile in range(each):
        at = (run * each + tile) * steps + tl.arange(0, steps)
        inside = (at < rows)[:, None] & real[None, :]
        value = _load(x, x_row, x_column, at, channel, inside)
        g = _load(dy, dy_row, dy_column, at, channel, inside)
        given = value
        z = value
        if gated:
            z = _load(gate, gate_row, gate_column, at, channel, inside)
            value = given * z * tl.sigmoid(z)
        normed, scale = _normed(value, inside, width, eps, centred)
        of_weight += g * normed
        if has_bias:
            of_bias += g
        g *= scales
        found = g - normed * (tl.sum(g * normed, 1) / width)[:, None]
        if centred:
            found -= (tl.sum(g, 1) / width)[:, None]
        found *= scale
        if dtotal is not None:
            found += _load(dtotal, dtotal_row, dtotal_column, at, channel, inside)
        if gated:
            s = tl.sigmoid(z)
            of_gate = found * given * s * (1 + z * (1 - s))
            _store(dgate, dgate_row, at, channel, inside, of_gate)
            found *= z * s
        _store(dx, dx_row, at, channel, inside, found)
        if dresidual is not None:
            _store(dresidual, channels, at, channel, inside, found)
    kinds: tl.constexpr = 2 if has_bias else 1
    place = partial + run * kinds * channels + channel
    tl.store(place, tl.sum(of_weight, 0), mask=real)
    if has_bias:
        tl.store(place + channels, tl.sum(of_bias, 0), mask=real)
