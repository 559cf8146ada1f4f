"""Selective scan in Triton, for the GPUs that the CUDA kernel does not serve (README, "triton").

Triton and the kernels are imported by the first call that runs them, not with dnassm.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.triton_runtime import DTYPES, unavailable

PRIORITY = 20

_CHUNK = 128
"""Steps between two states that are kept for the backward."""
_SUB = 16
"""Steps whose states the backward holds at once; about the root of a chunk."""
_BLOCK = 32
"""Channels of a program: one to each lane of a warp."""
_TILE = 4096
"""Most numbers of state of a program: 512 in each of 8 warps."""
_PROGRAMS = 2048
"""L is cut into segments until a row alone has this many programs."""
_SHORTEST_SEGMENT = 256
_SCRATCH = 96 << 20
"""Bytes for the states that the backward holds, over all programs."""
_PARTIALS = 256 << 20
"""Bytes for sums of dB and dC over a block of channels; the backward walks L in slabs of this."""


def supports(scan: Scan) -> str | None:
    """Runs on CUDA, ROCm and XPU; on CPU tensors in Triton's interpreter, slowly, for tests."""
    for name in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"):
        tensor = getattr(scan, name)
        if tensor is not None and tensor.dtype not in DTYPES:
            return Elsewhere(f"{name} is {tensor.dtype}, it takes float32, bfloat16 and float16")
    return unavailable(scan.x.device)


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("dnassm.kernels.selective_scan.triton.kernels")


class _Plan(NamedTuple):
    """How the work is cut; by L, D, G and N alone: a row is computed as it is in any batch."""

    states: int
    """N, up to a power of two."""
    block: int
    """Channels of a program, a power of two."""
    blocks: int
    """Programs that share the channels of a group."""
    segments: int
    chunks: int
    """Chunks of a segment."""
    steps: int
    """Steps of a chunk, a multiple of _SUB."""


