"""The Triton kernels of the SSD: what one program computes, where it reads and writes.

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
"""

# Triton's language, not Python: arguments are pointers and tuples of them. None of a kernel may be
# called `params`, `options` or `specialization`: Triton binds arguments by code with these names.
# ruff: noqa: ANN001, ANN202
# mypy: ignore-errors

import triton
import triton.language as tl

_VARYING = ["length", "segments", "chunks", "first"]
"""Sizes that change from call to call: that one is 1, or round, is no reason to compile anew."""


# Scalars


@triton.jit
def _decay(exponent):
    """exp; near 1, where errors add up over a long memory, rounded to nearest."""
    near = 1.0 + exponent * (1.0 + exponent * (0.5 + exponent * 0.16666667))
    return tl.where(tl.abs(exponent) < 0.015625, near, tl.exp(exponent))


@triton.jit
def _softplus(raw):
    """log(1 + exp(raw)); for a small u = exp(raw) as log(w) u / (w - 1), w = 1 + u rounded."""
    u = tl.exp(tl.where(raw > 20.0, 0.0, raw))
    w = 1.0 + u
    lost = w == 1.0
    log1p = tl.log(w) * (u / tl.where(lost, 1.0, w - 1.0))
    return tl.where(raw > 20.0, raw, tl.where(lost, u, log1p))


@triton.jit
def _softplus_slope(raw):
    u = tl.exp(tl.where(raw > 20.0, 0.0, raw))
    return tl.where(raw > 20.0, 1.0, u / (1.0 + u))


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


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
def _sums(d, a):
    """The running sum of d A as two float32, its whole, and the whole in float64.

    Of one float32 alone, the difference of two would have lost what the sum is longer than it.
    """
    exponent = (d * a).to(tl.float64)
    running = tl.cumsum(exponent, 0)
    total = tl.sum(exponent, 0)
    high = running.to(tl.float32)
    return high, (running - high.to(tl.float64)).to(tl.float32), total


@triton.jit
def _between(high, low, STEPS: tl.constexpr, EXACT: tl.constexpr):
    """(t, s) what of position s is left at t; 0 where s > t. No positive sum is exponentiated."""
    t = tl.arange(0, STEPS)
    sums = high[:, None] - high[None, :]
    if EXACT != "":  # below the rounding to bfloat16, and registers are few
        sums += low[:, None] - low[None, :]
    return tl.exp(tl.where(t[:, None] >= t[None, :], sums, float("-inf")))


@triton.jit
def _until(high, low, total):
    """(s,) what of position s is left after the chunk."""
    total_high = total.to(tl.float32)
    total_low = (total - total_high.to(tl.float64)).to(tl.float32)
    return tl.exp((total_high - high) + (total_low - low))


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


# The kernels


