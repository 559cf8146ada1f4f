"""The definition of the SSD: a float64 loop over time, to which backends are held."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.ssd.arguments import Gradients, Into, Ssd

PRIORITY = 0

_ALONG = ("x", "dt", "B", "C", "z")
"""Arguments with an axis of time."""


def supports(call: Ssd) -> str | None:
    """Runs everywhere."""
    return None


def marks_shape(call: Ssd) -> tuple[int, ...]:
    """Nothing is kept for the backward."""
    return (0,)


def forward(call: Ssd) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `ssd` in float64; shapes as there."""
    marks = call.x.new_empty(0, dtype=call.inner)
    if call.cu_seqlens is not None:
        parts = [forward(part)[:2] for part in _apart(call)]
        y_of_each, final_of_each = zip(*parts, strict=True)
        return torch.cat(y_of_each, 1), torch.cat(final_of_each), marks
    if call.reverse:
        y, final, _ = forward(_flipped(call))
        return y.flip(1), final, marks
    given = _Wide.of(call)
    h, outputs = given.h0, []
    for t in range(call.x.shape[1]):
        h = given.decay[:, t] * h + given.inflow(t)
        outputs.append((h * given.C[:, t, :, None]).sum(-1))
    y = torch.stack(outputs, 1) + given.skip * given.u
    if call.z is not None:
        y = y * F.silu(call.z.double())
    return y.to(call.x.dtype), h.to(call.state_dtype, copy=True), marks


def backward(
    call: Ssd, marks: Tensor, dy: Tensor, dfinal: Tensor, into: Into | None = None
) -> Gradients:
    """Gradients of `forward` in float64, by the equations of the README, section 3."""
    found = _gradients(call, marks, dy, dfinal)
    return found if into is None else into.filled(found)


def _gradients(call: Ssd, marks: Tensor, dy: Tensor, dfinal: Tensor) -> Gradients:
    if call.cu_seqlens is not None:
        edges = call.cu_seqlens.tolist()
        parts = [
            _gradients(part, marks, dy[:, start:end], dfinal[row : row + 1])
            for row, (part, (start, end)) in enumerate(
                zip(_apart(call), itertools.pairwise(edges), strict=True)
            )
        ]
        return _together(parts)
    if call.reverse:
        found = _gradients(_flipped(call), marks, dy.flip(1), dfinal)
        along = {n: getattr(found, n) for n in _ALONG}
        turned: Any = {n: None if g is None else g.flip(1) for n, g in along.items()}
        return found._replace(**turned)
    given = _Wide.of(call)
    gated = dy.double()
    if call.z is not None:
        gated = gated * F.silu(call.z.double())
    core, y = _core_gradients(given, gated, dfinal.double())
    core["x"] = core["x"] + gated * given.skip
    core["D"] = gated * given.u
    if call.D is not None:
        core["D"] = core["D"].sum((0, 1) if call.D.dim() == 2 else (0, 1, 3))
    if call.z is not None:
        z = call.z.double()
        slope = torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))
        core["z"] = dy.double() * (y + given.skip * given.u) * slope
    core["dt"] = core["dt"] * given.slope
    core["dt_bias"] = core["dt"].sum((0, 1))
    inputs = {name: getattr(call, name) for name in Gradients._fields}
    cast: Any = {n: None if t is None else core[n].to(t.dtype) for n, t in inputs.items()}
    return Gradients(**cast)


