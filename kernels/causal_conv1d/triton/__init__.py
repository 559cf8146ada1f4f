"""Causal convolution in Triton, for the GPUs that the CUDA kernel does not serve.

Triton and the kernels are imported by the first call that runs them, not with dnassm. Positions are
counted in the order of the walk; a reversed walk reads its row from the end. The backward keeps the
gradient before SiLU in float32, 4 bytes per number, which the CUDA kernel does not.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.causal_conv1d.arguments import Conv, Gradients, of_parameters
from dnassm.kernels.triton_runtime import DTYPES, unavailable

PRIORITY = 20

_STEPS = 32
"""Positions of a program."""
_BLOCK = 64
"""Channels of a program at most."""
_SUMMED = 16
"""Tiles of `_STEPS` positions whose sums for the weights one program adds up."""


def supports(call: Conv) -> str | None:
    """Runs on CUDA, ROCm and XPU; on CPU tensors in Triton's interpreter, slowly, for tests."""
    if call.x.dtype not in DTYPES:
        return Elsewhere(f"computes in float32, x is {call.x.dtype}")
    return unavailable(call.x.device)


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("dnassm.kernels.causal_conv1d.triton.kernels")


def forward(call: Conv) -> tuple[Tensor, Tensor]:
    """Compute y and the final state; shapes as in `causal_conv1d`. Sums are float32."""
    work = _Work(call)
    y = call.result()
    _kernels().forward[(work.programs(1),)](*work.arguments, y, *y.stride()[:2], **work.constants)
    return y, work.final_state()


def backward(call: Conv, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of every input; those of weight and bias tile by tile, then added in one order."""
    work = _Work(call)
    batch, length, channels = call.x.shape
    before_silu = torch.empty((batch, length, channels), dtype=torch.float32, device=dy.device)
    runs = -(-length // (_STEPS * _SUMMED))
    partial = before_silu.new_empty((batch * runs, call.width + 1, channels))
    _kernels().before_silu[(work.programs(1),)](
        *work.arguments, dy, *dy.stride(), before_silu, **work.constants
    )
    _kernels().of_weights[(work.programs(_SUMMED),)](
        *work.arguments, before_silu, partial, summed=_SUMMED, **work.constants
    )
    dx = call.result()
    dfinal = dfinal.float().contiguous()
    _kernels().of_inputs[(work.programs(1),)](
        *work.arguments, before_silu, dfinal, dx, *dx.stride()[:2], **work.constants
    )
    state = call.initial_state
    return Gradients(
        dx,
        *of_parameters(call, partial.sum(0)),
        None if state is None else work.of_states(before_silu, dfinal).to(state.dtype),
    )


class _Work:
    """One call as the kernels take it: arguments that all three begin with, and constants."""

    def __init__(self, call: Conv) -> None:
        self.call = call
        self.past = call.width - 1
        _, length, channels = call.x.shape
        self.block = min(_BLOCK, 1 << (channels - 1).bit_length())
        index = torch.arange(call.sequences, device=call.x.device)
        cu = call.cu_seqlens
        if cu is None:
            self.rows, self.begin, self.end = index, 0 * index, 0 * index + length
            edges: tuple[Tensor | None, ...] = (None, None, None)
        else:
            starts, ends = cu[:-1].long(), cu[1:].long()
            self.rows = 0 * index
            self.begin, self.end = (
                (length - ends, length - starts) if call.reverse else (starts, ends)
            )
            edges = self._edges()
        self.weight = call.weight.float().contiguous()
        self.arguments = (
            call.x,
            *call.x.stride(),
            self.weight,
            None if call.bias is None else call.bias.float().contiguous(),
            None if call.initial_state is None else call.initial_state.float().contiguous(),
            *edges,
            length,
            channels,
        )
        self.constants = {
            "width": call.width,
            "silu": call.silu,
            "reverse": call.reverse,
            "has_bias": call.bias is not None,
            "has_state": call.initial_state is not None,
            "packed": cu is not None,
            "steps": _STEPS,
            "block": self.block,
        }

    def programs(self, tiles: int) -> int:
        """Programs where each takes so many tiles of one row and a block of channels."""
        batch, length, channels = self.call.x.shape
        return batch * -(-length // (_STEPS * tiles)) * -(-channels // self.block)

    def _edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """(L,) begin, end and row of the states of the sequence at each position of the walk."""
        position = torch.arange(self.call.x.shape[1], device=self.call.x.device)
        if self.call.reverse:  # sequences are walked from the last to the first
            order = torch.searchsorted(self.end.flip(0), position, right=True)
            sequence = self.call.sequences - 1 - order
        else:
            sequence = torch.searchsorted(self.end, position, right=True)
        return self.begin[sequence], self.end[sequence], sequence

    def final_state(self) -> Tensor:
        """(rows, K-1, D): the last inputs of each sequence, or what its state held of them."""
        call, slots = self.call, torch.arange(self.past, device=self.call.x.device)
        at = self.end.unsqueeze(1) - self.past + slots
        inside = at >= self.begin.unsqueeze(1)
        place = torch.where(inside, at, self.begin.unsqueeze(1))
        place = call.x.shape[1] - 1 - place if call.reverse else place
        state = call.x[self.rows.unsqueeze(1), place]
        before = torch.zeros_like(state)
        if call.initial_state is not None:
            slot = (at - self.begin.unsqueeze(1) + self.past).clamp(max=max(self.past - 1, 0))
            index = torch.arange(call.sequences, device=slot.device).unsqueeze(1)
            before = call.initial_state[index, slot].to(state.dtype)
        return torch.where(inside.unsqueeze(2), state, before)

    def of_states(self, before_silu: Tensor, dfinal: Tensor) -> Tensor:
        """Gradient of the initial state: a few rows, gathered."""
        slots = torch.arange(self.past, device=dfinal.device)
        begin, end = self.begin.unsqueeze(1), self.end.unsqueeze(1)
        found = torch.zeros_like(dfinal)
        for k, tap in enumerate(self.weight.unbind(1)):
            at = begin + slots - k
            inside = (at >= begin) & (at < end)
            gradient = before_silu[self.rows.unsqueeze(1), torch.where(inside, at, begin)]
            found += torch.where(inside.unsqueeze(2), gradient, 0) * tap
        slot = slots - (end - begin)  # of the final state, which a short sequence does not fill
        index = torch.arange(self.call.sequences, device=dfinal.device).unsqueeze(1)
        kept = dfinal[index, slot.clamp(min=0)]
        return found + torch.where((slot >= 0).unsqueeze(2), kept, 0)