@triton.jit(do_not_specialize=_VARYING)
def walk_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    limits,
    marks,
    sums,
    kept,
    edge,
    first,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
    EXACT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    GATED: tl.constexpr,
    WIDE: tl.constexpr,
    ADJOINT: tl.constexpr,
    KEEP: tl.constexpr,
) -> None:
    """Carry the state through a segment, or with ADJOINT its gradient, from the end.

    Without KEEP from 0, and `marks` gets what comes out, `sums` the sum of d A. With KEEP from
    `marks`, and `kept` gets what every chunk of the segments from `first` on starts from; with
    ADJOINT `edge` gets the gradient of the initial state.
    """
    sizes = (length, shape[0], shape[1], shape[2], shape[3], segments, chunks, limits[0], limits[1])
    units = shape[0] * tl.cdiv(shape[1], WIDTH)
    segment = first + tl.cast(tl.program_id(0) // units, tl.int64)
    number = tl.program_id(0) % units
    unit = _unit(number, sizes, WIDTH)
    place = _place(segment, packed, sizes, STEPS, REVERSE, PACKED)
    head = unit[0]
    group = head // (shape[0] // shape[3])
    a = tl.load(fixed[0] + head)
    of_head, at, inside = _tile(unit, sizes, STATES)
    mark = marks + (segment * _state_size(sizes) + of_head)
    carry = tl.zeros([WIDTH, STATES], tl.float32)
    if KEEP:
        carry = tl.load(mark + at, mask=inside, other=0.0)
    passed = tl.zeros([], tl.float64)
    count = _chunks_of(place, sizes, STEPS)
    for k in range(count):
        now = k
        if ADJOINT:
            now = count - 1 - k
        if KEEP:
            slot = (segment - first) * chunks + now
            to = kept + (slot * _state_size(sizes) + of_head)
            tl.store(to + at, carry.to(kept.dtype.element_ty), mask=inside)
        chunk = _chunk(place, now, STEPS, REVERSE)
        d, _ = _steps(
            inputs, strides, fixed[2], place, chunk, head, sizes, SOFTPLUS, STEPS, REVERSE, WIDE
        )
        high, low, total = _sums(d, a)
        if ADJOINT:
            u = _along(inputs[5], strides[5], place, chunk, unit, STEPS, REVERSE, WIDE).to(
                tl.float32
            )
            if GATED:
                z = _along(inputs[2], strides[2], place, chunk, unit, STEPS, REVERSE, WIDE).to(
                    tl.float32
                )
                u = u * z * _sigmoid(z)
            v = _map(
                inputs[4], strides[4], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE
            )
            weight = tl.exp(high)
        else:
            u = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE).to(
                tl.float32
            )
            v = _map(
                inputs[3], strides[3], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE
            )
            weight = d * _until(high, low, total)
        passed += total
        carry = carry * _decay(total.to(tl.float32))
        carry = _dot(u * weight[:, None], v, carry, EXACT, "a' b", "a")
    if KEEP:
        if ADJOINT and (place[4] == 0) & (place[3] > 0):
            edge += place[0] * _state_size(sizes) + of_head
            tl.store(edge + at, carry, mask=inside)
    else:
        tl.store(mark + at, carry, mask=inside)
        if number % tl.cdiv(shape[1], WIDTH) == 0:
            tl.store(sums + segment * shape[0] + head, passed.to(tl.float32))


