"""Selective scan in CUDA C++, compiled at first use: the fast path on NVIDIA GPUs.

``scan.cu`` holds the kernels; here it is decided how L is cut, and what is launched in which order.
Everything is in walk order: with `reverse` a tensor is entered at its last position with a negative
stride, so that the kernels know one direction only (README, section cuda).
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnassm.errors import BackendError
from dnassm.kernels import nvrtc
from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.selective_scan.cuda_cut import Problem, cut, cut_ends

PRIORITY = 40
SOURCE = Path(__file__).with_name("scan.cu")

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MOST_STATES = 128
_TILE = 8
"""Steps whose states the backward holds in registers."""
_WARPS, _BACKWARD_WARPS = 16, 8
"""Warps per multiprocessor that registers are held down for."""
_TILES = 8
_MAPS = 16 << 10
"""Most tiles and bytes of B and C that a block brings in at once; half the tiles if it is narrow."""
_SPANS = (128, 64, 32, 16)
_GATHER = (4, 2, 1)
"""Tiles whose dB and dC may be summed over the warps of a block at once: a barrier for each."""
# Bytes for dB and dC by channel block; a row that needs more is walked in slabs.
_WORKSPACE = 256 << 20


def supports(scan: Scan) -> str | None:
    """Why this backend cannot run, or None."""
    if not scan.x.is_cuda:
        return Elsewhere(f"needs a CUDA device, got {scan.x.device.type}")
    if scan.inner != torch.float32:
        return Elsewhere(f"computes in float32, got x {scan.x.dtype} and A {scan.A.dtype}")
    reason = nvrtc.unavailable(scan.x.device)
    if reason is not None:
        return reason
    if scan.A.shape[1] > _MOST_STATES:
        return f"at most {_MOST_STATES} states per channel, got {scan.A.shape[1]}"
    if scan.x.shape[0] > 65535:
        return f"at most 65535 rows in a batch, got {scan.x.shape[0]}"
    return None


def marks_shape(scan: Scan) -> tuple[int, ...]:
    """The state before every `span`-th step as warps hold it: (B, ceil(L / span), warps, 512)."""
    shape = _Shape.of(scan)
    batch, length, channels = scan.x.shape
    groups = scan.B.shape[2]
    warps = groups * -(-(channels // groups) // shape.channels)
    return (batch, -(-length // shape.span), warps, 512)


def mark_steps(scan: Scan) -> int:
    """Steps between two marks: a part of a row that begins on one has its marks among the row's.

    Its `backward` takes no more of `initial_state` than that there is one.
    """
    return _Shape.of(scan).span


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """y, over dt where `Scan.overwrite` names it, the final state, and the marks for `backward`."""
    walk = _Walk(scan)
    dt = walk.sequences["dt"]
    over_dt = "dt" in scan.overwrite and dt.is_contiguous()
    y = dt if over_dt else torch.empty(scan.x.shape, dtype=walk.dtype, device=scan.x.device)
    marks = torch.empty(marks_shape(scan), dtype=torch.float32, device=scan.x.device)
    last = marks.new_empty(scan.state_shape)
    walk.enter(0, walk.length, y=y, marks=marks)
    walk.give(last=last)
    walk.cut(walk.shape.widths, walk.shape.held, pre_pass=1.0)
    walk.start(walk.initial_row, adjoint=False)
    walk.forward()
    return y.to(scan.x.dtype), _walked(last, scan).to(scan.state_dtype), marks


def backward(scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients; those of dt, z and x lie over dt, z and dy where `Scan.overwrite` names them."""
    return _gradients(_Walk(scan), marks, dy, dfinal, None)


def backward_and_output(
    scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor
) -> tuple[Gradients, Tensor]:
    """Gradients as from `backward`, and y once more: all but its last factor is found for dz."""
    walk = _Walk(scan)
    y = torch.empty(scan.x.shape, dtype=walk.dtype, device=scan.x.device)
    found = _gradients(walk, marks, dy, dfinal, y)
    return found, y.to(scan.x.dtype)


