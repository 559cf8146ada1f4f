"""SSD on a GPU: milliseconds and memory of forward and backward, beside the floors.

    python -m benchmarks.ssd_gpu [--out benchmarks/results/ssd_gpu.json]

bf16, with D and a bias of the step size, without gate: as the block of Mamba-2 calls it. x, B and C
are slices of one convolved tensor. Medians of CUDA events after a warm-up. `extra` is the peak of
forward + backward beyond the inputs, y, dy and the gradients.
"""

from __future__ import annotations

import argparse
import gc
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
from dnassm.kernels.ssd import ssd

# B, L, H, P, N; one group of heads.
SHAPES = [
    (1, 1 << 20, 8, 64, 128),
    (8, 1 << 13, 24, 64, 128),
    (1, 1 << 17, 8, 64, 128),
    (64, 1 << 10, 8, 64, 128),
]
COPY_PER_S = 4.24e12  # bytes read and written by a device copy on an H200, measured
FLOPS_PER_S = 690e12  # of a bf16 matrix product on an H200, measured
CHUNK = 64


def inputs(batch: int, length: int, heads: int, width: int, states: int) -> dict[str, Tensor]:
    """Tensors as a block of Mamba-2 has them."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    inner = heads * width
    convolved = normal(batch, length, inner + 2 * states)
    x, B, C = convolved.split([inner, states, states], dim=2)
    step = torch.rand(heads, generator=generator, device="cuda") * 4.6 - 6.9  # log of 1e-3 .. 0.1
    return {
        "x": x.unflatten(2, (heads, width)),
        "dt": normal(batch, length, heads),
        "A": -1 - 15 * torch.rand(heads, generator=generator, device="cuda"),
        "B": B.unsqueeze(2),
        "C": C.unsqueeze(2),
        "D": normal(heads, dtype=torch.float32),
        "dt_bias": step.exp().expm1().log(),
    }


def floors(shape: tuple[int, int, int, int, int]) -> dict[str, float]:
    """Milliseconds of memory (every tensor once) and of the matrix products within chunks."""
    batch, length, heads, width, states = shape
    positions = batch * length
    of_x, of_maps, of_dt = heads * width, 2 * states, heads
    read = of_x + of_maps + of_dt
    # Per head and position: y from the chunk and from the state, what the chunk adds to the state;
    # the products of C and B once for all heads. Of a chunk only the triangle is counted.
    forward = heads * (CHUNK * width + 4 * width * states) + CHUNK * states
    # Back: the adjoint of the state, dx, dB and dC, each from the chunk and from a state.
    inner = 2 * CHUNK * width + 2 * CHUNK * states + 8 * width * states
    backward = heads * inner + CHUNK * states
    return {
        "forward_bytes_ms": 2 * positions * (read + of_x) / COPY_PER_S * 1e3,
        "backward_bytes_ms": 2 * positions * (2 * read + of_x) / COPY_PER_S * 1e3,
        "forward_flops_ms": positions * forward / FLOPS_PER_S * 1e3,
        "backward_flops_ms": positions * backward / FLOPS_PER_S * 1e3,
    }


def measure(
    shape: tuple[int, int, int, int, int], how: dict[str, Any], rounds: int
) -> dict[str, float | list[float]]:
    """Times and memory of one shape."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs(*shape).items()}
    wanted = list(leaves.values())
    dy = torch.randn(leaves["x"].shape, device="cuda", dtype=torch.bfloat16)

    def both() -> tuple[Tensor, ...]:
        y = ssd(**leaves, **how)
        return (y, *torch.autograd.grad(y, wanted, dy))

    with torch.no_grad():
        forward = milliseconds(lambda: ssd(**leaves, **how), rounds)
    forward_backward = milliseconds(both, rounds)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    results = both()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - base - sum(t.nbytes for t in results)
    together = statistics.median(forward_backward)
    return {
        "forward_ms": statistics.median(forward),
        "backward_ms": together - statistics.median(forward),
        "forward_backward_ms": together,
        **floors(shape),
        "extra_mib": extra / (1 << 20),
        "forward_all_ms": forward,
        "forward_backward_all_ms": forward_backward,
    }


def variants(length: int) -> dict[str, dict[str, Any]]:
    """Name -> options of the first shape."""
    edges = torch.arange(0, length + 1, 4096, device="cuda", dtype=torch.int32)
    return {"reverse": {"reverse": True}, "packed, 4096 each": {"cu_seqlens": edges}}


def main() -> None:
    """Measure every shape and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--chunk", type=int, help="positions taken at once")
    options = parser.parse_args()
    require_gpu()
    header = {"what": "SSD on a GPU, bf16; medians", **describe()}
    how = {"backend": options.backend, "chunk": options.chunk}
    started = time.perf_counter()
    measure((1, 256, 8, 64, 128), how, 1)
    first_calls_s = time.perf_counter() - started
    jobs = [(shape, "", {}) for shape in SHAPES]
    jobs += [(SHAPES[0], name, extra) for name, extra in variants(SHAPES[0][1]).items()]
    rows = []
    for shape, name, extra in jobs:
        row = measure(shape, {**how, **extra}, options.rounds)
        rows.append({"shape_BLHPN": shape, "variant": name, **row})
        torch.cuda.empty_cache()
        keys = ("forward", "backward", "forward_bytes", "forward_flops", "backward_flops")
        figures = (*(f"{row[f'{key}_ms']:.3f}" for key in keys), f"{row['extra_mib']:.0f} MiB")
        print(shape, name, *figures, file=sys.stderr)
    result = {
        **header,
        "backend": options.backend,
        "chunk": options.chunk,
        "first_calls_s": first_calls_s,
        "results": rows,
    }
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
