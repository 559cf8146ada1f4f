"""SSD in plain torch, for any device: matrix products over chunks of positions.

Sequences, whether rows of a batch or packed on one row, are cut into chunks; only the state passes
from one chunk to the next. As many chunks as fit a buffer (a slab) are worked on together. Nothing
is kept for the backward, which finds the states again (README, sections 2 and 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.ssd.arguments import Gradients, Into, Ssd

PRIORITY = 10

_CHUNK = 64
"""Positions of a chunk; the products within one cost Q per position, those with the state P N / Q
memory."""
# Numbers in the largest buffer of a slab. A call costs microseconds, a buffer beyond the cache of a
# CPU more; a GPU wants all its multiprocessors busy.
_SLAB = {"cpu": 1 << 20, "cuda": 1 << 25}


def supports(call: Ssd) -> str | None:
    """Runs everywhere."""
    return None


def marks_shape(call: Ssd) -> tuple[int, ...]:
    """Nothing is kept for the backward."""
    return (0,)


def forward(call: Ssd) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `ssd`; shapes as there."""
    y, final = _like(call.x), _states(call)
    for part in _parts(call):
        carry = final[part.sequences]
        for slab in part.slabs():
            given = _Chunks.of(call, slab)
            before = _passed(slab.runs, carry, given.whole, given.inflow())
            out = given.y(before) + given.skip * given.u
            if call.z is not None:
                out = out * F.silu(slab.heads(call.z, given))
            slab.put(y, out)
        final[part.sequences] = carry
    return y, final.flatten(1, 2).to(call.state_dtype), call.x.new_empty(0, dtype=call.inner)


def backward(
    call: Ssd, marks: Tensor, dy: Tensor, dfinal: Tensor, into: Into | None = None
) -> Gradients:
    """Gradients of `forward` (README, section 3); those of x, B, C and dt are written to `into`."""
    found = _Sums.of(call, into)
    initial, adjoint = _states(call), dfinal.to(call.inner).unflatten(1, (call.B.shape[2], -1))
    dinitial = torch.empty_like(initial)
    for part in _parts(call):
        h, starts, slabs = initial[part.sequences], [], list(part.slabs())
        for slab in slabs:
            starts.append(h.clone())
            if slab is not slabs[-1]:
                given = _Chunks.of(call, slab)
                _passed(slab.runs, h, given.whole, given.inflow())
        carry = adjoint[part.sequences]
        for slab, start in zip(reversed(slabs), reversed(starts), strict=True):
            _slab_back(call, slab, dy, start, carry, found)
        dinitial[part.sequences] = carry
    return found.gradients(call, dinitial)


# What is worked on together


