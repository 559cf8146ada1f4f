"""How states are spread over lanes, and what fits into the shared memory of a multiprocessor."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from dnassm.errors import BackendError
from dnassm.kernels.selective_scan.arguments import Scan

TILE = 8
"""Steps whose states the backward holds in registers."""
_WARPS, _BACKWARD_WARPS = 16, 8
"""Warps per multiprocessor that registers are held down for."""
_TILES = 8
"""Most tiles of B and C that a block brings in at once; half of them if it is narrow."""
_MAPS = 16 << 10
"""Most bytes of shared memory for those and the ones before them."""
_SPANS = (128, 64, 32, 16)
_GATHER = (4, 2, 1)
"""Tiles whose dB and dC may be summed over the warps of a block at once: a barrier for each."""


class Shape(NamedTuple):
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
        tiles = 5 * TILE * (self.channels + 4)
        floats = tiles + self.channels + 4 * self.gather * TILE * self.padded
        work = 4 * floats + 4 * TILE * self.channels * self.size
        return 4 * self.span * 2 * self.padded + self.threads // 32 * work

    def scratch(self, blocks: int) -> int:
        """Floats for the states inside of a span, of so many blocks."""
        return blocks * (self.threads // 32) * (self.span // TILE - 1) * 512

    def gathering(self, properties: Any) -> Shape:
        """The same with as many tiles summed at once as fit without fewer blocks."""
        most = properties.shared_memory_per_multiprocessor // self.resident - 1024
        room = min(most, properties.shared_memory_per_block_optin)
        wider = (self._replace(gather=n) for n in _GATHER if n * TILE <= self.span)
        return next(shape for shape in wider if shape.gather == 1 or shape.shared() <= room)

    @staticmethod
    def of(scan: Scan) -> Shape:
        """The shape of a call, on its device."""
        per_group = scan.A.shape[0] // scan.B.shape[2]
        return _shape_of(scan.A.shape[1], per_group, dtype_of(scan).itemsize, scan.x.device)


@functools.cache
def _shape_of(states: int, per_group: int, size: int, device: torch.device) -> Shape:
    """The longest span that fits, then the widest block that the channels of a group fill."""
    lanes = 1 << (-(-states // 4) - 1).bit_length()
    properties: Any = torch.cuda.get_device_properties(device)
    room = properties.shared_memory_per_block_optin
    warps = -(-per_group * lanes // 128)
    for span in _SPANS:
        for threads in (256, 128, 64, 32):
            shape = Shape(lanes, threads, span, 1, *_widths(lanes, properties), size)
            if shape.shared() <= room and (threads <= 32 * warps or threads == 32):
                held = properties.shared_memory_per_multiprocessor // (shape.shared() + 1024)
                resident = max(1, min(held, 32 * _BACKWARD_WARPS // threads))
                return shape._replace(resident=resident).gathering(properties)
    raise BackendError(f"selective_scan: {room} bytes of shared memory hold no {states} states")


def map_tiles(lanes: int, width: int) -> int:
    """Tiles of B and C that a block brings in at once, 8 bytes per step and state of each."""
    most = _TILES if width == _WARPS else _TILES // 2
    return max(1, min(most, _MAPS // (2 * TILE * 2 * 4 * lanes * 4)))


def _widths(lanes: int, properties: Any) -> tuple[int, tuple[int, ...]]:
    """Warps that a multiprocessor holds in the forward, and those that a block may have for it."""
    held = {}
    for width in (16, 8, 4, 2, 1):
        size = forward_shared(lanes, width)
        blocks = min(_WARPS // width, properties.shared_memory_per_multiprocessor // (size + 1024))
        if size <= properties.shared_memory_per_block_optin:
            held[width] = blocks * width
    most = max(held.values())
    return most, tuple(width for width, warps in held.items() if warps == most)


def forward_shared(lanes: int, width: int) -> int:
    """Bytes of shared memory of `forward`, as laid out there; `chunk_ends` needs less."""
    channels = 128 // lanes
    maps = 2 * map_tiles(lanes, width) * TILE * 2 * 4 * lanes
    return 4 * (maps + width * (2 * TILE * (channels + 4) + 2 * channels))


def dtype_of(scan: Scan) -> torch.dtype:
    """Of all that runs along L, inside of the kernels."""
    along = [scan.x, scan.dt, scan.B, scan.C] + ([] if scan.z is None else [scan.z])
    return functools.reduce(torch.promote_types, (t.dtype for t in along))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count
