"""The Triton kernels of the SSD: what one program computes, where it reads and writes.

`tiles.py` says what the arguments are. Every sum of what goes through the decay at t (from s < t to
t or later) has terms of its own alone: a total from which others are taken away leaves nothing
where all is forgotten at once.
"""

# ruff: noqa: ANN001, ANN202
# mypy: ignore-errors

import triton
import triton.language as tl

from dnassm.kernels.ssd.triton.tiles import (
    _VARYING,
    _along,
    _between,
    _causal,
    _chunk,
    _chunks_of,
    _dot,
    _from_here_on,
    _gradient,
    _map,
    _place,
    _state_size,
    _steps,
    _store_map,
    _sums,
    _tile,
    _times,
    _unit,
    _vector,
)
from dnassm.kernels.triton_scalars import _decay, _sigmoid


@triton.jit(do_not_specialize=_VARYING)
def steps_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    limits,
    steps,
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
    """Fill `steps` for one head of one chunk: all that is the same for its channels and states.

    The running sum is kept as two float32: of one alone, the difference of two would have lost what
    the sum is longer than it.
    """
    sizes = (length, shape[0], shape[1], shape[2], shape[3], segments, chunks, limits[0], limits[1])
    slot = tl.cast(tl.program_id(0) // shape[0], tl.int64)
    head = tl.cast(tl.program_id(0) % shape[0], tl.int64)
    place = _place(slot // chunks, packed, sizes, STEPS, REVERSE, PACKED)
    chunk = _chunk(place, slot % chunks, STEPS, REVERSE)
    d, _ = _steps(
        inputs, strides, fixed[2], place, chunk, head, sizes, SOFTPLUS, STEPS, REVERSE, WIDE
    )
    exponent = (d * tl.load(fixed[0] + head)).to(tl.float64)
    running = tl.cumsum(exponent, 0)
    total = tl.sum(exponent, 0)
    high = running.to(tl.float32)
    number = slot * shape[0] + head
    tl.store(_vector(steps[0], number, STEPS), d)
    tl.store(_vector(steps[1], number, STEPS), high)
    tl.store(_vector(steps[2], number, STEPS), (running - high.to(tl.float64)).to(tl.float32))
    tl.store(_vector(steps[3], number, STEPS), tl.exp((total - running).to(tl.float32)))
    tl.store(steps[4] + number, total)


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
    steps,
    marks,
    sums,
    kept,
    through,
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
    `marks`, and `kept` (a pair) gets what every chunk of the segments from `first` on starts from,
    or the gradient of what leaves it; with ADJOINT `through` gets what the decay of each whole
    chunk receives, by unit, and `edge` the gradient of the initial state.
    """
    sizes = (length, shape[0], shape[1], shape[2], shape[3], segments, chunks, limits[0], limits[1])
    units = shape[0] * tl.cdiv(shape[1], WIDTH)
    segment = first + tl.cast(tl.program_id(0) // units, tl.int64)
    number = tl.program_id(0) % units
    unit = _unit(number, sizes, WIDTH)
    place = _place(segment, packed, sizes, STEPS, REVERSE, PACKED)
    head = unit[0]
    group = head // (shape[0] // shape[3])
    of_head, at, inside = _tile(unit, sizes, STATES)
    mark = marks + (segment * _state_size(sizes) + of_head)
    carry = tl.zeros([WIDTH, STATES], tl.float32)
    if KEEP:
        carry = tl.load(mark + at, mask=inside, other=0.0)
    passed = tl.zeros([], tl.float64)
    side: tl.constexpr = 1 if ADJOINT else 0
    count = _chunks_of(place, sizes, STEPS)
    for k in range(count):
        now = k
        if ADJOINT:
            now = count - 1 - k
        slot = segment * chunks + now
        of_steps = slot * shape[0] + head
        total = tl.load(steps[4] + of_steps)
        decay = _decay(total.to(tl.float32))
        if KEEP:
            slot -= first * chunks
            to = slot * _state_size(sizes) + of_head
            tl.store(kept[side] + (to + at), carry.to(kept[side].dtype.element_ty), mask=inside)
            before = tl.load(kept[0] + (to + at), mask=inside, other=0.0)
        chunk = _chunk(place, now, STEPS, REVERSE)
        v = _map(
            inputs[3 + side], strides[3 + side], place, chunk, group, sizes, STATES, STEPS,
            REVERSE, WIDE,
        )  # fmt: skip
        if ADJOINT:
            u = _gradient(inputs, strides, place, chunk, unit, GATED, STEPS, REVERSE, WIDE)
            weight = tl.exp(tl.load(_vector(steps[1], of_steps, STEPS)))
        else:
            u = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE)
            weight = tl.load(_vector(steps[0], of_steps, STEPS))
            weight *= tl.load(_vector(steps[3], of_steps, STEPS))
        u = u.to(tl.float32) * weight[:, None]
        if KEEP and ADJOINT:  # here, since `before` has arrived by now
            received = tl.sum(before.to(tl.float32) * carry) * decay
            tl.store(through + (slot * units + number), received)
        passed += total
        carry = _dot(u, v, carry * decay, EXACT, "a' b", "a")
    if KEEP:
        if ADJOINT and (place[4] == 0) & (place[3] > 0):
            edge += place[0] * _state_size(sizes) + of_head
            tl.store(edge + at, carry, mask=inside)
    else:
        tl.store(mark + at, carry, mask=inside)
        if number % tl.cdiv(shape[1], WIDTH) == 0:
            tl.store(sums + segment * shape[0] + head, passed.to(tl.float32))


@triton.jit
def _fold_next(marks, sums, shape, head, start, count, k, at, inside, ADJOINT: tl.constexpr):
    """What comes out of the segment that is number k of the walk, and its sum of d A."""
    k = tl.minimum(k, count - 1)
    segment = start + k
    if ADJOINT:
        segment = start + count - 1 - k
    of_head = segment * shape[0] + head
    states = tl.cast(shape[1], tl.int64) * shape[2]
    return tl.load(marks + of_head * states + at, mask=inside, other=0.0), tl.load(sums + of_head)


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
    # What comes out of a segment is fetched four segments before it is used.
    out0, sum0 = _fold_next(marks, sums, shape, head, start, count, 0, at, inside, ADJOINT)
    out1, sum1 = _fold_next(marks, sums, shape, head, start, count, 1, at, inside, ADJOINT)
    out2, sum2 = _fold_next(marks, sums, shape, head, start, count, 2, at, inside, ADJOINT)
    out3, sum3 = _fold_next(marks, sums, shape, head, start, count, 3, at, inside, ADJOINT)
    for k in range(count):
        out, total = out0, sum0
        out0, out1, out2 = out1, out2, out3
        sum0, sum1, sum2 = sum1, sum2, sum3
        out3, sum3 = _fold_next(marks, sums, shape, head, start, count, k + 4, at, inside, ADJOINT)
        segment = start + k
        if ADJOINT:
            segment = start + count - 1 - k
        tl.store(marks + (segment * shape[0] + head) * of_head + at, carry, mask=inside)
        carry = _decay(total) * carry + out


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
    steps,
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
    skip = tl.load(fixed[1] + head * shape[1] + channel, mask=real, other=0.0)
    of_head, at, inside = _tile(unit, sizes, STATES)
    marks += segment * _state_size(sizes) + of_head
    h = tl.load(marks + at, mask=inside, other=0.0)
    causal = _causal(STEPS, "t")
    for now in range(_chunks_of(place, sizes, STEPS)):
        chunk = _chunk(place, now, STEPS, REVERSE)
        of_steps = (segment * chunks + now) * shape[0] + head
        d = tl.load(_vector(steps[0], of_steps, STEPS))
        since = tl.exp(tl.load(_vector(steps[1], of_steps, STEPS)))
        until = tl.load(_vector(steps[3], of_steps, STEPS))
        decay = _decay(tl.load(steps[4] + of_steps).to(tl.float32))
        x = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE)
        b = _map(inputs[3], strides[3], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE)
        c = _map(inputs[4], strides[4], place, chunk, group, sizes, STATES, STEPS, REVERSE, WIDE)
        weights = _dot(c, b, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'")
        sums = _sums(steps, of_steps, STEPS, EXACT, "t")
        weights = weights * tl.exp(tl.where(causal, sums, float("-inf"))) * d[None, :]
        out = _dot(c, h, tl.zeros([STEPS, WIDTH], tl.float32), EXACT, "a b'")
        out = out * since[:, None]
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
        h = _dot(x * (d * until)[:, None], b, h * decay, EXACT, "a' b", "a")
    if (place[4] + tl.cast(chunks, tl.int64) * STEPS >= place[3]) & (place[3] > 0):
        final += place[0] * _state_size(sizes) + of_head
        tl.store(final + at, h, mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def pairs_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    limits,
    steps,
    pairs,
    vectors,
    by_channel,
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
    BY_CHANNEL: tl.constexpr,
) -> None:
    """What pairs of positions of one chunk do to each other, for one group of heads.

    pairs (slots, G, STEPS, STEPS): E[t,s] of README section 3 by (s, t), summed over the heads.
    vectors, of which a unit has one each in this slot: [0] what the step sizes get as factors of
    the inflow, [1] what straddles each step, [2] gy x. by_channel (slots, H, P): gy x summed over
    the chunk, only if BY_CHANNEL.
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
    units = heads // groups * tl.cdiv(width, WIDTH)
    causal = _causal(STEPS, "s")
    products = _dot(b, c, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'")
    products = tl.where(causal, products, 0.0)
    at = tl.arange(0, STEPS)
    after = tl.where(at[:, None] > at[None, :], 1.0, 0.0)
    total = tl.zeros([STEPS, STEPS], tl.float32)
    for k in range(units):
        number = group * units + k
        unit = _unit(number, sizes, WIDTH)
        head, channel, real = unit
        of_steps = (first * chunks + slot) * heads + head
        to = slot * groups * units + number
        d = tl.load(_vector(steps[0], of_steps, STEPS))
        x = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE)
        gy = _gradient(inputs, strides, place, chunk, unit, GATED, STEPS, REVERSE, WIDE)
        zeros = tl.zeros([STEPS, STEPS], tl.float32)
        received = _dot(x, gy, zeros, EXACT, "a b'", "b" if GATED else "")
        received = received * _between(steps, of_steps, STEPS, EXACT, "s")
        by_inflow = tl.sum(received * products, 1)
        received = received * d[:, None]
        total += received
        # Over all t after u, then over all s up to u.
        reached = _dot(received * products, after, zeros, EXACT, "a b", "a")
        across = tl.sum(tl.where(causal, reached, 0.0), 0)
        both = x.to(tl.float32) * gy.to(tl.float32)
        tl.store(_vector(vectors[0], to, STEPS), by_inflow)
        tl.store(_vector(vectors[1], to, STEPS), across)
        tl.store(_vector(vectors[2], to, STEPS), tl.sum(both, 1))
        if BY_CHANNEL:
            of_channels = by_channel + (slot * heads + head) * width + channel
            tl.store(of_channels, tl.sum(both, 0), mask=real)
    total = tl.where(causal, total, 0.0)
    pairs += (slot * groups + group) * STEPS * STEPS
    tl.store(pairs + at[:, None] * STEPS + at[None, :], total.to(pairs.dtype.element_ty))


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
    steps,
    kept,
    pairs,
    vectors,
    dx,
    dB,
    into_strides,
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

    After `pairs_kernel` and both walks. vectors[3] gets what each position gives to the state after
    the chunk, but for its step size.
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
    units = heads // groups * tl.cdiv(width, WIDTH)
    products = _dot(c, b, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'")
    products = tl.where(_causal(STEPS, "t"), products, 0.0)
    found = tl.zeros([STEPS, STATES], tl.float32)
    for k in range(units):
        number = group * units + k
        unit = _unit(number, sizes, WIDTH)
        head, channel, real = unit
        of_steps = (first * chunks + slot) * heads + head
        to = slot * groups * units + number
        d = tl.load(_vector(steps[0], of_steps, STEPS))
        until = tl.load(_vector(steps[3], of_steps, STEPS))
        of_head, at, inside = _tile(unit, sizes, STATES)
        of_head += slot * _state_size(sizes)
        after = tl.load(kept[1] + of_head + at, mask=inside, other=0.0)
        x = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE)
        gy = _gradient(inputs, strides, place, chunk, unit, GATED, STEPS, REVERSE, WIDE)
        found = _dot(x.to(tl.float32) * (d * until)[:, None], after, found, EXACT, "a b", "a")
        q = _dot(b, after, tl.zeros([STEPS, WIDTH], tl.float32), EXACT, "a b'") * until[:, None]
        tl.store(_vector(vectors[3], to, STEPS), tl.sum(q * x.to(tl.float32), 1))
        # Rows by t: by s, ptxas 12.8 makes wrong code of it where gy is taken in two parts.
        weights = products * _between(steps, of_steps, STEPS, EXACT, "t")
        q = _dot(weights, gy, q, EXACT, "a' b", "b" if GATED else "")
        skip = tl.load(fixed[1] + head * width + channel, mask=real, other=0.0)
        q = d[:, None] * q + skip[None, :] * gy.to(tl.float32)
        to_x = dx + place[1] * into_strides[0][0] + chunk[0] * into_strides[0][1]
        to_x += head * into_strides[0][2] + channel[None, :]
        to_x += _times(into_strides[0][1], STEPS, REVERSE, WIDE)[:, None]
        tl.store(to_x, q.to(dx.dtype.element_ty), mask=chunk[1][:, None] & real[None, :])
    at = tl.arange(0, STEPS)
    pairs += (slot * groups + group) * STEPS * STEPS
    pairs = tl.load(pairs + at[:, None] * STEPS + at[None, :])
    found = _dot(pairs, c, found, EXACT, "a b")
    _store_map(dB, into_strides[1], found, place, chunk, group, sizes, STEPS, REVERSE, WIDE)


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
    steps,
    kept,
    pairs,
    vectors,
    dz,
    dC,
    into_strides,
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

    After `pairs_kernel` and the walk. vectors[4] gets what each position takes from the state
    before the chunk.
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
    units = heads // groups * tl.cdiv(width, WIDTH)
    found = tl.zeros([STEPS, STATES], tl.float32)
    if GATED:
        products = _dot(c, b, tl.zeros([STEPS, STEPS], tl.float32), EXACT, "a b'")
        products = tl.where(_causal(STEPS, "t"), products, 0.0)
    for k in range(units):
        number = group * units + k
        unit = _unit(number, sizes, WIDTH)
        head, channel, real = unit
        of_steps = (first * chunks + slot) * heads + head
        to = slot * groups * units + number
        since = tl.exp(tl.load(_vector(steps[1], of_steps, STEPS)))
        of_head, at, inside = _tile(unit, sizes, STATES)
        of_head += slot * _state_size(sizes)
        before = tl.load(kept[0] + of_head + at, mask=inside, other=0.0)
        gy = _along(inputs[5], strides[5], place, chunk, unit, STEPS, REVERSE, WIDE).to(tl.float32)
        y = _dot(c, before, tl.zeros([STEPS, WIDTH], tl.float32), EXACT, "a b'") * since[:, None]
        if GATED:
            d = tl.load(_vector(steps[0], of_steps, STEPS))
            x = _along(inputs[0], strides[0], place, chunk, unit, STEPS, REVERSE, WIDE)
            z = _along(inputs[2], strides[2], place, chunk, unit, STEPS, REVERSE, WIDE)
            z = z.to(tl.float32)
            gate = _sigmoid(z)
            skip = tl.load(fixed[1] + head * width + channel, mask=real, other=0.0)
            weights = products * _between(steps, of_steps, STEPS, EXACT, "t") * d[None, :]
            whole = _dot(weights, x, y, EXACT, "a b") + skip[None, :] * x.to(tl.float32)
            whole *= gy * gate * (1.0 + z * (1.0 - gate))
            to_z = dz + ((place[1] * length + chunk[0]) * heads + head) * width
            to_z += _times(heads * width, STEPS, REVERSE, WIDE)[:, None] + channel[None, :]
            mask = chunk[1][:, None] & real[None, :]
            tl.store(to_z, whole.to(dz.dtype.element_ty), mask=mask)
            gy = gy * z * gate
        tl.store(_vector(vectors[4], to, STEPS), tl.sum(y * gy, 1))
        found = _dot(gy * since[:, None], before, found, EXACT, "a b", "a")
    at = tl.arange(0, STEPS)
    pairs += (slot * groups + group) * STEPS * STEPS
    pairs = tl.load(pairs + at[:, None] * STEPS + at[None, :])
    found = _dot(pairs, b, found, EXACT, "a' b")
    _store_map(dC, into_strides[2], found, place, chunk, group, sizes, STEPS, REVERSE, WIDE)


@triton.jit(do_not_specialize=_VARYING)
def ddt_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    limits,
    steps,
    vectors,
    through,
    ddt,
    ddt_strides,
    sums,
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
    """Gradients of the step sizes of one chunk and head, from what the other kernels leave.

    sums (slots, 3, H): what the chunk adds to dA, to dbias and to dD of a head.
    """
    sizes = (length, shape[0], shape[1], shape[2], shape[3], segments, chunks, limits[0], limits[1])
    heads = shape[0]
    slot = tl.cast(tl.program_id(0) // heads, tl.int64)
    head = tl.cast(tl.program_id(0) % heads, tl.int64)
    place = _place(first + slot // chunks, packed, sizes, STEPS, REVERSE, PACKED)
    chunk = _chunk(place, slot % chunks, STEPS, REVERSE)
    if slot % chunks >= _chunks_of(place, sizes, STEPS):
        return
    a = tl.load(fixed[0] + head)
    d, slope = _steps(
        inputs, strides, fixed[2], place, chunk, head, sizes, SOFTPLUS, STEPS, REVERSE, WIDE
    )
    at = tl.arange(0, STEPS)
    # Of the step before, 0 at the first.
    d_before = tl.load(
        _vector(steps[0], (first * chunks + slot) * heads + head, STEPS) - 1, mask=at > 0, other=0.0
    )
    by_inflow = tl.zeros([STEPS], tl.float32)
    by_decay = tl.zeros([STEPS], tl.float32)
    skip = tl.zeros([STEPS], tl.float32)
    blocks = tl.cdiv(shape[1], WIDTH)
    for k in range(blocks):
        number = (slot * heads + head) * blocks + k
        to_after = _vector(vectors[3], number, STEPS)
        by_inflow += tl.load(_vector(vectors[0], number, STEPS)) + tl.load(to_after)
        by_decay += tl.load(_vector(vectors[1], number, STEPS) - 1, mask=at > 0, other=0.0)
        by_decay += tl.cumsum(d_before * tl.load(to_after - 1, mask=at > 0, other=0.0), 0)
        by_decay += tl.load(through + number)
        by_decay += _from_here_on(tl.load(_vector(vectors[4], number, STEPS)), STEPS)
        skip += tl.load(_vector(vectors[2], number, STEPS))
    found = (by_inflow + a * by_decay) * slope
    to = ddt + place[1] * ddt_strides[0] + chunk[0] * ddt_strides[1] + head
    to += _times(ddt_strides[1], STEPS, REVERSE, WIDE)
    tl.store(to, found.to(ddt.dtype.element_ty), mask=chunk[1])
    sums += slot * 3 * heads + head
    tl.store(sums, tl.sum(by_decay * d, 0))
    tl.store(sums + heads, tl.sum(found, 0))
    tl.store(sums + 2 * heads, tl.sum(skip, 0))
