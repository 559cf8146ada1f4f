"""The norms in Triton: one pass over the rows forward, one backward, no atomics.

Triton and the kernels are imported by the first call that runs them, not with dnassm.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.norm.arguments import Gradients, Into, Norm, Wanted, along, of_parameters
from dnassm.kernels.triton_runtime import DTYPES, unavailable

PRIORITY = 20

_WIDEST = 8192
"""Channels of a group at most: a row lies in the registers of one program."""
_TILE = 1024
"""Numbers of a tile of rows; a row where that is wider."""
_WARPS = 4
_NUMBERS = 512
"""Numbers per warp at most, 16 per thread: more would not stay in registers in the backward."""
_PROGRAMS, _TILES = 28 * 132, 8
"""Programs of a backward at most, each with sums for weight and bias, and its tiles at least.

28 is whole waves of 7 or 4 programs on each of 132 SMs, and nearly whole ones of 5, 6 or 9.
"""


def supports(call: Norm) -> str | None:
    """Runs on CUDA, ROCm and XPU; on CPU tensors in Triton's interpreter, slowly, for tests."""
    if call.x.dtype not in DTYPES:
        return Elsewhere(f"computes in float32, x is {call.x.dtype}")
    if call.width > _WIDEST:
        return f"a group has {call.width} channels, it takes up to {_WIDEST}"
    return unavailable(call.x.device)


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("dnassm.kernels.norm.triton.kernels")


def forward(call: Norm) -> tuple[Tensor, Tensor | None]:
    """Compute y and, with a residual, the sum; shapes as in `add_norm`. Sums are float32."""
    work = _Work(call)
    y = torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device)
    total = None
    if call.residual is not None:
        total = torch.empty(call.x.shape, dtype=call.total_dtype, device=call.x.device)
    _kernels().forward[(work.tiles * call.groups,)](
        *work.arguments, *_placed(call, call.residual), work.bias, y, total, **work.constants
    )
    return y, total


def backward(
    call: Norm, dy: Tensor, dtotal: Tensor | None, wanted: Wanted, into: Into | None = None
) -> Gradients:
    """Gradients of every input; those of weight and bias per program, then added in one order."""
    work = _Work(call)
    dx, dresidual, dgate = along(call, wanted, into)
    each = max(_TILES, -(-work.tiles // _PROGRAMS))
    programs = -(-work.tiles // each)
    kinds = 1 if call.bias is None else 2
    sums = (programs, kinds, call.channels)
    partial = torch.empty(sums, dtype=torch.float32, device=call.x.device)
    _kernels().backward[(programs * call.groups,)](
        *work.arguments,
        *_placed(call, dy),
        *_placed(call, dtotal),
        *_placed(call, dx)[:2],
        dresidual,
        *_placed(call, dgate)[:2],
        partial,
        each,
        **work.constants,
    )
    return Gradients(dx, dresidual, dgate, *of_parameters(call, partial.sum(0)))


def _placed(call: Norm, tensor: Tensor | None) -> tuple[Tensor | None, int, int]:
    """(R, D) rows of `tensor` and their strides."""
    if tensor is None:
        return None, 0, 0
    rows = call.rows(tensor)
    return rows, rows.stride(0), rows.stride(1)


class _Work:
    """One call as the kernels take it: arguments that both begin with, and constants."""

    def __init__(self, call: Norm) -> None:
        block = max(16, 1 << (call.width - 1).bit_length())
        steps = max(1, _TILE // block)
        rows = call.x.numel() // call.channels
        self.tiles = -(-rows // steps)
        self.bias = None if call.bias is None else call.bias.contiguous()
        self.arguments = (
            *_placed(call, call.x),
            *_placed(call, call.gate),
            call.weight.contiguous(),
            rows,
            call.width,
            call.groups,
            call.eps,
        )
        self.constants = {
            "centred": call.centred,
            "has_bias": call.bias is not None,
            "gated": call.gate is not None,
            "steps": steps,
            "block": block,
            "num_warps": max(_WARPS, block // _NUMBERS),
        }
