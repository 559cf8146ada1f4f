"""The kernels of the Triton backend; a tile is `steps` positions of a row by `block` channels."""

# Triton compiles these functions: it reads no annotations but tl.constexpr, and has no keywords.
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(length, channels, tiles, steps: tl.constexpr, block: tl.constexpr):
    """Row, first tile and channels of this program, which walks `tiles` tiles."""
    blocks = tl.cdiv(channels, block)
    runs = tl.cdiv(length, steps * tiles)
    program = tl.program_id(0).to(tl.int64)
    run = program // blocks
    channel = (program % blocks) * block + tl.arange(0, block)
    return run // runs, run % runs, run, channel.to(tl.int64)


@triton.jit
def _sequence(begins, ends, states, row, at, length, packed: tl.constexpr):
    """Begin, end and row of the states of the sequences at these positions."""
    if packed:
        inside = at < length
        begin = tl.load(begins + at, mask=inside, other=0).to(tl.int64)
        end = tl.load(ends + at, mask=inside, other=0).to(tl.int64)
        state = tl.load(states + at, mask=inside, other=0).to(tl.int64)
    else:
        begin = at * 0
        end = begin + length
        state = begin + row
    return begin, end, state


@triton.jit
def _row(origin, row, stride, length, reverse: tl.constexpr):
    """Address of position 0 of the walk over the row at `origin`, and the step to the next."""
    if reverse:
        origin += (row * 0 + length - 1) * stride  # row is 64 bits wide
        stride = -stride
    return origin, stride


@triton.jit
def _input(
    x, stride, channel_stride, initial, at, begin, end, state, channel, channels,
    past: tl.constexpr, has_state: tl.constexpr,
):  # fmt: skip
    """(steps, block) inputs at these positions; before the begin those of the state."""
    inside = ((at >= begin) & (at < end))[:, None] & (channel < channels)[None, :]
    place = x + at[:, None] * stride + channel[None, :] * channel_stride
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if has_state:
        slot = at - begin + past
        before = ((at < begin) & (slot >= 0) & (begin < end))[:, None]
        place = initial + (state * past + slot)[:, None] * channels + channel[None, :]
        value += tl.load(place, mask=before & (channel < channels)[None, :], other=0.0)
    return value