def _gradients(
    walk: _Walk, marks: Tensor, dy: Tensor, dfinal: Tensor, y: Tensor | None
) -> Gradients:
    """Slab by slab from the end: what a slab hands on enters the one before it."""
    scan, shape = walk.scan, walk.shape
    dy = _dense(dy.to(walk.dtype))
    along = _along(walk, dy)
    dB, dC = (
        torch.empty_like(t, dtype=walk.dtype, memory_format=torch.contiguous_format)
        for t in (scan.B, scan.C)
    )
    dlast = _walked(dfinal, scan).float().contiguous()
    dinitial = torch.empty_like(dlast)
    walk.give(dlast=dlast, dinitial=dinitial)
    carry = dlast[-1:] if walk.packed else dlast
    sums: list[Tensor] = []
    rows = walk.columns(shape.threads) * scan.B.shape[2] * walk.batch
    slab = walk.slab(rows)
    dmaps = marks.new_empty(rows * min(slab, walk.length), 2 * shape.padded)
    for begin in reversed(range(0, walk.length, slab)):
        # y lies as dx does: where it is not asked for, dx says how.
        output = along["dx"] if y is None else y
        walk.enter(begin, min(slab, walk.length - begin), marks=marks, y=output, dy=dy, **along)
        width = shape.threads // 32
        chunks = walk.cut((width,), width * shape.resident, pre_pass=0.15)
        walk.start(carry, adjoint=True)
        carry = torch.empty_like(carry)
        by_chunk = marks.new_empty(walk.batch * chunks, scan.A.shape[1] + 2, walk.channels)
        sums.append(by_chunk)
        walk.give(handed=carry, dmaps=dmaps, by_chunk=by_chunk)
        walk.backward(output=y is not None)
        walk.reduce(dmaps, dB, dC)
    total = (sums[0] if len(sums) == 1 else torch.cat(sums)).sum(0)
    initial = _walked(dinitial if walk.packed else carry, scan)
    return _found(scan, {**along, "dB": dB, "dC": dC}, total, initial)


def _along(walk: _Walk, dy: Tensor) -> dict[str, Tensor]:
    """Where the gradients of x, dt and z go: over dy, dt and z, or into new tensors.

    The kernel writes dx, ddt and y at the same places: dy and dt are taken only as they would lie.
    """
    scan, given = walk.scan, walk.sequences
    over = {"dx": ("dy", dy), "ddt": ("dt", given["dt"])}
    if scan.z is not None:
        over["dz"] = ("z", given["z"])
    return {
        gradient: source
        if name in scan.overwrite and (name == "z" or source.is_contiguous())
        else torch.empty_like(source, memory_format=torch.contiguous_format)
        for gradient, (name, source) in over.items()
    }


def _found(scan: Scan, found: dict[str, Tensor], sums: Tensor, initial: Tensor) -> Gradients:
    """As they are handed back; `sums` (N + 2, D) are those of A, of D and of dt_bias."""
    return Gradients(
        x=found["dx"].to(scan.x.dtype),
        dt=found["ddt"].to(scan.dt.dtype),
        A=sums[:-2].view(scan.A.shape).to(scan.A.dtype),
        B=found["dB"].to(scan.B.dtype),
        C=found["dC"].to(scan.C.dtype),
        D=_like(scan.D, sums[-2]),
        z=_like(scan.z, found.get("dz")),
        dt_bias=_like(scan.dt_bias, sums[-1]),
        initial_state=_like(scan.initial_state, initial),
    )


