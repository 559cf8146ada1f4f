"""The Triton kernels of the SSD: what one program computes, where it reads and writes.

A chunk is STEPS positions of one sequence in the order of the walk, a segment `chunks` chunks of
one sequence, the last of which may be short or missing. A unit is one head and a block of WIDTH of
its channels. What lies past the end of a sequence is read as 0, with a step size of 0: it changes
nothing. Offsets are 64-bit.

Tuples that go from function to function:

    inputs   x, dt, z, B, C, dy, and `strides`, theirs
    fixed    A (H), D (H, P), bias (H), float32 and contiguous
    packed   edges (S+1); base (S+1), the first segment of every sequence; owner, the sequence of
             every segment or -1; int64, read only if PACKED
    sizes    L, H, P, N, G, segments of a row, chunks of a segment, smallest and largest step size
    place    sequence, row, position of its first step, its length, first step of the segment
    unit     head, channels, which of them exist
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
def _operand(rounded):
    """Triton's interpreter multiplies the bits of a bfloat16 as if they were an integer."""
    if _INTERPRETED:
        return rounded.to(tl.float32)
    return rounded


@triton.jit
def _dot(a, b, acc, EXACT: tl.constexpr, SPLIT: tl.constexpr):
    """acc + a b, in float32. Unless EXACT the operands are rounded to bfloat16.

    SPLIT 1 (2) keeps 16 bits of a (of b), as the sum of two numbers: an operand that is no input
    would otherwise be the second one whose rounding is in the result.
    """
    if EXACT:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32x3")
    high_a, high_b = a.to(tl.bfloat16), b.to(tl.bfloat16)
    if SPLIT == 1:
        low = (a.to(tl.float32) - high_a.to(tl.float32)).to(tl.bfloat16)
        acc = tl.dot(_operand(low), _operand(high_b), acc)
    if SPLIT == 2:
        low = (b.to(tl.float32) - high_b.to(tl.float32)).to(tl.bfloat16)
        acc = tl.dot(_operand(high_a), _operand(low), acc)
    return tl.dot(_operand(high_a), _operand(high_b), acc)


# Where a program is


@triton.jit
def _place(segment, packed, sizes, STEPS: tl.constexpr, REVERSE: tl.constexpr, PACKED: tl.constexpr):
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
def _positions(place, chunk, STEPS: tl.constexpr, REVERSE: tl.constexpr):
    """(STEPS,) positions of a chunk, and which of them exist."""
    step = place[4] + tl.cast(chunk, tl.int64) * STEPS + tl.arange(0, STEPS)
    position = place[2] + step
    if REVERSE:
        position = place[2] - step
    return position, step < place[3]