class _Part(NamedTuple):
    """Some sequences, those with more chunks first, so that the ones not yet over are a prefix."""

    sequences: Tensor
    """(n,)."""
    row: Tensor
    start: Tensor
    length: Tensor
    """(n,) where each stands: positions start to start + length of a row."""
    runs: list[int]
    """How many sequences have a first, second ... chunk."""
    chunk: int
    reverse: bool
    at_once: int

    def slabs(self) -> Iterator[_Slab]:
        """Cut along time."""
        first = 0
        while first < len(self.runs):
            count = max(1, self.at_once // self.runs[first])
            yield self._slab(first, self.runs[first : first + count])
            first += count

    def _slab(self, first: int, runs: list[int]) -> _Slab:
        device = self.start.device
        member = torch.cat([torch.arange(n, device=device) for n in runs])
        number = torch.arange(first, first + len(runs), device=device)
        number = number.repeat_interleave(torch.tensor(runs, device=device))
        steps = number[:, None] * self.chunk + torch.arange(self.chunk, device=device)
        start, length = self.start[member][:, None], self.length[member][:, None]
        position = start + (length - 1 - steps if self.reverse else steps)
        row = self.row[member][:, None].expand_as(position)
        return _Slab(row, position, steps < length, runs)


class _Slab(NamedTuple):
    """Chunks (m of them, Q positions each): the first of every sequence, then the second ..."""

    row: Tensor
    position: Tensor
    there: Tensor
    """(m, Q) whether a position exists: the last chunk of a sequence may be short."""
    runs: list[int]

    def take(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, L, ...) -> (m, Q, ...), 0 past an end."""
        found = tensor[self.row, self.position.where(self.there, 0)].to(dtype)
        mask = ~self.there
        return found.masked_fill_(mask.view(*mask.shape, *[1] * (found.dim() - 2)), 0)

    def heads(self, tensor: Tensor, given: _Chunks) -> Tensor:
        """(B, L, H, P) -> (m, G, R, Q, P)."""
        found = self.take(tensor, given.u.dtype).unflatten(2, given.u.shape[1:3])
        moved: Tensor = found.movedim(1, 3)
        return moved

    def put(self, out: Tensor, value: Tensor) -> None:
        """(m, G, R, Q, ...) into (B, L, H, ...)."""
        of_positions = value.movedim(3, 1).flatten(2, 3)[self.there]
        out[self.row[self.there], self.position[self.there]] = of_positions.to(out.dtype)


def _parts(call: Ssd) -> Iterator[_Part]:
    """All sequences, as many at once as fit a slab."""
    x, device = call.x, call.x.device
    if call.cu_seqlens is None:
        starts, rows = [0] * x.shape[0], list(range(x.shape[0]))
        lengths = [x.shape[1]] * x.shape[0]
    else:
        starts, rows = call.cu_seqlens.tolist()[:-1], [0] * call.sequences
        lengths = call.cu_seqlens.diff().tolist()
    chunk = min(call.chunk or _CHUNK, max(lengths))
    of_chunk = x.shape[2] * max(chunk * max(chunk, x.shape[3]), x.shape[3] * call.B.shape[3])
    at_once = max(1, _SLAB.get(device.type, _SLAB["cuda"]) // of_chunk)
    order = sorted(range(len(lengths)), key=lambda s: -lengths[s])
    for first in range(0, len(order), at_once):
        here = order[first : first + at_once]
        table = [[of[s] for s in here] for of in (range(len(lengths)), rows, starts, lengths)]
        numbers = [-(-lengths[s] // chunk) for s in here]
        runs = [sum(n > k for n in numbers) for k in range(numbers[0])] if len(here) > 1 else []
        runs = runs or [1] * numbers[0]
        member, row, start, length = torch.tensor(table, device=device).unbind()
        yield _Part(member, row, start, length, runs, chunk, call.reverse, at_once)


def _states(call: Ssd) -> Tensor:
    """The initial states, (sequences, G, R, P, N)."""
    groups = call.B.shape[2]
    if call.initial_state is None:
        initial = call.x.new_zeros(call.state_shape, dtype=call.inner)
    else:
        initial = call.initial_state.to(call.inner, copy=True)
    states: Tensor = initial.unflatten(1, (groups, -1))
    return states


def _passed(runs: list[int], carry: Tensor, whole: Tensor, inflow: Tensor) -> Tensor:
    """The state before every chunk, (m, G, R, P, N); `carry` becomes that after the last."""
    before, first = torch.empty_like(inflow), 0
    for count in runs:
        now, of_runs = slice(first, first + count), carry[:count]
        before[now] = of_runs
        of_runs.mul_(whole[now, ..., None, None]).add_(inflow[now])
        first += count
    return before


def _passed_back(runs: list[int], carry: Tensor, whole: Tensor, inflow: Tensor) -> Tensor:
    """The gradient of the state after every chunk; `carry` becomes that of before the first."""
    after, end = torch.empty_like(inflow), len(inflow)
    for count in reversed(runs):
        now, of_runs = slice(end - count, end), carry[:count]
        after[now] = of_runs
        of_runs.mul_(whole[now, ..., None, None]).add_(inflow[now])
        end -= count
    return after


# A chunk


class _Chunks(NamedTuple):
    """Tensors of a slab of m chunks, R = H/G; t and s count the positions of a chunk."""

    u: Tensor
    """(m, G, R, Q, P)."""
    d: Tensor
    """(m, G, R, Q) step size, 0 where no position exists."""
    slope: Tensor
    """(m, G, R, Q) of the step size by dt."""
    B: Tensor
    C: Tensor
    """(m, G, 1, Q, N)."""
    between: Tensor
    """(m, G, R, Q, Q) what of position s is left at t; 0 where s > t."""
    since: Tensor
    """(m, G, R, Q) what of the state before the chunk is left at t."""
    skip: Tensor

    @classmethod
    def of(cls, call: Ssd, slab: _Slab) -> _Chunks:
        inner, groups = call.inner, call.B.shape[2]
        pre = slab.take(call.dt, inner)
        if call.dt_bias is not None:
            pre = pre + call.dt_bias.to(inner)
        d = F.softplus(pre) if call.dt_softplus else pre
        slope = torch.sigmoid(pre) if call.dt_softplus else torch.ones_like(pre)
        inside = (d >= call.dt_min) & (d <= call.dt_max) & slab.there[..., None]
        d = d.clamp(call.dt_min, call.dt_max).masked_fill_(~slab.there[..., None], 0)
        heads = [tensor.unflatten(2, (groups, -1)).movedim(1, 3) for tensor in (d, slope * inside)]
        u = slab.take(call.x, inner).unflatten(2, (groups, -1)).movedim(1, 3)
        maps = [slab.take(t, inner).movedim(1, 2).unsqueeze(2) for t in (call.B, call.C)]
        exponent = heads[0] * _of_heads(call.A, call)[..., 0]
        # Sums of the steps between two positions, never differences of sums: no digit is lost.
        rows = exponent[..., None].expand(*exponent.shape, exponent.shape[-1]).tril(-1)
        between = rows.cumsum(-2).exp_().tril()
        skip = _of_heads(call.D, call) if call.D is not None else u.new_zeros(1)
        since = exponent.cumsum(-1).exp_()
        return cls(u, heads[0], heads[1], maps[0], maps[1], between, since, skip)

    @property
    def whole(self) -> Tensor:
        """(m, G, R) what of the state before the chunk is left after it."""
        return self.since[..., -1]

    @property
    def until(self) -> Tensor:
        """(m, G, R, Q) d, and what of it is left after the chunk."""
        return self.d * self.between[..., -1, :]

    def inflow(self) -> Tensor:
        """(m, G, R, P, N) what the chunk adds to the state."""
        inflow: Tensor = (self.u * self.until[..., None]).mT @ self.B
        return inflow

    def weights(self) -> Tensor:
        """(m, G, R, Q, Q) how y at t follows u at s."""
        return (self.C @ self.B.mT) * self.between * self.d[..., None, :]

    def y(self, before: Tensor) -> Tensor:
        """(m, G, R, Q, P), without skip and gate."""
        return self.weights() @ self.u + self.since[..., None] * (self.C @ before.mT)


def _of_heads(tensor: Tensor, call: Ssd) -> Tensor:
    """(H,) or (H, P) -> (G, R, 1, 1 or P)."""
    wide: Tensor = tensor.to(call.inner).unflatten(0, (call.B.shape[2], -1))
    return wide[:, :, None, None] if tensor.dim() == 1 else wide[:, :, None]


# The way back


class _Sums(NamedTuple):
    """Room for the gradients: along time in their dtypes, the others summed in that inside."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A: Tensor
    D: Tensor
    dt_bias: Tensor

    @classmethod
    def of(cls, call: Ssd, into: Into | None) -> _Sums:
        x, B, C, dt = into or Into.new(call)
        z = None if call.z is None else _like(call.z)
        A = call.A.new_zeros(call.A.shape, dtype=call.inner)
        return cls(x, dt, B, C, z, A, A.new_zeros(call.x.shape[2:]), torch.zeros_like(A))

    def gradients(self, call: Ssd, dinitial: Tensor) -> Gradients:
        """In the dtypes and shapes of the arguments."""
        dD = self.D if call.D is None or call.D.dim() == 2 else self.D.sum(1)
        return Gradients(
            x=self.x,
            dt=self.dt,
            A=self.A.to(call.A.dtype),
            B=self.B,
            C=self.C,
            D=None if call.D is None else dD.to(call.D.dtype),
            z=self.z,
            dt_bias=None if call.dt_bias is None else self.dt_bias.to(call.dt_bias.dtype),
            initial_state=(
                None
                if call.initial_state is None
                else dinitial.flatten(1, 2).to(call.initial_state.dtype)
            ),
        )


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _slab_back(
    call: Ssd, slab: _Slab, dy: Tensor, start: Tensor, carry: Tensor, out: _Sums
) -> None:
    """Gradients of a slab; `start` is the state before it, `carry` the gradient of that after."""
    given = _Chunks.of(call, slab)
    before = _passed(slab.runs, start, given.whole, given.inflow())
    gy = slab.heads(dy, given)
    if call.z is not None and out.z is not None:
        z, y = slab.heads(call.z, given), given.y(before) + given.skip * given.u
        gate = torch.sigmoid(z)
        slab.put(out.z, gy * y * gate * (1 + z * (1 - gate)))
        gy = gy * z * gate
    outflow = (gy * given.since[..., None]).mT @ given.C
    after = _passed_back(slab.runs, carry, given.whole, outflow)

    weights = (given.C @ given.B.mT) * given.between
    from_after = given.B @ after.mT * given.between[..., -1, :, None]
    q = weights.mT @ gy + from_after
    slab.put(out.x, given.d[..., None] * q + given.skip * gy)
    received = (gy @ given.u.mT) * given.between * given.d[..., None, :]  # by C[t] B[s]
    dC = received @ given.B + given.since[..., None] * (gy @ before)
    dB = received.mT @ given.C + given.until[..., None] * (given.u @ after)
    slab.put(out.C, dC.sum(2, keepdim=True))
    slab.put(out.B, dB.sum(2, keepdim=True))

    pairs = (received * (given.C @ given.B.mT)).tril_(-1)
    from_before = given.since * ((given.C @ before.mT) * gy).sum(-1)
    to_after = given.d * (from_after * given.u).sum(-1)
    w = _straddling(pairs, from_before, to_after)
    w += (given.whole * (after * before).sum((-1, -2)))[..., None]
    A = _of_heads(call.A, call)[..., 0]
    ddt = ((q * given.u).sum(-1) + A * w) * given.slope
    slab.put(out.dt, ddt)
    out.A.add_((given.d * w).sum((0, 3)).flatten())
    out.dt_bias.add_(ddt.sum((0, 3)).flatten())
    out.D.add_((gy * given.u).sum((0, 3)).flatten(0, 1))


def _straddling(pairs: Tensor, from_before: Tensor, to_after: Tensor) -> Tensor:
    """(.., Q): for every t the sum of what goes through the decay at t: from s < t to t or later.

    `pairs` (.., t, s) goes from s to t, `from_before` (.., t) from before the chunk to t and
    `to_after` (.., s) from s to after the chunk. Every sum has terms of its own alone: a total from
    which others are taken away would leave nothing where all is forgotten at once.
    """
    w = from_before.flip(-1).cumsum(-1).flip(-1)
    earlier = pairs.cumsum(-1).tril_(-1).sum(-2) + to_after.cumsum(-1)
    w[..., 1:] += earlier[..., :-1]
    return w