@triton.jit
def _sum(
    x, stride, channel_stride, weight, bias, initial, at, begin, end, state, channel, channels,
    width: tl.constexpr, has_bias: tl.constexpr, has_state: tl.constexpr,
    steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """(steps, block) before SiLU."""
    real = channel < channels
    total = tl.zeros((steps, block), tl.float32)
    if has_bias:
        total += tl.load(bias + channel, mask=real, other=0.0)[None, :]
    for k in tl.static_range(width):
        tap = tl.load(weight + channel * width + k, mask=real, other=0.0)
        total += tap[None, :] * _input(
            x, stride, channel_stride, initial, at - (width - 1) + k, begin, end, state, channel,
            channels, width - 1, has_state,
        )  # fmt: skip
    return total


@triton.jit
def forward(
    x, x_row, x_position, x_channel, weight, bias, initial, begins, ends, states, length, channels,
    y, y_row, y_position,
    width: tl.constexpr, silu: tl.constexpr, reverse: tl.constexpr, has_bias: tl.constexpr,
    has_state: tl.constexpr, packed: tl.constexpr, steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, tile, _, channel = _place(length, channels, 1, steps, block)
    at = tile * steps + tl.arange(0, steps)
    begin, end, state = _sequence(begins, ends, states, row, at, length, packed)
    origin, stride = _row(x + row * x_row, row, x_position, length, reverse)
    total = _sum(
        origin, stride, x_channel, weight, bias, initial, at, begin, end, state, channel, channels,
        width, has_bias, has_state, steps, block,
    )  # fmt: skip
    if silu:
        total = total * tl.sigmoid(total)
    to, step = _row(y + row * y_row, row, y_position, length, reverse)
    real = (at < length)[:, None] & (channel < channels)[None, :]
    tl.store(to + at[:, None] * step + channel[None, :], total.to(y.dtype.element_ty), mask=real)


@triton.jit
def before_silu(
    x, x_row, x_position, x_channel, weight, bias, initial, begins, ends, states, length, channels,
    dy, dy_row, dy_position, dy_channel, gradients,
    width: tl.constexpr, silu: tl.constexpr, reverse: tl.constexpr, has_bias: tl.constexpr,
    has_state: tl.constexpr, packed: tl.constexpr, steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Gradients before SiLU, float32, in the order of the walk."""
    row, tile, _, channel = _place(length, channels, 1, steps, block)
    at = tile * steps + tl.arange(0, steps)
    inside = (at < length)[:, None] & (channel < channels)[None, :]
    origin, step = _row(dy + row * dy_row, row, dy_position, length, reverse)
    place = origin + at[:, None] * step + channel[None, :] * dy_channel
    g = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if silu:
        begin, end, state = _sequence(begins, ends, states, row, at, length, packed)
        origin, stride = _row(x + row * x_row, row, x_position, length, reverse)
        total = _sum(
            origin, stride, x_channel, weight, bias, initial, at, begin, end, state, channel,
            channels, width, has_bias, has_state, steps, block,
        )  # fmt: skip
        s = tl.sigmoid(total)
        g = g * s * (1 + total * (1 - s))
    place = gradients + (row * length + at)[:, None] * channels + channel[None, :]
    tl.store(place, g, mask=inside)


@triton.jit
def of_weights(
    x, x_row, x_position, x_channel, weight, bias, initial, begins, ends, states, length, channels,
    gradients, partial, summed: tl.constexpr,
    width: tl.constexpr, silu: tl.constexpr, reverse: tl.constexpr, has_bias: tl.constexpr,
    has_state: tl.constexpr, packed: tl.constexpr, steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """What `summed` tiles add to the gradients of the taps and, in the last row, of the bias."""
    row, first, run, channel = _place(length, channels, summed, steps, block)
    origin, stride = _row(x + row * x_row, row, x_position, length, reverse)
    real = channel < channels
    for k in tl.static_range(width + 1):
        sums = tl.zeros((block,), tl.float32)
        for tile in range(summed):
            at = (first * summed + tile) * steps + tl.arange(0, steps)
            begin, end, state = _sequence(begins, ends, states, row, at, length, packed)
            place = gradients + (row * length + at)[:, None] * channels + channel[None, :]
            g = tl.load(place, mask=(at < length)[:, None] & real[None, :], other=0.0)
            if k < width:
                g *= _input(
                    origin, stride, x_channel, initial, at - (width - 1) + k, begin, end, state,
                    channel, channels, width - 1, has_state,
                )  # fmt: skip
            sums += tl.sum(g, 0)
        tl.store(partial + (run * (width + 1) + k) * channels + channel, sums, mask=real)


@triton.jit
def of_inputs(
    x, x_row, x_position, x_channel, weight, bias, initial, begins, ends, states, length, channels,
    gradients, dfinal, dx, dx_row, dx_position,
    width: tl.constexpr, silu: tl.constexpr, reverse: tl.constexpr, has_bias: tl.constexpr,
    has_state: tl.constexpr, packed: tl.constexpr, steps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Gradient of x: each input met the outputs up to K-1 positions later, and the final state."""
    past: tl.constexpr = width - 1
    row, tile, _, channel = _place(length, channels, 1, steps, block)
    at = tile * steps + tl.arange(0, steps)
    _, end, state = _sequence(begins, ends, states, row, at, length, packed)
    real = (channel < channels)[None, :]
    total = tl.zeros((steps, block), tl.float32)
    for k in tl.static_range(width):
        later = at + past - k
        tap = tl.load(weight + channel * width + k, mask=channel < channels, other=0.0)
        place = gradients + (row * length + later)[:, None] * channels + channel[None, :]
        total += tap[None, :] * tl.load(place, mask=(later < end)[:, None] & real, other=0.0)
    slot = at - (end - past)
    inside = (at < length)[:, None] & real
    place = dfinal + (state * past + slot)[:, None] * channels + channel[None, :]
    total += tl.load(place, mask=(slot >= 0)[:, None] & inside, other=0.0)
    to, step = _row(dx + row * dx_row, row, dx_position, length, reverse)
    place = to + at[:, None] * step + channel[None, :]
    tl.store(place, total.to(dx.dtype.element_ty), mask=inside)
