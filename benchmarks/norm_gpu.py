"""Norms on a GPU: milliseconds and memory of forward and backward, beside floors and torch's own.

    python -m benchmarks.norm_gpu [--out benchmarks/results/norm_gpu.json]

bf16 with a float32 residual stream. Medians of CUDA events after a warm-up, ours, then torch's,
in one run; every size is far above the L2 cache, or its rows would come from there. `extra`
is the peak of forward + backward beyond arguments, results and gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conv_gpu import COPY_PER_S
from benchmarks.gpu_time import milliseconds, require_gpu
from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.kernels.norm import add_norm, norm

SHAPES = [(1, 1 << 20, 256), (1, 1 << 17, 256), (8, 1 << 13, 768), (1, 1 << 17, 2048)]
KINDS = ("residual", "residual, layer", "gate")
FLOORS = {"residual": (12, 16), "residual, layer": (12, 16), "gate": (6, 10)}
"""Bytes per number, forward and backward: each of x, the stream, y, their gradients once."""

Call = Callable[[], tuple[Tensor, ...]]


def inputs(kind: str, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Tensors as a block has them; x of the gated norm is the output of a scan."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, generator=generator, device="cuda", dtype=dtype).requires_grad_()

    given = {"x": normal(*shape, dtype=torch.bfloat16), "weight": normal(shape[-1])}
    if kind == "gate":
        return {**given, "gate": normal(*shape, dtype=torch.bfloat16)}
    given["residual"] = normal(*shape)
    return given if kind == "residual" else {**given, "bias": normal(shape[-1])}


def calls(kind: str, given: dict[str, Tensor]) -> dict[str, Call]:
    """The same by our op and by torch's own."""
    x, weight, shape = given["x"], given["weight"], (given["x"].shape[-1],)
    if kind == "gate":
        gate = given["gate"]
        return {
            "ours": lambda: (norm(x, weight, gate=gate),),
            "torch": lambda: (F.rms_norm(x * F.silu(gate), shape, weight.to(x.dtype), 1e-5),),
        }
    residual, bias = given["residual"], given.get("bias")

    def torchs() -> tuple[Tensor, ...]:
        total = residual + x
        if bias is None:
            return F.rms_norm(total, shape, weight, 1e-5).to(x.dtype), total
        return F.layer_norm(total, shape, weight, bias, 1e-5).to(x.dtype), total

    how = "rms" if bias is None else "layer"
    return {"ours": lambda: add_norm(x, residual, weight, bias, kind=how), "torch": torchs}


def both(call: Call, leaves: Sequence[Tensor], gradients: Sequence[Tensor]) -> Call:
    """Forward and backward."""

    def run() -> tuple[Tensor, ...]:
        results = call()
        return (*results, *torch.autograd.grad(results, leaves, gradients))

    return run


def extra_bytes(call: Call) -> int:
    """Peak of one call beyond what it returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    results = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - base - sum(t.nbytes for t in results)


def measure(kind: str, shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Times and memory of one shape."""
    given = inputs(kind, shape)
    leaves, numbers = list(given.values()), given["x"].numel()
    forward_bytes, backward_bytes = FLOORS[kind]
    found: dict[str, Any] = {
        "forward_floor_ms": forward_bytes * numbers / COPY_PER_S * 1e3,
        "forward_backward_floor_ms": (forward_bytes + backward_bytes) * numbers / COPY_PER_S * 1e3,
    }
    for name, call in calls(kind, given).items():
        gradients = [torch.randn_like(result) for result in call()]
        step = both(call, leaves, gradients)
        with torch.no_grad():
            forward = milliseconds(call, rounds)
        times = milliseconds(step, rounds)
        found[name] = {
            "forward_ms": statistics.median(forward),
            "forward_backward_ms": statistics.median(times),
            "extra_mib": extra_bytes(step) / (1 << 20),
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
        for kind in KINDS:
            row = measure(kind, shape, options.rounds)
            rows.append({"shape_BLD": shape, "kind": kind, **row})
            torch.cuda.empty_cache()
            for name in ("ours", "torch"):
                figures = (row[name][f"{key}_ms"] for key in ("forward", "forward_backward"))
                print(shape, kind, name, *(f"{ms:.3f}" for ms in figures), file=sys.stderr)
            floors = (row["forward_floor_ms"], row["forward_backward_floor_ms"])
            print(shape, kind, "floor", *(f"{ms:.3f}" for ms in floors), file=sys.stderr)
    what = "norms on a GPU, bf16, float32 stream, forward and forward + backward; medians"
    result = {"what": what, **describe(), "results": rows}
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
