"""Selective scan in plain torch, for any device.

Time is walked in chunks that fit a cache. Only the state at the start of each chunk is kept for
the backward, which recomputes the chunk; nothing of size B*L*D*N is ever stored. Too few channels
to fill the machine are made more by cutting L into segments that run side by side; too many rows
and channels for the cache are walked in parts, one after the other (README, section 2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.selective_scan.arguments import Gradients, Scan

PRIORITY = 10

# Elements of state advanced together by one torch call. Fewer, and the call's own cost (a few
# microseconds on CPU, a kernel launch on a GPU) dominates; more, and the second pass over the
# segments does. Tuned on two cores: 2^12 is 15 % faster than 2^15 where a row alone has 2^12.
_WIDTH = {"cpu": 1 << 12, "cuda": 1 << 22}
# Above this many, rows and channels are walked in parts. Fewer than 2^15 and torch keeps a call on
# one core of a CPU; more, and the chunk buffers outgrow its cache.
_PART = {"cpu": 1 << 16, "cuda": 1 << 22}
_SHORTEST_SEGMENT = 64
# Steps per chunk: the marks are N / chunk numbers per position and channel.
_CHUNK = {"cpu": 64, "cuda": 32}


def supports(scan: Scan) -> str | None:
    """Runs everywhere."""
    return None


def marks_shape(scan: Scan) -> tuple[int, ...]:
    """(chunks, B * segments, G, N, P); none of packed sequences, whose lengths are data."""
    if scan.cu_seqlens is not None:
        return (0,)
    batch, length, channels = scan.x.shape
    groups, states = scan.B.shape[2], scan.A.shape[1]
    layout = _layout(length, channels * states, scan.x.device.type)
    chunks = -(-layout.steps // layout.chunk)
    return (chunks, batch * layout.segments, groups, states, channels // groups)


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `selective_scan`; shapes as there."""
    core = _Core.of(scan)
    marks = core.u.new_empty(marks_shape(scan), dtype=scan.inner)
    y, final = core.u.new_empty(core.u.shape), torch.empty_like(core.h0)
    for part in _parts(scan):
        walk = part.walk(core)
        y_part = part.room(y, part.channels)
        ends = _forward(walk, part.layout, part.marks(marks, walk), y_part)
        part.put(y, y_part, part.channels)
        final[part.rows, part.groups, :, part.channels] = ends
    y = y.flatten(2)
    if scan.D is not None:
        y.addcmul_(core.u.flatten(2), scan.D.to(scan.real))
    if scan.z is not None:
        y.mul_(F.silu(scan.z.to(scan.real)))
    return y.to(scan.x.dtype), _ungrouped(final).to(scan.state_dtype), marks


