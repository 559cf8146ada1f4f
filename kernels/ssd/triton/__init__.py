"""SSD in Triton: matrix products on tensor cores (README, "triton").

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
from dnassm.kernels.ssd.arguments import Gradients, Into, Ssd
from dnassm.kernels.triton_runtime import DTYPES, unavailable

PRIORITY = 20

_CHUNK = {"bfloat16": 64, "exact": 16}
"""Positions of a chunk; products of float32 take three times the registers."""
_SMALLEST_CHUNK = 16
_WIDTH = 64
"""Most channels of a head that a program takes."""
_TILE = 8192
"""Most numbers of state of a program: 64 in each thread of 4 warps."""
_MOST_STATES = 512
_SEGMENT = (256, 1024, 4096)
"""Positions of a segment: the fewest, as many as a row of some thousand has, the most."""
_SEGMENTS = 256
"""Segments of a row before they become longer; they are folded one after the other."""
_KEPT = 512 << 20
"""Bytes for what enters and leaves the chunks in the backward; L is walked in slabs of this."""
_FOLD = 128
"""Numbers of state that a program folds."""
_WARPS = {
    # A product of bfloat16 has 64 rows, 16 to a warp: more warps than four would do it twice.
    "bfloat16": {"steps_kernel": 1, "ddt_kernel": 1},
    "exact": {"steps_kernel": 1, "ddt_kernel": 1, "walk_kernel": 4},
}
_OTHER_WARPS = {"bfloat16": 4, "exact": 8}
_STAGES = 2


def supports(call: Ssd) -> str | None:
    """Runs on CUDA, ROCm and XPU; on CPU tensors in Triton's interpreter, slowly, for tests."""
    for name in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"):
        tensor = getattr(call, name)
        if tensor is not None and tensor.dtype not in DTYPES:
            return Elsewhere(f"{name} is {tensor.dtype}, it takes float32, bfloat16 and float16")
    if call.B.shape[3] > _MOST_STATES:
        return f"N is {call.B.shape[3]}, it takes up to {_MOST_STATES}"
    return unavailable(call.x.device)


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("dnassm.kernels.ssd.triton.kernels")


class _Plan(NamedTuple):
    """How the work is cut; never by B: a row is computed as it is in any batch."""

    exact: bool
    """Products in float32, not in bfloat16."""
    steps: int
    """Positions of a chunk, a power of two."""
    width: int
    """Channels of a program, a power of two."""
    states: int
    """N, up to a power of two."""
    chunks: int
    """Chunks of a segment."""
    segments: int
    """Segments of a row; of the whole pack, at most, if packed."""


