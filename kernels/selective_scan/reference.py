"""The definition of the selective scan: a float64 loop over time, to which backends are held."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.selective_scan.arguments import Gradients, Scan

PRIORITY = 0

_BLOCK = 256
"""Steps whose states are held at once: it bounds memory and changes no result."""
_ALONG = ("x", "dt", "B", "C", "z")
"""Arguments with an axis of time."""


def supports(scan: Scan) -> str | None:
    """Runs everywhere."""
    return None


def marks_shape(scan: Scan) -> tuple[int, ...]:
    """Nothing is kept for the backward."""
    return (0,)


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `selective_scan` in float64; shapes as there."""
    marks = scan.x.new_empty(0, dtype=scan.inner)
    if scan.cu_seqlens is not None:
        parts = [forward(part)[:2] for part in _apart(scan)]
        y_of_each, final_of_each = zip(*parts, strict=True)
        return torch.cat(y_of_each, 1), torch.cat(final_of_each), marks
    if scan.reverse:
        y, final, _ = forward(_flipped(scan))
        return y.flip(1), final, marks
    given = _Wide.of(scan)
    h, outputs = given.h0, []
    for block in _blocks(scan):
        _, states = _states(given, block, h)
        h = states[:, -1]
        outputs.append(_read(states[:, 1:], given.C[:, block]))
    y = torch.cat(outputs, 1)
    if scan.D is not None:
        y = y + scan.D.double() * given.u
    if scan.z is not None:
        y = y * F.silu(scan.z.double())
    return y.to(scan.x.dtype), h.to(scan.state_dtype, copy=True), marks


