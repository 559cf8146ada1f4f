"""Selective scan on the CPU, in vector code compiled in the process (README, section "cpu").

Nothing depends on the number of threads: work is divided by shapes alone, and every sum over
channels or sequences is taken in a fixed order.
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
from dnassm.kernels.memory import empty
from dnassm.kernels.selective_scan import cpu_code
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.selective_scan.cpu_code import FIELDS, STEPS, UNROLL
from dnassm.kernels.threads import run_on_threads, thread_count
from dnassm.kernels.vector_code import NUMBER_KINDS, VECTOR_BYTES

PRIORITY = 30

_MOST_STATES = 256
# Bytes for the parts of dB and dC of blocks of channels, before they are added up: the backward
# walks so much of time at once. Two cores: 4 to 64 MiB make no difference.
_PARTIAL_BYTES = 16 << 20
# Steps * channels * states up to which one thread does the work: to wake a second costs 50 us.
_ALONE = 1 << 18


def supports(scan: Scan) -> str | None:
    """The reason why it cannot run on these arguments, or None."""
    if scan.x.device.type != "cpu":
        return Elsewhere(f"runs on the CPU, x is on {scan.x.device}")
    if scan.A.is_complex():
        return Elsewhere("A is complex")
    if scan.A.shape[1] > _MOST_STATES:
        return f"N is {scan.A.shape[1]}, at most {_MOST_STATES}"
    reason = machine_code.missing()
    if reason is not None:
        return reason
    sequences = (scan.x, scan.dt, scan.B, scan.C, *(() if scan.z is None else (scan.z,)))
    for tensor in sequences:
        if tensor.dtype not in NUMBER_KINDS:
            return f"no vector code for {tensor.dtype}"
    if any(tensor.dtype == torch.float16 for tensor in sequences) and not vector_code.has_half():
        return "this CPU does not convert float16"
    return None


def marks_shape(scan: Scan) -> tuple[int, ...]:
    """(tiles of all sequences, blocks of channels, padded N, lanes): states before every tile."""
    batch, length, channels = scan.x.shape
    groups, states, lanes = scan.B.shape[2], scan.A.shape[1], VECTOR_BYTES // scan.inner.itemsize
    blocks, padded = groups * -(-(channels // groups) // lanes), -(-states // UNROLL) * UNROLL
    if scan.cu_seqlens is None:
        tiles = batch * -(-length // STEPS)
    else:
        tiles = length // STEPS + scan.sequences
    return (tiles, blocks, padded, lanes)


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """y, final state, and the state before every tile."""
    call = _Call(scan)
    y = empty(scan.x.shape, scan.x.dtype)
    final = torch.empty(scan.state_shape, dtype=scan.inner)
    marks = empty(marks_shape(scan), scan.inner)
    _, _, length, first_mark = call.rows[-1].tolist()
    marks[first_mark - -length // STEPS :].zero_()  # packed sequences may have fewer tiles
    call.point("y", y)
    call.fields |= {"final": final.data_ptr(), "marks": marks.data_ptr()}
    tasks = call.sequences * call.layout.blocks
    call.run("forward", tasks, threads=call.threads(tasks))
    return y, final.to(scan.state_dtype), marks


def backward(scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of every tensor argument."""
    call = _Call(scan)
    dx, ddt, dB, dC = (empty(t.shape, t.dtype) for t in (scan.x, scan.dt, scan.B, scan.C))
    dz = scan.dz_into
    if dz is None and scan.z is not None:
        dz = empty(scan.z.shape, scan.z.dtype)
    for name, tensor in (("dy", dy), ("dx", dx), ("ddt", ddt), ("dB", dB), ("dC", dC), ("dz", dz)):
        call.point(name, tensor)
    marks, dfinal = _aligned(marks), dfinal.to(scan.inner).contiguous()
    dinitial = torch.empty(scan.state_shape, dtype=scan.inner)
    call.fields |= {"marks": marks.data_ptr(), "dfinal": dfinal.data_ptr()}
    call.fields |= {"dinitial": dinitial.data_ptr()}
    sums = _by_channel(call.walk_back(), scan)
    states = scan.A.shape[1]
    return Gradients(
        x=dx,
        dt=ddt,
        A=sums[:, :states].to(scan.A.dtype).contiguous(),
        B=dB,
        C=dC,
        D=_like(scan.D, sums[:, -2]),
        z=dz,
        dt_bias=_like(scan.dt_bias, sums[:, -1]),
        initial_state=_like(scan.initial_state, dinitial),
    )