def _plan(call: Ssd) -> _Plan:
    _, length, _, channels = call.x.shape
    exact = any(tensor.dtype != torch.bfloat16 for tensor in (call.x, call.B, call.C))
    largest = _CHUNK[_kind(exact=exact)]
    steps = min(largest, max(_SMALLEST_CHUNK, _power_of_two(min(call.chunk or largest, length))))
    states = max(16, _power_of_two(call.B.shape[3]))
    width = min(_WIDTH, max(16, _power_of_two(channels)), _TILE // states)
    sequences = 1 if call.cu_seqlens is None else call.sequences
    in_each = -(-length // (sequences * steps))
    fewest, some, most = (max(1, positions // steps) for positions in _SEGMENT)
    chunks = max(fewest, min(in_each, some), min(in_each // _SEGMENTS, most))
    # Every sequence may leave all but one position of its last segment empty.
    positions = chunks * steps
    segments = (length + sequences * (positions - 1)) // positions
    return _Plan(exact, steps, width, states, chunks, segments)


def _kind(*, exact: bool) -> str:
    return "exact" if exact else "bfloat16"


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def marks_shape(call: Ssd) -> tuple[int, ...]:
    """(segments, H, P, N): the state before every segment."""
    return (call.x.shape[0] * _plan(call).segments, *call.state_shape[1:])


def forward(call: Ssd) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `ssd`; shapes as there."""
    run = _Run(call)
    run.measure_steps()
    marks, initial = run.new(*marks_shape(call)), call.initial_state
    edge = None if initial is None else initial.float().contiguous()
    run.enter(marks, edge, adjoint=False)
    y, final = _like(call.x), run.new(*call.state_shape)
    run.launch("forward_kernel", run.units * len(marks), marks, y, final)
    return y, final, marks


def backward(
    call: Ssd, marks: Tensor, dy: Tensor, dfinal: Tensor, into: Into | None = None
) -> Gradients:
    """Gradients of `forward` (README, section 3 and "triton")."""
    run = _Run(call, dy)
    run.measure_steps()
    adjoints = torch.empty_like(marks)
    run.enter(adjoints, dfinal.float().contiguous(), adjoint=True)
    into, dz = into or Into.new(call), None if call.z is None else _like(call.z)
    dinitial = run.new(*call.state_shape)
    dA, dbias, dD = _slabs(run, (marks, adjoints), dinitial, into, dz)
    return Gradients(
        x=into.x,
        dt=into.dt,
        A=dA.to(call.A.dtype),
        B=into.B,
        C=into.C,
        D=_as(call.D, dD),
        z=dz,
        dt_bias=_as(call.dt_bias, dbias),
        initial_state=_as(call.initial_state, dinitial),
    )


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _as(given: Tensor | None, gradient: Tensor) -> Tensor | None:
    """The gradient of an argument in its dtype, if the argument was given."""
    return None if given is None else gradient.to(given.dtype)


def _slabs(
    run: _Run,
    marks: tuple[Tensor, Tensor],
    dinitial: Tensor,
    into: Into,
    dz: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill `into` and dz, as many segments at a time as fit; dA, dbias and dD."""
    plan, call = run.plan, run.call
    _, _, heads, channels = call.x.shape
    groups = call.B.shape[2]
    dtype = torch.float32 if plan.exact else torch.bfloat16
    segments, state = len(marks[0]), marks[0][0].numel()
    most = max(1, _KEPT // (2 * plan.chunks * state * dtype.itemsize))
    at_once = -(-segments // -(-segments // most))  # in equal slabs: a short one fills no wave
    slots = at_once * plan.chunks
    kept = tuple(call.x.new_empty((slots, *marks[0].shape[1:]), dtype=dtype) for _ in range(2))
    pairs = call.x.new_empty((slots, groups, plan.steps, plan.steps), dtype=dtype)
    vectors = tuple(run.new(slots, run.units, plan.steps) for _ in range(5))
    through = run.new(slots, run.units)
    by_channel = call.D is not None and call.D.dim() == 2
    # What every chunk adds to dA, dbias and dD; an empty chunk leaves it as it is.
    chunks = segments * plan.chunks
    added = run.new(chunks, 3, heads).zero_()
    of_channels = run.new(chunks, heads, channels).zero_() if by_channel else added
    strides = tuple(tensor.stride() for tensor in (into.x, into.B, into.C))
    to_dt = (into.dt, into.dt.stride())
    for first in range(0, segments, at_once):
        count, here = min(at_once, segments - first), slice(first * plan.chunks, None)
        for adjoint in (False, True):
            start = (marks[adjoint], through, kept, through, dinitial, first)
            run.launch("walk_kernel", run.units * count, *start, ADJOINT=adjoint, KEEP=True)
        programs = count * plan.chunks * groups
        of_pairs = (pairs, vectors, of_channels[here], first)
        run.launch("pairs_kernel", programs, *of_pairs, BY_CHANNEL=by_channel)
        to_z = into.x if dz is None else dz
        run.launch("out_kernel", programs, kept, pairs, vectors, to_z, into.C, strides, first)
        # The last that reads dy, over which it may write.
        run.launch("into_kernel", programs, kept, pairs, vectors, into.x, into.B, strides, first)
        programs = count * plan.chunks * heads
        run.launch("ddt_kernel", programs, vectors, through, *to_dt, added[here], first)
    dA, dbias, skip = added.sum(0, dtype=torch.float64)
    return dA, dbias, of_channels.sum(0, dtype=torch.float64) if by_channel else skip


class _Run:
    """The arguments of one call in the form in which the kernels take them."""

    def __init__(self, call: Ssd, dy: Tensor | None = None) -> None:
        x = call.x
        _, length, heads, channels = x.shape
        self.call, self.plan, self.packed = call, _plan(call), call.cu_seqlens is not None
        self.units = heads * -(-channels // self.plan.width)
        D = self.new(heads).zero_() if call.D is None else call.D.float()
        skip = (D if D.dim() == 2 else D[:, None].expand(heads, channels)).contiguous()
        bias = call.dt_bias
        bias = self.new(heads).zero_() if bias is None else bias.float().contiguous()
        # What a kernel does not touch is given as some other tensor.
        z, dy = x if call.z is None else call.z, x if dy is None else dy
        inputs = (x, call.dt, z, call.B, call.C, dy)
        self.tables = self._tables() if self.packed else (x, x, x)
        self.shape = (heads, channels, call.B.shape[3], call.B.shape[2])
        # Offsets within a tile, of which 32 bits are no more than enough.
        largest = max(self.plan.steps, self.plan.width, self.plan.states)
        strides = [tensor.stride(axis) for tensor in inputs for axis in (1, -1)]
        self.wide = largest * max(strides) >= 1 << 30
        cuda = x.device.type != "xpu" and torch.version.hip is None
        self.precision = "" if not self.plan.exact else "tf32x3" if cuda else "ieee"
        slots = x.shape[0] * self.plan.segments * self.plan.chunks
        vectors = [self.new(slots, heads, self.plan.steps) for _ in range(4)]
        totals = torch.empty((slots, heads), dtype=torch.float64, device=x.device)
        self._common = (
            inputs,
            tuple(tensor.stride() for tensor in inputs),
            (call.A.float().contiguous(), skip, bias),
            self.tables,
            self.shape,
            length,
            self.plan.segments,
            self.plan.chunks,
            (float(call.dt_min), float(call.dt_max)),
            (*vectors, totals),
        )

    def measure_steps(self) -> None:
        """Fill what all other kernels read of the step sizes; before any of them."""
        slots, heads, _ = self._common[-1][0].shape
        self.launch("steps_kernel", slots * heads)

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.call.x.device)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Edges, the first segment of every sequence, and the sequence of every segment or -1."""
        assert self.call.cu_seqlens is not None  # noqa: S101  for mypy
        edges = self.call.cu_seqlens.long()
        positions = self.plan.chunks * self.plan.steps
        ends = ((edges.diff() + (positions - 1)) // positions).cumsum(0)
        base = torch.cat([ends.new_zeros(1), ends])
        segment = torch.arange(self.plan.segments, device=edges.device)
        owner = torch.searchsorted(ends, segment, right=True)
        return edges, base, owner.masked_fill(owner == len(ends), -1)

    def enter(self, marks: Tensor, edge: Tensor | None, *, adjoint: bool) -> None:
        """Fill `marks` with what enters every segment; `edge` enters the first, or the last."""
        if self.plan.segments == 1:
            marks.zero_() if edge is None else marks.copy_(edge)
            return
        sums = self.new(len(marks), self.shape[0])
        start = (marks, sums, (marks, marks), marks, marks, 0)
        flags = {"ADJOINT": adjoint, "KEEP": False}
        self.launch("walk_kernel", self.units * len(marks), *start, **flags)
        blocks = -(-self.shape[1] * self.shape[2] // _FOLD)
        with self._device():
            _kernels().fold_kernel[(self.call.sequences * self.shape[0] * blocks,)](
                self.tables,
                self.shape,
                self.plan.segments,
                marks,
                sums,
                marks if edge is None else edge,
                BLOCK=_FOLD,
                PACKED=self.packed,
                GIVEN=edge is not None,
                ADJOINT=adjoint,
                num_warps=1,
                enable_fp_fusion=True,
            )

    def launch(self, name: str, programs: int, *arguments: Any, **flags: bool) -> None:
        """Run a kernel."""
        plan, call = self.plan, self.call
        kind = _kind(exact=plan.exact)
        with self._device():
            getattr(_kernels(), name)[(programs,)](
                *self._common,
                *arguments,
                STEPS=plan.steps,
                WIDTH=plan.width,
                STATES=plan.states,
                EXACT=self.precision,
                SOFTPLUS=call.dt_softplus,
                REVERSE=call.reverse,
                PACKED=self.packed,
                GATED=call.z is not None,
                WIDE=self.wide,
                **flags,
                num_warps=_WARPS[kind].get(name, _OTHER_WARPS[kind]),
                num_stages=_STAGES,
                enable_fp_fusion=True,  # in words, since triton changes what it takes for granted
            )

    def _device(self) -> contextlib.AbstractContextManager[Any]:
        device = self.call.x.device
        if device.type == "cpu":
            return contextlib.nullcontext()
        here: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(
            device
        )
        return here