def backward(scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of `forward` in float64, by the equations of the README, section 3."""
    if scan.cu_seqlens is not None:
        edges = scan.cu_seqlens.tolist()
        parts = [
            backward(part, marks, dy[:, start:end], dfinal[row : row + 1])
            for row, (part, (start, end)) in enumerate(
                zip(_apart(scan), itertools.pairwise(edges), strict=True)
            )
        ]
        return _together(parts)
    if scan.reverse:
        found = backward(_flipped(scan), marks, dy.flip(1), dfinal)
        along = {n: getattr(found, n) for n in _ALONG}
        turned: Any = {n: None if g is None else g.flip(1) for n, g in along.items()}
        return found._replace(**turned)
    given = _Wide.of(scan)
    outer, gated = dy.double(), dy.double()
    if scan.z is not None:
        gated = outer * F.silu(scan.z.double())
    core, y = _core_gradients(scan, given, gated, dfinal.to(given.h0.dtype))
    if scan.D is not None:
        core["x"] = core["x"] + gated * scan.D.double()
        core["D"] = (gated * given.u).sum((0, 1))
        y = y + scan.D.double() * given.u
    if scan.z is not None:
        z = scan.z.double()
        core["z"] = outer * y * torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))
    if scan.dt_softplus:
        core["dt"] = core["dt"] * torch.sigmoid(given.pre)
    core["dt_bias"] = core["dt"].sum((0, 1))
    inputs = {name: getattr(scan, name) for name in Gradients._fields}
    cast: Any = {n: None if t is None else core[n].to(t.dtype) for n, t in inputs.items()}
    return Gradients(**cast)


class _Wide(NamedTuple):
    """The arguments in float64 (complex128 if A is complex); B, C (B, L, D, N), as views."""

    u: Tensor
    pre: Tensor
    """dt + dt_bias, before the softplus."""
    d: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    h0: Tensor

    @classmethod
    def of(cls, scan: Scan) -> _Wide:
        wide = torch.complex128 if scan.A.is_complex() else torch.float64
        pre = scan.dt.double()
        if scan.dt_bias is not None:
            pre = pre + scan.dt_bias.double()
        # Above its threshold softplus is the identity: 50 makes that exact in float64.
        d = F.softplus(pre, threshold=50) if scan.dt_softplus else pre
        A = scan.A.to(wide)
        h0 = A.new_zeros(scan.state_shape)
        if scan.initial_state is not None:
            h0 = scan.initial_state.to(wide)
        return cls(scan.x.double(), pre, d, A, scan.B.to(wide), scan.C.to(wide), h0)


def _per_channel(maps: Tensor, channels: int) -> Tensor:
    """(B, T, G, N) -> (B, T, D, N)."""
    return maps.repeat_interleave(channels // maps.shape[2], dim=2)


def _per_group(per_channel: Tensor, groups: int) -> Tensor:
    """(B, T, D, N) -> (B, T, G, N): the sum over the channels of a group."""
    summed: Tensor = per_channel.unflatten(2, (groups, -1)).sum(3)
    return summed


def _blocks(scan: Scan) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, scan.x.shape[1], _BLOCK)]


def _states(given: _Wide, block: slice, h: Tensor) -> tuple[Tensor, Tensor]:
    """Decays (B, T, D, N) of the block, and the states before it and after each of its steps."""
    u, d = given.u[:, block], given.d[:, block]
    decay = torch.exp(d[..., None] * given.A)
    inflow = (d * u)[..., None] * _per_channel(given.B[:, block], u.shape[2])
    states = [h]
    for decay_t, inflow_t in zip(decay.unbind(1), inflow.unbind(1), strict=True):
        states.append(decay_t * states[-1] + inflow_t)
    return decay, torch.stack(states, 1)


def _read(states: Tensor, C: Tensor) -> Tensor:
    """y = C h, for complex numbers 2 Re(C h)."""
    y = (states * _per_channel(C, states.shape[2])).sum(-1)
    return 2 * y.real if y.is_complex() else y


def _core_gradients(
    scan: Scan, given: _Wide, dy: Tensor, carry: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of h = a h' + d B u, y = C h; also y. `carry` comes from after the block."""
    starts, groups = [given.h0], scan.B.shape[2]
    for block in _blocks(scan)[:-1]:
        starts.append(_states(given, block, starts[-1])[1][:, -1])
    if given.A.is_complex():
        dy = 2 * dy
    found: dict[str, list[Tensor]] = {name: [] for name in ("x", "dt", "B", "C", "y")}
    dA = torch.zeros_like(given.A)
    for block, h in zip(reversed(_blocks(scan)), reversed(starts), strict=True):
        u, d, dy_now = given.u[:, block], given.d[:, block], dy[:, block]
        B, C = (_per_channel(maps[:, block], u.shape[2]) for maps in (given.B, given.C))
        decay, states = _states(given, block, h)
        from_y = dy_now[..., None] * C.conj()
        adjoints = []
        for decay_t, from_y_t in zip(
            reversed(decay.unbind(1)), reversed(from_y.unbind(1)), strict=True
        ):
            adjoints.append(from_y_t + carry)
            carry = decay_t.conj() * adjoints[-1]
        g = torch.stack(adjoints[::-1], 1)
        w = g * (decay * states[:, :-1]).conj()
        q = _real((g * B.conj()).sum(-1))
        found["x"].append(d * q)
        found["dt"].append(u * q + _real((w * given.A.conj()).sum(-1)))
        found["B"].append(_per_group(g * (d * u)[..., None], groups))
        found["C"].append(_per_group(dy_now[..., None] * states[:, 1:].conj(), groups))
        found["y"].append(_read(states[:, 1:], given.C[:, block]))
        dA += (w * d[..., None]).sum((0, 1))
    along = {name: torch.cat(blocks[::-1], 1) for name, blocks in found.items()}
    y = along.pop("y")
    return {**along, "A": dA, "initial_state": carry}, y


def _real(tensor: Tensor) -> Tensor:
    return tensor.real if tensor.is_complex() else tensor


def _flipped(scan: Scan) -> Scan:
    """The same with time turned round."""
    given = {name: getattr(scan, name) for name in _ALONG}
    turned: Any = {name: None if t is None else t.flip(1) for name, t in given.items()}
    return dataclasses.replace(scan, **turned, reverse=False)


def _apart(scan: Scan) -> list[Scan]:
    """One call per packed sequence."""
    edges = [] if scan.cu_seqlens is None else scan.cu_seqlens.tolist()
    given: Any = {name: getattr(scan, name) for name in _ALONG}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    state = scan.initial_state
    return [
        dataclasses.replace(
            scan,
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