def _plan(scan: Scan) -> _Plan:
    _, length, channels = scan.x.shape
    groups, states = scan.B.shape[2], scan.A.shape[1]
    padded = _power_of_two(states)
    block = min(_BLOCK, _power_of_two(channels // groups), _TILE // padded)
    blocks = -(-channels // groups // block)
    steps = min(_CHUNK, -(-length // _SUB) * _SUB)
    segments = max(1, min(_PROGRAMS // (groups * blocks), length // _SHORTEST_SEGMENT))
    chunks = -(-length // (segments * steps))
    return _Plan(padded, block, blocks, -(-length // (chunks * steps)), chunks, steps)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def marks_shape(scan: Scan) -> tuple[int, ...]:
    """(B, chunks of a row, N, D): the state before every chunk."""
    plan = _plan(scan)
    batch, _, channels = scan.x.shape
    return (batch, plan.segments * plan.chunks, scan.A.shape[1], channels)


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `selective_scan`; shapes as there."""
    call = _Call(scan)
    marks = call.new(*marks_shape(scan))
    y = torch.empty(scan.x.shape, dtype=scan.x.dtype, device=scan.x.device)
    final = call.new(scan.sequences, *call.A.shape)
    starts = marks[:, :: call.plan.chunks]
    if scan.initial_state is None or call.packed:
        starts[:, 0].zero_()
    else:
        starts[:, 0].copy_(scan.initial_state.transpose(1, 2))
    flags = {"INITIAL": scan.initial_state is not None}
    if call.plan.segments > 1:
        ends, sums = call.segment_results()
        call.launch("ends_kernel", ends, sums, **flags)
        call.fold(ends, sums, starts, backward=False)
    call.launch("forward_kernel", y, final, marks, GATED=scan.z is not None, **flags)
    return y, final.transpose(1, 2).contiguous(), marks


def backward(scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of `forward` (README, section 3 and "triton")."""
    call = _Call(scan, dy, dfinal)
    x, batch, segments = scan.x, scan.x.shape[0], call.plan.segments
    adjoints = call.new(batch, segments, *call.A.shape)
    if call.packed:
        adjoints[:, -1].zero_()
    else:
        adjoints[:, -1].copy_(dfinal.transpose(1, 2))
    if segments > 1:
        ends, sums = call.segment_results()
        call.launch("adjoints_kernel", ends, sums, GATED=scan.z is not None)
        call.fold(ends, sums, adjoints, backward=True)
    dA = torch.zeros_like(adjoints)
    dD, dbias = call.new(2, batch, segments, x.shape[2]).zero_().unbind()
    dx, ddt = _like(x), _like(scan.dt)
    dz = None if scan.z is None else _like(scan.z)
    dinitial = adjoints[:, 0]
    if call.packed and scan.initial_state is not None:
        dinitial = call.new(scan.sequences, *call.A.shape)
    outputs = (dx, ddt, x if dz is None else dz, dinitial)
    dB, dC = _slabs(call, marks, outputs, (adjoints, dA, dD, dbias))
    return Gradients(
        x=dx,
        dt=ddt,
        A=dA.sum((0, 1)).t().contiguous(),
        B=call.in_positions(dB).to(scan.B.dtype),
        C=call.in_positions(dC).to(scan.C.dtype),
        D=_as(scan.D, dD.sum((0, 1))),
        z=dz,
        dt_bias=_as(scan.dt_bias, dbias.sum((0, 1))),
        initial_state=_as(scan.initial_state, dinitial.transpose(1, 2)),
    )


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _as(given: Tensor | None, gradient: Tensor) -> Tensor | None:
    """The gradient of an argument in its dtype, if the argument was given."""
    return None if given is None else gradient.to(given.dtype).contiguous()


def _slabs(
    call: _Call, marks: Tensor, outputs: tuple[Tensor, ...], sums: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Walk the segments back, a slab of chunks at a time; dB and dC by steps, (B S, steps, G, N).

    A slab is what the sums over a block of channels have room for. All tasks (segments of rows) go
    side by side if they fit, as many chunks of each as fit.
    """
    plan = call.plan
    groups, states = call.scan.B.shape[2:]
    tasks = call.scan.x.shape[0] * plan.segments
    dB, dC = call.new(2, tasks, plan.chunks * plan.steps, groups, states).unbind()
    fits = max(1, _PARTIALS // (8 * plan.blocks * plan.steps * groups * states))
    side, deep = min(tasks, fits), max(1, min(plan.chunks, fits // tasks))
    tile = plan.states * plan.block
    room = (_SUB + plan.steps // _SUB) * tile
    programs = max(1, min(_SCRATCH // (4 * room), side * groups * plan.blocks))
    scratch = call.new(programs, room)
    parts = call.new(2, plan.blocks * side * deep * plan.steps * groups * states)
    for first in range(0, tasks, side):
        count = min(side, tasks - first)
        for high in range(plan.chunks, 0, -deep):
            low = max(0, high - deep)
            shape = (2, plan.blocks, count, (high - low) * plan.steps, groups, states)
            now = parts.view(-1)[: torch.Size(shape).numel()].view(shape)
            call.launch(
                "backward_kernel",
                marks,
                (*outputs[:3], now[0], now[1], outputs[3]),
                sums,
                scratch,
                first,
                count,
                low,
                high,
                programs=programs,
                SUB=_SUB,
                INITIAL=call.scan.initial_state is not None,
                GATED=call.scan.z is not None,
            )
            to = slice(first, first + count), slice(low * plan.steps, high * plan.steps)
            torch.sum(now[0], 0, out=dB[to])
            torch.sum(now[1], 0, out=dC[to])
    return dB, dC


class _Call:
    """The arguments of one call in the form in which the kernels take them."""

    def __init__(self, scan: Scan, dy: Tensor | None = None, dfinal: Tensor | None = None) -> None:
        x = scan.x
        self.scan, self.plan, self.packed = scan, _plan(scan), scan.cu_seqlens is not None
        self.A = scan.A.float().t().contiguous()
        none = self.new(x.shape[2]).zero_()
        D, bias = (
            none if tensor is None else tensor.float().contiguous()
            for tensor in (scan.D, scan.dt_bias)
        )
        z, dy = x if scan.z is None else scan.z, x if dy is None else dy
        inputs = (x, scan.dt, z, scan.B, scan.C, dy)
        self.begin, self.finish = self._edges() if self.packed else (x, x)
        # What a kernel does not touch is given as some other tensor.
        states = [
            x if tensor is None else tensor.float().transpose(1, 2).contiguous()
            for tensor in (scan.initial_state, dfinal)
        ]
        self._common = (
            inputs,
            tuple(tensor.stride() for tensor in inputs),
            (self.A, D, bias),
            (self.begin, self.finish, *states),
            self._shape,
            x.shape[1],
            self.plan.segments,
            self.plan.chunks,
            self.plan.steps,
        )

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (self.scan.x.shape[2], self.scan.A.shape[1], self.scan.B.shape[2])

    @property
    def _walked(self) -> int:
        """Steps of a row, those past the end of L among them."""
        return self.plan.segments * self.plan.chunks * self.plan.steps

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.scan.x.device)

    def segment_results(self) -> tuple[Tensor, Tensor]:
        """Room for a state and for the sum of d of every segment."""
        rows = (self.scan.x.shape[0], self.plan.segments)
        return self.new(*rows, *self.A.shape), self.new(*rows, self.A.shape[1])

    def _edges(self) -> tuple[Tensor, Tensor]:
        """For every step the sequence that begins with it, and that which ends with it, or -1."""
        assert self.scan.cu_seqlens is not None  # noqa: S101  for mypy
        edges = self.scan.cu_seqlens.long()
        first, last = edges[:-1], edges[1:] - 1
        if self.scan.reverse:
            first, last = self._walked - 1 - last, self._walked - 1 - first
        numbers = torch.arange(len(first), dtype=torch.int32, device=edges.device)
        blank = torch.full((self._walked,), -1, dtype=torch.int32, device=edges.device)
        return blank.scatter(0, first, numbers), blank.scatter(0, last, numbers)

    def in_positions(self, by_steps: Tensor) -> Tensor:
        """(B S, steps of a segment, G, N) in the order of the walk -> (B, L, G, N), contiguous."""
        rows = by_steps.view(self.scan.x.shape[0], self._walked, *by_steps.shape[2:])
        if self.scan.reverse:
            rows = rows.flip(1)
        return rows[:, : self.scan.x.shape[1]].contiguous()

    def fold(self, ends: Tensor, sums: Tensor, carries: Tensor, *, backward: bool) -> None:
        """Fill `carries` (B, S, N, D), what enters each segment, from that of the edge."""
        through = self.begin
        if self.packed:
            through = (self.begin.view(self.plan.segments, -1) < 0).all(1).int()
        self._run(
            "fold_kernel",
            self.scan.x.shape[0] * self._shape[2] * self.plan.blocks,
            (
                self.A,
                ends,
                sums,
                through,
                carries,
                carries.stride(0),
                carries.stride(1),
                self._shape,
                self.plan.segments,
            ),
            {"BACKWARD": backward},
        )

    def launch(self, name: str, *outputs: Any, programs: int | None = None, **flags: Any) -> None:
        """Run a kernel, one program to each block of each segment if not told otherwise."""
        tasks = self.scan.x.shape[0] * self.plan.segments
        flags |= {"SOFTPLUS": self.scan.dt_softplus, "REVERSE": self.scan.reverse}
        items = tasks * self._shape[2] * self.plan.blocks
        self._run(name, programs or items, (*self._common, *outputs), flags)

    def _run(
        self, name: str, programs: int, arguments: tuple[Any, ...], flags: dict[str, Any]
    ) -> None:
        plan, device = self.plan, self.scan.x.device
        here: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if device.type != "cpu":
            here = torch.get_device_module(device).device(device)
        with here:
            getattr(_kernels(), name)[(programs,)](
                *arguments,
                STATES=plan.states,
                BLOCK=plan.block,
                PACKED=self.packed,
                **flags,
                num_warps=max(1, min(8, plan.states * plan.block // 512)),
                enable_fp_fusion=True,  # in words, since triton changes what it takes for granted
            )
