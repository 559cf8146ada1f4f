"""The loss in Triton: logits of a tile of tokens live in registers, forward and backward.

Triton and the kernels are imported by the first call that runs them, not with dnassm.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.linear_cross_entropy.arguments import (
    Gradients,
    Loss,
    largest,
    of_parameters,
)
from dnassm.kernels.triton_runtime import DTYPES, unavailable

PRIORITY = 20

_WIDEST = 128
"""Entries of a vocabulary whose logits lie in the registers of one program."""
_TILE = {2: (64, 64), 4: (32, 32)}
"""Bytes of a number -> tokens of a tile, and channels that are read at once."""
_PROGRAMS, _SUMS = 6 * 132, 1 << 25
"""Programs of a backward at most, and numbers of their sums for the weight.

6 is whole waves of 1, 2, 3 or 6 programs on each of 132 SMs.
"""


def supports(call: Loss) -> str | None:
    """Runs on CUDA, ROCm and XPU; on CPU tensors in Triton's interpreter, slowly, for tests."""
    if call.hidden.dtype not in DTYPES:
        return Elsewhere(f"computes in float32, hidden is {call.hidden.dtype}")
    if call.vocabulary > _WIDEST:
        return Elsewhere(
            f"the vocabulary has {call.vocabulary} entries, above {_WIDEST} the matrix products of "
            "torch are faster"
        )
    return unavailable(call.hidden.device)


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("dnassm.kernels.linear_cross_entropy.triton.kernels")


def forward(call: Loss) -> tuple[Tensor, Tensor]:
    """Compute the loss of every token and its log of the sum of exp, both (...) float32."""
    work = _Work(call)
    shape, device = call.targets.shape, call.hidden.device
    losses = torch.empty(shape, dtype=torch.float32, device=device)
    lse = torch.empty(shape, dtype=torch.float32, device=device)
    _kernels().forward[(work.tiles,)](*work.arguments, losses, lse, **work.constants)
    return losses, lse


def backward(call: Loss, lse: Tensor, dlosses: Tensor) -> Gradients:
    """Gradients of every input; those of weight and bias per program, then added in one order."""
    work = _Work(call)
    device = call.hidden.device
    dhidden = torch.empty(call.hidden.shape, dtype=call.hidden.dtype, device=device)
    size = call.vocabulary * call.width
    each = -(-work.tiles // max(1, min(_PROGRAMS, _SUMS // size)))
    programs = -(-work.tiles // each)
    of_weight = torch.empty((programs, size), dtype=torch.float32, device=device)
    of_bias = torch.empty((programs, call.vocabulary), dtype=torch.float32, device=device)
    unit = largest(dlosses)
    g = dlosses.reshape(-1) / unit
    _kernels().backward[(programs,)](
        *work.arguments, lse, g, unit, dhidden, of_weight, of_bias, each, **work.constants
    )
    dweight = (of_weight.sum(0) * unit).view(call.vocabulary, call.width)
    return Gradients(dhidden, *of_parameters(call, dweight, of_bias.sum(0) * unit))


class _Work:
    """One call as the kernels take it: arguments that both begin with, and constants."""

    def __init__(self, call: Loss) -> None:
        rows = call.rows
        tokens, block = _TILE[rows.dtype.itemsize]
        columns = max(16, 1 << (call.vocabulary - 1).bit_length())
        self.tiles = -(-rows.shape[0] // tokens)
        self.arguments = (
            rows,
            rows.stride(0),
            rows.stride(1),
            call.weight.to(rows.dtype).contiguous(),
            None if call.bias is None else call.bias.float().contiguous(),
            call.targets.reshape(-1).contiguous(),
            call.ignore_index,
            call.smoothing,
            rows.shape[0],
            call.width,
            call.vocabulary,
        )
        self.constants = {
            "tokens": tokens,
            "columns": columns,
            "block": block,
            "num_warps": 4 if columns <= 32 else 8,
        }
