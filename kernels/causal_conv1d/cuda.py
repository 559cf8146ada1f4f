"""Causal convolution on NVIDIA GPUs: causal_conv1d.cu, compiled by NVRTC at first use."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dnassm.kernels import nvrtc
from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.causal_conv1d.arguments import Conv, Gradients, of_parameters

PRIORITY = 40

SOURCE = Path(__file__).with_name("causal_conv1d.cu")
WIDEST = 32
"""Taps: as many inputs are held in registers."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_THREADS = 128


def supports(call: Conv) -> str | None:
    """Needs an NVIDIA GPU, at most 32-bit numbers and 32 taps."""
    if not call.x.is_cuda:
        return Elsewhere(f"needs a CUDA device, got {call.x.device.type}")
    if call.x.dtype not in _DTYPES:
        return Elsewhere(f"computes in float32, x is {call.x.dtype}")
    if call.width > WIDEST:
        return f"holds at most {WIDEST} taps in registers, got {call.width}"
    return nvrtc.unavailable(call.x.device)


class Variant(NamedTuple):
    """How a kernel is compiled; README.md has the registers that each takes."""

    vector: int
    """Neighbouring channels of one thread."""
    unroll: int
    """Positions in flight."""
    blocks: int
    """Blocks of 128 threads that an SM must hold, which bounds the registers."""
    longest: int
    """Positions of a tile at most: long ones come in few waves."""
    start: int
    """What a tile costs beside its positions, in positions: what it reads twice, or adds up."""

    def macros(self, call: Conv) -> dict[str, int | str]:
        """What the source is compiled with."""
        return {
            "BFLOAT16": int(call.x.dtype == torch.bfloat16),
            "FLOAT16": int(call.x.dtype == torch.float16),
            "VECTOR": self.vector,
            "WIDTH": call.width,
            "SILU": int(call.silu),
            "PACKED": int(call.cu_seqlens is not None),
            "UNROLL": self.unroll,
            "THREADS": _THREADS,
            "BLOCKS": self.blocks,
        }


def forward_variant(call: Conv, y: Tensor) -> Variant:
    """8 bytes of channels per thread and position where they are aligned, fewer for many taps."""
    if call.width <= 4:
        return Variant(_vector(8, call.x, y), unroll=8, blocks=5, longest=256, start=8)
    if call.width <= 8:
        return Variant(_vector(4, call.x, y), unroll=8, blocks=4, longest=256, start=8)
    return Variant(vector=1, unroll=4, blocks=2, longest=256, start=8)


def backward_variant(call: Conv, dy: Tensor, dx: Tensor) -> Variant:
    """Half of the forward's channels: a thread holds two windows and the sums of the weights."""
    if call.width <= 4:
        blocks = 5 if call.cu_seqlens is None else 4
        return Variant(_vector(4, call.x, dy, dx), unroll=8, blocks=blocks, longest=512, start=16)
    if call.width <= 8:
        return Variant(vector=1, unroll=8, blocks=4, longest=512, start=16)
    return Variant(vector=1, unroll=4, blocks=2, longest=512, start=16)


def _vector(most: int, *tensors: Tensor) -> int:
    """How many neighbours, of `most` bytes together, can be moved as one all over the tensors."""
    return min(_neighbours(tensor, most) for tensor in tensors)


def _neighbours(tensor: Tensor, most: int) -> int:
    numbers = most // tensor.element_size()
    if tensor.stride(2) != 1 and tensor.shape[2] > 1:
        return 1
    steps = [n for n, size in zip(tensor.stride()[:2], tensor.shape[:2], strict=True) if size > 1]
    while numbers > 1:
        aligned = tensor.data_ptr() % (numbers * tensor.element_size()) == 0
        if aligned and not any(n % numbers for n in (*steps, tensor.shape[2])):
            return numbers
        numbers //= 2
    return 1


class _Grid(NamedTuple):
    tile: int
    """Positions of one thread."""
    tiles: int
    """Tiles of a row."""
    blocks: int
    threads: int


def _grid(call: Conv, variant: Variant) -> _Grid:
    processors = torch.cuda.get_device_properties(call.x.device).multi_processor_count
    batch, length, channels = call.x.shape
    return _cut(batch, length, channels // variant.vector, processors, variant)


@functools.lru_cache(maxsize=4096)
def _cut(batch: int, length: int, columns: int, processors: int, variant: Variant) -> _Grid:
    """The tile with which waves of threads are over first; small blocks where there are few."""
    resident = processors * variant.blocks * _THREADS

    def duration(tile: int) -> int:
        waves = -(-batch * -(-length // tile) * columns // resident)
        return waves * (tile + variant.start)

    tile = min(range(2 * variant.unroll, variant.longest + 1, variant.unroll), key=duration)
    tiles = -(-length // tile)
    total, threads = batch * tiles * columns, _THREADS
    while threads > 32 and -(-total // threads) < 2 * processors:
        threads //= 2
    return _Grid(tile, tiles, -(-total // threads), threads)


def forward(call: Conv) -> tuple[Tensor, Tensor]:
    """Compute y and the final state; shapes as in `causal_conv1d`. Sums are float32."""
    x = call.x
    y = call.result()
    final = torch.empty(call.state_shape, dtype=x.dtype, device=x.device)
    variant = forward_variant(call, y)
    grid = _grid(call, variant)
    kernel = nvrtc.kernel(SOURCE, "causal_conv1d_forward", variant.macros(call), x.device)
    kernel.launch(
        (grid.blocks, 1, 1),
        grid.threads,
        (
            x,
            *_parameters(call),
            y,
            final,
            *x.shape,
            call.sequences,
            *x.stride(),
            *y.stride()[:2],
            int(call.reverse),
            grid.tile,
        ),
    )
    return y, final


def backward(call: Conv, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of every input; those of weight and bias tile by tile, then added in one order."""
    x = call.x
    dy = dy.to(x.dtype)
    if dy.stride(2) != 1:  # an expanded or a transposed gradient: rare, and slow to read as it is
        dy = dy.contiguous()
    dx = call.result()
    dinitial = None
    if call.initial_state is not None:
        dinitial = torch.empty(call.state_shape, dtype=torch.float32, device=x.device)
    variant = backward_variant(call, dy, dx)
    grid = _grid(call, variant)
    shape = (x.shape[0] * grid.tiles, call.width + 1, x.shape[2])
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    kernel = nvrtc.kernel(SOURCE, "causal_conv1d_backward", variant.macros(call), x.device)
    kernel.launch(
        (grid.blocks, 1, 1),
        grid.threads,
        (
            x,
            dy,
            *_parameters(call),
            _float32(dfinal),
            dx,
            dinitial,
            partial,
            *x.shape,
            call.sequences,
            *x.stride(),
            *dy.stride(),
            *dx.stride()[:2],
            int(call.reverse),
            grid.tile,
        ),
    )
    given = call.initial_state
    return Gradients(
        dx,
        *of_parameters(call, partial.sum(0)),
        None if given is None or dinitial is None else dinitial.to(given.dtype),
    )


def _parameters(call: Conv) -> tuple[Tensor | None, ...]:
    """Weight, bias, initial state and edges, as both kernels take them."""
    edges = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    given = (call.weight, call.bias, call.initial_state)
    return (*(None if tensor is None else _float32(tensor) for tensor in given), edges)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()
