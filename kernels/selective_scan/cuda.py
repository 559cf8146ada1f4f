"""Selective scan in CUDA C++, compiled at first use: the fast path on NVIDIA GPUs.

``scan.cu`` holds the kernels; here it is decided how L is cut, and what is launched in which order.
Everything is in walk order: with `reverse` a tensor is entered at its last position with a negative
stride, so that the kernels know one direction only (README, section cuda).
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnassm.errors import BackendError
from dnassm.kernels import nvrtc
from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.selective_scan.arguments import Gradients, Scan

PRIORITY = 40
SOURCE = Path(__file__).with_name("scan.cu")

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MOST_STATES = 128
_TILE = 8
"""Steps whose states the backward holds in registers."""
_WARPS = {"FORWARD": 16, "CHUNK_ENDS": 16, "BACKWARD": 8}
"""Warps per multiprocessor that registers are held down for."""
# Steps after which a Mamba at its initialisation has forgotten; only the cut of L follows from it.
_MEMORY = 10_000
_SPANS = (128, 64, 32, 16)
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


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and the marks for `backward`."""
    walk = _Walk(scan)
    y = torch.empty(scan.x.shape, dtype=walk.dtype, device=scan.x.device)
    marks = torch.empty(marks_shape(scan), dtype=torch.float32, device=scan.x.device)
    last = marks.new_empty(scan.state_shape)
    walk.enter(0, walk.length, y=y, marks=marks)
    walk.give(last=last)
    threads = walk.shape.forward_threads
    walk.cut(threads, 32 * _WARPS["FORWARD"] // threads, pre_pass=1.0)
    walk.start(walk.initial_row, adjoint=False)
    walk.forward()
    return y.to(scan.x.dtype), _walked(last, scan).to(scan.state_dtype), marks


def backward(scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients, slab by slab from the end: what a slab hands on enters the one before it."""
    walk = _Walk(scan)
    shape = walk.shape
    dx, ddt, dB, dC = (
        torch.empty_like(t, dtype=walk.dtype, memory_format=torch.contiguous_format)
        for t in (scan.x, scan.dt, scan.B, scan.C)
    )
    dz = None if scan.z is None else torch.empty_like(dx)
    dlast = _walked(dfinal, scan).float().contiguous()
    dinitial = torch.empty_like(dlast)
    walk.give(dlast=dlast, dinitial=dinitial)
    carry = dlast[-1:] if walk.packed else dlast
    by_chunk: list[tuple[Tensor, Tensor, Tensor]] = []
    rows = walk.columns(shape.threads) * scan.B.shape[2] * walk.batch
    slab = walk.slab(rows)
    dmaps = marks.new_empty(rows * min(slab, walk.length), 2 * shape.padded)
    for begin in reversed(range(0, walk.length, slab)):
        walk.enter(begin, min(slab, walk.length - begin), y=dx, marks=marks)
        walk.output(dx=dx, ddt=ddt, dz=dz, dy=_dense(dy.to(walk.dtype)))
        chunks = walk.cut(shape.threads, shape.resident, pre_pass=0.15)
        walk.start(carry, adjoint=True)
        carry = torch.empty_like(carry)
        dA = marks.new_empty(walk.batch, chunks, *scan.A.shape)
        dskip, dbias = marks.new_empty(2, walk.batch, chunks, scan.A.shape[0])
        by_chunk.append((dA, dskip, dbias))
        walk.give(handed=carry, dmaps=dmaps, dA=dA, dskip=dskip, dbias=dbias)
        walk.backward()
        walk.reduce(dmaps, dB, dC)
    dA, dskip, dbias = (torch.cat(parts, 1).sum((0, 1)) for parts in zip(*by_chunk, strict=True))
    before = dinitial if walk.packed else carry
    return Gradients(
        x=dx.to(scan.x.dtype),
        dt=ddt.to(scan.dt.dtype),
        A=dA.to(scan.A.dtype),
        B=dB.to(scan.B.dtype),
        C=dC.to(scan.C.dtype),
        D=_like(scan.D, dskip),
        z=_like(scan.z, dz),
        dt_bias=_like(scan.dt_bias, dbias),
        initial_state=_like(scan.initial_state, _walked(before, scan)),
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

    @property
    def padded(self) -> int:
        """N rounded up to what the threads hold."""
        return 4 * self.lanes

    @property
    def forward_threads(self) -> int:
        """Of a block of the forward: fewer where a warp has many channels and fills its memory."""
        return 32 * min(4, self.lanes)

    @property
    def channels(self) -> int:
        """Channels of a warp."""
        return 128 // self.lanes

    def shared(self) -> int:
        """Most bytes of shared memory of `backward`, as laid out there."""
        tiles = 4 * _TILE * (self.channels + 4) + 4 * _TILE * self.channels
        work = tiles + self.channels + 4 * _TILE * self.padded
        return 4 * (self.span * 2 * self.padded + self.threads // 32 * work)

    def scratch(self, blocks: int) -> int:
        """Floats for the states inside of a span, of so many blocks."""
        return blocks * (self.threads // 32) * (self.span // _TILE - 1) * 512

    @staticmethod
    def of(scan: Scan) -> _Shape:
        return _shape_of(scan.A.shape[1], scan.A.shape[0] // scan.B.shape[2], scan.x.device)


@functools.cache
def _shape_of(states: int, per_group: int, device: torch.device) -> _Shape:
    """The longest span that fits, then the widest block that the channels of a group fill."""
    lanes = 1 << (-(-states // 4) - 1).bit_length()
    properties: Any = torch.cuda.get_device_properties(device)
    room = properties.shared_memory_per_block_optin
    warps = -(-per_group * lanes // 128)
    for span in _SPANS:
        for threads in (256, 128, 64, 32):
            shape = _Shape(lanes, threads, span, 1)
            if shape.shared() <= room and (threads <= 32 * warps or threads == 32):
                held = properties.shared_memory_per_multiprocessor // (shape.shared() + 1024)
                return shape._replace(
                    resident=max(1, min(held, 32 * _WARPS["BACKWARD"] // threads))
                )
    raise BackendError(f"selective_scan: {room} bytes of shared memory hold no {states} states")


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
        shared = (scan.x, scan.dt, scan.B, scan.C) + (() if scan.z is None else (scan.z,))
        self.dtype = functools.reduce(torch.promote_types, (t.dtype for t in shared))
        self._given: dict[str, Any] = dict.fromkeys(_parameters(), 0)
        self._keep: list[Tensor] = []
        self._alignment = 0
        self.A = scan.A.float().contiguous()
        initial = None
        if scan.initial_state is not None:
            initial = _walked(scan.initial_state, scan).float().contiguous()
        self.initial_row = None if self.packed else initial
        wide = {"x": scan.x, "dt": scan.dt, "z": scan.z, "B": scan.B, "C": scan.C}
        self._sequences = {
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

    def enter(self, begin: int, length: int, *, y: Tensor, marks: Tensor) -> None:
        """Look at steps [begin, begin + length) of the walk (0-based half-open)."""
        self.begin, self.slab_length = begin, length
        self.give(length=length)
        for name, tensor in self._sequences.items():
            self._enter(name, tensor, ("b", "t", "g", "n") if name in "BC" else ("b", "t"))
        self._enter("y", y, ("b", "t"))
        per_mark = marks[0, 0].numel()
        self.give(
            marks=marks.data_ptr() + begin // self.shape.span * per_mark * 4,
            marks_b=marks[0].numel() // 4,
        )
        if self._resets is not None:
            flags, before = self._resets
            tile = begin // _TILE
            self.give(resets=flags.data_ptr() + tile, before=before.data_ptr() + 4 * tile)

    def output(self, *, dy: Tensor, **gradients: Tensor | None) -> None:
        """Gradients of x, dt and z, written with the strides of y."""
        self._keep.append(dy)
        self._enter("dy", dy, ("b", "t"))
        for name, tensor in gradients.items():
            if tensor is not None:
                self._enter(name, tensor, ())

    def _address(self, tensor: Tensor) -> int:
        step = self.length - 1 - self.begin if self.scan.reverse else self.begin
        return tensor.data_ptr() + step * tensor.stride(1) * tensor.element_size()

    def _enter(self, name: str, tensor: Tensor, axes: tuple[str, ...]) -> None:
        address, size = self._address(tensor), tensor.element_size()
        self._given[name] = address
        for axis, stride in zip(axes, tensor.stride(), strict=False):
            backwards = axis == "t" and self.scan.reverse
            self._given[name + axis] = -stride if backwards else stride
        if "g" not in axes:
            self._alignment = math.gcd(
                self._alignment, address, *(s * size for s in tensor.stride()[:2])
            )

    def columns(self, threads: int) -> int:
        """Blocks that the channels of a group take."""
        return -(-(self.channels // self.groups) // (threads // 32 * self.shape.channels))

    def slab(self, rows: int) -> int:
        """Steps walked at a time in the backward, so that the workspace for dB and dC fits."""
        per_step = rows * 2 * self.shape.padded * 4
        slabs = max(1, -(-per_step * self.length // _WORKSPACE))
        return -(-self.length // slabs // self.shape.span) * self.shape.span

    def cut(self, threads: int, resident: int, *, pre_pass: float) -> int:
        """Choose the number of chunks: few, but enough to fill the device in whole waves.

        `pre_pass` is the cost of finding what chunks hand on, as a share of the main pass, when
        all steps of a chunk have to be looked at.
        """
        across = self.columns(threads) * self.groups * self.batch
        slots = resident * _multiprocessors(self.device)
        spans = -(-self.slab_length // self.shape.span)
        best, chosen = float("inf"), (spans, 1)
        for wanted in range(1, min(spans, max(1, 4 * slots // across), 65535) + 1):
            per_chunk = -(-spans // wanted)
            chunks = -(-spans // per_chunk)
            waves = across * chunks / slots
            time = per_chunk * math.ceil(waves)
            seen = min(1.0, _MEMORY / (per_chunk * self.shape.span))
            cost = time * (1 + pre_pass * seen if chunks > 1 else 1)
            if cost < best * 0.97:
                best, chosen = cost, (per_chunk, chunks)
        self.chunks = chosen[1]
        self.give(chunk=chosen[0] * self.shape.span, chunks=self.chunks)
        return self.chunks

    def start(self, first: Tensor | None, *, adjoint: bool) -> None:
        """Find the state (or the adjoint) that enters each chunk."""
        if self.chunks == 1:
            self.give(starts=first)
            return
        chunk, pieces = self._given["chunk"], self._pieces()
        total = -(-self.slab_length // (chunk // pieces))
        ends, starts = self.A.new_empty((2, self.batch, total, *self.A.shape))
        sums = self.A.new_empty(self.batch, total, self.channels)
        self.give(ends=ends, sums=sums, chunk=chunk // pieces, chunks=total)
        self._run("chunk_ends", total - 1, ADJOINT=int(adjoint))
        count = self.A.numel()
        _kernel("chunk_fold", self.device, self._options(256)).launch(
            (-(-count // 256), self.batch, 1),
            256,
            [ends, sums, self.A, first, starts, self.A.shape[1], total, count, int(adjoint)],
        )
        if pieces > 1:
            entered = torch.arange(self.chunks, device=self.device) * pieces
            if adjoint:  # a chunk is entered at its end
                entered = (entered + pieces - 1).clamp_(max=total - 1)
            starts = starts.index_select(1, entered)
        self.give(starts=starts, chunk=chunk, chunks=self.chunks)

    def _pieces(self) -> int:
        """In how many pieces each chunk is looked at first: the backward cuts L in few chunks."""
        threads = self.shape.forward_threads
        slots = 32 * _WARPS["CHUNK_ENDS"] // threads * _multiprocessors(self.device)
        blocks = self.columns(threads) * self.groups * self.batch * self.chunks
        return 1 if 1.9 * blocks > slots else 2 if 3.8 * blocks > slots else 4

    def forward(self) -> None:
        """Run the main pass of the forward over all chunks."""
        self._run("forward", self.chunks, ADJOINT=0)

    def _run(self, name: str, chunks: int, *, ADJOINT: int) -> None:
        threads = self.shape.forward_threads
        columns = self.columns(threads)
        self.give(columns=columns)
        blocks = 32 * _WARPS[name.upper()] // threads
        options = self._options(threads, ADJOINT=ADJOINT, BLOCKS=blocks)
        grid = (columns * self.groups, chunks, self.batch)
        _kernel(name, self.device, options).launch(grid, threads, list(self._given.values()))

    def backward(self) -> None:
        """Run the main pass of the backward: as many blocks as the device holds, taking turns."""
        shape = self.shape
        columns = self.columns(shape.threads)
        items = columns * self.groups * self.chunks * self.batch
        blocks = min(items, shape.resident * _multiprocessors(self.device))
        scratch = self.A.new_empty(shape.scratch(blocks))
        self.give(columns=columns, scratch=scratch)
        options = self._options(shape.threads, ADJOINT=0, BLOCKS=shape.resident)
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
        return tuple((macros | more).items())

    def _neighbours(self) -> int:
        """How many channels a thread can read and write at once, 16 bytes at a time at most."""
        size = self.dtype.itemsize
        for count in (8, 4, 2):
            aligned = self._alignment % min(16, count * size) == 0
            fits = 4 * count <= self.shape.channels and self.channels // self.groups % count == 0
            if aligned and fits:
                return count
        return 1


@functools.cache
def _parameters() -> tuple[str, ...]:
    """Names of what the big kernels take, in order, as scan.cu has them in ARGUMENTS."""
    text = SOURCE.read_text(encoding="utf-8").partition("#define ARGUMENTS")[2]
    listed = itertools.takewhile(lambda line: line.rstrip(), text.splitlines())
    return tuple(re.findall(r"(\w+)\s*(?:,|$)", " ".join(line.rstrip("\\ ") for line in listed)))


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
