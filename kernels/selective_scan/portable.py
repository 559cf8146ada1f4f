"""Selective scan in plain torch, for any device: the default on CPU.

Time is walked in chunks that fit a cache. Only the state at the start of each chunk is kept for
the backward, which recomputes the chunk; nothing of size B*L*D*N is ever stored. A batch too small
to fill the machine is widened by cutting L into segments that run side by side (README, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dnassm.kernels.backends import without_autocast

PRIORITY = 10

# Elements of state advanced together by one torch call. Fewer, and the call's own cost (a few
# microseconds on CPU, a kernel launch on a GPU) dominates; more, and the second pass over the
# segments does. Tuned on two cores: 2^12 is 15 % faster than 2^15 where a row alone has 2^12.
_WIDTH = {"cpu": 1 << 12, "cuda": 1 << 22}
# Elements of one chunk buffer. On CPU three of them share the last-level cache.
_BUFFER = {"cpu": 1 << 20, "cuda": 1 << 27}
_SHORTEST_SEGMENT = 64


def supports(tensors: Sequence[Tensor]) -> str | None:
    """Runs everywhere."""
    return None


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,  # noqa: FBT001  positional as in every backend
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute `selective_scan`; shapes as there. The state is float32, float64 if x is."""
    inner = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, _, channels = x.shape
    groups, states = B.shape[2], A.shape[1]
    u, delta, decay = x.to(inner), dt.to(inner), A.to(inner)
    if dt_bias is not None:
        delta = delta + dt_bias.to(inner)
    if dt_softplus:
        delta = F.softplus(delta)
    if initial_state is None:
        initial_state = u.new_zeros(batch, channels, states)
    h0 = initial_state.to(inner).view(batch, groups, -1, states).transpose(2, 3)
    y, h = _CoreScan.apply(
        u.unflatten(2, (groups, -1)),
        delta.unflatten(2, (groups, -1)),
        decay.view(groups, -1, states).transpose(1, 2),
        B.to(inner),
        C.to(inner),
        h0,
    )
    y = y.flatten(2)
    if D is not None:
        y = torch.addcmul(y, u, D.to(inner))
    if z is not None:
        y = y * F.silu(z.to(inner))
    return y.to(x.dtype), h.transpose(2, 3).reshape(batch, channels, states).to(A.dtype)


class _Layout(NamedTuple):
    """How L is walked: `segments` side by side, each `steps` long, `chunk` steps per buffer."""

    segments: int
    steps: int
    chunk: int


