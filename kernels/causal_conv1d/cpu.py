"""Causal convolution on the CPU, in vector code compiled in the process (README, section "cpu").

Nothing depends on the number of threads: work is divided by shapes alone. No value of a position
depends on what it is computed with, and the sums for weight and bias are taken in one order.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnassm import machine_code
from dnassm.kernels import vector_code
from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.causal_conv1d import cpu_code
from dnassm.kernels.causal_conv1d.arguments import Conv, Gradients, of_parameters
from dnassm.kernels.causal_conv1d.cpu_code import CHANNELS, FIELDS, TILE, Variant
from dnassm.kernels.memory import empty
from dnassm.kernels.threads import run_on_threads, thread_count
from dnassm.kernels.vector_code import NUMBER_KINDS, VECTOR_BYTES

PRIORITY = 30

WIDEST = 32
"""Taps: each is written out, and a tile is longer than they are."""
# Numbers up to which one thread does the work: to wake a second costs 50 us.
_ALONE = 1 << 18


def supports(call: Conv) -> str | None:
    """The reason why it cannot run on these arguments, or None."""
    dtype = call.x.dtype
    if call.x.device.type != "cpu":
        return Elsewhere(f"runs on the CPU, x is on {call.x.device}")
    if call.width > WIDEST:
        return f"writes out at most {WIDEST} taps, got {call.width}"
    reason = machine_code.missing()
    if reason is not None:
        return reason
    if dtype not in NUMBER_KINDS:
        return f"no vector code for {dtype}"
    if dtype == torch.float16 and not vector_code.has_half():
        return "this CPU does not convert float16"
    return None


def forward(call: Conv) -> tuple[Tensor, Tensor]:
    """Compute y and the final state; shapes as in `causal_conv1d`. Sums are `call.inner`."""
    y = empty(call.x.shape, call.x.dtype) if call.into is None else call.into
    work = _Work(call)
    work.point("y", y)
    work.run("forward")
    return y, _final_state(call)


def backward(call: Conv, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of every input."""
    work, inner = _Work(call), call.inner
    dx = empty(call.x.shape, call.x.dtype) if call.into is None else call.into
    work.point("dy", dy.to(call.x.dtype))
    work.point("dx", dx)
    channels, state, dinitial = call.x.shape[2], call.initial_state, None
    if state is not None:
        dinitial = torch.empty((*call.state_shape[:2], work.padded), dtype=inner)
        work.keep("dinitial", dinitial)
    work.keep("dfinal", work.wide(dfinal))
    partial = torch.empty(
        (len(work.cut.tiles) - 1, call.width + 1, work.padded), dtype=torch.double
    )
    work.keep("partial", partial)
    work.run("backward")
    sums = _sum_of_tiles(partial[..., :channels])
    return Gradients(
        dx,
        *of_parameters(call, sums),
        None
        if state is None or dinitial is None
        else dinitial[..., :channels].to(state.dtype).contiguous(),
    )


