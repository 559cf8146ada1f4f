"""The Mamba-2 block on a GPU: milliseconds, memory, floors and parts.

    python -m benchmarks.mamba2_block_gpu [--out benchmarks/results/mamba2_block_gpu.json]

bf16 projections, E = 2M, heads of 64 channels, one group, N 128, K 4, Mamba-2's initial steps.
Medians of CUDA events. `peak` is all that is allocated at the worst moment of forward + backward,
x, y and their gradients included. Variants keep more or less for the backward; `composed` is the
public operators under autograd. `--piece-mib` measures all of them at other sizes of a piece,
`--profile` says which kernels a forward + backward runs and how long they take together.

Floors of forward + backward: what the kernels must read and write (`bytes_ms`), matrix work of the
projections and of SSD (`products_floor_ms`), and exponentials (`ex2_ms`: SiLU of convolution and
gate, twice each, and the decays within the chunks of SSD); nothing computed again counts. `ssd_ms`,
`conv_ms`, `norm_ms` and `products_ms` are the parts alone, measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import ssd_gpu
from benchmarks.gpu_time import graphed, listed, milliseconds, python_milliseconds, require_gpu
from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.kernels.causal_conv1d import causal_conv1d
from dnassm.kernels.mamba2_inner import mamba2_inner
from dnassm.kernels.mamba2_inner.arguments import KEEP, PIECE_BYTES
from dnassm.kernels.norm import norm
from dnassm.kernels.ssd import ssd

Shape = tuple[int, int, int]

SHAPES: list[Shape] = [(1, 256, 1 << 20), (8, 768, 1 << 13), (1, 256, 1 << 17)]
STATES, TAPS, HEAD = 128, 4, 64
# mamba_ssm 2.3.2 on an H200, forward + backward in ms and peak in GiB, measured once.
PEER = dict(zip(SHAPES, [(49.9, 18.5), (8.77, 3.10), (None, None)], strict=True))
COPY_PER_S, PRODUCT_PER_S, EX2_PER_S = 4.24e12, 690e12, 4.18e12  # of an H200, measured
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "all kept": {"keep": tuple(KEEP)},
    "all but the projection": {"keep": ("convolved", "scan", "normed")},
    "scan kept": {"keep": ("scan",)},
    "nothing kept": {"keep": ()},
    "composed": {"fused": False},
}


def inputs(batch: int, width: int, length: int) -> dict[str, Tensor]:
    """Leaves of autograd by name, as a block is initialised and as autocast casts them."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        found = torch.randn(shape, generator=generator, device="cuda", dtype=dtype)
        return found.div_(shape[-1] ** 0.5)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(heads, generator=generator, device="cuda") * (high - low) + low

    inner, heads = 2 * width, 2 * width // HEAD
    convolved = inner + 2 * STATES
    step = torch.exp(uniform(-6.9, -2.3))
    found = {
        "x": normal(batch, length, width).mul_(width**0.5),
        "in_weight": normal(inner + convolved + heads, width),
        "conv_weight": normal(convolved, TAPS, dtype=torch.float32),
        "A": uniform(-16, -1),
        "norm_weight": torch.ones(inner, device="cuda"),
        "out_weight": normal(width, inner),
        "conv_bias": torch.zeros(convolved, device="cuda"),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
        "D": torch.ones(heads, device="cuda"),
    }
    return {name: tensor.requires_grad_() for name, tensor in found.items()}


def median(call: Callable[[], object], rounds: int) -> float:
    """Milliseconds of a call."""
    return statistics.median(milliseconds(call, rounds))


def measure(shape: Shape, how: dict[str, Any], rounds: int) -> dict[str, float]:
    """Times and memory of one shape in one variant."""
    given: dict[str, Any] = inputs(*shape)
    wanted = list(given.values())
    dy = torch.randn_like(given["x"])

    def both() -> tuple[Tensor, ...]:
        y = mamba2_inner(**given, **how)
        return (y, *torch.autograd.grad(y, wanted, dy))

    with torch.no_grad():
        forward = median(lambda: mamba2_inner(**given, **how), rounds)
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


def as_graph(shape: Shape, rounds: int) -> float:
    """Milliseconds of forward + backward as a CUDA graph."""
    given: dict[str, Any] = inputs(*shape)
    wanted, dy = list(given.values()), torch.randn_like(given["x"])
    replay = graphed(lambda: torch.autograd.grad(mamba2_inner(**given), wanted, dy))
    return median(replay, rounds)


def profiled(shape: Shape, how: dict[str, Any]) -> str:
    """The kernels of a forward + backward, those that take longest first, and their sum."""
    given: dict[str, Any] = inputs(*shape)
    wanted, dy = list(given.values()), torch.randn_like(given["x"])

    def both() -> None:
        torch.autograd.grad(mamba2_inner(**given, **how), wanted, dy)

    return listed(str(shape), both)


def differentiated(call: Callable[[], Tensor], wanted: list[Tensor], rounds: int) -> float:
    """Milliseconds of forward + backward."""
    dy = torch.randn_like(call())
    return median(lambda: torch.autograd.grad(call(), wanted, dy), rounds)