class _Wide(NamedTuple):
    """The arguments in float64; B, C (B, L, H, N)."""

    u: Tensor
    d: Tensor
    """(B, L, H) step size after bias, softplus and limits."""
    slope: Tensor
    """Of the step size by dt."""
    A: Tensor
    decay: Tensor
    """(B, L, H, 1, 1)."""
    B: Tensor
    C: Tensor
    skip: Tensor
    h0: Tensor
    groups: int

    @classmethod
    def of(cls, call: Ssd) -> _Wide:
        u, A = call.x.double(), call.A.double()
        d, slope = _step_size(call)
        h0 = u.new_zeros(call.state_shape)
        if call.initial_state is not None:
            h0 = call.initial_state.double()
        skip = u.new_zeros(1) if call.D is None else call.D.double()
        groups = call.B.shape[2]
        B, C = (
            maps.double().repeat_interleave(u.shape[2] // groups, dim=2)
            for maps in (call.B, call.C)
        )
        decay = torch.exp(d * A)[..., None, None]
        skip = skip if skip.dim() == 2 else skip[:, None]
        return cls(u, d, slope, A, decay, B, C, skip, h0, groups)

    def inflow(self, t: int) -> Tensor:
        """d x (outer) B at a position: (B, H, P, N)."""
        return (self.d[:, t, :, None] * self.u[:, t])[..., None] * self.B[:, t, :, None]


def _step_size(call: Ssd) -> tuple[Tensor, Tensor]:
    """d and its slope by dt: limits are sharp, and what lies on one still passes."""
    pre = call.dt.double()
    if call.dt_bias is not None:
        pre = pre + call.dt_bias.double()
    # Above its threshold softplus is the identity: 50 makes that exact in float64.
    d = F.softplus(pre, threshold=50) if call.dt_softplus else pre
    slope = torch.sigmoid(pre) if call.dt_softplus else torch.ones_like(pre)
    inside = (d >= call.dt_min) & (d <= call.dt_max)
    return d.clamp(call.dt_min, call.dt_max), slope * inside


def _core_gradients(given: _Wide, dy: Tensor, carry: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of h = a h' + d x (outer) B, y = h C; also y. `carry` is that of the last state."""
    states, length = [given.h0], dy.shape[1]
    for t in range(length):
        states.append(given.decay[:, t] * states[-1] + given.inflow(t))
    along: dict[str, list[Tensor]] = {name: [] for name in ("x", "dt", "B", "C", "y")}
    dA = torch.zeros_like(given.A)
    for t in reversed(range(length)):
        u, d, B, C = given.u[:, t], given.d[:, t], given.B[:, t], given.C[:, t]
        g = carry + dy[:, t, :, :, None] * C[:, :, None]
        q = (g * B[:, :, None]).sum(-1)
        carry = given.decay[:, t] * g
        w = (carry * states[t]).sum((-1, -2))
        along["x"].append(d[..., None] * q)
        along["dt"].append((u * q).sum(-1) + w * given.A)
        along["B"].append(d[..., None] * (g * u[..., None]).sum(-2))
        along["C"].append((states[t + 1] * dy[:, t, :, :, None]).sum(-2))
        along["y"].append((states[t + 1] * C[:, :, None]).sum(-1))
        dA += (w * d).sum(0)
    found = {name: torch.stack(steps[::-1], 1) for name, steps in along.items()}
    for name in ("B", "C"):
        found[name] = found[name].unflatten(2, (given.groups, -1)).sum(3)
    y = found.pop("y")
    return {**found, "A": dA, "initial_state": carry}, y


def _flipped(call: Ssd) -> Ssd:
    """The same with time turned round."""
    given = {name: getattr(call, name) for name in _ALONG}
    turned: Any = {name: None if t is None else t.flip(1) for name, t in given.items()}
    return dataclasses.replace(call, **turned, reverse=False)


def _apart(call: Ssd) -> list[Ssd]:
    """One call per packed sequence."""
    edges = [] if call.cu_seqlens is None else call.cu_seqlens.tolist()
    given: Any = {name: getattr(call, name) for name in _ALONG}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    state = call.initial_state
    return [
        dataclasses.replace(
            call,
            **{name: tensor[:, start:end] for name, tensor in given.items()},
            initial_state=None if state is None else state[row : row + 1],
            cu_seqlens=None,
        )
        for row, (start, end) in enumerate(itertools.pairwise(edges))
    ]


def _together(parts: list[Gradients]) -> Gradients:
    """Gradients of the whole pack from those of its sequences."""
    found: dict[str, Tensor | None] = {}
    for name, of_each in zip(Gradients._fields, zip(*parts, strict=True), strict=True):
        given = [gradient for gradient in of_each if gradient is not None]
        if not given:
            found[name] = None
        elif name in _ALONG:
            found[name] = torch.cat(given, 1)
        elif name == "initial_state":
            found[name] = torch.cat(given, 0)
        else:
            found[name] = torch.stack(given).sum(0)
    return Gradients(**found)  # type: ignore[arg-type]
