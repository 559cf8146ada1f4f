"""Linear head and cross entropy on a GPU: times and memory, beside floors and torch's own.

    python -m benchmarks.loss_gpu [--out benchmarks/results/loss_gpu.json]

Medians of CUDA events after a warm-up, ours, then torch's, in one run; every size is far
above the L2 cache, or its rows would come from there. `extra` is the peak of forward + backward
beyond arguments and gradients: torch's own holds the logits in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conv_gpu import COPY_PER_S
from benchmarks.gpu_time import milliseconds, require_gpu
from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.kernels.linear_cross_entropy import linear_cross_entropy

MATRIX_PER_S = {torch.bfloat16: 690e12, torch.float32: 60e12}
"""Operations: bf16 measured on an H200, float32 without its matrix units as Nvidia states."""


class Shape(NamedTuple):
    """Sizes of one row of the table."""

    tokens: int
    width: int
    vocabulary: int
    dtype: torch.dtype = torch.bfloat16


SHAPES = [
    Shape(1 << 20, 256, 8),
    Shape(1 << 20, 256, 8, torch.float32),
    Shape(1 << 17, 256, 8),
    Shape(1 << 16, 768, 8),
    Shape(1 << 20, 256, 64),
    Shape(1 << 20, 256, 128),
    Shape(1 << 18, 256, 4096),
]


def inputs(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets, a tenth of them ignored."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*size: int) -> Tensor:
        found = torch.randn(size, generator=generator, device="cuda", dtype=torch.float32)
        return found.to(shape.dtype)

    targets = torch.randint(shape.vocabulary, (shape.tokens,), generator=generator, device="cuda")
    targets[::10] = -100
    weight = normal(shape.vocabulary, shape.width) / 16
    hidden = normal(shape.tokens, shape.width)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The same by our op and by torch's own."""
    return {
        "ours": lambda: linear_cross_entropy(hidden, weight, targets)[0],
        "torch": lambda: F.cross_entropy(F.linear(hidden, weight).float(), targets),
    }


def floors(shape: Shape) -> dict[str, float]:
    """Hidden states read; read again and their gradients written; or four matrix products."""
    size = shape.tokens * shape.width
    copied = size * shape.dtype.itemsize / COPY_PER_S
    product = 2 * size * shape.vocabulary / MATRIX_PER_S[shape.dtype]
    return {
        "forward_floor_ms": max(copied, product) * 1e3,
        "forward_backward_floor_ms": (max(copied, product) + max(2 * copied, 3 * product)) * 1e3,
    }


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Times and memory of one shape."""
    hidden, weight, targets = inputs(shape)
    found: dict[str, Any] = floors(shape)
    for name, loss in losses(hidden, weight, targets).items():

        def both(loss: Callable[[], Tensor] = loss) -> tuple[Tensor, ...]:
            return torch.autograd.grad(loss(), (hidden, weight))

        with torch.no_grad():
            forward = milliseconds(loss, rounds)
        times = milliseconds(both, rounds)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        results = both()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - base - sum(t.nbytes for t in results)
        found[name] = {
            "forward_ms": statistics.median(forward),
            "forward_backward_ms": statistics.median(times),
            "extra_mib": extra / (1 << 20),
            "forward_all_ms": forward,
            "forward_backward_all_ms": times,
        }
    return found


def main() -> None:
    """Measure every shape and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    require_gpu()
    rows = []
    for shape in SHAPES:
        row = measure(shape, options.rounds)
        dtype = str(shape.dtype).removeprefix("torch.")
        rows.append({"shape_TDV": shape[:3], "dtype": dtype, **row})
        torch.cuda.empty_cache()
        for name in ("ours", "torch"):
            figures = [f"{row[name][f'{key}_ms']:.3f}" for key in ("forward", "forward_backward")]
            memory = f"{row[name]['extra_mib']:.0f} MiB"
            print(shape[:3], dtype, name, *figures, memory, file=sys.stderr)
        lowest = (row["forward_floor_ms"], row["forward_backward_floor_ms"])
        print(shape[:3], dtype, "floor", *(f"{ms:.3f}" for ms in lowest), file=sys.stderr)
    what = "linear head + cross entropy on a GPU, forward and forward + backward; medians"
    result = {"what": what, **describe(), "results": rows}
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
