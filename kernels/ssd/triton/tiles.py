"""What the Triton kernels of the SSD share: where a program is, what it reads, its products.

A chunk is STEPS positions of one sequence in the order of the walk, a segment `chunks` chunks of
one sequence, the last of which may be short or missing. A unit is one head and a block of WIDTH of
its channels. What lies past the end of a sequence is read as 0, with a step size of 0: it changes
nothing. Offsets are 64-bit; those within a tile only if WIDE, since they take twice the registers.

Tuples that go from function to function:

    inputs   x, dt, z, B, C, dy, and `strides`, theirs
    fixed    A (H), D (H, P), bias (H), float32 and contiguous
    packed   edges (S+1); base (S+1), the first segment of every sequence; owner, the sequence of
             every segment or -1; int64, read only if PACKED
    sizes    L, H, P, N, G, segments of a row, chunks of a segment, smallest and largest step size
    place    sequence, row, position of its first step, its length, first step of the segment
    unit     head, channels, which of them exist
    chunk    position of its first step, which of its steps exist
    steps    what `steps_kernel` leaves by slot and head: (STEPS,) step sizes, the running sum of
             d A in two parts, what of a position is left after the chunk; one number, the whole sum

A slot is the place of a chunk in a scratch: segment times `chunks` plus its number in the segment.
"""

# Triton's language, not Python: arguments are pointers and tuples of them. None of a kernel may be
# called `params`, `options` or `specialization`: Triton binds arguments by code with these names.
# ruff: noqa: ANN001, ANN202
# mypy: ignore-errors

import triton
import triton.language as tl

from dnassm.kernels.triton_scalars import _sigmoid, _softplus, _softplus_slope

_VARYING = ["length", "segments", "chunks", "first"]
"""Sizes that change from call to call: that one is 1, or round, is no reason to compile anew."""


_INTERPRETED = tl.constexpr(not isinstance(_sigmoid, triton.JITFunction))


