"""The Triton kernels of the selective scan: what one program computes, where it reads and writes.

A program has a tile of states x channels, (STATES, BLOCK): channels lie across the lanes of a warp,
the states of a channel in the registers of its lane. It walks one segment of one row step by step.
A place in time is a count of steps, `walked`; `position`, the index into L, counts from the other
end if the scan is reversed. Past the end of L step size and inflow are 0: the state stays as it is.
Offsets are 64-bit, but for those within one state, (N, D): they would take twice the registers.

Tuples that go from function to function:

    inputs   x, dt, z, B, C, dy, and `strides`, theirs
    fixed   A (N, D), D (D), bias (D), float32 and contiguous
    packed   begin, finish (the sequence whose walk begins, ends with a step, or -1), initial state,
             gradient of the final state; these two (sequences, N, D), float32 and contiguous
    sizes    L, D, N, G, segments of a row, chunks of a segment, steps of a chunk
    place    row, segment, group, channels, which channels exist, states, which states exist
"""

# Triton's language, not Python: arguments are pointers and tuples of them. None of a kernel may be
# called `params`, `options` or `specialization`: Triton binds arguments by code with these names.
# ruff: noqa: ANN001, ANN202
# mypy: ignore-errors

import triton
import triton.language as tl

from dnassm.kernels.triton_scalars import _decay, _sigmoid, _softplus, _softplus_slope

_VARYING = ["length", "segments", "chunks", "steps", "first_task", "tasks", "low", "high"]
"""Sizes that change from call to call: that one is 1, or round, is no reason to compile anew."""


@triton.jit
def _only_if(flag, mask):
    """`mask & flag` for a scalar flag; & itself gives no mask in Triton's interpreter."""
    return (mask.to(tl.int32) * tl.cast(flag, tl.int32)) != 0