def _like(given: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    return None if given is None or gradient is None else gradient.to(given.dtype)


def _walked(states: Tensor, scan: Scan) -> Tensor:
    """States by sequence in walk order, and back: packed sequences are met in reverse as well."""
    return states.flip(0) if scan.reverse and scan.cu_seqlens is not None else states


class _Shape(NamedTuple):
    """What a problem's sizes fix once: how states are spread, and how the backward is laid out."""

    lanes: int
    """Threads of a warp that share a channel, 4 states each."""
    threads: int
    """Of a block of the backward."""
    span: int
    """Steps between two marks."""
    resident: int
    """Blocks of the backward that a multiprocessor holds."""
    held: int
    """Warps of the forward that a multiprocessor holds."""
    widths: tuple[int, ...]
    """Warps that a block of the forward may have."""
    size: int
    """Bytes of a number along L."""
    gather: int = 1
    """Tiles of the backward whose dB and dC are summed over the warps at once."""

    @property
    def padded(self) -> int:
        """N rounded up to what the threads hold."""
        return 4 * self.lanes

    @property
    def channels(self) -> int:
        """Channels of a warp."""
        return 128 // self.lanes

    def shared(self) -> int:
        """Most bytes of shared memory of `backward`, as laid out there."""
        tiles = 5 * _TILE * (self.channels + 4)
        floats = tiles + self.channels + 4 * self.gather * _TILE * self.padded
        work = 4 * floats + 4 * _TILE * self.channels * self.size
        return 4 * self.span * 2 * self.padded + self.threads // 32 * work

    def scratch(self, blocks: int) -> int:
        """Floats for the states inside of a span, of so many blocks."""
        return blocks * (self.threads // 32) * (self.span // _TILE - 1) * 512

    def gathering(self, properties: Any) -> _Shape:
        """The same with as many tiles summed at once as fit without fewer blocks."""
        most = properties.shared_memory_per_multiprocessor // self.resident - 1024
        room = min(most, properties.shared_memory_per_block_optin)
        wider = (self._replace(gather=n) for n in _GATHER if n * _TILE <= self.span)
        return next(shape for shape in wider if shape.gather == 1 or shape.shared() <= room)

    @staticmethod
    def of(scan: Scan) -> _Shape:
        per_group = scan.A.shape[0] // scan.B.shape[2]
        return _shape_of(scan.A.shape[1], per_group, _dtype(scan).itemsize, scan.x.device)


@functools.cache
def _shape_of(states: int, per_group: int, size: int, device: torch.device) -> _Shape:
    """The longest span that fits, then the widest block that the channels of a group fill."""
    lanes = 1 << (-(-states // 4) - 1).bit_length()
    properties: Any = torch.cuda.get_device_properties(device)
    room = properties.shared_memory_per_block_optin
    warps = -(-per_group * lanes // 128)
    for span in _SPANS:
        for threads in (256, 128, 64, 32):
            shape = _Shape(lanes, threads, span, 1, *_widths(lanes, properties), size)
            if shape.shared() <= room and (threads <= 32 * warps or threads == 32):
                held = properties.shared_memory_per_multiprocessor // (shape.shared() + 1024)
                resident = max(1, min(held, 32 * _BACKWARD_WARPS // threads))
                return shape._replace(resident=resident).gathering(properties)
    raise BackendError(f"selective_scan: {room} bytes of shared memory hold no {states} states")


def _tiles(lanes: int, width: int) -> int:
    """Tiles of B and C that a block brings in at once, 8 bytes per step and state of each."""
    most = _TILES if width == _WARPS else _TILES // 2
    return max(1, min(most, _MAPS // (2 * _TILE * 2 * 4 * lanes * 4)))


def _widths(lanes: int, properties: Any) -> tuple[int, tuple[int, ...]]:
    """Warps that a multiprocessor holds in the forward, and those that a block may have for it."""
    held = {}
    for width in (16, 8, 4, 2, 1):
        size = _forward_shared(lanes, width)
        blocks = min(_WARPS // width, properties.shared_memory_per_multiprocessor // (size + 1024))
        if size <= properties.shared_memory_per_block_optin:
            held[width] = blocks * width
    most = max(held.values())
    return most, tuple(width for width, warps in held.items() if warps == most)


def _forward_shared(lanes: int, width: int) -> int:
    """Bytes of shared memory of `forward`, as laid out there; `chunk_ends` needs less."""
    channels = 128 // lanes
    maps = 2 * _tiles(lanes, width) * _TILE * 2 * 4 * lanes
    return 4 * (maps + width * (2 * _TILE * (channels + 4) + 2 * channels))


@functools.cache
def _kernel(name: str, device: torch.device, options: tuple[tuple[str, int], ...]) -> nvrtc.Kernel:
    macros = dict(options)
    macros[name.upper()] = 1
    return nvrtc.kernel(SOURCE, name, macros, device)


class _Walk:
    """One call: its tensors as addresses and strides in walk order, and the launches."""

    def __init__(self, scan: Scan) -> None:
        self.scan, self.shape = scan, _Shape.of(scan)
        self.batch, self.length, self.channels = scan.x.shape
        self.groups = scan.B.shape[2]
        self.packed = scan.cu_seqlens is not None
        self.device = scan.x.device
        self.dtype = _dtype(scan)
        self._given: dict[str, Any] = dict.fromkeys(_parameters(), 0)
        self._alignment = 0
        self.A = scan.A.float().contiguous()
        initial = None
        if scan.initial_state is not None:
            initial = _walked(scan.initial_state, scan).float().contiguous()
        self.initial_row = None if self.packed else initial
        wide = {"x": scan.x, "dt": scan.dt, "z": scan.z, "B": scan.B, "C": scan.C}
        self.sequences: dict[str, Tensor] = {
            name: t.to(self.dtype) if name in "BC" else _dense(t.to(self.dtype))
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
            tile = begin // _TILE
            self.give(resets=flags.data_ptr() + tile, before=before.data_ptr() + 4 * tile)

    def _address(self, tensor: Tensor) -> int:
        step = self.length - 1 - self.begin if self.scan.reverse else self.begin
        return tensor.data_ptr() + step * tensor.stride(1) * tensor.element_size()

    def _enter(self, name: str, tensor: Tensor, axes: tuple[str, ...]) -> None:
        address, size = self._address(tensor), tensor.element_size()
        self._given[name] = address
        strides = () if name in _LIKE_Y else tensor.stride()
        for axis, stride in zip(axes, strides, strict=False):
            backwards = axis == "t" and self.scan.reverse
            self._given[name + axis] = -stride if backwards else stride
        if "g" not in axes:
            row, step = tensor.stride()[:2]
            self._alignment |= address | row * size | step * size

    def columns(self, threads: int) -> int:
        """Blocks that the channels of a group take."""
        return -(-(self.channels // self.groups) // (threads // 32 * self.shape.channels))

    def slab(self, rows: int) -> int:
        """Steps walked at a time in the backward, so that the workspace for dB and dC fits."""
        per_step = rows * 2 * self.shape.padded * 4
        slabs = max(1, -(-per_step * self.length // _WORKSPACE))
        return -(-self.length // slabs // self.shape.span) * self.shape.span

    def cut(self, widths: tuple[int, ...], held: int, *, pre_pass: float) -> int:
        """Choose the chunks of the main pass; returns how many."""
        problem = self._problem(widths, held)
        self.width, steps, self.chunks = cut(problem, self.shape.span, pre_pass)
        self.give(chunk=steps, chunks=self.chunks)
        return self.chunks

    def _problem(self, widths: tuple[int, ...], held: int) -> Problem:
        warps = -(-(self.channels // self.groups) // self.shape.channels)
        rows = self.groups * self.batch
        return Problem(warps, rows, self.slab_length, _multiprocessors(self.device), held, widths)

    def start(self, first: Tensor | None, *, adjoint: bool) -> None:
        """Find the state (or the adjoint) that enters each chunk."""
        if self.chunks == 1:
            self.give(starts=first)
            return
        chunk = self._given["chunk"]
        problem = self._problem(self.shape.widths, self.shape.held)
        width, steps, total = cut_ends(problem, chunk, _TILE)
        ends = self.A.new_empty((self.batch, total, *self.A.shape))
        starts = self.A.new_empty((self.batch, self.chunks, *self.A.shape))
        sums = self.A.new_empty(self.batch, total, self.channels)
        self.give(ends=ends, sums=sums, chunk=steps, chunks=total)
        tiles = 2 * _tiles(self.shape.lanes, width)  # of B or C alone
        self._run("chunk_ends", width, total - 1, ADJOINT=int(adjoint), TILES=tiles)
        count, states = self.A.numel(), self.A.shape[1]
        _kernel("chunk_fold", self.device, self._options(256)).launch(
            (-(-count // 256), self.batch, 1),
            256,
            [ends, sums, self.A, first, starts, states, total, count, chunk // steps, int(adjoint)],
        )
        self.give(starts=starts, chunk=chunk, chunks=self.chunks, ends=None, sums=None)

    def forward(self) -> None:
        """Run the main pass of the forward over all chunks."""
        tiles = _tiles(self.shape.lanes, self.width)
        self._run("forward", self.width, self.chunks, ADJOINT=0, TILES=tiles)

    def _run(self, name: str, width: int, chunks: int, **more: int) -> None:
        columns = self.columns(32 * width)
        self.give(columns=columns)
        shape = self.shape
        options = self._options(32 * width, BLOCKS=shape.held // width, **more)
        # Chunks of a column one after the other: columns take turns on every multiprocessor, those
        # that remember for long, first where channels are in order of their steps, start first.
        _kernel(name, self.device, options).launch(
            (chunks, columns * self.groups, self.batch),
            32 * width,
            list(self._given.values()),
            shared=_forward_shared(shape.lanes, width),
        )

    def backward(self, *, output: bool) -> None:
        """Run the main pass of the backward: as many blocks as the device holds, taking turns."""
        shape = self.shape
        columns = self.columns(shape.threads)
        items = columns * self.groups * self.chunks * self.batch
        blocks = min(items, shape.resident * _multiprocessors(self.device))
        scratch = self.A.new_empty(shape.scratch(blocks))
        self.give(columns=columns, scratch=scratch)
        over_z = self.scan.z is not None and "z" in self.scan.overwrite
        options = self._options(
            shape.threads,
            ADJOINT=0,
            BLOCKS=shape.resident,
            GATHER=shape.gather,
            OUTPUT=output,
            OVER_Z=over_z,
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
            "SL": shape.lanes,
            "VEC": self._neighbours(),
            "NTH": threads,
            "CK": shape.span,
            "SOFTPLUS": int(scan.dt_softplus),
            "HAS_Z": int(scan.z is not None),
            "PACKED": int(self.packed),
            "EXACT": int(scan.exact),
        }
        return tuple((name, int(value)) for name, value in (macros | more).items())

    def _neighbours(self) -> int:
        """How many channels a thread can read and write at once, 16 bytes at a time at most."""
        size = self.dtype.itemsize
        for count in (8, 4, 2):
            aligned = self._alignment % min(16, count * size) == 0
            fits = 4 * count <= self.shape.channels and self.channels // self.groups % count == 0
            if aligned and fits:
                return count
        return 1


_LIKE_Y = ("dx", "ddt")
"""What the kernels take no strides of: those of y serve."""


@functools.cache
def _parameters() -> tuple[str, ...]:
    """Names of what the big kernels take, in order, as scan.cu has them in ARGUMENTS."""
    text = SOURCE.read_text(encoding="utf-8").partition("#define ARGUMENTS")[2]
    listed = itertools.takewhile(lambda line: line.rstrip(), text.splitlines())
    return tuple(re.findall(r"(\w+)\s*(?:,|$)", " ".join(line.rstrip("\\ ") for line in listed)))


def _dtype(scan: Scan) -> torch.dtype:
    """Of all that runs along L, inside of the kernels."""
    along = [scan.x, scan.dt, scan.B, scan.C] + ([] if scan.z is None else [scan.z])
    return functools.reduce(torch.promote_types, (t.dtype for t in along))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _dense(tensor: Tensor) -> Tensor:
    """Neighbouring channels next to each other, as any projection leaves them."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _resets(scan: Scan) -> tuple[Tensor, Tensor]:
    """Where sequences start, in walk order: a byte of flags per tile, the sequence before each."""
    length = scan.x.shape[1]
    edges = torch.as_tensor(scan.cu_seqlens).long()
    starts = (length - edges.flip(0) if scan.reverse else edges)[:-1]
    tiles = -(-length // _TILE)
    marked = torch.zeros(tiles * _TILE, dtype=torch.int32, device=edges.device)
    marked[starts] = 1
    bits = torch.ones(_TILE, dtype=torch.int32, device=edges.device)
    bits = bits << torch.arange(_TILE, dtype=torch.int32, device=edges.device)
    flags = (marked.view(tiles, _TILE) * bits).sum(1).to(torch.uint8)
    before = marked.view(tiles, _TILE).sum(1).cumsum(0) - marked.view(tiles, _TILE).sum(1) - 1
    return flags, before.to(torch.int32)