@triton.jit
def _product(a, b, acc, FORM: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b, a' b or a b' of two tiles of one dtype.

    Transposed last of all: a tile that goes through shared memory is then read the other way.
    """
    if _INTERPRETED:  # it multiplies the bits of a bfloat16 as if they were an integer
        a, b = a.to(tl.float32), b.to(tl.float32)
    if FORM == "a' b":
        a = tl.trans(a)
    if FORM == "a b'":
        b = tl.trans(b)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _dot(a, b, acc, EXACT: tl.constexpr, FORM: tl.constexpr, SPLIT: tl.constexpr = 0):
    """acc + the product of a and b, in float32. Both are rounded to bfloat16 if EXACT is "".

    EXACT is else the precision of a product of float32, in Triton's words.
    SPLIT keeps 16 bits of one of them ("a" or "b"; Triton 3.6 takes no string as a default), as the
    sum of two numbers: an operand that is no input would otherwise be the second one whose rounding
    is in the result.
    """
    if EXACT != "":
        return _product(a.to(tl.float32), b.to(tl.float32), acc, FORM, EXACT)
    high_a, high_b = a.to(tl.bfloat16), b.to(tl.bfloat16)
    if SPLIT == "a":
        low = (a.to(tl.float32) - high_a.to(tl.float32)).to(tl.bfloat16)
        acc = _product(low, high_b, acc, FORM, "ieee")
    if SPLIT == "b":
        low = (b.to(tl.float32) - high_b.to(tl.float32)).to(tl.bfloat16)
        acc = _product(high_a, low, acc, FORM, "ieee")
    return _product(high_a, high_b, acc, FORM, "ieee")


# Where a program is


@triton.jit
def _place(
    segment, packed, sizes, STEPS: tl.constexpr, REVERSE: tl.constexpr, PACKED: tl.constexpr
):
    """What a segment is of; of length 0 if it is of no sequence."""
    length, _, _, _, _, segments, chunks, _, _ = sizes
    segment = tl.cast(segment, tl.int64)
    if PACKED:
        sequence = tl.load(packed[2] + segment)
        known = tl.maximum(sequence, 0)
        number = segment - tl.load(packed[1] + known)
        start = tl.load(packed[0] + known)
        size = tl.where(sequence >= 0, tl.load(packed[0] + known + 1) - start, 0)
        row = sequence * 0
    else:
        sequence = segment // segments
        number = segment % segments
        start = sequence * 0
        size = start + length
        row = sequence
    origin = start
    if REVERSE:
        origin = start + size - 1
    return sequence, row, origin, size, number * chunks * STEPS


@triton.jit
def _chunks_of(place, sizes, STEPS: tl.constexpr):
    """How many chunks of a segment have a position."""
    left = tl.maximum(place[3] - place[4], 0)
    return tl.cast(tl.minimum((left + STEPS - 1) // STEPS, sizes[6]), tl.int32)


@triton.jit
def _chunk(place, number, STEPS: tl.constexpr, REVERSE: tl.constexpr):
    step = place[4] + tl.cast(number, tl.int64) * STEPS
    position = place[2] + step
    if REVERSE:
        position = place[2] - step
    left = tl.cast(tl.minimum(place[3] - step, STEPS), tl.int32)
    return position, tl.arange(0, STEPS) < left


@triton.jit
def _unit(number, sizes, WIDTH: tl.constexpr):
    width = sizes[2]
    blocks = tl.cdiv(width, WIDTH)
    channel = (number % blocks) * WIDTH + tl.arange(0, WIDTH)
    return tl.cast(number // blocks, tl.int64), channel, channel < width


# What it reads


@triton.jit
def _offsets(count: tl.constexpr, stride, WIDE: tl.constexpr):
    """(count,) of elements that are `stride` apart."""
    number = tl.arange(0, count)
    if WIDE:
        number = number.to(tl.int64)
    return number * stride


@triton.jit
def _times(stride, STEPS: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """(STEPS,) offsets of the steps of a chunk from its first."""
    if REVERSE:
        stride = -stride
    return _offsets(STEPS, stride, WIDE)


@triton.jit
def _along(
    tensor, strides, place, chunk, unit, STEPS: tl.constexpr, REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """(STEPS, WIDTH) of a tensor (B, L, H, P), in its dtype."""
    head, channel, inside = unit
    tensor += place[1] * strides[0] + chunk[0] * strides[1] + head * strides[2]
    if WIDE:
        channel = channel.to(tl.int64)
    at = _times(strides[1], STEPS, REVERSE, WIDE)[:, None] + (channel * strides[3])[None, :]
    return tl.load(tensor + at, mask=chunk[1][:, None] & inside[None, :], other=0.0)


@triton.jit
def _map(
    tensor, strides, place, chunk, group, sizes, STATES: tl.constexpr, STEPS: tl.constexpr,
    REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(STEPS, STATES) of a tensor (B, L, G, N), in its dtype."""
    tensor += place[1] * strides[0] + chunk[0] * strides[1] + tl.cast(group, tl.int64) * strides[2]
    at = _times(strides[1], STEPS, REVERSE, WIDE)[:, None]
    at += _offsets(STATES, strides[3], WIDE)[None, :]
    inside = tl.arange(0, STATES) < sizes[3]
    return tl.load(tensor + at, mask=chunk[1][:, None] & inside[None, :], other=0.0)


@triton.jit
def _gradient(
    inputs, strides, place, chunk, unit, GATED: tl.constexpr, STEPS: tl.constexpr,
    REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(STEPS, WIDTH) gradient of y before the gate: dy as it is, or in float32 through the gate."""
    gy = _along(inputs[5], strides[5], place, chunk, unit, STEPS, REVERSE, WIDE)
    if GATED:
        z = _along(inputs[2], strides[2], place, chunk, unit, STEPS, REVERSE, WIDE).to(tl.float32)
        gy = gy.to(tl.float32) * (z * _sigmoid(z))
    return gy


@triton.jit
def _store_map(
    to, strides, value, place, chunk, group, sizes, STEPS: tl.constexpr, REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Write (STEPS, STATES) to a tensor (B, L, G, N) whose last axis is contiguous."""
    to += place[1] * strides[0] + chunk[0] * strides[1] + tl.cast(group, tl.int64) * strides[2]
    state = tl.arange(0, value.shape[1])
    to += _times(strides[1], STEPS, REVERSE, WIDE)[:, None] + state[None, :]
    mask = chunk[1][:, None] & (state < sizes[3])[None, :]
    tl.store(to, value.to(to.dtype.element_ty), mask=mask)


@triton.jit
def _steps(
    inputs, strides, bias, place, chunk, head, sizes, SOFTPLUS: tl.constexpr, STEPS: tl.constexpr,
    REVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(STEPS,) step sizes, 0 where no position exists, and their slopes by dt."""
    there = chunk[1]
    dt = inputs[1] + place[1] * strides[1][0] + chunk[0] * strides[1][1] + head * strides[1][2]
    dt += _times(strides[1][1], STEPS, REVERSE, WIDE)
    raw = tl.load(dt, mask=there, other=0.0).to(tl.float32) + tl.load(bias + head)
    d = raw
    slope = tl.zeros_like(raw) + 1.0
    if SOFTPLUS:
        d = _softplus(raw)
        slope = _softplus_slope(raw)
    low, high = sizes[7], sizes[8]
    slope = tl.where((d >= low) & (d <= high), slope, 0.0)
    d = tl.where(d < low, low, tl.where(d > high, high, d))
    return tl.where(there, d, 0.0), tl.where(there, slope, 0.0)


@triton.jit
def _vector(scratch, number, STEPS: tl.constexpr):
    """(STEPS,) pointers to the vector `number` of a scratch of them."""
    return scratch + tl.cast(number, tl.int64) * STEPS + tl.arange(0, STEPS)


@triton.jit
def _causal(STEPS: tl.constexpr, ROWS: tl.constexpr):
    """(t, s), or (s, t) if ROWS is "s": whether s <= t."""
    at = tl.arange(0, STEPS)
    reached = at[:, None] >= at[None, :]
    if ROWS == "s":
        reached = at[:, None] <= at[None, :]
    return reached


@triton.jit
def _between(steps, number, STEPS: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr):
    """(t, s), or (s, t) if ROWS is "s": what of position s is left at t >= s; up to 1 elsewhere.

    No positive sum is exponentiated. A mask here would be made anew for every head.
    """
    return tl.exp(tl.minimum(_sums(steps, number, STEPS, EXACT, ROWS), 0.0))


@triton.jit
def _sums(steps, number, STEPS: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr):
    """(t, s), or (s, t) if ROWS is "s": the sum of d A after position s up to t."""
    high = tl.load(_vector(steps[1], number, STEPS))
    sums = high[:, None] - high[None, :]
    if ROWS == "s":
        sums = high[None, :] - high[:, None]
    if EXACT != "":  # below the rounding to bfloat16, and registers are few
        low = tl.load(_vector(steps[2], number, STEPS))
        if ROWS == "s":
            sums += low[None, :] - low[:, None]
        else:
            sums += low[:, None] - low[None, :]
    return sums


@triton.jit
def _tile(unit, sizes, STATES: tl.constexpr):
    """(WIDTH, STATES) of an array (H, P, N): offset of the head, offsets in it, which exist."""
    head, channel, inside = unit
    state = tl.arange(0, STATES)
    at = (channel * sizes[3])[:, None] + state[None, :]
    of_head = head * sizes[2] * sizes[3]
    return of_head, at, inside[:, None] & (state < sizes[3])[None, :]


@triton.jit
def _state_size(sizes):
    """Numbers of the states of all heads."""
    return tl.cast(sizes[1], tl.int64) * sizes[2] * sizes[3]


@triton.jit
def _from_here_on(value, STEPS: tl.constexpr):
    """(t,) the sum of value[t] and all after it."""
    at = tl.arange(0, STEPS)
    return tl.sum(tl.where(at[None, :] >= at[:, None], value[None, :], 0.0), 1)
