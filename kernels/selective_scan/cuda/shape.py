"""How states are spread over lanes, and what fits into the shared memory of a multiprocessor."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from dnassm.errors import BackendError
from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.selective_scan.cuda.cut import Layout

TILE = 8
"""Steps whose states the backward holds in registers."""
_WARPS, _BACKWARD_WARPS = 16, 8
"""Warps per multiprocessor that registers are held down for."""
_ROWS, _MAPS = 32, 32 << 10
"""Steps of B and C that a block brings in at once, most bytes for those and the ones before."""
_SPANS = (128, 64, 32, 16)
_SHORT_SPANS, _MARKS = (16, 64), 512
"""Taken while marks need one part in so many of the device's memory: less to compute once more."""
_GATHER = (4, 2, 1)
"""Tiles whose dB and dC may be summed over the warps of a block at once: a barrier for each."""
_EARLY = 2
"""Steps of a tile whose states may wait in shared memory, which leaves registers free."""
# A full multiprocessor takes 393 ns for a step of 16 warps of 32 channels, 207 for 16 of 16
# channels, 98 for 12 of 8 channels (4, 2, 1 per thread; bf16, 16 states).
_TIME_OF_TWO, _TIME_OF_ONE = 0.54, 0.25
_WARPS_OF_ONE, _WIDTH_OF_ONE = 12, 4
# Times of `chunk_ends` with 2 channels per thread, from so many steps on: fewer channels side by
# side are forgotten sooner, which counts in long chunks.
_ENDS_OF_TWO = ((0.57, 900), (0.47, 3900))