def backward(scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of `forward` (README, section 3). Without marks the states are found again."""
    core, outer = _Core.of(scan), dy.to(scan.real)
    gated = outer if scan.z is None else outer * F.silu(scan.z.to(scan.real))
    found = _core_gradients(scan, core, marks, gated, _grouped(dfinal.to(scan.inner), core))
    u, du, dd = core.u.flatten(2), found.u.flatten(2), found.d.flatten(2)
    dD = dz = dt_bias = h0 = None
    if scan.D is not None:
        du.addcmul_(gated, scan.D.to(scan.real))
        dD = (gated * u).sum((0, 1)).to(scan.D.dtype)
    if scan.z is not None and found.y is not None:
        y = found.y.flatten(2)
        if scan.D is not None:
            y.addcmul_(u, scan.D.to(scan.real))
        dz = y.mul_(outer).mul_(_silu_slope(scan.z.to(scan.real))).to(scan.z.dtype)
    if scan.dt_softplus:
        dd.mul_(torch.sigmoid(_before_softplus(scan)))
    if scan.dt_bias is not None:
        dt_bias = dd.sum((0, 1)).to(scan.dt_bias.dtype)
    if scan.initial_state is not None:
        h0 = _ungrouped(found.h0).to(scan.initial_state.dtype)
    return Gradients(
        x=du.to(scan.x.dtype),
        dt=dd.to(scan.dt.dtype),
        A=found.A.transpose(1, 2).flatten(0, 1).to(scan.A.dtype),
        B=found.B.to(scan.B.dtype),
        C=found.C.to(scan.C.dtype),
        D=dD,
        z=dz,
        dt_bias=dt_bias,
        initial_state=h0,
    )


def _silu_slope(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


def _before_softplus(scan: Scan) -> Tensor:
    dt = scan.dt.to(scan.real)
    return dt if scan.dt_bias is None else dt + scan.dt_bias.to(scan.real)


# What is walked


class _Core(NamedTuple):
    """The recurrence without softplus, D and z: h[t] = exp(d[t] A) h[t-1] + d[t] B[t] u[t].

    u, d: (B, L, G, P), P = D/G channels per group; A: (G, N, P); B, C: (B, L, G, N);
    h0: (sequences, G, N, P). Where it is walked, time-major with rows R = sequences * segments:
    u, d (T, R, G, P) and B, C (T, R, G, N).
    """

    u: Tensor
    d: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    h0: Tensor

    @classmethod
    def of(cls, scan: Scan) -> _Core:
        groups, inner = scan.B.shape[2], scan.inner
        d = _before_softplus(scan)
        if scan.dt_softplus:
            d = F.softplus(d)
        A = scan.A.to(inner).unflatten(0, (groups, -1)).transpose(1, 2)
        if scan.initial_state is None:
            h0 = A.new_zeros(scan.sequences, *A.shape)
        else:
            h0 = scan.initial_state.to(inner).unflatten(1, (groups, -1)).transpose(2, 3)
        u = scan.x.to(scan.real).unflatten(2, (groups, -1))
        return cls(u, d.unflatten(2, (groups, -1)), A, scan.B.to(inner), scan.C.to(inner), h0)


class _Found(NamedTuple):
    """Gradients of the tensors of `_Core`, and y where the gradient of a z will need it."""

    u: Tensor
    d: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    h0: Tensor
    y: Tensor | None


def _grouped(state: Tensor, core: _Core) -> Tensor:
    """(sequences, D, N) -> (sequences, G, N, P)."""
    grouped: Tensor = state.unflatten(1, (core.A.shape[0], -1))
    return grouped.transpose(2, 3)


def _ungrouped(state: Tensor) -> Tensor:
    """The inverse of `_grouped`, in memory of its own."""
    return state.transpose(2, 3).flatten(1, 2).contiguous()


class _Layout(NamedTuple):
    """How a length is walked: `segments` side by side, each `steps` long, `chunk` per buffer."""

    segments: int
    steps: int
    chunk: int


def _layout(length: int, state_size: int, device: str) -> _Layout:
    """Of a row with `state_size` = D*N. Not of the batch: a row alone is walked as in its batch."""
    width = _WIDTH.get(device, _WIDTH["cuda"])
    segments = max(1, min(width // state_size, length // _SHORTEST_SEGMENT))
    steps = -(-length // segments)
    return _Layout(segments, steps, min(_CHUNK.get(device, _CHUNK["cuda"]), steps))


class _Part(NamedTuple):
    """Some sequences and channels of a call, small enough to be walked together."""

    rows: slice | Tensor
    """The sequences."""
    positions: Tensor | None
    """(rows, T) where they stand on the one row of a packed batch, -1 past an end; else None."""
    groups: slice
    channels: slice
    """Of every group in `groups`."""
    reverse: bool
    length: int
    layout: _Layout

    def walk(self, core: _Core) -> _Core:
        """The tensors of this part, time-major."""
        return _Core(
            self.take(core.u, self.channels),
            self.take(core.d, self.channels),
            core.A[self.groups, :, self.channels].contiguous(),
            self.take(core.B),
            self.take(core.C),
            core.h0[self.rows, self.groups, :, self.channels].contiguous(),
        )

    def take(self, tensor: Tensor, last: slice = slice(None)) -> Tensor:
        """(B, L, G, K) -> (T, R, G, K): d = 0 past an end leaves the state as it is."""
        if self.positions is None:
            found = tensor[self.rows, :, self.groups, last]
            found = found.flip(1) if self.reverse else found
        else:
            found = tensor[0, :, self.groups, last][self.positions]
            found.masked_fill_((self.positions < 0)[:, :, None, None], 0)
        return _time_major(found, self.layout)

    def room(self, out: Tensor, last: slice = slice(None)) -> Tensor:
        """Where this part writes (T, R, G, K): in `out` if that has its order in time, or apart."""
        view = out[self.rows if self.positions is None else 0, ..., self.groups, last]
        if self._in_place:
            return _time_major(view, self.layout)
        rows = view.shape[0] if self.positions is None else self.positions.shape[0]
        sizes = (self.layout.steps, rows * self.layout.segments)
        return view.new_empty(*sizes, *view.shape[-2:])

    def put(self, out: Tensor, tensor: Tensor, last: slice = slice(None)) -> None:
        """Bring what was written into `room` to its place in `out`."""
        if self._in_place:
            return
        if self.positions is None:
            view = out[self.rows, :, self.groups, last]
            value = _batch_major(tensor, view.shape[0], view.shape[1])
            view.copy_(value.flip(1) if self.reverse else value)
        else:
            real = self.positions >= 0
            value = _batch_major(tensor, *self.positions.shape)
            out[0, :, self.groups, last][self.positions[real]] = value[real]

    @property
    def _in_place(self) -> bool:
        padded = self.layout.segments * self.layout.steps > self.length
        return self.positions is None and not self.reverse and not padded

    def marks(self, marks: Tensor, walk: _Core) -> Tensor:
        """Room for the marks of this part: in those of the call, or of its own."""
        if isinstance(self.rows, Tensor) or marks.numel() == 0:
            chunks = -(-self.layout.steps // self.layout.chunk)
            return walk.h0.new_empty(chunks, walk.u.shape[1], *walk.A.shape)
        first, end = (edge * self.layout.segments for edge in (self.rows.start, self.rows.stop))
        return marks[:, first:end, self.groups, :, self.channels]


def _parts(scan: Scan) -> list[_Part]:
    """Sequences of like length, as many rows and channels at once as fit the cache."""
    channels, device = scan.x.shape[2], scan.x.device
    groups, states = scan.B.shape[2], scan.A.shape[1]
    limit = _PART.get(device.type, _PART["cuda"])
    parts = []
    for length, sequences in _lengths(scan):
        layout = _layout(length, channels * states, device.type)
        at_once = max(1, limit // (channels * states * layout.segments))
        for start in range(0, len(sequences), at_once):
            here = sequences[start : start + at_once]
            rows: slice | Tensor = slice(here[0], here[-1] + 1)
            positions = None
            if scan.cu_seqlens is not None:
                rows = torch.tensor(here, device=device)
                positions = _positions(scan.cu_seqlens, rows, length, reverse=scan.reverse)
            parts += [
                _Part(rows, positions, *blocks, scan.reverse, length, layout)
                for blocks in _channel_blocks(groups, channels // groups, states, limit)
            ]
    return parts


def _lengths(scan: Scan) -> list[tuple[int, list[int]]]:
    """(longest, sequences) of every bucket: lengths of one bucket differ by a factor below 2."""
    if scan.cu_seqlens is None:
        return [(scan.x.shape[1], list(range(scan.x.shape[0])))]
    buckets: dict[int, list[int]] = {}
    lengths = scan.cu_seqlens.diff().tolist()
    for sequence, length in enumerate(lengths):
        buckets.setdefault(length.bit_length(), []).append(sequence)
    return [(max(lengths[s] for s in members), members) for members in buckets.values()]


def _positions(edges: Tensor, rows: Tensor, length: int, *, reverse: bool) -> Tensor:
    """(rows, length) where each sequence stands in the order in which it is walked, then -1."""
    start, end = edges[rows].long().unsqueeze(1), edges[rows + 1].long().unsqueeze(1)
    steps = torch.arange(length, device=edges.device)
    where = end - 1 - steps if reverse else start + steps
    return torch.where(steps < end - start, where, -1)


def _channel_blocks(
    groups: int, per_group: int, states: int, limit: int
) -> list[tuple[slice, slice]]:
    """Slices of groups and of the channels of a group, of at most `limit` numbers of state each."""
    together = limit // (per_group * states)
    if together >= 1:
        return [
            (slice(g, min(g + together, groups)), slice(None)) for g in range(0, groups, together)
        ]
    width = max(1, limit // states)
    return [
        (slice(g, g + 1), slice(start, start + width))
        for g in range(groups)
        for start in range(0, per_group, width)
    ]


def _time_major(tensor: Tensor, layout: _Layout) -> Tensor:
    """(B, L, ...) -> (steps, B*segments, ...), a view where nothing is missing at the end.

    What is missing is 0, which leaves the state as it is.
    """
    batch, length = tensor.shape[:2]
    padding = layout.segments * layout.steps - length
    if padding:
        tensor = torch.cat([tensor, tensor.new_zeros(batch, padding, *tensor.shape[2:])], dim=1)
    rows: Tensor = tensor.unflatten(1, (layout.segments, layout.steps))
    return rows.flatten(0, 1).transpose(0, 1)


def _batch_major(tensor: Tensor, batch: int, length: int) -> Tensor:
    """The inverse of `_time_major`."""
    rows: Tensor = tensor.transpose(0, 1).unflatten(0, (batch, -1))
    return rows.flatten(1, 2)[:, :length]


# The walk


def _buffers(walk: _Core, layout: _Layout, count: int) -> list[Tensor]:
    """Chunk buffers (T, R, G, N, P), used again for every chunk, as are their slices."""
    shape = (layout.chunk, walk.u.shape[1], *walk.A.shape)
    return [walk.A.new_empty(shape) for _ in range(count)]


def _chunks(layout: _Layout) -> list[slice]:
    starts = range(0, layout.steps, layout.chunk)
    return [slice(start, min(start + layout.chunk, layout.steps)) for start in starts]


def _decays(d: Tensor, A: Tensor, out: Tensor) -> Tensor:
    """exp(d A) of a chunk: (T, R, G, N, P)."""
    torch.mul(d.unsqueeze(3), A, out=out)
    return out.exp_()


def _outer(per_channel: Tensor, per_state: Tensor, out: Tensor) -> Tensor:
    """(T, R, G, P) x (T, R, G, N) -> (T, R, G, N, P)."""
    return torch.mul(per_channel.unsqueeze(3), per_state.unsqueeze(4), out=out)


def _real(tensor: Tensor) -> Tensor:
    return tensor.real if tensor.is_complex() else tensor


def _read(C: Tensor, states: Tensor) -> Tensor:
    """y = C h, for complex numbers 2 Re(C h): (T, R, G, P)."""
    y = torch.matmul(C.unsqueeze(3), states).squeeze(3)
    return 2 * y.real if y.is_complex() else y


def _segment_starts(walk: _Core, layout: _Layout) -> Tensor:
    """State before each segment, (R, G, N, P): scan each from zero, then fold them in order."""
    if layout.segments == 1:
        return walk.h0
    ends = walk.A.new_zeros(walk.u.shape[1], *walk.A.shape)
    decay, inflow = _buffers(walk, layout, 2)
    steps = list(zip(decay.unbind(), inflow.unbind(), strict=True))
    for now in _chunks(layout):
        count = now.stop - now.start
        d = walk.d[now]
        _decays(d, walk.A, decay[:count])
        _outer(d * walk.u[now], walk.B[now], inflow[:count])
        for decay_t, inflow_t in steps[:count]:
            torch.addcmul(inflow_t, decay_t, ends, out=ends)
    return _fold(ends, walk, walk.h0, layout.segments, reverse=False)


def _segment_adjoints(walk: _Core, dy: Tensor, dfinal: Tensor, layout: _Layout) -> Tensor:
    """Gradient of the state after each segment, (R, G, N, P): `_segment_starts` run backwards."""
    if layout.segments == 1:
        return dfinal
    carry = walk.A.new_zeros(walk.u.shape[1], *walk.A.shape)
    decay, inflow = _buffers(walk, layout, 2)
    steps = list(zip(decay.unbind(), inflow.unbind(), strict=True))
    for now in reversed(_chunks(layout)):
        count = now.stop - now.start
        _decays(walk.d[now], walk.A, decay[:count]).conj_physical_()
        _outer(dy[now], walk.C[now].conj(), inflow[:count])
        for decay_t, inflow_t in reversed(steps[:count]):
            carry.add_(inflow_t).mul_(decay_t)
    return _fold(carry, walk, dfinal, layout.segments, reverse=True)


def _fold(local: Tensor, walk: _Core, edge: Tensor, segments: int, *, reverse: bool) -> Tensor:
    """Carry `edge` (B, G, N, P) through the segments: next = exp(A sum d) * this + local."""
    local = local.unflatten(0, (-1, segments))
    decay = torch.exp(walk.d.sum(0).unsqueeze(2) * walk.A).unflatten(0, (-1, segments))
    order = range(segments)
    if reverse:
        decay, order = decay.conj(), order[::-1]
    seen = torch.empty_like(local)
    for s in order:
        seen[:, s] = edge
        edge = torch.addcmul(local[:, s], decay[:, s], edge)
    return seen.flatten(0, 1)


def _forward(walk: _Core, layout: _Layout, marks: Tensor, y: Tensor | None) -> Tensor:
    """Last states (sequences, G, N, P); fills `marks`, the states before the chunks, and `y`."""
    h = _segment_starts(walk, layout)
    decay, states = _buffers(walk, layout, 2)
    steps = list(zip(decay.unbind(), states.unbind(), strict=True))
    for index, now in enumerate(_chunks(layout)):
        count = now.stop - now.start
        d = walk.d[now]
        marks[index] = h
        _decays(d, walk.A, decay[:count])
        _outer(d * walk.u[now], walk.B[now], states[:count])
        for decay_t, state_t in steps[:count]:
            h = torch.addcmul(state_t, decay_t, h, out=state_t)
        if y is not None:
            y[now] = _read(walk.C[now], states[:count])
        h = h.clone()
    last: Tensor = h.unflatten(0, (-1, layout.segments))[:, -1]
    return last


def _core_gradients(scan: Scan, core: _Core, marks: Tensor, dy: Tensor, dfinal: Tensor) -> _Found:
    """Gradients of `_Core` by those of y (B, L, D) and of the final state, part by part."""
    dy = dy.unflatten(2, (core.A.shape[0], -1))
    if scan.A.is_complex():
        dy = 2 * dy  # y = 2 Re(C h)
    found = _Found(
        u=core.u.new_empty(core.u.shape),
        d=core.u.new_empty(core.u.shape),
        A=core.A.new_zeros(core.A.shape),
        B=core.B.new_zeros(core.B.shape),
        C=core.C.new_zeros(core.C.shape),
        h0=core.h0.new_empty(core.h0.shape),
        y=None if scan.z is None else core.u.new_empty(core.u.shape),
    )
    for part in _parts(scan):
        walk, channels = part.walk(core), part.channels
        kept = part.marks(marks, walk)
        if marks.numel() == 0:
            _forward(walk, part.layout, kept, None)
        here = _Found(
            u=part.room(found.u, channels),
            d=part.room(found.d, channels),
            A=walk.A,
            B=part.take(found.B),  # what the channels before have left, to add to
            C=part.take(found.C),
            h0=dfinal[part.rows, part.groups, :, channels],
            y=None if found.y is None else part.room(found.y, channels),
        )
        here = _backward(walk, part.layout, kept, part.take(dy, channels), here)
        part.put(found.u, here.u, channels)
        part.put(found.d, here.d, channels)
        part.put(found.B, here.B)
        part.put(found.C, here.C)
        if found.y is not None and here.y is not None:
            part.put(found.y, here.y, channels)
        found.A[part.groups, :, channels] += here.A
        found.h0[part.rows, part.groups, :, channels] = here.h0
    return found


def _backward(walk: _Core, layout: _Layout, marks: Tensor, dy: Tensor, out: _Found) -> _Found:
    """Fill `out` (README, section 3), whose h0 is the gradient of the last state on entry."""
    u, d, A, B, C, _ = walk
    dA = torch.zeros_like(A)
    carry = _segment_adjoints(walk, dy, out.h0, layout)
    decay, adjoint, states = _buffers(walk, layout._replace(chunk=layout.chunk + 1), 3)
    onward = list(zip(decay.unbind(), states.unbind()[:-1], states.unbind()[1:], strict=False))
    backward = list(zip(decay.unbind()[1:], adjoint.unbind()[1:], adjoint.unbind(), strict=False))
    for index, now in reversed(list(enumerate(_chunks(layout)))):
        count = now.stop - now.start
        a, g = decay[:count], adjoint[:count]
        before, after = states[:count], states[1 : count + 1]
        d_now, dy_now, inflow = d[now], dy[now], d[now] * u[now]
        _decays(d_now, A, a)
        states[0] = marks[index]
        _outer(inflow, B[now], after)
        for decay_t, before_t, after_t in onward[:count]:
            torch.addcmul(after_t, decay_t, before_t, out=after_t)
        a.conj_physical_()
        _outer(dy_now, C[now].conj(), g)
        g[-1] += carry
        for decay_t, later_t, adjoint_t in reversed(backward[: count - 1]):
            torch.addcmul(adjoint_t, decay_t, later_t, out=adjoint_t)
        carry = a[0] * g[0]
        if out.y is not None:
            out.y[now] = _read(C[now], after)
        out.C[now] += torch.matmul(after.conj(), dy_now.to(A.dtype).unsqueeze(4)).squeeze(4)
        out.B[now] += torch.matmul(g, inflow.to(A.dtype).unsqueeze(4)).squeeze(4)
        d_inflow = _real(torch.matmul(B[now].conj().unsqueeze(3), g).squeeze(3))
        torch.mul(d_inflow, d_now, out=out.u[now])
        # What the decay receives: d(exp(dA))/d(dA) = decay, times the state it multiplied.
        a.mul_(before.conj()).mul_(g)
        torch.mul(a, d_now.unsqueeze(3), out=g)
        dA += g.sum((0, 1))
        torch.addcmul(_real(a.mul_(A.conj()).sum(3)), d_inflow, u[now], out=out.d[now])
    return out._replace(A=dA, h0=carry.unflatten(0, (-1, layout.segments))[:, 0])