def parts(shape: Shape, rounds: int) -> dict[str, float]:
    """SSD, convolution, norm and matrix products alone, on slices as in the block."""
    batch, width, length = shape
    given = inputs(1, width, 1)
    weights = (given["in_weight"], given["out_weight"])
    return {
        "ssd_ms": ssd_alone(shape, rounds),
        **conv_and_norm_alone(shape, given, rounds),
        "products_ms": sum(products(batch * length, weight, rounds) for weight in weights),
    }


def ssd_alone(shape: Shape, rounds: int) -> float:
    """Milliseconds of SSD."""
    batch, width, length = shape
    found: Any = ssd_gpu.inputs(batch, length, 2 * width // HEAD, HEAD, STATES)
    given = {name: tensor.detach().requires_grad_() for name, tensor in found.items()}
    return differentiated(lambda: ssd(**given), list(given.values()), rounds)


def conv_and_norm_alone(shape: Shape, given: dict[str, Tensor], rounds: int) -> dict[str, float]:
    """Milliseconds of both, on slices of one projection."""
    batch, width, length = shape
    inner = 2 * width
    like = {"device": "cuda", "dtype": torch.bfloat16}
    projected = torch.randn(batch, length, len(given["in_weight"]), **like)
    widths = [inner, inner + 2 * STATES, inner // HEAD]
    gate, before, _ = (part.detach().requires_grad_() for part in projected.split(widths, dim=2))
    y = torch.randn(batch, length, inner, **like).requires_grad_()
    taps, weight = (given["conv_weight"], given["conv_bias"]), given["norm_weight"]
    return {
        "conv_ms": differentiated(
            lambda: causal_conv1d(before, *taps, silu=True), [before, *taps], rounds
        ),
        "norm_ms": differentiated(lambda: norm(y, weight, gate=gate), [y, weight, gate], rounds),
    }


@torch.no_grad()
def products(positions: int, weight: Tensor, rounds: int) -> float:
    """Milliseconds of a projection, forward and backward to its input and to its weight."""
    x, dy = (
        torch.randn(positions, size, device="cuda", dtype=weight.dtype)
        for size in reversed(weight.shape)
    )
    return median(lambda: (x @ weight.t(), dy @ weight, dy.t() @ x), rounds)


def floors(shape: Shape) -> dict[str, float]:
    """Milliseconds of forward + backward that bytes, products and exponentials alone take."""
    batch, width, length = shape
    positions, inner, heads = batch * length, 2 * width, 2 * width // HEAD
    convolved = inner + 2 * STATES
    # In bf16, of widths M, E, W = E + 2N and H, forward: projection 2M + 2E + 2W + 2H, convolution
    # 4W, SSD 2W + 2H + 2E, norm 6E, out 2E + 2M. Backward: out 4M + 4E, norm 10E, SSD 4W + 4H + 2E,
    # convolution 6W, projection 4M + 4E + 4W + 4H.
    moved = positions * (12 * width + 32 * inner + 22 * convolved + 12 * heads)
    weights = width * (2 * inner + convolved + heads)
    of_ssd = ssd_gpu.floors((batch, length, heads, HEAD, STATES))
    exponentials = positions * (4 * convolved + 4 * inner + 2 * heads * ssd_gpu.CHUNK)
    return {
        "bytes_ms": moved / COPY_PER_S * 1e3,
        "products_floor_ms": 3 * 2 * positions * weights / PRODUCT_PER_S * 1e3
        + of_ssd["forward_flops_ms"]
        + of_ssd["backward_flops_ms"],
        "ex2_ms": exponentials / EX2_PER_S * 1e3,
    }


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--rounds", type=int, default=10)
    numbers = range(len(SHAPES))
    parser.add_argument("--shapes", type=int, nargs="+", choices=numbers, default=[*numbers])
    parser.add_argument("--profile", action="store_true", help="list the kernels, and no more")
    parser.add_argument(
        "--only", choices=list(VARIANTS), nargs="+", help="variants; all if missing"
    )
    parser.add_argument("--piece-mib", type=int, nargs="+", default=[PIECE_BYTES["cuda"] >> 20])
    return parser.parse_args()


def main() -> None:
    """Measure every row and write them down."""
    options = arguments()
    require_gpu()
    shapes = [SHAPES[number] for number in options.shapes]
    if options.profile:
        for shape, variant in itertools.product(shapes, options.only or [""]):
            print(profiled(shape, VARIANTS[variant]))
        return
    header = {"what": "Mamba-2 block on a GPU, bf16, medians", **describe()}
    rows = []
    for shape in shapes:
        shared = {**floors(shape), **parts(shape, options.rounds)}
        print(shape, {k: round(v, 3) for k, v in shared.items()}, file=sys.stderr)
        peer = dict(zip(("peer_forward_backward_ms", "peer_peak_gib"), PEER[shape], strict=True))
        for mib in options.piece_mib:
            PIECE_BYTES["cuda"] = mib << 20
            for variant in options.only or VARIANTS:
                torch.cuda.empty_cache()
                row = measure(shape, VARIANTS[variant], options.rounds)
                name = {"shape_BML": shape, "variant": variant, "piece_mib": mib}
                rows.append({**name, **row, **peer, **shared})
                print(*name.values(), {k: round(v, 3) for k, v in row.items()}, file=sys.stderr)
    for row in rows:  # after all peaks: a graph has a workspace of its own
        if row["variant"] == "":
            row["graph_ms"] = as_graph(row["shape_BML"], options.rounds)
    result = {**header, "block": rows}
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