class Shape(NamedTuple):
    """What a problem's sizes fix once: how states are spread, and how the backward is laid out."""

    lanes: int
    """Threads of a warp that share a channel, 4 states each."""
    threads: int
    """Of a block of the backward."""
    span: int
    """Steps between two marks."""
    rows: int
    """Steps whose B and C a block of the backward holds, whole spans."""
    resident: int
    """Blocks of the backward that a multiprocessor holds."""
    layouts: tuple[Layout, ...]
    """Of the forward, with 4, 2 and 1 channels per thread."""
    size: int
    """Bytes of a number along L."""
    gather: int = 1
    """Tiles of the backward whose dB and dC are summed over the warps at once."""
    early: int = 0
    """First steps of a tile of the backward whose states wait in shared memory."""
    sizes: int = 0
    """Tiles between two marks whose step sizes stay there from the way forward to the way back."""

    @property
    def padded(self) -> int:
        """N rounded up to what the threads hold."""
        return 4 * self.lanes

    @property
    def channels(self) -> int:
        """Channels of a warp whose threads hold 4."""
        return 128 // self.lanes

    @property
    def ends(self) -> tuple[Layout, ...]:
        """Layouts of `chunk_ends`."""
        wide = self.layouts[0]
        if TILE * 2 * 32 // self.lanes < 32:
            return (wide,)
        two = wide._replace(channels=2, rows=2 * _ROWS)
        return wide, *(two._replace(time=time, shortest=steps) for time, steps in _ENDS_OF_TWO)

    @property
    def of_backward(self) -> Layout:
        """How the backward is laid out."""
        width = self.threads // 32
        return Layout(4, TILE, 0, width * self.resident, (width,), 1.0)

    def shared(self) -> int:
        """Most bytes of shared memory of `backward`, as laid out there."""
        tiles = (5 + self.sizes) * TILE * (self.channels + 4)
        floats = tiles + self.channels + 4 * self.gather * TILE * self.padded + 512 * self.early
        work = 4 * floats + 4 * TILE * self.channels * self.size
        return 4 * self.rows * 2 * self.padded + self.threads // 32 * work

    def scratch(self, blocks: int) -> int:
        """Floats for the states inside of a span, of so many blocks."""
        return blocks * (self.threads // 32) * max(0, self.span // TILE - 2) * 512

    def filled(self, properties: Any) -> Shape:
        """The same with what makes it faster, as far as that fits without fewer blocks.

        Step sizes stay where registers are free: else they cost more than they save.
        """
        most = properties.shared_memory_per_multiprocessor // self.resident - 1024
        room = min(most, properties.shared_memory_per_block_optin)
        fuller = (
            self._replace(gather=gather, early=early, sizes=sizes)
            for gather in _GATHER
            if gather * TILE <= self.rows
            for early in (_EARLY, 0)
            for sizes in reversed(range(self.span // TILE if early else 1))
        )
        return next((shape for shape in fuller if shape.shared() <= room), self)

    @staticmethod
    def of(scan: Scan, marks: int | None = None) -> Shape:
        """The shape of a call, on its device; with so many `marks` in a row, where these are."""
        batch, length, _ = scan.x.shape
        groups, states = scan.B.shape[2], scan.A.shape[1]
        per_group = scan.A.shape[0] // groups
        arguments = states, per_group, dtype_of(scan).itemsize, scan.x.device
        shape = _shape_of(*arguments, _SPANS[0])
        if marks is not None:
            return _shape_of(*arguments, span_of(length, marks))
        warps = groups * -(-per_group // shape.channels)
        rows = max(batch, scan.whole / length)  # as long as these, of all pieces
        room = torch.cuda.get_device_properties(scan.x.device).total_memory // _MARKS
        fits = (span for span in _SHORT_SPANS if -(-length // span) * rows * warps * 2048 <= room)
        return _shape_of(*arguments, next(fits, shape.span))


def span_of(length: int, marks: int) -> int:
    """Steps between marks, of which a row of this length has so many."""
    return next(span for span in _SPANS if -(-length // span) == marks)


@functools.cache
def _shape_of(states: int, per_group: int, size: int, device: torch.device, most: int) -> Shape:
    """The most rows that fit, then the widest block that the channels of a group fill."""
    lanes = 1 << (-(-states // 4) - 1).bit_length()
    properties: Any = torch.cuda.get_device_properties(device)
    room = properties.shared_memory_per_block_optin
    warps = -(-per_group * lanes // 128)
    for rows in _SPANS:
        span = min(rows, most)
        for threads in (256, 128, 64, 32):
            shape = Shape(lanes, threads, span, rows, 1, _layouts(lanes, properties), size)
            if shape.shared() <= room and (threads <= 32 * warps or threads == 32):
                held = properties.shared_memory_per_multiprocessor // (shape.shared() + 1024)
                resident = max(1, min(held, 32 * _BACKWARD_WARPS // threads))
                return shape._replace(resident=resident).filled(properties)
    raise BackendError(f"selective_scan: {room} bytes of shared memory hold no {states} states")


def map_tiles(lanes: int, width: int, layout: Layout) -> int:
    """Tiles of B and C that a block brings in at once, 8 bytes per step and state of each."""
    rows = min(layout.rows, 16 * width)  # more would not fit into registers on their way
    return max(1, min(rows // layout.tile, _MAPS // (2 * layout.tile * 2 * 4 * lanes * 4)))


def _layouts(lanes: int, properties: Any) -> tuple[Layout, ...]:
    """Of the forward."""
    wide = Layout(4, TILE, _ROWS, _WARPS, (16, 8, 4, 2, 1), 1.0)
    two = wide._replace(channels=2, tile=2 * TILE, rows=4 * _ROWS, time=_TIME_OF_TWO)
    one = Layout(1, 4 * TILE, 2 * _ROWS, _WARPS_OF_ONE, (_WIDTH_OF_ONE,), _TIME_OF_ONE)
    return tuple(_fitted(layout, lanes, properties) for layout in (wide, two, one))


def _fitted(layout: Layout, lanes: int, properties: Any) -> Layout:
    """With as many warps as shared memory allows, and the widths of blocks that reach that."""
    found = {}
    for width in layout.widths:
        size = forward_shared(lanes, width, layout)
        held = properties.shared_memory_per_multiprocessor // (size + 1024)
        if size <= properties.shared_memory_per_block_optin:
            found[width] = min(layout.warps // width, held) * width
    warps = max(found.values())
    return layout._replace(
        warps=warps, widths=tuple(width for width, count in found.items() if count == warps)
    )


def forward_shared(lanes: int, width: int, layout: Layout) -> int:
    """Bytes of shared memory of `forward`, as laid out there; `chunk_ends` needs less."""
    maps = 2 * map_tiles(lanes, width, layout) * layout.tile * 2 * 4 * lanes
    tiles = 2 * (layout.tile * layout.channels // 4) * (128 // lanes + 4)
    return 4 * (maps + width * (tiles + 2 * max(4, layout.channels * 32 // lanes)))


def dtype_of(scan: Scan) -> torch.dtype:
    """Of all that runs along L, inside of the kernels."""
    along = (scan.x, scan.dt, scan.B, scan.C, scan.x if scan.z is None else scan.z)
    return functools.reduce(torch.promote_types, {tensor.dtype for tensor in along})


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count
