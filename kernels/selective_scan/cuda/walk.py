"""One call of the scan: its tensors as the kernels take them, and the launches.

Everything is in walk order: with `reverse` a tensor is entered at its last position with a negative
stride, so that the kernels know one direction only.
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels import nvrtc
from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.selective_scan.cuda.cut import Layout, PrePass, Problem, cut, cut_ends
from dnassm.kernels.selective_scan.cuda.shape import (
    TILE,
    Shape,
    dtype_of,
    forward_shared,
    map_tiles,
    multiprocessors,
)

_COMMON = Path(__file__).with_name("common.cu")
_OWN = {"chunk_ends": ("series", "chunk_ends")}
"""What a kernel is compiled from beside common.cu, where that is not the file of its name alone."""

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LIKE_DX = ("ddt",)
"""What the kernels take no strides of: those of dx serve."""
_FOLDING, _FOLDS = 64, (8, 16, 32, 64)
"""Threads of a block that chains chunks, and how many pieces each may fetch at once."""
# What `chunk_ends` takes for a step that it looks at, as a share of the main pass.
_ENDS_OF_FORWARD, _ENDS_OF_BACKWARD = 0.72, 0.33
_WORKSPACE = 256 << 20
"""Bytes for dB and dC by channel block; a row that needs more is walked in slabs."""


def sources(name: str) -> tuple[Path, ...]:
    """The files that the kernel `name` is compiled from, one after the other."""
    own = _OWN.get(name, (name,))
    return (_COMMON, *(_COMMON.with_name(f"{part}.cu") for part in own))


@functools.cache
def _kernel(name: str, device: torch.device, options: tuple[tuple[str, int], ...]) -> nvrtc.Kernel:
    return nvrtc.kernel(sources(name), name, dict(options), device)


class Walk:
    """One call: its tensors as addresses and strides in walk order, and the launches."""

    def __init__(self, scan: Scan, marks: Tensor | None = None) -> None:
        """With the `marks` of a forward, where it is for its backward."""
        self.scan = scan
        self.shape = Shape.of(scan, None if marks is None else marks.shape[1])
        self.batch, self.length, self.channels = scan.x.shape
        self.groups = scan.B.shape[2]
        self.packed = scan.cu_seqlens is not None
        self.device = scan.x.device
        self.dtype = dtype_of(scan)
        self._given: dict[str, Any] = dict.fromkeys(parameters(), 0)
        self._alignment = 0
        self.A = scan.A.float().contiguous()
        initial = None
        if scan.initial_state is not None:
            initial = walked(scan.initial_state, scan).float().contiguous()
        self.initial_row = None if self.packed else initial
        wide = {"x": scan.x, "dt": scan.dt, "z": scan.z, "B": scan.B, "C": scan.C}
        self.sequences: dict[str, Tensor] = {
            name: t.to(self.dtype) if name in "BC" else dense(t.to(self.dtype))
            for name, t in wide.items()
            if t is not None
        }
        self.give(
            A=self.A,
            skip=_float(scan.D),
            bias=_float(scan.dt_bias),
            initial=initial,
            channels=self.channels,
            per_group=self.channels // self.groups,
            groups=self.groups,
            batches=self.batch,
        )
        self._resets = _resets(scan) if self.packed else None

    def give(self, **values: int | Tensor | None) -> None:
        """Set parameters of the kernels by name."""
        self._given.update(values)

    def enter(self, begin: int, length: int, *, marks: Tensor, **more: Tensor | None) -> None:
        """Look at steps [begin, begin + length) of the walk (0-based half-open).

        `more` are y, or dy and the gradients of x, dt and z.
        """
        self.begin, self.slab_length = begin, length
        self.give(length=length)
        for name, tensor in (self.sequences | more).items():
            if tensor is not None:
                self._enter(name, tensor, ("b", "t", "g", "n") if name in "BC" else ("b", "t"))
        per_mark = marks[0, 0].numel()
        self.give(
            marks=marks.data_ptr() + begin // self.shape.span * per_mark * 4,
            marks_b=marks[0].numel() // 4,
        )
        if self._resets is not None:
            flags, before = self._resets
            tile = begin // TILE
            self.give(resets=flags.data_ptr() + tile, before=before.data_ptr() + 4 * tile)

    def _address(self, tensor: Tensor) -> int:
        step = self.length - 1 - self.begin if self.scan.reverse else self.begin
        return tensor.data_ptr() + step * tensor.stride(1) * tensor.element_size()

    def _enter(self, name: str, tensor: Tensor, axes: tuple[str, ...]) -> None:
        address, size = self._address(tensor), tensor.element_size()
        self._given[name] = address
        strides = () if name in _LIKE_DX else tensor.stride()
        for axis, stride in zip(axes, strides, strict=False):
            backwards = axis == "t" and self.scan.reverse
            self._given[name + axis] = -stride if backwards else stride
        if "g" not in axes:
            row, step = tensor.stride()[:2]
            self._alignment |= address | row * size | step * size

    def columns(self, threads: int, channels: int = 4) -> int:
        """Blocks that the channels of a group take, so many of a thread."""
        wide = self.shape.channels  # marks are written for all channels of the last wide warp
        across = threads // 32 * wide * channels // 4
        return -(-(-(-(self.channels // self.groups) // wide) * wide) // across)

    def slab(self, rows: int) -> int:
        """Steps walked at a time in the backward, so that the workspace for dB and dC fits."""
        per_step = rows * 2 * self.shape.padded * 4
        slabs = max(1, -(-per_step * self.length // _WORKSPACE))
        return -(-self.length // slabs // self.shape.span) * self.shape.span

    def cut(self) -> None:
        """Choose the chunks of the forward: every row is cut alike."""
        ends = PrePass(self.shape.ends, TILE, _ENDS_OF_FORWARD)
        self._choose(self._problem(), self.shape.layouts, ends, TILE)

    def cut_end_to_end(self) -> None:
        """Choose the chunks of the backward: all rows are cut as one, so that chunks end together.

        A chunk begins where a mark is: at whole spans of its row.
        """
        ends = PrePass(self.shape.ends, TILE, _ENDS_OF_BACKWARD)
        problem = self._problem().end_to_end(self.shape.span)
        self.give(stretch=problem.row)
        self._choose(problem, (self.shape.of_backward,), ends, self.shape.span)

    def _choose(
        self, problem: Problem, layouts: tuple[Layout, ...], ends: PrePass, whole: int
    ) -> None:
        found = cut(problem, layouts, ends, whole)
        self._cut, self._problem_of_cut, self._ends = found, problem, ends
        # Steps of a row behind its first border: as many as any row has.
        self._behind = self.slab_length - problem.first_border(found.steps)
        self.chunks = 1 + -(-self._behind // found.steps) if problem.borders(found.steps) else 1
        self.give(chunk=found.steps, chunks=self.chunks)

    def _problem(self) -> Problem:
        across = -(-(self.channels // self.groups) // (self.shape.channels // 4))
        rows = self.groups * self.batch
        return Problem(across, rows, self.slab_length, multiprocessors(self.device))

    def start(self, first: Tensor | None, *, adjoint: bool) -> None:
        """Find the state (or the adjoint) that enters each chunk."""
        if self.chunks == 1:
            self.give(starts=first)
            return
        problem, chunk = self._problem_of_cut, self._cut.steps
        layout, width, steps, *_ = cut_ends(problem, self._ends, chunk)
        pieces = chunk // steps
        # The last chunk hands nothing on, or the first one: its pieces are not looked at.
        found = -(-self._behind // steps) if adjoint else (self.chunks - 1) * pieces
        ends = self.A.new_empty((self.batch, found, *self.A.shape))
        starts = self.A.new_empty((self.batch, self.chunks, *self.A.shape))
        sums = self.A.new_empty(self.batch, found, self.channels)
        self.give(ends=ends, sums=sums, chunk=steps, chunks=found, pieces=pieces)
        tiles = 2 * map_tiles(self.shape.lanes, width, layout)  # of B or C alone
        self._run("chunk_ends", layout, width, found, ADJOINT=int(adjoint), TILES=tiles)
        count, states = self.A.numel(), self.A.shape[1]
        together = next((fold for fold in _FOLDS if found <= 2 * fold), _FOLDS[-1])
        cuts = found, count, pieces, int(adjoint), self.slab_length, steps, problem.row, self.groups
        _kernel("chunk_fold", self.device, self._options(_FOLDING, FOLD=together)).launch(
            (-(-count // _FOLDING), self.batch, 1),
            _FOLDING,
            [ends, sums, self.A, first, starts, states, *cuts],
        )
        self.give(starts=starts, chunk=chunk, chunks=self.chunks, ends=None, sums=None)

    def forward(self) -> None:
        """Run the main pass of the forward over all chunks."""
        layout, width = self._cut.layout, self._cut.width
        tiles = map_tiles(self.shape.lanes, width, layout)
        self._run("forward", layout, width, self.chunks, ADJOINT=0, TILES=tiles)

    def _run(self, name: str, layout: Layout, width: int, chunks: int, **more: int) -> None:
        columns = self.columns(32 * width, layout.channels)
        self.give(columns=columns)
        sizes = {"NC": layout.channels, "TB": layout.tile, "VEC": self._neighbours(layout)}
        options = self._options(32 * width, BLOCKS=layout.warps // width, **sizes, **more)
        # Columns that remember for long, first where channels are in order of their steps, start
        # first in all rows, and columns take turns on every multiprocessor.
        _kernel(name, self.device, options).launch(
            (chunks, self.batch, columns * self.groups),
            32 * width,
            list(self._given.values()),
            shared=forward_shared(self.shape.lanes, width, layout),
        )

    def backward(self, *, output: int, apart: bool) -> None:
        """Run the main pass of the backward: as many blocks as the device holds, taking turns.

        `output`: whether it writes y as well (1: as dx lies, 2: as dz); `apart`: whether dz lies
        otherwise than dx.
        """
        shape = self.shape
        columns = self.columns(shape.threads)
        items = columns * self._cut.chunks
        blocks = min(items, shape.resident * multiprocessors(self.device))
        scratch = self.A.new_empty(shape.scratch(blocks))
        self.give(columns=columns, scratch=scratch)
        options = self._options(
            shape.threads,
            ADJOINT=0,
            BLOCKS=shape.resident,
            GATHER=shape.gather,
            EARLY=shape.early,
            SIZES=shape.sizes,
            OUTPUT=output,
            DZ_APART=int(apart),
        )
        _kernel("backward", self.device, options).launch(
            (blocks, 1, 1), shape.threads, list(self._given.values()), shared=shape.shared()
        )

    def reduce(self, dmaps: Tensor, dB: Tensor, dC: Tensor) -> None:
        """Add up dB and dC over the channel blocks of a group."""
        stride = -dB.stride(1) if self.scan.reverse else dB.stride(1)
        rows = self.batch * self.slab_length
        count = rows * 2 * self.groups * self.scan.A.shape[1]
        _kernel("reduce_maps", self.device, self._options(256)).launch(
            (-(-count // 256), 1, 1),
            256,
            [
                dmaps,
                self._address(dB),
                self._address(dC),
                self.columns(self.shape.threads),
                self.groups,
                self.slab_length,
                dB.stride(0),
                stride,
                rows,
            ],
        )

    def _options(self, threads: int, **more: int) -> tuple[tuple[str, int], ...]:
        scan, shape = self.scan, self.shape
        macros = {
            "DTYPE": _DTYPES[self.dtype],
            "N": scan.A.shape[1],
            "NC": 4,
            "TB": TILE,
            "SL": shape.lanes,
            "VEC": self._neighbours(self.shape.of_backward),
            "NTH": threads,
            "CK": shape.span,
            "HELD": shape.rows,
            "SOFTPLUS": int(scan.dt_softplus),
            "HAS_Z": int(scan.z is not None),
            "PACKED": int(self.packed),
            "EXACT": int(scan.exact),
        }
        return tuple((name, int(value)) for name, value in (macros | more).items())

    def _neighbours(self, layout: Layout) -> int:
        """How many channels a thread can read and write at once, 16 bytes at a time at most."""
        size, channels = self.dtype.itemsize, self.shape.channels * layout.channels // 4
        for count in (8, 4, 2):
            aligned = self._alignment % min(16, count * size) == 0
            busy = count <= channels and 32 * count <= layout.tile * channels
            if aligned and busy and self.channels // self.groups % count == 0:
                return count
        return 1


@functools.cache
def parameters() -> tuple[str, ...]:
    """Names of what the big kernels take, in order, as common.cu has them in ARGUMENTS."""
    text = _COMMON.read_text(encoding="utf-8").partition("#define ARGUMENTS")[2]
    listed = itertools.takewhile(lambda line: line.rstrip(), text.splitlines())
    return tuple(re.findall(r"(\w+)\s*(?:,|$)", " ".join(line.rstrip("\\ ") for line in listed)))


def walked(states: Tensor, scan: Scan) -> Tensor:
    """States by sequence in walk order, and back: packed sequences are met in reverse as well."""
    return states.flip(0) if scan.reverse and scan.cu_seqlens is not None else states


def dense(tensor: Tensor) -> Tensor:
    """Neighbouring channels next to each other, as any projection leaves them."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _resets(scan: Scan) -> tuple[Tensor, Tensor]:
    """Where sequences start, in walk order: a byte of flags per tile, the sequence before each."""
    length = scan.x.shape[1]
    edges = torch.as_tensor(scan.cu_seqlens).long()
    starts = (length - edges.flip(0) if scan.reverse else edges)[:-1]
    tiles = -(-length // TILE)
    marked = torch.zeros(tiles * TILE, dtype=torch.int32, device=edges.device)
    marked.index_fill_(0, starts, 1)  # as nothing of the CPU's is copied, a CUDA graph may hold it
    bits = torch.ones(TILE, dtype=torch.int32, device=edges.device)
    bits = bits << torch.arange(TILE, dtype=torch.int32, device=edges.device)
    flags = (marked.view(tiles, TILE) * bits).sum(1).to(torch.uint8)
    before = marked.view(tiles, TILE).sum(1).cumsum(0) - marked.view(tiles, TILE).sum(1) - 1
    return flags, before.to(torch.int32)