def _by_channel(sums: np.ndarray, scan: Scan) -> Tensor:
    """(blocks, rows, lanes) -> (D, rows), without the lanes that are no channel."""
    channels, groups, rows = scan.A.shape[0], scan.B.shape[2], sums.shape[1]
    lanes_last = sums.reshape(groups, -1, *sums.shape[1:]).transpose(0, 1, 3, 2)
    by_group = lanes_last.reshape(groups, -1, rows)[:, : channels // groups]
    return torch.from_numpy(np.ascontiguousarray(by_group.reshape(channels, rows)))


def _like(tensor: Tensor | None, values: Tensor) -> Tensor | None:
    return None if tensor is None else values.to(tensor.dtype).contiguous()


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous and at the start of a cache line, as the code expects its own tensors."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % VECTOR_BYTES == 0 else tensor.clone()


class _Layout(NamedTuple):
    """How D channels of G groups and N states lie in vectors."""

    lanes: int
    groups: int
    blocks: int
    padded: int
    """N rounded up to full rounds of the loop over states."""
    places: Tensor
    """(blocks, 4) int64: first channel, channels, group, 0."""


@functools.lru_cache(maxsize=64)
def _layout(channels: int, groups: int, states: int, itemsize: int) -> _Layout:
    lanes, per_group = VECTOR_BYTES // itemsize, channels // groups
    places = [
        (group * per_group + start, min(lanes, per_group - start), group, 0)
        for group in range(groups)
        for start in range(0, per_group, lanes)
    ]
    padded = -(-states // UNROLL) * UNROLL
    return _Layout(lanes, groups, len(places), padded, torch.tensor(places))


def _layout_of(scan: Scan) -> _Layout:
    channels, states = scan.A.shape
    return _layout(channels, scan.B.shape[2], states, scan.inner.itemsize)


def _rows_of(scan: Scan) -> Tensor:
    """(sequences, 4) int64: row of the batch, signed first position, steps, first mark."""
    batch, length, _ = scan.x.shape
    if scan.cu_seqlens is None:
        return _whole_rows(batch, length, scan.reverse)
    edges = scan.cu_seqlens.to(torch.int64)
    start, end = edges[:-1], edges[1:]
    tiles = (end - start + STEPS - 1) // STEPS
    # Where time is walked backwards its strides are negative, and so is the position they multiply.
    origin = 1 - end if scan.reverse else start
    return torch.stack([torch.zeros_like(start), origin, end - start, tiles.cumsum(0) - tiles], 1)


@functools.lru_cache(maxsize=64)
def _whole_rows(batch: int, length: int, reverse: bool) -> Tensor:  # noqa: FBT001  a key of the cache
    tiles = -(-length // STEPS)
    origin = 1 - length if reverse else 0
    return torch.tensor([(row, origin, length, row * tiles) for row in range(batch)])


class _Call:
    """The fields that the code reads, and the tensors they point to."""

    def __init__(self, scan: Scan) -> None:
        self.scan, self.layout = scan, _layout_of(scan)
        self.rows, self.sequences = _rows_of(scan), scan.sequences
        inner, layout, (channels, states) = scan.inner, self.layout, scan.A.shape
        small = (scan.D, scan.dt_bias, scan.initial_state)
        self.kept = [None if t is None else t.to(inner).contiguous() for t in small]
        self.A = scan.A.to(inner)
        D, dt_bias, initial = (0 if t is None else t.data_ptr() for t in self.kept)
        self.fields = {
            "D": D,
            "dt_bias": dt_bias,
            "initial": initial,
            "A": self.A.data_ptr(),
            "A_lane": self.A.stride(0) * inner.itemsize,
            "A_state": self.A.stride(1) * inner.itemsize,
            "softplus": int(scan.dt_softplus),
            "channels": channels,
            "states": states,
            "padded": layout.padded,
            "blocks": layout.blocks,
            "groups": layout.groups,
            "group_blocks": layout.blocks // layout.groups,
            "rows": self.rows.data_ptr(),
            "places": layout.places.data_ptr(),
        }
        for name in ("x", "dt", "B", "C", "z"):
            self.point(name, getattr(scan, name))

    def point(self, name: str, tensor: Tensor | None) -> None:
        """Describe a tensor (B, L, D) or (B, L, G, N)."""
        if tensor is None:
            return
        size, strides = tensor.element_size(), tensor.stride()
        time = -strides[1] if self.scan.reverse else strides[1]
        self.fields[name] = tensor.data_ptr()
        self.fields[f"{name}_batch"] = strides[0] * size
        self.fields[f"{name}_time"] = time * size
        self.fields[f"{name}_lane"] = strides[-1] * size
        self.fields[f"{name}_kind"] = NUMBER_KINDS[tensor.dtype]
        if len(strides) == 4:
            self.fields[f"{name}_group"] = strides[2] * size

    def run(self, name: str, tasks: int, *, threads: int) -> None:
        """Run one function over all its tasks."""
        each = cpu_code.scratch_bytes(self.layout.padded, self.layout.lanes)
        scratch = torch.empty(threads * each, dtype=torch.uint8)
        counters = (ctypes.c_int64 * 2)()
        self.fields |= {
            "claimed": ctypes.addressof(counters),
            "slots": ctypes.addressof(counters) + 8,
            "tasks": tasks,
            "scratch": scratch.data_ptr(),
            "scratch_bytes": each,
        }
        passed = (ctypes.c_int64 * len(FIELDS))()
        for field, value in self.fields.items():
            passed[FIELDS[field]] = value
        function = cpu_code.compiled(self.scan.inner).functions[name]
        run_on_threads(function, ctypes.addressof(passed), threads)

    def threads(self, tasks: int) -> int:
        """One for little work."""
        batch, length, _ = self.scan.x.shape
        work = batch * length * self.layout.blocks * self.layout.lanes * self.layout.padded
        return 1 if work <= _ALONE else thread_count(tasks)

    def walk_back(self) -> np.ndarray:
        """Run the backward in pieces small enough for the parts of dB and dC.

        Returns:
            (blocks, padded N + 2, lanes) float64: dA, and in the last two rows dD and ddt_bias.
        """
        layout, inner = self.layout, self.scan.inner
        together, span, tiles = self._pieces()
        carry = torch.empty((together, layout.blocks, layout.padded, layout.lanes), dtype=inner)
        partial = empty((together, layout.blocks, 2, span, STEPS, layout.padded), inner)
        self.fields |= {"carry": carry.data_ptr(), "partial": partial.data_ptr()}
        total = np.zeros((layout.blocks, layout.padded + 2, layout.lanes))
        for first in range(0, self.sequences, together):
            count = min(together, self.sequences - first)
            threads = self.threads(count * layout.blocks)
            sums = np.zeros((count, *total.shape))
            self.fields |= {"first_row": first, "sums": sums.ctypes.data}
            for end in range(tiles, 0, -span):
                self.fields |= {"first_tile": max(0, end - span), "end_tile": end}
                self.run("backward", count * layout.blocks, threads=threads)
                self.run("reduce", count * layout.groups * min(span, end), threads=threads)
            for row in sums:
                total += row
        return total

    def _pieces(self) -> tuple[int, int, int]:
        """Sequences walked together, tiles of each per call, tiles of the longest."""
        layout = self.layout
        tiles = -(-int(self.rows[:, 2].max()) // STEPS)
        tile = 2 * layout.blocks * STEPS * layout.padded * self.scan.inner.itemsize
        together = max(-(-32 // layout.blocks), _PARTIAL_BYTES // (tiles * tile))
        together = min(together, self.sequences)
        span = max(1, min(tiles, _PARTIAL_BYTES // (together * tile)))
        return together, span, tiles