def _layout(batch: int, length: int, state_size: int, device: str) -> _Layout:
    width = _WIDTH.get(device, _WIDTH["cuda"])
    segments = max(1, min(width // (batch * state_size), length // _SHORTEST_SEGMENT))
    steps = -(-length // segments)
    rows = batch * segments * state_size
    chunk = max(4, min(64, _BUFFER.get(device, _BUFFER["cuda"]) // rows, steps))
    return _Layout(segments, -(-steps // chunk) * chunk, chunk)


def _time_major(tensor: Tensor, layout: _Layout) -> Tensor:
    """(B, L, ...) -> (steps, B*segments, ...), zeros at the end, which leave the state as it is."""
    batch, length = tensor.shape[:2]
    padding = layout.segments * layout.steps - length
    if padding:
        tensor = torch.cat([tensor, tensor.new_zeros(batch, padding, *tensor.shape[2:])], dim=1)
    rows: Tensor = tensor.unflatten(1, (layout.segments, layout.steps))
    return rows.flatten(0, 1).transpose(0, 1).contiguous()


def _batch_major(tensor: Tensor, batch: int, length: int) -> Tensor:
    """The inverse of `_time_major`."""
    rows: Tensor = tensor.transpose(0, 1).unflatten(0, (batch, -1))
    return rows.flatten(1, 2)[:, :length]


class _CoreScan(torch.autograd.Function):
    """y[t] = C[t] h[t] with h[t] = exp(d[t] A) h[t-1] + d[t] B[t] u[t].

    u, d: (B, L, G, P), P = D/G channels per group; A: (G, N, P); B, C: (B, L, G, N);
    h0: (B, G, N, P).
    Inside, everything is time-major and rows R = B * segments: u, d (T, R, G, P).
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, length, groups, per_group = u.shape
        layout = _layout(batch, length, groups * A.shape[1] * per_group, u.device.type)
        A = A.contiguous()
        u_T, d_T, B_T, C_T = (_time_major(tensor, layout) for tensor in (u, d, B, C))
        starts = _segment_starts(u_T, d_T, A, B_T, h0, layout)
        y_T, marks, ends = _forward(u_T, d_T, A, B_T, C_T, starts, layout)
        ctx.save_for_backward(u_T, d_T, A, B_T, C_T, marks)
        ctx.shape, ctx.layout = (batch, length), layout
        final = ends.unflatten(0, (batch, -1))[:, -1].clone()
        return _batch_major(y_T, batch, length), final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        dy, dfinal = grads
        (batch, length), layout = ctx.shape, ctx.layout
        u_T, d_T, A, B_T, C_T, marks = ctx.saved_tensors
        dy_T = _time_major(dy, layout)
        with without_autocast(dy.device):
            carry = _segment_adjoints(dy_T, d_T, A, C_T, dfinal, layout)
            du, dd, dA, dB, dC, carry = _backward(u_T, d_T, A, B_T, C_T, marks, dy_T, carry, layout)
        dh0 = carry.unflatten(0, (batch, -1))[:, 0]
        du, dd, dB, dC = (_batch_major(tensor, batch, length) for tensor in (du, dd, dB, dC))
        return du, dd, dA, dB, dC, dh0


def _decays(d: Tensor, A: Tensor, out: Tensor) -> Tensor:
    """exp(d A) of a chunk: (T, R, G, N, P)."""
    torch.mul(d.unsqueeze(3), A, out=out)
    return out.exp_()


def _outer(per_channel: Tensor, per_state: Tensor, out: Tensor) -> Tensor:
    """(T, R, G, P) x (T, R, G, N) -> (T, R, G, N, P)."""
    return torch.mul(per_channel.unsqueeze(3), per_state.unsqueeze(4), out=out)


def _buffers(d: Tensor, A: Tensor, chunk: int, count: int) -> list[Tensor]:
    """Chunk buffers (T, R, G, N, P), used again for every chunk, as are their slices."""
    shape = (chunk, d.shape[1], *A.shape)
    return [torch.empty(shape, dtype=d.dtype, device=d.device) for _ in range(count)]


def _segment_starts(
    u: Tensor, d: Tensor, A: Tensor, B: Tensor, h0: Tensor, layout: _Layout
) -> Tensor:
    """State before each segment, (R, G, N, P): scan each from zero, then fold them in order."""
    if layout.segments == 1:
        return h0.contiguous()
    ends = torch.zeros(d.shape[1], *A.shape, dtype=d.dtype, device=d.device)
    decay, inflow = _buffers(d, A, layout.chunk, 2)
    steps = list(zip(decay.unbind(), inflow.unbind(), strict=True))
    for start in range(0, layout.steps, layout.chunk):
        now = slice(start, start + layout.chunk)
        _decays(d[now], A, decay)
        _outer(d[now] * u[now], B[now], inflow)
        for decay_t, inflow_t in steps:
            torch.addcmul(inflow_t, decay_t, ends, out=ends)
    return _fold(ends, d, A, h0, layout.segments, reverse=False)


def _segment_adjoints(
    dy: Tensor, d: Tensor, A: Tensor, C: Tensor, dfinal: Tensor, layout: _Layout
) -> Tensor:
    """Gradient of the state after each segment, (R, G, N, P): `_segment_starts` run backwards."""
    if layout.segments == 1:
        return dfinal.contiguous()
    carry = torch.zeros(d.shape[1], *A.shape, dtype=d.dtype, device=d.device)
    decay, inflow = _buffers(d, A, layout.chunk, 2)
    steps = list(zip(decay.unbind(), inflow.unbind(), strict=True))
    for start in reversed(range(0, layout.steps, layout.chunk)):
        now = slice(start, start + layout.chunk)
        _decays(d[now], A, decay)
        _outer(dy[now], C[now], inflow)
        for decay_t, inflow_t in reversed(steps):
            carry.add_(inflow_t).mul_(decay_t)
    return _fold(carry, d, A, dfinal, layout.segments, reverse=True)


def _fold(
    local: Tensor, d: Tensor, A: Tensor, edge: Tensor, segments: int, *, reverse: bool
) -> Tensor:
    """Carry `edge` (B, G, N, P) through the segments: next = exp(A sum d) * this + local."""
    local = local.unflatten(0, (-1, segments))
    decay = torch.exp(d.sum(0).unsqueeze(2) * A).unflatten(0, (-1, segments))
    seen = torch.empty_like(local)
    order = range(segments)
    for s in reversed(order) if reverse else order:
        seen[:, s] = edge
        edge = torch.addcmul(local[:, s], decay[:, s], edge)
    return seen.flatten(0, 1)


def _forward(
    u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, layout: _Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (T, R, G, P), the state at the start of every chunk, and the last state."""
    y = torch.empty_like(u)
    marks = torch.empty(
        layout.steps // layout.chunk, d.shape[1], *A.shape, dtype=d.dtype, device=d.device
    )
    decay, states = _buffers(d, A, layout.chunk, 2)
    steps = list(zip(decay.unbind(), states.unbind(), strict=True))
    for index, start in enumerate(range(0, layout.steps, layout.chunk)):
        now = slice(start, start + layout.chunk)
        marks[index] = h
        _decays(d[now], A, decay)
        _outer(d[now] * u[now], B[now], states)
        for decay_t, state_t in steps:
            h = torch.addcmul(state_t, decay_t, h, out=state_t)
        y[now] = torch.matmul(C[now].unsqueeze(3), states).squeeze(3)
        h = h.clone()
    return y, marks, h


def _backward(
    u: Tensor,
    d: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    marks: Tensor,
    dy: Tensor,
    carry: Tensor,
    layout: _Layout,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, d, A, B, C and of the state before each segment (README, section 3)."""
    du, dd, dB, dC = (torch.empty_like(tensor) for tensor in (u, d, B, C))
    dA = torch.zeros_like(A)
    decay, adjoint = _buffers(d, A, layout.chunk, 2)
    (states,) = _buffers(d, A, layout.chunk + 1, 1)
    before, after = states[:-1], states[1:]
    onward = list(zip(decay.unbind(), before.unbind(), after.unbind(), strict=True))
    backward = list(
        zip(decay[1:].unbind(), adjoint[1:].unbind(), adjoint.unbind()[:-1], strict=True)
    )
    for index in reversed(range(marks.shape[0])):
        now = slice(index * layout.chunk, (index + 1) * layout.chunk)
        d_now, u_now = d[now], u[now]
        du_now = d_now * u_now
        _decays(d_now, A, decay)
        states[0] = marks[index]
        _outer(du_now, B[now], after)
        for decay_t, before_t, after_t in onward:
            torch.addcmul(after_t, decay_t, before_t, out=after_t)
        _outer(dy[now], C[now], adjoint)
        adjoint[-1] += carry
        for decay_t, later_t, adjoint_t in reversed(backward):
            torch.addcmul(adjoint_t, decay_t, later_t, out=adjoint_t)
        carry = decay[0] * adjoint[0]
        dC[now] = torch.matmul(after, dy[now].unsqueeze(4)).squeeze(4)
        dB[now] = torch.matmul(adjoint, du_now.unsqueeze(4)).squeeze(4)
        d_inflow = torch.matmul(B[now].unsqueeze(3), adjoint).squeeze(3)
        torch.mul(d_inflow, d_now, out=du[now])
        # What the decay receives: d(exp(dA))/d(dA) = decay, times the state it multiplied.
        decay.mul_(before).mul_(adjoint)
        torch.mul(decay, d_now.unsqueeze(3), out=adjoint)
        dA += adjoint.sum((0, 1))
        torch.addcmul(decay.mul_(A).sum(3), d_inflow, u_now, out=dd[now])
    return du, dd, dA, dB, dC, carry
