"""The Mamba block on CPU beside its parts: the scan and the matrix products, forward + backward.

    python -m benchmarks.mamba_block_cpu [--out benchmarks/results/mamba_block_cpu.json]

float32, E = 2M, N 16, R = M/16, K 4. In every round each contender runs once, so that a load that
comes and goes hits all of them. `products` are the four projections on tensors of the block's
sizes, each forward once and backward twice (to its input and to its weight); `over_parts` is the
block over scan + products, asked to be at most 1.3: the median of the ratios round by round.
`composed` is the block as public operators under autograd.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.kernels.mamba_inner import Walk, mamba_inner
from dnassm.kernels.mamba_inner.arguments import TENSORS
from dnassm.kernels.selective_scan import selective_scan

SHAPES = [(1, 256, 16384), (1, 256, 1024), (8, 256, 1024)]
STATES, TAPS = 16, 4


def inputs(batch: int, width: int, length: int) -> tuple[list[Tensor], Walk]:
    """x, weights in and out, and the walk of a block near its initialisation."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    inner, rank = 2 * width, -(-width // 16)
    step = torch.exp(torch.rand(inner, generator=generator) * 4.6 - 6.9)
    walk = Walk(
        conv_weight=normal(inner, TAPS),
        x_weight=normal(rank + 2 * STATES, inner),
        dt_weight=normal(inner, rank),
        A=-torch.arange(1.0, STATES + 1).repeat(inner, 1),
        conv_bias=torch.zeros(inner),
        dt_bias=step + torch.log(-torch.expm1(-step)),
        D=torch.ones(inner),
    )
    x = torch.randn((batch, length, width), generator=generator)
    return [x, normal(2 * inner, width), normal(width, inner)], walk


def leaves(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The same as leaves of autograd."""
    return [None if t is None else t.detach().requires_grad_() for t in tensors]


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def block(shared: list[Tensor], walk: Walk, *, fused: bool) -> float:
    """Forward and backward of the block."""
    given: Any = leaves(shared)
    learned: Any = leaves(getattr(walk, name) for name in TENSORS)
    dy = torch.ones(*shared[0].shape[:2], shared[2].shape[0])
    return timed(lambda: mamba_inner(*given, Walk(*learned), fused=fused).backward(dy))


def scan(shared: list[Tensor], walk: Walk) -> float:
    """Forward and backward of a scan of the block's sizes, on slices as there."""
    x, in_weight, out_weight = shared
    rows, inner = x.shape[:2], out_weight.shape[1]
    xz, u, dt = (torch.randn(*rows, width) for width in (in_weight.shape[0], inner, inner))
    B, C = torch.randn(*rows, walk.x_weight.shape[0])[..., -2 * STATES :].chunk(2, dim=-1)
    given: Any = leaves((u, dt / 2, walk.A, B.unsqueeze(2), C.unsqueeze(2)))
    D, z, bias = leaves((walk.D, xz[..., inner:], walk.dt_bias))
    dy = torch.ones_like(u)
    return timed(lambda: selective_scan(*given, D=D, z=z, dt_bias=bias).backward(dy))


def products(shared: list[Tensor], walk: Walk) -> float:
    """The projections forward, and backward to inputs and to weights."""
    positions = shared[0].shape[0] * shared[0].shape[1]
    weights = (shared[1], walk.x_weight, walk.dt_weight, shared[2])
    pairs = [
        (torch.randn(positions, w.shape[1]), torch.randn(positions, w.shape[0])) for w in weights
    ]

    def run() -> None:
        for weight, (x, _) in zip(weights, pairs, strict=True):
            x @ weight.t()
        for weight, (x, dy) in zip(weights, pairs, strict=True):
            dy @ weight
            dy.t() @ x

    return timed(run)


def race(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Medians of every contender, and of the ratios of a round."""
    shared, walk = inputs(*shape)
    contenders: dict[str, Callable[[], float]] = {
        "block": lambda: block(shared, walk, fused=True),
        "composed": lambda: block(shared, walk, fused=False),
        "scan": lambda: scan(shared, walk),
        "products": lambda: products(shared, walk),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            seconds = contender()
            if turn:  # the first round warms caches and threads
                times[name].append(seconds)
    ratios = [
        b / (s + p)
        for b, s, p in zip(times["block"], times["scan"], times["products"], strict=True)
    ]
    row = {f"{name}_ms": round(statistics.median(found) * 1e3, 2) for name, found in times.items()}
    best = min(times["block"]) / (min(times["scan"]) + min(times["products"]))
    row |= {
        "over_parts": round(statistics.median(ratios), 3),
        "best_over_best_parts": round(best, 3),
    }
    print(shape, row, file=sys.stderr)
    return {"shape_BML": list(shape), **row, "over_parts_by_round": [round(r, 3) for r in ratios]}


def main() -> None:
    """Measure, write or print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    options = parser.parse_args()
    shapes = [(1, 32, 256)] if options.quick else SHAPES
    result = {
        "what": "Mamba block on CPU, float32, forward + backward, medians; asked: over_parts 1.3",
        **describe(),
        "results": [race(shape, options.rounds) for shape in shapes],
    }
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
