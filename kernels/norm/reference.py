"""The definition of the norms: float64, one line per equation, and the chain rule by hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dnassm.kernels.norm.arguments import Gradients, Into, Norm, Wanted, along, of_parameters

PRIORITY = 0


def supports(call: Norm) -> str | None:
    """Runs everywhere."""
    return None


class _Parts(NamedTuple):
    """Steps of the definition, float64, (R, groups, D / groups)."""

    value: Tensor
    """What is normed."""
    normed: Tensor
    """Its norm before weight and bias."""
    scale: Tensor
    """(R, groups, 1): 1 / sqrt(mean of squares + eps)."""


def _parts(call: Norm) -> _Parts:
    value = call.rows(call.x).double()
    if call.residual is not None:
        value = (value + call.rows(call.residual).double()).to(call.total_dtype).double()
    if call.gate is not None:
        gate = call.rows(call.gate).double()
        value = value * (gate * torch.sigmoid(gate))
    grouped = value.unflatten(1, (call.groups, call.width))
    centre = grouped - grouped.mean(2, keepdim=True) if call.centred else grouped
    scale = 1 / torch.sqrt(centre.square().mean(2, keepdim=True) + call.eps)
    return _Parts(value, centre * scale, scale)


def forward(call: Norm) -> tuple[Tensor, Tensor | None]:
    """Compute y and, with a residual, the sum; shapes as in `add_norm`."""
    value, normed, _ = _parts(call)
    y = normed.flatten(1) * call.weight.double()
    if call.bias is not None:
        y = y + call.bias.double()
    total = None
    if call.residual is not None:
        total = value.to(call.total_dtype).view(call.x.shape)
    return y.to(call.x.dtype).view(call.x.shape), total


def backward(
    call: Norm, dy: Tensor, dtotal: Tensor | None, wanted: Wanted, into: Into | None = None
) -> Gradients:
    """Gradients of every input from those of y and of the sum."""
    parts = _parts(call)
    g = call.rows(dy).double()
    sums = torch.stack([(g * parts.normed.flatten(1)).sum(0), g.sum(0)])
    dnormed = (g * call.weight.double()).unflatten(1, (call.groups, call.width))
    dvalue = dnormed - parts.normed * (dnormed * parts.normed).mean(2, keepdim=True)
    if call.centred:
        dvalue = dvalue - dnormed.mean(2, keepdim=True)
    dx, dgate = (dvalue * parts.scale).flatten(1), None
    if dtotal is not None:
        dx = dx + call.rows(dtotal).double()
    if call.gate is not None:
        gate = call.rows(call.gate).double()
        s = torch.sigmoid(gate)
        dgate = dx * call.rows(call.x).double() * s * (1 + gate * (1 - s))
        dx = dx * gate * s
    rooms = along(call, wanted, into)
    for room, found in zip(rooms, (dx, dx, dgate), strict=True):
        if room is not None and found is not None:
            room.copy_(found.view(call.x.shape))
    return Gradients(*rooms, *of_parameters(call, sums))
