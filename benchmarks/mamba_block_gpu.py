"""The Mamba block and the generation step on a GPU: milliseconds, memory, floors and parts.

    python -m benchmarks.mamba_block_gpu [--out benchmarks/results/mamba_block_gpu.json]

Block: bf16 projections, E = 2M, N 16, R = M/16, K 4, Mamba's initial steps. Medians of CUDA events.
`peak` is all that is allocated at the worst moment of forward + backward, x, y and their gradients
included. `python_ms`: what Python takes for such a call; `graph_ms`: what the GPU takes where it is
a CUDA graph. Variants keep more or less for the backward; `composed` is the public operators under
autograd; `--pieces` cuts the backward otherwise than by default, for several choices of what is
kept; `--profile` says which kernels a forward + backward runs and how long they take together.
Floors of forward + backward: what the kernels must read and write (`bytes_ms`), matrix work
(`products_floor_ms`) and exponentials of the scan (`ex2_ms`); nothing computed again counts.
`scan_ms`, `conv_ms` and `products_ms` are the parts alone, measured in the same run.

Step: a model of 8 Mamba layers, M 256, one token per sequence: `graph_us` by a CUDA graph,
`plain_us` what Python takes without one, `kernels` of one replay; the floor moves weights and
states.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_time import (
    graphed,
    kernels,
    listed,
    milliseconds,
    python_milliseconds,
    require_gpu,
)
from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.config import ModelConfig
from dnassm.generation import Stepper
from dnassm.kernels.causal_conv1d import causal_conv1d
from dnassm.kernels.mamba_inner import Walk, arguments, mamba_inner
from dnassm.kernels.mamba_inner.arguments import KEEP
from dnassm.kernels.selective_scan import selective_scan
from dnassm.model import DNAModel

SHAPES = [(1, 256, 1 << 20), (1, 256, 1 << 17), (8, 768, 1 << 13)]
STATES, TAPS = 16, 4
# mamba_ssm 2.3.2 on an H200, forward + backward in ms and peak in GiB, measured once.
PEER = dict(zip(SHAPES, [(84.4, 12.6), (10.3, 1.83), (12.2, 2.55)], strict=True))
COPY_PER_S, PRODUCT_PER_S, EX2_PER_S = 4.24e12, 690e12, 4.18e12  # of an H200, measured
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "all kept": {"keep": KEEP},
    "u, x_dbl, scan kept": {"keep": ("u", "x_dbl", "scan")},
    "xz, x_dbl, scan kept": {"keep": ("xz", "x_dbl", "scan")},
    "y, x_dbl, scan kept": {"keep": ("y", "x_dbl", "scan")},
    "u, y, x_dbl, scan kept": {"keep": ("u", "y", "x_dbl", "scan")},
    "x_dbl, scan kept": {"keep": ("x_dbl", "scan")},
    "nothing kept": {"keep": ()},
    "composed": {"fused": False},
}
IN_PIECES = [name for name in VARIANTS if name not in ("nothing kept", "composed")]
LAYERS, WIDTH, BATCHES = 8, 256, [1, 16, 64, 256]
_REPLAYS = 200


def inputs(batch: int, width: int, length: int) -> tuple[list[Tensor], Walk]:
    """Leaves of autograd: x, weights in and out, and the walk of a block as it is initialised."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        found = torch.randn(shape, generator=generator, device="cuda", dtype=dtype)
        return found.div_(shape[-1] ** 0.5)

    inner, rank = 2 * width, -(-width // 16)
    share = torch.rand(inner, generator=generator, device="cuda").sort().values  # as the mixer
    step = torch.exp(share * 4.6 - 6.9)
    walk = Walk(
        conv_weight=normal(inner, TAPS, dtype=torch.float32),
        x_weight=normal(rank + 2 * STATES, inner),
        dt_weight=normal(inner, rank),
        A=-torch.arange(1.0, STATES + 1, device="cuda").repeat(inner, 1),
        conv_bias=torch.zeros(inner, device="cuda"),
        dt_bias=step + torch.log(-torch.expm1(-step)),
        D=torch.ones(inner, device="cuda"),
    )
    x = torch.randn(
        (batch, length, width), generator=generator, device="cuda", dtype=torch.bfloat16
    )
    shared = [x, normal(2 * inner, width), normal(width, inner)]
    for tensor in (*shared, *walk.tensors().values()):
        if tensor is not None:
            tensor.requires_grad_()
    return shared, walk


def median(call: Callable[[], object], rounds: int) -> float:
    """Milliseconds of a call."""
    return statistics.median(milliseconds(call, rounds))


def leaves_of(shared: list[Tensor], walk: Walk) -> list[Tensor]:
    """What gradients are asked of."""
    return [*shared, *(tensor for tensor in walk.tensors().values() if tensor is not None)]


def measure(shape: tuple[int, int, int], how: dict[str, Any], rounds: int) -> dict[str, float]:
    """Times and memory of one shape in one variant."""
    shared, walk = inputs(*shape)
    wanted = leaves_of(shared, walk)
    dy = torch.randn_like(shared[0])

    def both() -> tuple[Tensor, ...]:
        y = mamba_inner(*shared, walk, **how)
        return (y, *torch.autograd.grad(y, wanted, dy))

    with torch.no_grad():
        forward = median(lambda: mamba_inner(*shared, walk, **how), rounds)
    forward_backward = median(both, rounds)
    python = python_milliseconds(both, rounds)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    results = both()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del results
    return {
        "forward_ms": forward,
        "forward_backward_ms": forward_backward,
        "python_ms": python,
        "peak_gib": peak / (1 << 30),
    }


def as_graph(shape: tuple[int, int, int], rounds: int) -> float:
    """Milliseconds of forward + backward as a CUDA graph."""
    shared, walk = inputs(*shape)
    wanted, dy = leaves_of(shared, walk), torch.randn_like(shared[0])
    replay = graphed(lambda: torch.autograd.grad(mamba_inner(*shared, walk), wanted, dy))
    return median(replay, rounds)


def in_pieces(
    shape: tuple[int, int, int], mib: int, how: dict[str, Any], rounds: int
) -> dict[str, float]:
    """As `measure`, in pieces of the backward whose tensors (rows, T, E) take at most so much."""
    before = arguments.PIECE_BYTES["cuda"], arguments.WHOLE_BYTES
    torch.cuda.empty_cache()
    try:
        arguments.PIECE_BYTES["cuda"], arguments.WHOLE_BYTES = mib << 20, 1 << 60
        return measure(shape, how, rounds)
    finally:
        arguments.PIECE_BYTES["cuda"], arguments.WHOLE_BYTES = before


def profiled(shape: tuple[int, int, int]) -> str:
    """The kernels of a forward + backward, those that take longest first, and their sum."""
    shared, walk = inputs(*shape)
    wanted, dy = leaves_of(shared, walk), torch.randn_like(shared[0])

    def both() -> None:
        torch.autograd.grad(mamba_inner(*shared, walk), wanted, dy)

    return listed(str(shape), both)


def differentiated(call: Callable[[], Tensor], wanted: list[Tensor], rounds: int) -> float:
    """Milliseconds of forward + backward."""
    dy = torch.ones_like(call())
    return median(lambda: torch.autograd.grad(call(), wanted, dy), rounds)


def parts(shape: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """The scan, the convolution and the matrix products alone, on slices as in the block."""
    batch, width, length = shape
    shared, walk = inputs(*shape)
    inner = 2 * width
    like = {"device": "cuda", "dtype": torch.bfloat16}
    before, z = torch.randn(batch, length, 2 * inner, **like).chunk(2, dim=2)
    u, dt = (torch.randn(batch, length, inner, **like) / 2 for _ in range(2))
    maps = torch.randn(batch, length, walk.x_weight.shape[0], **like)[..., -2 * STATES :]
    B, C = (half.unsqueeze(2) for half in maps.chunk(2, dim=2))
    along = [t.detach().requires_grad_() for t in (u, dt, B, C, z)]
    of_scan: Any = {"A": walk.A, "D": walk.D, "dt_bias": walk.dt_bias}
    x, step, B, C, gate = along

    def scan() -> Tensor:
        return selective_scan(x, step, B=B, C=C, z=gate, **of_scan)

    found = {"scan_ms": differentiated(scan, [*along, *of_scan.values()], rounds)}
    of_conv: Any = [walk.conv_weight, walk.conv_bias]
    raw = before.detach().requires_grad_()
    found["conv_ms"] = differentiated(
        lambda: causal_conv1d(raw, *of_conv, silu=True), [raw, *of_conv], rounds
    )
    weights = [shared[1], walk.x_weight, walk.dt_weight, shared[2]]
    with torch.no_grad():
        found["products_ms"] = sum(
            median(lambda w=weight: product(batch * length, w), rounds)  # type: ignore[misc]
            for weight in weights
        )
    return found


_PAIRS: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}


def product(positions: int, weight: Tensor) -> None:
    """A projection forward, and backward to its input and to its weight."""
    rows, columns = weight.shape
    key = (positions, rows, columns)
    if key not in _PAIRS:
        _PAIRS.clear()
        like = {"device": "cuda", "dtype": weight.dtype}
        x, dy = (torch.randn(positions, width, **like) for width in (columns, rows))
        _PAIRS[key] = (x, dy)
    x, dy = _PAIRS[key]
    x @ weight.t()
    dy @ weight
    dy.t() @ x


def floors(shape: tuple[int, int, int]) -> dict[str, float]:
    """Milliseconds of forward + backward that bytes, products and exponentials alone take."""
    batch, width, length = shape
    positions, inner, rank = batch * length, 2 * width, -(-width // 16)
    # In bf16, forward: projection in (2M + 4E), convolution 4E, into x_dbl 2E, dt 2E, scan 8E, out
    # (2E + 2M). Backward: out (4M + 4E), scan 14E, dt 4E, x_dbl 6E, convolution 6E, in (4M + 8E).
    moved = positions * (12 * width + 64 * inner)
    weights = 3 * width * inner + inner * (rank + 2 * STATES) + rank * inner
    exponentials = positions * inner * ((STATES + 4) + (3 * STATES + 9))
    return {
        "bytes_ms": moved / COPY_PER_S * 1e3,
        "products_floor_ms": 3 * 2 * positions * weights / PRODUCT_PER_S * 1e3,
        "ex2_ms": exponentials / EX2_PER_S * 1e3,
    }


@torch.no_grad()
def step(batch: int, dtype: torch.dtype | None, rounds: int) -> dict[str, Any]:
    """Microseconds of one token for every sequence."""
    torch.manual_seed(0)
    model = DNAModel(ModelConfig(d_model=WIDTH, pattern="m" * LAYERS)).cuda().eval()
    tokens = torch.randint(4, (batch,), device="cuda")
    captured = Stepper(model, batch, dtype=dtype)
    plain = Stepper(model, batch, dtype=dtype, graph=False)

    def replays() -> None:
        for _ in range(_REPLAYS):
            captured.step(tokens)

    times = {
        "graph_us": median(replays, rounds) / _REPLAYS * 1e3,
        "plain_us": python_milliseconds(lambda: plain.step(tokens), 10 * rounds) * 1e3,
    }
    moved = sum(p.nbytes for p in captured.model.parameters())
    moved += 2 * sum(tensor.nbytes for part in captured.state for tensor in part)
    return {
        "batch": batch,
        "dtype": str(dtype or torch.float32).removeprefix("torch."),
        **times,
        "kernels": len(kernels(lambda: captured.step(tokens))),
        "floor_us": moved / COPY_PER_S * 1e6,
    }


def of_shape(
    shape: tuple[int, int, int], pieces: list[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each variant of a block, and for those in pieces of so many MiB."""
    shared = {**floors(shape), **parts(shape, rounds)}
    print(shape, {k: round(v, 3) for k, v in shared.items()}, file=sys.stderr)
    _PAIRS.clear()
    peer = dict(zip(("peer_forward_backward_ms", "peer_peak_gib"), PEER[shape], strict=True))
    for variant, how in VARIANTS.items():
        torch.cuda.empty_cache()
        row = measure(shape, how, rounds)
        print(shape, variant, {k: round(v, 3) for k, v in row.items()}, file=sys.stderr)
        yield {"shape_BML": shape, "variant": variant, **row, **peer, **shared}
    for mib, kept in itertools.product(pieces, IN_PIECES):
        row = in_pieces(shape, mib, VARIANTS[kept], rounds)
        variant = ", ".join(filter(None, (f"pieces of {mib} MiB", kept)))
        print(shape, variant, {k: round(v, 3) for k, v in row.items()}, file=sys.stderr)
        yield {"shape_BML": shape, "variant": variant, **row}


def main() -> None:
    """Measure every row and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=["block", "step"], help="one half of it")
    parser.add_argument("--pieces", type=int, nargs="*", default=[], help="MiB of a piece")
    numbers = range(len(SHAPES))
    parser.add_argument("--shapes", type=int, nargs="+", choices=numbers, default=[*numbers])
    parser.add_argument("--profile", action="store_true", help="list the kernels, and no more")
    options = parser.parse_args()
    require_gpu()
    shapes = [SHAPES[number] for number in options.shapes]
    if options.profile:
        for shape in shapes:
            print(profiled(shape))
        return
    header = {"what": "Mamba block and generation step on a GPU, bf16, medians", **describe()}
    wanted = [] if options.only == "step" else shapes
    blocks = [row for shape in wanted for row in of_shape(shape, options.pieces, options.rounds)]
    for row in blocks:  # after all peaks: a graph has a workspace of its own
        if row["variant"] == "":
            row["graph_ms"] = as_graph(row["shape_BML"], options.rounds)
    steps = []
    for batch in [] if options.only == "block" else BATCHES:
        for dtype in (torch.bfloat16, None):
            steps.append(step(batch, dtype, options.rounds))
            print(steps[-1], file=sys.stderr)
    result = {**header, "block": blocks, "step": steps}
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
