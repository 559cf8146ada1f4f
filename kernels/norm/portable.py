"""The norms in plain torch, for any device: rows in chunks that fit a cache.

Nothing is kept from the forward but what was normed; the backward computes all else again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.norm.arguments import Gradients, Into, Norm, Wanted, along, of_parameters

PRIORITY = 10

# Numbers of one chunk. On CPU the few buffers of a chunk share the cache of a core.
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 26}


def supports(call: Norm) -> str | None:
    """Runs everywhere."""
    return None


def forward(call: Norm) -> tuple[Tensor, Tensor | None]:
    """Compute y and, with a residual, the sum; shapes as in `add_norm`. Sums are `call.inner`."""
    work = _Work(call)
    y = torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device)
    total = None
    if call.residual is not None:
        total = torch.empty(call.x.shape, dtype=call.total_dtype, device=call.x.device)
    for rows in work.chunks():
        value = work.value(rows)
        if total is not None:
            call.rows(total)[rows] = value
        normed, _ = work.normed(value)
        call.rows(y)[rows] = work.weighted(normed)
    return y, total


def backward(
    call: Norm, dy: Tensor, dtotal: Tensor | None, wanted: Wanted, into: Into | None = None
) -> Gradients:
    """Gradients of every input from those of y and of the sum."""
    work = _Work(call)
    dx, dresidual, dgate = along(call, wanted, into)
    partial = []
    for rows in work.chunks():
        value = work.value(rows)
        normed, scale = work.normed(value)
        g = call.rows(dy)[rows].to(call.inner)
        partial.append(work.products(normed, g))
        found = work.through_norm(normed, scale, g)
        if dtotal is not None:
            found += call.rows(dtotal)[rows]
        if dgate is not None and work.gate is not None:
            gate = work.gate[rows].to(call.inner)
            of_gate = torch.ops.aten.silu_backward(found * work.x[rows], gate)
            call.rows(dgate)[rows] = of_gate
            found *= F.silu(gate)
        call.rows(dx)[rows] = found
        if dresidual is not None:
            call.rows(dresidual)[rows] = found
    return Gradients(dx, dresidual, dgate, *of_parameters(call, torch.stack(partial).sum(0)))


class _Work:
    """One call, rows (R, D) at a time."""

    def __init__(self, call: Norm) -> None:
        self.call = call
        self.x = call.rows(call.x)
        self.residual = None if call.residual is None else call.rows(call.residual)
        self.gate = None if call.gate is None else call.rows(call.gate)
        self.weight = call.weight.to(call.inner)
        self.bias = None if call.bias is None else call.bias.to(call.inner)

    def chunks(self) -> list[slice]:
        """Rows that are computed together."""
        numbers = _CHUNK.get(self.x.device.type, _CHUNK["cuda"])
        count, step = self.x.shape[0], max(1, numbers // self.call.channels)
        return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]

    def value(self, rows: slice) -> Tensor:
        """(rows, D): what is normed, rounded as the sum is; the input itself where it can be."""
        call = self.call
        value = self.x[rows].to(call.inner)
        if self.residual is not None:
            value = (value + self.residual[rows]).to(call.total_dtype).to(call.inner)
        if self.gate is not None:
            value = value * F.silu(self.gate[rows].to(call.inner))
        return value

    def normed(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, groups, D / groups): the norm before weight and bias, and (rows, groups, 1)."""
        call = self.call
        centre = value.unflatten(1, (call.groups, call.width))
        if call.centred:
            centre = centre - centre.mean(2, keepdim=True)
        squares = torch.linalg.vector_norm(centre, dim=2, keepdim=True).square_()
        scale = squares.div_(call.width).add_(call.eps).rsqrt_()
        return centre * scale, scale

    def weighted(self, normed: Tensor) -> Tensor:
        """(rows, D): y; `normed` is not needed afterwards."""
        flat = normed.flatten(1).mul_(self.weight)
        return flat if self.bias is None else flat.add_(self.bias)

    def products(self, normed: Tensor, g: Tensor) -> Tensor:
        """(2, D) or (1, D): what these rows add to the gradients of weight and bias."""
        sums = [(normed.flatten(1) * g).sum(0)]
        return torch.stack(sums if self.bias is None else [*sums, g.sum(0)])

    def through_norm(self, normed: Tensor, scale: Tensor, g: Tensor) -> Tensor:
        """(rows, D): gradient of what was normed; `normed` is not needed afterwards."""
        dnormed = (g * self.weight).unflatten(1, (self.call.groups, self.call.width))
        along = (dnormed * normed).mean(2, keepdim=True)
        if self.call.centred:
            dnormed = dnormed - dnormed.mean(2, keepdim=True)
        return torch.sub(dnormed, normed.mul_(along)).mul_(scale).flatten(1)
