"""Causal convolution on a GPU: milliseconds and memory of forward and backward, beside the floors.

    python -m benchmarks.conv_gpu [--out benchmarks/results/conv_gpu.json]

bf16, width 4, bias and SiLU. x is the left half of a projection twice as wide, as a Mamba block
leaves it. Medians of CUDA events after a warm-up; every size is far above the L2 cache, or its rows
would come from there. `extra` is the peak of forward + backward beyond x, y, dy and the gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_time import milliseconds, require_gpu
from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.kernels.causal_conv1d import causal_conv1d

WIDTH = 4
SHAPES = [
    (1, 512, 1 << 20),
    (1, 256, 1 << 20),
    (1, 512, 1 << 17),
    (1, 2048, 1 << 17),
    (8, 1536, 1 << 13),
    (64, 512, 1 << 10),
    (1, 512, 1 << 10),
]
# causal-conv1d at the first shape, forward and forward + backward, measured once on an H200.
PEER_MS = (0.967, 2.80)
COPY_PER_S = 4.24e12  # bytes read and written by a device copy on an H200, measured
FORWARD_BYTES, BACKWARD_BYTES = 4, 6
"""Per number in bf16: read x, write y; read x and dy, write dx."""


def inputs(batch: int, channels: int, length: int) -> dict[str, Tensor]:
    """Tensors as a Mamba block has them."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    x, _ = normal(batch, length, 2 * channels, dtype=torch.bfloat16).chunk(2, dim=2)
    return {"x": x, "weight": normal(channels, WIDTH) / 2, "bias": normal(channels)}


def measure(
    shape: tuple[int, int, int], how: dict[str, Any], rounds: int
) -> dict[str, float | list[float]]:
    """Times and memory of one shape."""
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs(*shape).items()}
    wanted = list(leaves.values())
    dy = torch.randn(leaves["x"].shape, device="cuda", dtype=torch.bfloat16)

    def both() -> tuple[Tensor, ...]:
        y = causal_conv1d(**leaves, silu=True, **how)
        return (y, *torch.autograd.grad(y, wanted, dy))

    with torch.no_grad():
        forward = milliseconds(lambda: causal_conv1d(**leaves, silu=True, **how), rounds)
    forward_backward = milliseconds(both, rounds)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    results = both()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - base - sum(t.nbytes for t in results)
    numbers = leaves["x"].numel()
    return {
        "forward_ms": statistics.median(forward),
        "forward_backward_ms": statistics.median(forward_backward),
        "forward_floor_ms": FORWARD_BYTES * numbers / COPY_PER_S * 1e3,
        "forward_backward_floor_ms": (FORWARD_BYTES + BACKWARD_BYTES) * numbers / COPY_PER_S * 1e3,
        "extra_mib": extra / (1 << 20),
        "forward_all_ms": forward,
        "forward_backward_all_ms": forward_backward,
    }


def variants(length: int) -> dict[str, dict[str, Any]]:
    """Name -> options of the first shape: packed sequences cost a look at their edges."""
    edges = torch.arange(0, length + 1, 4096, device="cuda", dtype=torch.int32)
    short = torch.arange(0, length + 1, 128, device="cuda", dtype=torch.int32)
    return {
        "reverse": {"reverse": True},
        "packed, 4096 each": {"cu_seqlens": edges},
        "packed, 128 each": {"cu_seqlens": short},
    }


def main() -> None:
    """Measure every shape and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--backend", default="cuda")
    options = parser.parse_args()
    require_gpu()
    header = {"what": "causal convolution on a GPU, bf16, width 4, SiLU; medians", **describe()}
    small, started = inputs(1, 512, 64), time.perf_counter()
    leaf = small["x"].detach().requires_grad_()
    y = causal_conv1d(leaf, small["weight"], small["bias"], silu=True, backend=options.backend)
    y.sum().backward()
    torch.cuda.synchronize()
    first_call_s = time.perf_counter() - started
    jobs = [(shape, "", {}) for shape in SHAPES]
    jobs += [(SHAPES[0], name, how) for name, how in variants(SHAPES[0][2]).items()]
    rows = []
    for shape, name, how in jobs:
        row = measure(shape, {"backend": options.backend, **how}, options.rounds)
        rows.append({"shape_BDL": shape, "variant": name, **row})
        torch.cuda.empty_cache()
        times = (row[f"{key}_ms"] for key in ("forward", "forward_backward", "forward_floor"))
        figures = (*(f"{value:.3f}" for value in times), f"{row['extra_mib']:.0f} MiB")
        print(shape, name, *figures, file=sys.stderr)
    peer = dict(zip(("peer_forward_ms", "peer_forward_backward_ms"), PEER_MS, strict=True))
    rows[0].update(peer)
    result = {
        **header,
        "backend": options.backend,
        "first_call_forward_backward_s": first_call_s,
        "results": rows,
    }
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