@triton.jit(do_not_specialize=_VARYING)
def fold_kernel(
    packed,
    shape,
    segments,
    marks,
    sums,
    edge,
    BLOCK: tl.constexpr,
    PACKED: tl.constexpr,
    GIVEN: tl.constexpr,
    ADJOINT: tl.constexpr,
) -> None:
    """Turn `marks` from what comes out of every segment, from 0, into what enters it.

    `edge` (sequences, H, P, N) enters the first (the last: ADJOINT) if it is GIVEN, else 0.
    """
    of_head = tl.cast(shape[1], tl.int64) * shape[2]
    blocks = tl.cdiv(of_head, BLOCK)
    item = tl.cast(tl.program_id(0), tl.int64)
    at = (item % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < of_head
    head = (item // blocks) % shape[0]
    sequence = item // blocks // shape[0]
    start = sequence * segments
    count = start * 0 + segments
    if PACKED:
        start = tl.load(packed[1] + sequence)
        count = tl.load(packed[1] + sequence + 1) - start
    carry = tl.zeros([BLOCK], tl.float32)
    if GIVEN:
        carry = tl.load(edge + (sequence * shape[0] + head) * of_head + at, mask=inside, other=0.0)
    for k in range(count):
        segment = start + k
        if ADJOINT:
            segment = start + count - 1 - k
        mark = marks + (segment * shape[0] + head) * of_head + at
        out = tl.load(mark, mask=inside, other=0.0)
        tl.store(mark, carry, mask=inside)
        carry = _decay(tl.load(sums + segment * shape[0] + head)) * carry + out


@triton.jit(do_not_specialize=_VARYING)
def forward_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    limits,
    marks,
    y,
    final,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
    EXACT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    GATED: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """y of a segment, and the final state if it is the last of its sequence."""
    sizes = (length, shape[0], shape[1], shape[2], shape[3], segments, chunks, limits[0], limits[1])
    units = shape[0] * tl.cdiv(shape[1], WIDTH)
    segment = tl.cast(tl.program_id(0) // units, tl.int64)
    unit = _unit(tl.program_id(0) % units, sizes, WIDTH)
    place = _place(segment, packed, sizes, STEPS, REVERSE, PACKED)
    head, channel, real = unit
    group = head // (shape[0] // shape[3])
    a = tl.load(fixed[0] + head)
    skip = tl.load(fixed[1] + head * shape[1] + channel, mask=real, other=0.0)
    of_head, at, inside = _tile(unit, sizes, STATES)
    marks += segment * _state_size(sizes) + of_head
    h = tl.load(marks + at, mask=inside, other=0.0)
    for now in range(_chunks_of(place, sizes, STEPS)):
        chunk = _chunk(place, now, STEPS, REVERSE)
        d, _ = _steps(
            inputs, strides, fixed[2], place, chunk, head, sizes, SOFTPLUS, STEPS, REVERSE, WIDE
        )
        high, low, total = _sums(d, a)
        x = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE)
        b = _map(inputs[3], strides[3], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE)
        c = _map(inputs[4], strides[4], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE)
        out = _dot(c, h, tl.zeros([STEPS, WIDTH], tl.float32), EXACT, "a b'")
        out = out * tl.exp(high)[:, None]
        weights = _dot(c, b, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'")
        weights = weights * _between(high, low, STEPS, EXACT) * d[None, :]
        out = _dot(weights, x, out, EXACT, "a b")
        x = x.to(tl.float32)
        out += skip[None, :] * x
        if GATED:
            z = _along(inputs[2], strides[2], place, chunk, unit, STEPS, REVERSE, WIDE).to(
                tl.float32
            )
            out = out * z * _sigmoid(z)
        to = y + ((place[1] * length + chunk[0]) * shape[0] + head) * shape[1]
        to += _times(shape[0] * shape[1], STEPS, REVERSE, WIDE)[:, None] + channel[None, :]
        tl.store(to, out.to(y.dtype.element_ty), mask=chunk[1][:, None] & real[None, :])
        weight = d * _until(high, low, total)
        h = h * _decay(total.to(tl.float32))
        h = _dot(x * weight[:, None], b, h, EXACT, "a' b", "a")
    if (place[4] + tl.cast(chunks, tl.int64) * STEPS >= place[3]) & (place[3] > 0):
        final += place[0] * _state_size(sizes) + of_head
        tl.store(final + at, h, mask=inside)


@triton.jit
def _pairs_across(pairs, STEPS: tl.constexpr):
    """(u,) of `pairs` (t, s) the sum of those with s <= u < t."""
    t = tl.arange(0, STEPS)
    below = t[:, None] > t[None, :]
    running = tl.cumsum(tl.where(below, pairs, 0.0), 1)
    return tl.sum(tl.where(below, running, 0.0), 0)


@triton.jit
def _to_next(value, STEPS: tl.constexpr):
    """(t,) value[t - 1], 0 at first."""
    t = tl.arange(0, STEPS)
    return tl.sum(tl.where(t[None, :] == t[:, None] - 1, value[None, :], 0.0), 1)


@triton.jit
def _from_here_on(value, STEPS: tl.constexpr):
    """(t,) the sum of value[t] and all after it."""
    t = tl.arange(0, STEPS)
    return tl.sum(tl.where(t[None, :] >= t[:, None], value[None, :], 0.0), 1)


# Every sum of what goes through the decay at t (from s < t to t or later) has terms of its own
# alone: a total from which others are taken away leaves nothing where all is forgotten at once.


@triton.jit(do_not_specialize=_VARYING)
def into_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    limits,
    states,
    outputs,
    first,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
    EXACT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    GATED: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Gradients of what goes into the state, of one chunk and one group of heads.

    states: what enters the chunks of the segments from `first` on, and the gradient of what leaves
    them. outputs: dx, dB, and by chunk dD (H, P), what the step sizes get as factors of the inflow
    and what their decay gets, except for what `out_kernel` adds (H, STEPS each).
    """
    sizes = (length, shape[0], shape[1], shape[2], shape[3], segments, chunks, limits[0], limits[1])
    heads, width, groups = shape[0], shape[1], shape[3]
    slot = tl.cast(tl.program_id(0) // groups, tl.int64)
    group = tl.program_id(0) % groups
    place = _place(first + slot // chunks, packed, sizes, STEPS, REVERSE, PACKED)
    chunk = _chunk(place, slot % chunks, STEPS, REVERSE)
    if slot % chunks >= _chunks_of(place, sizes, STEPS):
        return
    b = _map(inputs[3], strides[3], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE)
    c = _map(inputs[4], strides[4], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE)
    products = _dot(c, b, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'")
    dB = tl.zeros([STEPS, STATES], tl.float32)
    blocks = tl.cdiv(width, WIDTH)
    for number in range(heads // groups * blocks):
        unit = _unit(group * (heads // groups) * blocks + number, sizes, WIDTH)
        head, channel, real = unit
        d, _ = _steps(
            inputs, strides, fixed[2], place, chunk, head, sizes, SOFTPLUS, STEPS, REVERSE, WIDE
        )
        high, low, total = _sums(d, tl.load(fixed[0] + head))
        until = _until(high, low, total)
        of_head, at, inside = _tile(unit, sizes, STATES)
        of_head += slot * _state_size(sizes)
        before = tl.load(states[0] + of_head + at, mask=inside, other=0.0).to(tl.float32)
        after = tl.load(states[1] + of_head + at, mask=inside, other=0.0)
        through = tl.sum(tl.sum(before * after.to(tl.float32), 1), 0)
        through *= _decay(total.to(tl.float32))
        x = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE)
        gy = _along(inputs[5], strides[5], place, chunk, unit, STEPS, REVERSE, WIDE)
        if GATED:
            z = _along(inputs[2], strides[2], place, chunk, unit, STEPS, REVERSE, WIDE)
            gy = gy.to(tl.float32) * (z.to(tl.float32) * _sigmoid(z.to(tl.float32)))

        between = _between(high, low, STEPS, EXACT)
        received = _dot(
            gy, x, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'", "a" if GATED else ""
        )
        received = received * between
        by_inflow = tl.sum(received * products, 0)
        dB = _dot(received * d[None, :], c, dB, EXACT, "a' b")
        dB = _dot(x.to(tl.float32) * (d * until)[:, None], after, dB, EXACT, "a b", "a")

        q = _dot(b, after, tl.zeros([STEPS, WIDTH], tl.float32), EXACT, "a b'") * until[:, None]
        to_after = tl.sum(q * x.to(tl.float32), 1)
        q = _dot(products * between, gy, q, EXACT, "a' b", "b" if GATED else "")
        gy = gy.to(tl.float32)
        skip = tl.load(fixed[1] + head * width + channel, mask=real, other=0.0)
        dx = outputs[0] + ((place[1] * length + chunk[0]) * heads + head) * width
        dx += _times(heads * width, STEPS, REVERSE, WIDE)[:, None] + channel[None, :]
        found = (d[:, None] * q + skip[None, :] * gy).to(outputs[0].dtype.element_ty)
        tl.store(dx, found, mask=chunk[1][:, None] & real[None, :])

        to = (slot * heads * blocks + head * blocks + number % blocks) * STEPS + tl.arange(0, STEPS)
        by_decay = _to_next(tl.cumsum(d * to_after, 0), STEPS) + through
        tl.store(outputs[3] + to, by_inflow + to_after)
        tl.store(outputs[4] + to, by_decay)
        dD = tl.sum(gy * x.to(tl.float32), 0)
        tl.store(outputs[2] + (slot * heads + head) * width + channel, dD, mask=real)
    state = tl.arange(0, STATES)
    to = outputs[1] + ((place[1] * length + chunk[0]) * groups + group) * shape[2]
    to += _times(groups * shape[2], STEPS, REVERSE, WIDE)[:, None] + state[None, :]
    mask = chunk[1][:, None] & (state < shape[2])[None, :]
    tl.store(to, dB.to(outputs[1].dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_VARYING)
def out_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    limits,
    states,
    outputs,
    first,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
    EXACT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    GATED: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Gradients of what comes out of the state, of one chunk and one group of heads.

    After `into_kernel`, with its `states`. outputs: dz, dC, ddt; by chunk dA (H), dbias (H); the
    two that `into_kernel` has left for the step sizes.
    """
    sizes = (length, shape[0], shape[1], shape[2], shape[3], segments, chunks, limits[0], limits[1])
    heads, width, groups = shape[0], shape[1], shape[3]
    slot = tl.cast(tl.program_id(0) // groups, tl.int64)
    group = tl.program_id(0) % groups
    place = _place(first + slot // chunks, packed, sizes, STEPS, REVERSE, PACKED)
    chunk = _chunk(place, slot % chunks, STEPS, REVERSE)
    if slot % chunks >= _chunks_of(place, sizes, STEPS):
        return
    b = _map(inputs[3], strides[3], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE)
    c = _map(inputs[4], strides[4], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE)
    products = _dot(c, b, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'")
    dC = tl.zeros([STEPS, STATES], tl.float32)
    by_inflow = tl.zeros([STEPS], tl.float32)
    by_decay = tl.zeros([STEPS], tl.float32)
    blocks = tl.cdiv(width, WIDTH)
    for number in range(heads // groups * blocks):
        unit = _unit(group * (heads // groups) * blocks + number, sizes, WIDTH)
        head, channel, real = unit
        a = tl.load(fixed[0] + head)
        d, slope = _steps(
            inputs, strides, fixed[2], place, chunk, head, sizes, SOFTPLUS, STEPS, REVERSE, WIDE
        )
        high, low, _ = _sums(d, a)
        since = tl.exp(high)
        between = _between(high, low, STEPS, EXACT) * d[None, :]
        of_head, at, inside = _tile(unit, sizes, STATES)
        of_head += slot * _state_size(sizes)
        before = tl.load(states[0] + of_head + at, mask=inside, other=0.0)
        x = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE)
        gy = _along(inputs[5], strides[5], place, chunk, unit, STEPS, REVERSE, WIDE)
        y = _dot(c, before, tl.zeros([STEPS, WIDTH], tl.float32), EXACT, "a b'") * since[:, None]
        if GATED:
            z = _along(inputs[2], strides[2], place, chunk, unit, STEPS, REVERSE, WIDE)
            z = z.to(tl.float32)
            gate = _sigmoid(z)
            skip = tl.load(fixed[1] + head * width + channel, mask=real, other=0.0)
            whole = _dot(products * between, x, y, EXACT, "a b") + skip[None, :] * x.to(tl.float32)
            dz = outputs[0] + ((place[1] * length + chunk[0]) * heads + head) * width
            dz += _times(heads * width, STEPS, REVERSE, WIDE)[:, None] + channel[None, :]
            found = gy.to(tl.float32) * whole * gate * (1.0 + z * (1.0 - gate))
            mask = chunk[1][:, None] & real[None, :]
            tl.store(dz, found.to(outputs[0].dtype.element_ty), mask=mask)
            gy = gy.to(tl.float32) * z * gate
        from_before = tl.sum(y * gy.to(tl.float32), 1)

        received = _dot(
            gy, x, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'", "a" if GATED else ""
        )
        received = received * between
        across = _pairs_across(received * products, STEPS)
        dC = _dot(received, b, dC, EXACT, "a b")
        dC = _dot(gy.to(tl.float32) * since[:, None], before, dC, EXACT, "a b", "a")

        left = (slot * heads * blocks + head * blocks + number % blocks) * STEPS
        left += tl.arange(0, STEPS)
        by_inflow += tl.load(outputs[5] + left)
        by_decay += tl.load(outputs[6] + left)
        by_decay += _to_next(across, STEPS) + _from_here_on(from_before, STEPS)
        if number % blocks == blocks - 1:
            ddt = (by_inflow + a * by_decay) * slope
            to = outputs[2] + (place[1] * length + chunk[0]) * heads + head
            to += _times(heads, STEPS, REVERSE, WIDE)
            tl.store(to, ddt.to(outputs[2].dtype.element_ty), mask=chunk[1])
            tl.store(outputs[3] + slot * heads + head, tl.sum(by_decay * d, 0))
            tl.store(outputs[4] + slot * heads + head, tl.sum(ddt, 0))
            by_inflow = tl.zeros([STEPS], tl.float32)
            by_decay = tl.zeros([STEPS], tl.float32)
    state = tl.arange(0, STATES)
    to = outputs[1] + ((place[1] * length + chunk[0]) * groups + group) * shape[2]
    to += _times(groups * shape[2], STEPS, REVERSE, WIDE)[:, None] + state[None, :]
    mask = chunk[1][:, None] & (state < shape[2])[None, :]
    tl.store(to, dC.to(outputs[1].dtype.element_ty), mask=mask)