@triton.jit
def _place(item, first_task, sizes, STATES: tl.constexpr, BLOCK: tl.constexpr):
    """What an item of work is: a block of channels of one group, in one segment of one row."""
    _, channels, states, groups, segments, _, _ = sizes
    per_group = channels // groups
    blocks = tl.cdiv(per_group, BLOCK)
    item = tl.cast(item, tl.int64)
    task = first_task + item // (groups * blocks)
    group = (item // blocks) % groups
    lane = tl.cast(item % blocks, tl.int32) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    channel = tl.cast(group, tl.int32) * per_group + lane
    there = lane < per_group
    return task // segments, task % segments, group, channel, there, state, state < states


@triton.jit
def _tile(place, sizes):
    """Offsets of a tile in an array (..., N, D), and which of its elements exist."""
    _, _, _, channel, there, state, filled = place
    return state[:, None] * sizes[1] + channel[None, :], filled[:, None] & there[None, :]


@triton.jit
def _position(walked, sizes, REVERSE: tl.constexpr):
    if REVERSE:
        _, _, _, _, segments, chunks, steps = sizes
        return tl.cast(segments, tl.int64) * chunks * steps - 1 - walked
    return walked


@triton.jit
def _along(tensor, strides, place, position, sizes):
    """(BLOCK,) of a tensor (B, L, D)."""
    row, _, _, channel, there, _, _ = place
    at = row * strides[0] + position * strides[1]
    at += tl.cast(channel, tl.int64) * strides[2]
    return tl.load(tensor + at, mask=_only_if(position < sizes[0], there), other=0.0).to(tl.float32)


@triton.jit
def _map(tensor, strides, place, position, sizes):
    """(STATES, 1) of a tensor (B, L, G, N)."""
    row, _, group, _, _, state, filled = place
    at = row * strides[0] + position * strides[1] + group * strides[2]
    at += tl.cast(state, tl.int64) * strides[3]
    mask = _only_if(position < sizes[0], filled)
    return tl.load(tensor + at, mask=mask, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _step_size(inputs, strides, bias, place, position, sizes, SOFTPLUS: tl.constexpr):
    """dt + bias, and d: its softplus, or itself; d is 0 past the end."""
    raw = _along(inputs[1], strides[1], place, position, sizes) + bias
    d = raw
    if SOFTPLUS:
        d = _softplus(raw)
    return raw, tl.where(_only_if(position < sizes[0], place[4]), d, 0.0)


@triton.jit
def _load_params(fixed, place, sizes):
    A, D, bias = fixed
    at, inside = _tile(place, sizes)
    channel, there = place[3], place[4]
    return (
        tl.load(A + at, mask=inside, other=0.0),
        tl.load(D + channel, mask=there, other=0.0),
        tl.load(bias + channel, mask=there, other=0.0),
    )


@triton.jit
def _enter(h, walked, packed, place, sizes, INITIAL: tl.constexpr):
    """The state before a step of a packed row: that of a sequence, if one begins."""
    sequence = tl.load(packed[0] + walked)
    if sequence >= 0:
        h = tl.zeros_like(h)
        if INITIAL:
            at, inside = _tile(place, sizes)
            at += tl.cast(sequence, tl.int64) * sizes[1] * sizes[2]
            h = tl.load(packed[2] + at, mask=inside, other=0.0)
    return h


@triton.jit
def _leave(g, walked, packed, place, sizes):
    """With the gradient of a final state added, if a sequence ends with a step of a packed row."""
    sequence = tl.load(packed[1] + walked)
    if sequence >= 0:
        at, inside = _tile(place, sizes)
        at += tl.cast(sequence, tl.int64) * sizes[1] * sizes[2]
        g += tl.load(packed[3] + at, mask=inside, other=0.0)
    return g


@triton.jit
def _put(states, sequence, tile, place, sizes):
    """Store a tile as the state of a sequence, (sequences, N, D); of sequence -1 nowhere."""
    if sequence >= 0:
        at, inside = _tile(place, sizes)
        at += tl.cast(sequence, tl.int64) * sizes[1] * sizes[2]
        tl.store(states + at, tile, mask=inside)


@triton.jit
def _advance(h, A, bias, inputs, strides, place, position, sizes, SOFTPLUS: tl.constexpr):
    """One step of the recurrence; also d and u."""
    u = _along(inputs[0], strides[0], place, position, sizes)
    _, d = _step_size(inputs, strides, bias, place, position, sizes, SOFTPLUS)
    b = _map(inputs[3], strides[3], place, position, sizes)
    return _decay(d[None, :] * A) * h + (d * u)[None, :] * b, d, u


@triton.jit
def _gated(value, inputs, strides, place, position, sizes):
    z = _along(inputs[2], strides[2], place, position, sizes)
    return value * z * _sigmoid(z)


@triton.jit(do_not_specialize=_VARYING)
def ends_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    steps,
    ends,
    sums,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    INITIAL: tl.constexpr,
) -> None:
    """Per segment: `ends`, the state after it if it starts from 0, and `sums`, the sum of d."""
    sizes = (length, shape[0], shape[1], shape[2], segments, chunks, steps)
    place = _place(tl.program_id(0), 0, sizes, STATES, BLOCK)
    at, inside = _tile(place, sizes)
    A, _, bias = _load_params(fixed, place, sizes)
    h = tl.zeros([STATES, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(chunks * steps):
        walked = place[1] * chunks * steps + step
        position = _position(walked, sizes, REVERSE)
        if PACKED:
            h = _enter(h, walked, packed, place, sizes, INITIAL)
        h, d, _ = _advance(h, A, bias, inputs, strides, place, position, sizes, SOFTPLUS)
        total += d
    task = place[0] * segments + place[1]
    tl.store(ends + task * shape[1] * shape[0] + at, h, mask=inside)
    tl.store(sums + task * shape[0] + place[3], total, mask=place[4])


@triton.jit(do_not_specialize=_VARYING)
def adjoints_kernel(
    inputs,
    strides,
    fixed,
    packed,
    shape,
    length,
    segments,
    chunks,
    steps,
    ends,
    sums,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    GATED: tl.constexpr,
) -> None:
    """Per segment: the gradient of the state before it if none enters from after it; sum of d."""
    sizes = (length, shape[0], shape[1], shape[2], segments, chunks, steps)
    place = _place(tl.program_id(0), 0, sizes, STATES, BLOCK)
    at, inside = _tile(place, sizes)
    A, _, bias = _load_params(fixed, place, sizes)
    g = tl.zeros([STATES, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(chunks * steps):
        walked = (place[1] + 1) * chunks * steps - 1 - step
        position = _position(walked, sizes, REVERSE)
        _, d = _step_size(inputs, strides, bias, place, position, sizes, SOFTPLUS)
        gy = _along(inputs[5], strides[5], place, position, sizes)
        if GATED:
            gy = _gated(gy, inputs, strides, place, position, sizes)
        if PACKED:
            g = _leave(g, walked, packed, place, sizes)
        g += gy[None, :] * _map(inputs[4], strides[4], place, position, sizes)
        g *= _decay(d[None, :] * A)
        if PACKED:
            g = tl.where(tl.load(packed[0] + walked) >= 0, 0.0, g)
        total += d
    task = place[0] * segments + place[1]
    tl.store(ends + task * shape[1] * shape[0] + at, g, mask=inside)
    tl.store(sums + task * shape[0] + place[3], total, mask=place[4])


@triton.jit(do_not_specialize=_VARYING)
def fold_kernel(
    A,
    ends,
    sums,
    through,
    carries,
    row_stride,
    segment_stride,
    shape,
    segments,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARD: tl.constexpr,
) -> None:
    """Fill `carries`, what enters each segment, from that of the first (of the last: BACKWARD)."""
    sizes = (0, shape[0], shape[1], shape[2], 1, 0, 0)
    # A row here is what a task is elsewhere: all its segments are one item.
    place = _place(tl.program_id(0), 0, sizes, STATES, BLOCK)
    at, inside = _tile(place, sizes)
    A_tile = tl.load(A + at, mask=inside, other=0.0)
    carries += place[0] * row_stride
    edge = tl.cast(segments - 1, tl.int64) if BACKWARD else 0
    carry = tl.load(carries + edge * segment_stride + at, mask=inside, other=0.0)
    for count in range(segments - 1):
        segment = tl.cast(count, tl.int64)
        onto = segment + 1
        if BACKWARD:
            segment = segments - 1 - segment
            onto = segment - 1
        task = place[0] * segments + segment
        total = tl.load(sums + task * shape[0] + place[3], mask=place[4], other=0.0)
        kept = tl.exp(total[None, :] * A_tile) * carry
        if PACKED:
            kept = tl.where(tl.load(through + segment) != 0, kept, 0.0)
        carry = kept + tl.load(ends + task * shape[1] * shape[0] + at, mask=inside, other=0.0)
        tl.store(carries + onto * segment_stride + at, carry, mask=inside)


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
    steps,
    y,
    final,
    marks,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    INITIAL: tl.constexpr,
    GATED: tl.constexpr,
) -> None:
    """y, final states, and `marks`, the state before every chunk; a segment's first is there."""
    sizes = (length, shape[0], shape[1], shape[2], segments, chunks, steps)
    place = _place(tl.program_id(0), 0, sizes, STATES, BLOCK)
    row, segment, channel, there = place[0], place[1], place[3], place[4]
    at, inside = _tile(place, sizes)
    A, D, bias = _load_params(fixed, place, sizes)
    marks += (row * segments + segment) * chunks * shape[1] * shape[0]
    h = tl.load(marks + at, mask=inside, other=0.0)
    for chunk in range(chunks):
        tl.store(marks + tl.cast(chunk, tl.int64) * shape[1] * shape[0] + at, h, mask=inside)
        for step in range(steps):
            walked = (segment * chunks + chunk) * steps + step
            position = _position(walked, sizes, REVERSE)
            if PACKED:
                h = _enter(h, walked, packed, place, sizes, INITIAL)
            h, _, u = _advance(h, A, bias, inputs, strides, place, position, sizes, SOFTPLUS)
            out = tl.sum(h * _map(inputs[4], strides[4], place, position, sizes), 0) + D * u
            if GATED:
                out = _gated(out, inputs, strides, place, position, sizes)
            to = (row * length + position) * shape[0] + channel
            tl.store(y + to, out, mask=_only_if(position < length, there))
            if PACKED:
                _put(final, tl.load(packed[1] + walked), h, place, sizes)
    if not PACKED:
        _put(final, tl.where(segment == segments - 1, row, -1), h, place, sizes)


@triton.jit
def _spread(STATES: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a tile in `room`."""
    return tl.arange(0, STATES)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def _recompute(
    h,
    walked,
    A,
    bias,
    inputs,
    strides,
    packed,
    place,
    sizes,
    room,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    SUB: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    INITIAL: tl.constexpr,
    KEEP: tl.constexpr,
):
    """The state SUB steps on; KEEP stores the state that each step starts from."""
    for i in range(SUB):
        if PACKED:
            h = _enter(h, walked + i, packed, place, sizes, INITIAL)
        if KEEP:
            tl.store(room + i * STATES * BLOCK + _spread(STATES, BLOCK), h)
        position = _position(walked + i, sizes, REVERSE)
        h, _, _ = _advance(h, A, bias, inputs, strides, place, position, sizes, SOFTPLUS)
    return h


@triton.jit
def _step_back(
    g,
    before,
    position,
    A,
    D,
    bias,
    inputs,
    strides,
    outputs,
    map_row,
    place,
    sizes,
    SOFTPLUS: tl.constexpr,
    GATED: tl.constexpr,
):
    """One step of the adjoint: g of the state before it, its addends to dA, dD and dbias."""
    dx, ddt, dz, dB, dC, _ = outputs
    length, channels, states, groups, _, _, _ = sizes
    row, _, group, channel, there, state, filled = place
    there = _only_if(position < length, there)
    to = (row * length + position) * channels + channel
    to_map = (map_row * groups + group) * states + state
    u = _along(inputs[0], strides[0], place, position, sizes)
    raw, d = _step_size(inputs, strides, bias, place, position, sizes, SOFTPLUS)
    b = _map(inputs[3], strides[3], place, position, sizes)
    c = _map(inputs[4], strides[4], place, position, sizes)
    gy = _along(inputs[5], strides[5], place, position, sizes)
    a = _decay(d[None, :] * A)
    after = a * before + (d * u)[None, :] * b
    if GATED:
        z = _along(inputs[2], strides[2], place, position, sizes)
        ungated = tl.sum(after * c, 0) + D * u
        s = _sigmoid(z)
        tl.store(dz + to, gy * ungated * s * (1.0 + z * (1.0 - s)), mask=there)
        gy = gy * z * s
    g += gy[None, :] * c
    q = tl.sum(g * b, 0)
    tl.store(dx + to, d * q + gy * D, mask=there)
    tl.store(dB + to_map, tl.sum(g * (d * u)[None, :], 1), mask=filled)
    tl.store(dC + to_map, tl.sum(after * gy[None, :], 1), mask=filled)
    g *= a
    received = g * before  # by the exponent d A
    dd = u * q + tl.sum(received * A, 0)
    if SOFTPLUS:
        dd *= _softplus_slope(raw)
    dd = tl.where(there, dd, 0.0)
    tl.store(ddt + to, dd, mask=there)
    return g, received * d[None, :], gy * u, dd


@triton.jit
def _chunk_back(
    g,
    h,
    walked,
    A,
    D,
    bias,
    inputs,
    strides,
    packed,
    outputs,
    map_row,
    place,
    sizes,
    room,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    SUB: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    INITIAL: tl.constexpr,
    GATED: tl.constexpr,
):
    """Walk one chunk back: g of the state before it, its addends to dA, dD and dbias.

    `room` holds the states before the steps of one sub-segment, then those before each sub-segment.
    It is read in the layout it was written in or in another: other threads may read, so barriers.
    """
    dA, dD = tl.zeros([STATES, BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    subs = sizes[6] // SUB
    starts = room + SUB * STATES * BLOCK
    for sub in range(subs):
        tl.store(starts + sub * STATES * BLOCK + _spread(STATES, BLOCK), h)
        h = _recompute(h, walked + sub * SUB, A, bias, inputs, strides, packed, place, sizes, room, STATES, BLOCK, SUB, SOFTPLUS, REVERSE, PACKED, INITIAL, False)  # fmt: skip  # noqa: E501, FBT003
    for passed in range(subs):
        first = walked + (subs - 1 - passed) * SUB
        tl.debug_barrier()
        h = tl.load(starts + (subs - 1 - passed) * STATES * BLOCK + _spread(STATES, BLOCK))
        h = _recompute(h, first, A, bias, inputs, strides, packed, place, sizes, room, STATES, BLOCK, SUB, SOFTPLUS, REVERSE, PACKED, INITIAL, True)  # fmt: skip  # noqa: E501, FBT003
        tl.debug_barrier()
        for back in range(SUB):
            i = SUB - 1 - back
            if PACKED:
                g = _leave(g, first + i, packed, place, sizes)
            before = tl.load(room + i * STATES * BLOCK + _spread(STATES, BLOCK))
            position = _position(first + i, sizes, REVERSE)
            step_row = map_row + (first + i - walked)
            g, dA_step, dD_step, dbias_step = _step_back(
                g, before, position, A, D, bias, inputs, strides, outputs, step_row, place, sizes,
                SOFTPLUS, GATED,
            )  # fmt: skip
            dA, dD, dbias = dA + dA_step, dD + dD_step, dbias + dbias_step
            if PACKED:
                began = tl.load(packed[0] + first + i)
                if INITIAL:
                    _put(outputs[5], began, g, place, sizes)
                g = tl.where(began >= 0, 0.0, g)
    return g, dA, dD, dbias


@triton.jit
def _add(to, value, mask):
    """Not atomic: no other program has the place."""
    tl.store(to, tl.load(to, mask=mask, other=0.0) + value, mask=mask)


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
    steps,
    marks,
    outputs,
    sums,
    scratch,
    first_task,
    tasks,
    low,
    high,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    SUB: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    INITIAL: tl.constexpr,
    GATED: tl.constexpr,
) -> None:
    """Every gradient, of the chunks [low, high) of `tasks` segments; last chunk first.

    outputs: dx, ddt, dz, dB, dC, dinitial; dB and dC (blocks, tasks, steps, G, N), of one block.
    sums: of a task g (what enters from later), dA, dD, dbias; the next slab goes on from there.
    scratch: SUB + steps / SUB tiles per program.
    """
    sizes = (length, shape[0], shape[1], shape[2], segments, chunks, steps)
    blocks = tl.cdiv(shape[0] // shape[2], BLOCK)
    room = scratch + tl.cast(tl.program_id(0), tl.int64) * (SUB + steps // SUB) * STATES * BLOCK
    for item in range(tl.program_id(0), tasks * shape[2] * blocks, tl.num_programs(0)):
        place = _place(item, first_task, sizes, STATES, BLOCK)
        at, inside = _tile(place, sizes)
        A, D, bias = _load_params(fixed, place, sizes)
        task = place[0] * segments + place[1]
        of_states = task * shape[1] * shape[0]
        of_channels = task * shape[0] + place[3]
        map_row = (tl.cast(item, tl.int64) % blocks * tasks + (task - first_task)) * (high - low)
        g = tl.load(sums[0] + of_states + at, mask=inside, other=0.0)
        for count in range(high - low):
            chunk = task * chunks + (high - 1 - count)
            h = tl.load(marks + chunk * shape[1] * shape[0] + at, mask=inside, other=0.0)
            walked = (place[1] * chunks + (high - 1 - count)) * steps
            chunk_row = (map_row + (high - 1 - count - low)) * steps
            g, dA, dD, dbias = _chunk_back(
                g, h, walked, A, D, bias, inputs, strides, packed, outputs,
                chunk_row, place, sizes, room, STATES, BLOCK, SUB, SOFTPLUS, REVERSE, PACKED,
                INITIAL, GATED,
            )  # fmt: skip
            _add(sums[1] + of_states + at, dA, inside)
            _add(sums[2] + of_channels, dD, place[4])
            _add(sums[3] + of_channels, dbias, place[4])
        tl.store(sums[0] + of_states + at, g, mask=inside)
        tl.debug_barrier()  # the next item writes over the scratch