def _sum_of_tiles(partial: Tensor) -> Tensor:
    """By numpy, which adds row after row on one thread. Sums of infinite inputs may be NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return torch.from_numpy(partial.numpy().sum(axis=0))


def _final_state(call: Conv) -> Tensor:
    """The last K-1 inputs of every sequence in the order of its walk, a copy."""
    if call.cu_seqlens is not None:
        return _final_state_of_packed(call, call.cu_seqlens)
    x, past, length = call.x, call.width - 1, call.x.shape[1]
    last = x[:, :past].flip(1) if call.reverse else x[:, max(length - past, 0) :]
    if length >= past:
        return last.clone(memory_format=torch.contiguous_format)
    state = call.initial_state
    if state is None:
        state = torch.zeros(call.state_shape, dtype=x.dtype)
    return torch.cat([state[:, length:].to(x.dtype), last], 1)


def _final_state_of_packed(call: Conv, edges: Tensor) -> Tensor:
    x, past, shape = call.x[0], call.width - 1, call.state_shape
    starts, ends, slots = edges[:-1, None], edges[1:, None], torch.arange(past)
    position = (ends - starts) - past + slots  # in the walk: below 0 in the initial state
    place = ends - 1 - position if call.reverse else starts + position
    inputs = x[place.clamp(0, len(x) - 1).long()]
    before = torch.zeros(shape, dtype=x.dtype)
    if call.initial_state is not None:
        slot = (position + past).clamp(max=past - 1).long()
        before = call.initial_state[torch.arange(shape[0])[:, None], slot].to(x.dtype)
    return torch.where((position < 0)[..., None], before, inputs)


class _Cut(NamedTuple):
    """How positions are divided, in the form that the code reads."""

    pieces: Tensor
    """(pieces, 6) int64: row of the batch, signed first position of the sequence, begin, steps,
    length of the sequence, its number."""
    tiles: Tensor
    """(tiles + 1,) int64: first piece of every tile."""


def _cut(call: Conv) -> _Cut:
    batch, length, _ = call.x.shape
    if call.cu_seqlens is None:
        return _cut_rows(batch, length, call.reverse)
    return _cut_at(call.cu_seqlens.to(torch.int64), packed=True, reverse=call.reverse)


@functools.lru_cache(maxsize=64)
def _cut_rows(batch: int, length: int, reverse: bool) -> _Cut:  # noqa: FBT001  a key of the cache
    return _cut_at(torch.arange(batch + 1) * length, packed=False, reverse=reverse)


def _cut_at(edges: Tensor, *, packed: bool, reverse: bool) -> _Cut:
    """Pieces of at most TILE positions; those that start in a tile of all positions go together."""
    starts, ends = edges[:-1], edges[1:]
    lengths = ends - starts
    each = (lengths + TILE - 1) // TILE
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), each)
    begin = (torch.arange(len(sequence)) - (each.cumsum(0) - each)[sequence]) * TILE
    of_row = starts if packed else torch.zeros_like(starts)
    # Where time is walked backwards its strides are negative, and so is the position they multiply.
    origin = 1 - (of_row + lengths) if reverse else of_row
    batch = torch.zeros_like(sequence) if packed else sequence
    length = lengths[sequence]
    steps = (length - begin).clamp(max=TILE)
    pieces = torch.stack([batch, origin[sequence], begin, steps, length, sequence], 1)
    borders = torch.arange(0, int(edges[-1]) + TILE, TILE)
    return _Cut(pieces, torch.searchsorted(starts[sequence] + begin, borders))


@functools.lru_cache(maxsize=64)
def _places(channels: int, lanes: int) -> Tensor:
    """(places, 2) int64: first channel and channels of a task; what fills no vector is apart."""
    whole = channels // lanes * lanes
    found = [(start, min(CHANNELS, whole - start)) for start in range(0, whole, CHANNELS)]
    if whole < channels:
        found.append((whole, channels - whole))
    return torch.tensor(found)


class _Work:
    """The fields that the code reads, and the tensors they point to."""

    def __init__(self, call: Conv) -> None:
        self.call, self.cut = call, _cut(call)
        channels, lanes = call.x.shape[2], VECTOR_BYTES // call.inner.itemsize
        self.padded = -(-channels // lanes) * lanes
        self.places = _places(channels, lanes)
        self.kept: list[Tensor] = []
        self.fields = {
            "pieces": self.cut.pieces.data_ptr(),
            "tiles": self.cut.tiles.data_ptr(),
            "places": self.places.data_ptr(),
            "all_places": len(self.places),
            "tasks": (len(self.cut.tiles) - 1) * len(self.places),
            "padded": self.padded,
        }
        self.keep("parameters", self._parameters())
        state = call.initial_state
        if state is None:
            state = torch.zeros((call.width - 1, channels), dtype=call.inner)
        else:
            self.fields["initial_bytes"] = (call.width - 1) * self.padded * call.inner.itemsize
        self.keep("initial", self.wide(state))
        self.point("x", call.x)

    def _parameters(self) -> Tensor:
        """(K+1, padded D): the taps and the bias."""
        call = self.call
        found = torch.zeros((call.width + 1, self.padded), dtype=call.inner)
        channels = call.x.shape[2]
        found[:-1, :channels] = call.weight.t()
        if call.bias is not None:
            found[-1, :channels] = call.bias
        return found

    def wide(self, tensor: Tensor) -> Tensor:
        """The same with zeros up to whole vectors of channels."""
        inner, channels = self.call.inner, tensor.shape[-1]
        if channels == self.padded:
            return tensor.to(inner).contiguous()
        found = torch.zeros((*tensor.shape[:-1], self.padded), dtype=inner)
        found[..., :channels] = tensor
        return found

    def keep(self, name: str, tensor: Tensor) -> None:
        """Let the code know a contiguous tensor of `call.inner` or float64."""
        self.kept.append(tensor)
        self.fields[name] = tensor.data_ptr()

    def point(self, name: str, tensor: Tensor) -> None:
        """Describe a tensor (B, L, D)."""
        size, (batch, time, lane) = tensor.element_size(), tensor.stride()
        side_by_side = tensor.dtype == self.call.inner and lane == 1
        self.kept.append(tensor)
        self.fields |= {
            name: tensor.data_ptr(),
            f"{name}_batch": batch * size,
            f"{name}_time": (-time if self.call.reverse else time) * size,
            f"{name}_lane": lane * size,
            f"{name}_direct": int(side_by_side),
        }

    def run(self, name: str) -> None:
        """Run one function over all its tasks."""
        call = self.call
        tasks = self.fields["tasks"]
        threads = 1 if call.x.numel() <= _ALONE else thread_count(tasks)
        each = cpu_code.scratch_bytes(call.width, call.inner.itemsize)
        scratch = torch.empty(threads * each, dtype=torch.uint8)
        counters = (ctypes.c_int64 * 2)()
        self.fields |= {
            "claimed": ctypes.addressof(counters),
            "slots": ctypes.addressof(counters) + 8,
            "scratch": scratch.data_ptr(),
            "scratch_bytes": each,
        }
        passed = (ctypes.c_int64 * len(FIELDS))()
        for field, value in self.fields.items():
            passed[FIELDS[field]] = value
        variant = Variant(call.x.dtype, call.width, call.silu)
        compiled = cpu_code.compiled(variant, backward=name == "backward")
        run_on_threads(compiled.functions[name], ctypes.addressof(passed), threads)