@triton.jit
def _unit(number, sizes, WIDTH: tl.constexpr):
    width = sizes[2]
    blocks = tl.cdiv(width, WIDTH)
    channel = (number % blocks) * WIDTH + tl.arange(0, WIDTH)
    return tl.cast(number // blocks, tl.int64), channel, channel < width


# What it reads


@triton.jit
def _along(tensor, strides, place, position, there, unit):
    """(STEPS, WIDTH) of a tensor (B, L, H, P), in its dtype."""
    head, channel, inside = unit
    at = place[1] * strides[0] + head * strides[2]
    at += position[:, None] * strides[1] + tl.cast(channel, tl.int64)[None, :] * strides[3]
    return tl.load(tensor + at, mask=there[:, None] & inside[None, :], other=0.0)


@triton.jit
def _map(tensor, strides, place, position, there, group, sizes, STATES: tl.constexpr):
    """(STEPS, STATES) of a tensor (B, L, G, N), in its dtype."""
    state = tl.arange(0, STATES)
    at = place[1] * strides[0] + tl.cast(group, tl.int64) * strides[2]
    at += position[:, None] * strides[1] + tl.cast(state, tl.int64)[None, :] * strides[3]
    return tl.load(tensor + at, mask=there[:, None] & (state < sizes[3])[None, :], other=0.0)


@triton.jit
def _steps(inputs, strides, bias, place, position, there, head, sizes, SOFTPLUS: tl.constexpr):
    """(STEPS,) step sizes, 0 where no position exists, and their slopes by dt."""
    at = place[1] * strides[1][0] + position * strides[1][1] + head * strides[1][2]
    raw = tl.load(inputs[1] + at, mask=there, other=0.0).to(tl.float32) + tl.load(bias + head)
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
def _between(high, low, STEPS: tl.constexpr):
    """(t, s) what of position s is left at t; 0 where s > t. No positive sum is exponentiated."""
    t = tl.arange(0, STEPS)
    sums = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp(tl.where(t[:, None] >= t[None, :], sums, float("-inf")))


@triton.jit
def _until(high, low, total):
    """(s,) what of position s is left after the chunk."""
    total_high = total.to(tl.float32)
    total_low = (total - total_high.to(tl.float64)).to(tl.float32)
    return tl.exp((total_high - high) + (total_low - low))


@triton.jit
def _tile(unit, sizes, STATES: tl.constexpr):
    """Offsets of (WIDTH, STATES) of a unit in an array (..., H, P, N), and which exist."""
    head, channel, inside = unit
    state = tl.arange(0, STATES)
    at = (head * sizes[2] + tl.cast(channel, tl.int64)[:, None]) * sizes[3] + state[None, :]
    return at, inside[:, None] & (state < sizes[3])[None, :]


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
    at, inside = _tile(unit, sizes, STATES)
    carry = tl.zeros([WIDTH, STATES], tl.float32)
    if KEEP:
        carry = tl.load(marks + segment * _state_size(sizes) + at, mask=inside, other=0.0)
    passed = tl.zeros([], tl.float64)
    count = _chunks_of(place, sizes, STEPS)
    for k in range(count):
        chunk = k
        if ADJOINT:
            chunk = count - 1 - k
        if KEEP:
            slot = (segment - first) * chunks + chunk
            to = kept + slot * _state_size(sizes) + at
            tl.store(to, carry.to(kept.dtype.element_ty), mask=inside)
        position, there = _positions(place, chunk, STEPS, REVERSE)
        d, _ = _steps(inputs, strides, fixed[2], place, position, there, head, sizes, SOFTPLUS)
        high, low, total = _sums(d, a)
        if ADJOINT:
            u = _along(inputs[5], strides[5], place, position, there, unit).to(tl.float32)
            if GATED:
                z = _along(inputs[2], strides[2], place, position, there, unit).to(tl.float32)
                u = u * z * _sigmoid(z)
            v = _map(inputs[4], strides[4], place, position, there, group, sizes, STATES)
            weight = tl.exp(high)
        else:
            u = _along(inputs[0], strides[0], place, position, there, unit).to(tl.float32)
            v = _map(inputs[3], strides[3], place, position, there, group, sizes, STATES)
            weight = d * _until(high, low, total)
        passed += total
        carry = carry * _decay(total.to(tl.float32))
        carry = _dot(tl.trans(u * weight[:, None]), v, carry, EXACT, 1)
    if KEEP:
        if ADJOINT:
            if (place[4] == 0) & (place[3] > 0):
                tl.store(edge + place[0] * _state_size(sizes) + at, carry, mask=inside)
    else:
        tl.store(marks + segment * _state_size(sizes) + at, carry, mask=inside)
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
    at, inside = _tile(unit, sizes, STATES)
    h = tl.load(marks + segment * _state_size(sizes) + at, mask=inside, other=0.0)
    for chunk in range(_chunks_of(place, sizes, STEPS)):
        position, there = _positions(place, chunk, STEPS, REVERSE)
        d, _ = _steps(inputs, strides, fixed[2], place, position, there, head, sizes, SOFTPLUS)
        high, low, total = _sums(d, a)
        x = _along(inputs[0], strides[0], place, position, there, unit)
        b = _map(inputs[3], strides[3], place, position, there, group, sizes, STATES)
        c = _map(inputs[4], strides[4], place, position, there, group, sizes, STATES)
        out = _dot(c, tl.trans(h), tl.zeros([STEPS, WIDTH], tl.float32), EXACT, 0)
        out = out * tl.exp(high)[:, None]
        weights = _dot(c, tl.trans(b), tl.zeros([STEPS, STEPS], tl.float32), EXACT, 0)
        weights = weights * _between(high, low, STEPS) * d[None, :]
        out = _dot(weights, x, out, EXACT, 0)
        x = x.to(tl.float32)
        out += skip[None, :] * x
        if GATED:
            z = _along(inputs[2], strides[2], place, position, there, unit).to(tl.float32)
            out = out * z * _sigmoid(z)
        to = ((place[1] * length + position[:, None]) * shape[0] + head) * shape[1]
        to += channel[None, :]
        tl.store(y + to, out.to(y.dtype.element_ty), mask=there[:, None] & real[None, :])
        weight = d * _until(high, low, total)
        h = h * _decay(total.to(tl.float32))
        h = _dot(tl.trans(x * weight[:, None]), b, h, EXACT, 1)
    if (place[4] + tl.cast(chunks, tl.int64) * STEPS >= place[3]) & (place[3] > 0):
        tl.store(final + place[0] * _state_size(sizes) + at, h, mask=inside)


@triton.jit
def _straddling(pairs, from_before, to_after, STEPS: tl.constexpr):
    """(t,) the sum of what goes through the decay at t: from s < t to t or later.

    `pairs` (t, s) goes from s to t, `from_before` (t,) from before the chunk to t and `to_after`
    (s,) from s to after the chunk. Every sum has terms of its own alone: a total from which others
    are taken away would leave nothing where all is forgotten at once.
    """
    t = tl.arange(0, STEPS)
    pairs = tl.where(t[:, None] > t[None, :], pairs, 0.0)
    running = tl.where(t[:, None] > t[None, :], tl.cumsum(pairs, 1), 0.0)
    earlier = tl.sum(running, 0) + tl.cumsum(to_after, 0)
    through = tl.where(t[None, :] == t[:, None] - 1, earlier[None, :], 0.0)
    through += tl.where(t[None, :] >= t[:, None], from_before[None, :], 0.0)
    return tl.sum(through, 1)


@triton.jit
def _unit_back(
    b,
    c,
    products,
    dB,
    dC,
    d,
    sums,
    place,
    slot,
    position,
    there,
    unit,
    inputs,
    strides,
    fixed,
    sizes,
    states,
    outputs,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
    EXACT: tl.constexpr,
    GATED: tl.constexpr,
):
    """Gradients of a unit in a chunk: dB and dC with its addends, those of the step size.

    `products` (t, s) is C[t] B[s]. Of the step size: what its inflow gets, and what its decay gets.
    """
    high, low, total = sums
    length, heads, width = sizes[0], sizes[1], sizes[2]
    head, channel, real = unit
    shift: tl.constexpr = 1 if GATED else 0
    at, inside = _tile(unit, sizes, STATES)
    at += slot * _state_size(sizes)
    before = tl.load(states[0] + at, mask=inside, other=0.0)
    after = tl.load(states[1] + at, mask=inside, other=0.0)
    x = _along(inputs[0], strides[0], place, position, there, unit)
    gy = _along(inputs[5], strides[5], place, position, there, unit)
    skip = tl.load(fixed[1] + head * width + channel, mask=real, other=0.0)
    to = ((place[1] * length + position[:, None]) * heads + head) * width + channel[None, :]
    mask = there[:, None] & real[None, :]
    between = _between(high, low, STEPS)
    since, until = tl.exp(high), _until(high, low, total)
    if GATED:
        z = _along(inputs[2], strides[2], place, position, there, unit).to(tl.float32)
        gate = _sigmoid(z)
        y = _dot(c, tl.trans(before), tl.zeros([STEPS, WIDTH], tl.float32), EXACT, 0)
        y = _dot(products * between * d[None, :], x, y * since[:, None], EXACT, 0)
        y += skip[None, :] * x.to(tl.float32)
        gy = gy.to(tl.float32)
        dz = gy * y * gate * (1.0 + z * (1.0 - gate))
        tl.store(outputs[2] + to, dz.to(outputs[2].dtype.element_ty), mask=mask)
        gy = gy * z * gate

    weights = products * between
    from_after = _dot(b, tl.trans(after), tl.zeros([STEPS, WIDTH], tl.float32), EXACT, 0)
    from_after = from_after * until[:, None]
    q = _dot(tl.trans(weights), gy, from_after, EXACT, 2 * shift)
    dx = d[:, None] * q + skip[None, :] * gy.to(tl.float32)
    tl.store(outputs[0] + to, dx.to(outputs[0].dtype.element_ty), mask=mask)

    received = _dot(gy, tl.trans(x), tl.zeros([STEPS, STEPS], tl.float32), EXACT, shift)
    received = received * between
    by_inflow = tl.sum(received * products, 0)
    received = received * d[None, :]
    x_after = _dot(x, after, tl.zeros([STEPS, STATES], tl.float32), EXACT, 0)
    dB += x_after * (d * until)[:, None]
    dB = _dot(tl.trans(received), c, dB, EXACT, 0)
    gy_before = _dot(gy, before, tl.zeros([STEPS, STATES], tl.float32), EXACT, shift)
    gy_before = gy_before * since[:, None]
    dC = _dot(received, b, dC + gy_before, EXACT, 0)

    x = x.to(tl.float32)
    to_after = tl.sum(from_after * x, 1)
    from_before = tl.sum(gy_before * c.to(tl.float32), 1)
    by_decay = _straddling(received * products, from_before, d * to_after, STEPS)
    through = tl.sum(tl.sum(before.to(tl.float32) * after.to(tl.float32), 1), 0)
    by_decay += _decay(total.to(tl.float32)) * through
    dD = tl.sum(gy.to(tl.float32) * x, 0)
    tl.store(outputs[7] + (slot * heads + head) * width + channel, dD, mask=real)
    return dB, dC, by_inflow + to_after, by_decay


@triton.jit(do_not_specialize=_VARYING)
def backward_kernel(
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
) -> None:
    """Every gradient of one chunk and one group of heads.

    states: what enters the chunks of the segments from `first` on, and the gradient of what leaves
    them. outputs: dx, ddt, dz, dB, dC and, by chunk, dA (H), dbias (H) and dD (H, P).
    """
    sizes = (length, shape[0], shape[1], shape[2], shape[3], segments, chunks, limits[0], limits[1])
    heads, groups = shape[0], shape[3]
    slot = tl.cast(tl.program_id(0) // groups, tl.int64)
    group = tl.program_id(0) % groups
    place = _place(first + slot // chunks, packed, sizes, STEPS, REVERSE, PACKED)
    position, there = _positions(place, slot % chunks, STEPS, REVERSE)
    blocks = tl.cdiv(shape[1], WIDTH)
    if slot % chunks >= _chunks_of(place, sizes, STEPS):
        return
    b = _map(inputs[3], strides[3], place, position, there, group, sizes, STATES)
    c = _map(inputs[4], strides[4], place, position, there, group, sizes, STATES)
    products = _dot(c, tl.trans(b), tl.zeros([STEPS, STEPS], tl.float32), EXACT, 0)
    dB = tl.zeros([STEPS, STATES], tl.float32)
    dC = tl.zeros([STEPS, STATES], tl.float32)
    for number in range(heads // groups):
        head = tl.cast(group * (heads // groups) + number, tl.int64)
        a = tl.load(fixed[0] + head)
        d, slope = _steps(inputs, strides, fixed[2], place, position, there, head, sizes, SOFTPLUS)
        sums = _sums(d, a)
        by_inflow = tl.zeros([STEPS], tl.float32)
        by_decay = tl.zeros([STEPS], tl.float32)
        for block in range(blocks):
            unit = _unit(head * blocks + block, sizes, WIDTH)
            dB, dC, inflow, decay = _unit_back(
                b, c, products, dB, dC, d, sums, place, slot, position, there, unit, inputs,
                strides, fixed, sizes, states, outputs, STEPS, WIDTH, STATES, EXACT, GATED,
            )  # fmt: skip
            by_inflow += inflow
            by_decay += decay
        ddt = (by_inflow + a * by_decay) * slope
        at = (place[1] * length + position) * heads + head
        tl.store(outputs[1] + at, ddt.to(outputs[1].dtype.element_ty), mask=there)
        tl.store(outputs[5] + slot * heads + head, tl.sum(by_decay * d, 0))
        tl.store(outputs[6] + slot * heads + head, tl.sum(ddt, 0))
    state = tl.arange(0, STATES)
    to = ((place[1] * length + position[:, None]) * groups + group) * shape[2] + state[None, :]
    mask = there[:, None] & (state < shape[2])[None, :]
    tl.store(outputs[3] + to, dB.to(outputs[3].dtype.element_ty), mask=mask)
    tl.store(outputs[4] + to, dC.to(outputs[4].dtype.element_ty), mask=mask)
