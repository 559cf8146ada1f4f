"""Selective scan on a GPU: milliseconds and memory of forward and backward, beside the floors.

    python -m benchmarks.scan_gpu [--out benchmarks/results/scan_gpu.json]

Start-up: the first forward and backward of a process, torch (its autograd too) and its device
ready, with an empty kernel cache and with a full one.

bf16, N 16, z + D + dt_bias + softplus, on tensors as a Mamba block leaves them: x and z are the
halves of one projection, B and C slices of another. A = -(1 ... 16), steps log-uniform in
[1e-3, 0.1] per channel (Mamba's initialisation) with noise of 0.5 before the softplus. Channels lie
in `ascending` order of their steps, as dnassm's mixer initialises them, or in `random` order, as
mamba_ssm's does: a kernel may leave early only what all channels side by side have forgotten.
`exact` forbids to leave out what decayed below 2^-40.

Medians of CUDA events after a warm-up, the cache overwritten before each call; of the GPU alone,
which never waits for Python. `python_ms`: what Python takes for forward and backward.
`extra` is the peak of forward + backward beyond inputs, output, its gradient and the gradients of
the inputs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_time import milliseconds, python_milliseconds, require_gpu
from benchmarks.machine import ROOT, describe
from dnassm.artifact import write_json
from dnassm.kernels.selective_scan import selective_scan

SHAPES = [
    (1, 512, 1 << 20),
    (1, 256, 1 << 20),
    (1, 512, 1 << 17),
    (1, 2048, 1 << 17),
    (8, 1536, 1 << 13),
    (64, 512, 1 << 10),
]
ORDERS = ("ascending", "random")
STATES, RANK = 16, 16
# mamba_ssm 2.3.2 on an H200, forward and backward, measured once on the same kind of machine.
PEER = dict(
    zip(
        SHAPES,
        [(11.33, 61.0), (10.46, 26.1), (1.50, 7.42), (5.96, 22.4), (1.93, 7.05), (0.567, 2.32)],
        strict=True,
    )
)
COPY_PER_S, EX2_PER_S = 4.24e12, 4.18e12  # of an H200, measured


def inputs(batch: int, channels: int, length: int, order: str = "ascending") -> dict[str, Tensor]:
    """Tensors of a Mamba block at its initialisation; `order`: of the channels' steps."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    x, z = normal(batch, length, 2 * channels).chunk(2, dim=2)
    maps = normal(batch, length, RANK + 2 * STATES)[:, :, RANK:].unflatten(2, (2, 1, STATES))
    share = torch.rand(channels, generator=generator, device="cuda")
    if order == "ascending":
        share = share.sort().values
    step = torch.exp(share * 4.6 - 6.9)
    return {
        "x": x,
        "dt": normal(batch, length, channels) * 0.5,
        "A": -torch.arange(1.0, STATES + 1, device="cuda").repeat(channels, 1),
        "B": maps[:, :, 0],
        "C": maps[:, :, 1],
        "D": torch.ones(channels, device="cuda"),
        "z": z,
        "dt_bias": step + torch.log(-torch.expm1(-step)),
    }


def measure(
    shape: tuple[int, int, int], order: str, backend: str, rounds: int, *, exact: bool
) -> dict[str, Any]:
    """Times and memory of one shape."""
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs(*shape, order).items()}
    how = {"backend": backend, "exact": exact}
    with torch.no_grad():
        forward = milliseconds(lambda: selective_scan(**leaves, **how), rounds)
    y = selective_scan(**leaves, **how)
    dy = torch.randn_like(y)
    wanted = list(leaves.values())

    def back(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, wanted, dy, retain_graph=True)

    backward = milliseconds(lambda: back(y), rounds)
    python = python_milliseconds(lambda: back(selective_scan(**leaves, **how)), rounds)
    del y
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    y = selective_scan(**leaves, **how)
    gradients = torch.autograd.grad(y, wanted, dy)
    results = [y, *gradients]
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - base - sum(t.nbytes for t in results)
    return {
        "forward_ms": statistics.median(forward),
        "backward_ms": statistics.median(backward),
        "forward_all_ms": forward,
        "backward_all_ms": backward,
        "python_ms": python,
        "extra_gib": extra / (1 << 30),
    }


def floors(shape: tuple[int, int, int]) -> dict[str, float]:
    """Milliseconds that bytes and exponentials alone take (README of the op, section cuda)."""
    elements = shape[0] * shape[1] * shape[2]
    return {
        "forward_bytes_ms": 8 * elements / COPY_PER_S * 1e3,
        "forward_ex2_ms": (STATES + 4) * elements / EX2_PER_S * 1e3,
        "backward_bytes_ms": 14 * elements / COPY_PER_S * 1e3,
        "backward_ex2_ms": (3 * STATES + 9) * elements / EX2_PER_S * 1e3,
    }


STARTUP = """
import time, torch
from dnassm.kernels.selective_scan import selective_scan
t = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()
x, dt, z, maps = t(1, 4096, 512), t(1, 4096, 512), t(1, 4096, 512), t(1, 4096, 1, 16)
A = -torch.rand(512, 16, device="cuda")
(x * 2).backward(torch.ones_like(x))  # torch imports sympy for its first gradient: 2 s
for _ in range(2):
    torch.cuda.synchronize()
    start = time.perf_counter()
    y = selective_scan(x, dt, A, maps, maps, z=z, backend="cuda")
    y.backward(torch.ones_like(y))
    torch.cuda.synchronize()
    print(time.perf_counter() - start)
"""


def startup() -> dict[str, float]:
    """Seconds of the first and the second forward + backward of a process."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "DNASSM_CACHE_DIR": cache}
        for state in ("cold", "warm"):
            done = subprocess.run(
                [sys.executable, "-c", STARTUP],
                env=environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            first, second = map(float, done.stdout.split())
            found |= {f"{state}_first_s": first, f"{state}_second_s": second}
    return found


def main() -> None:
    """Measure every shape and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--exact", action="store_true")
    arguments = parser.parse_args()
    require_gpu()
    header = {"what": "selective scan on a GPU, bf16, N 16, medians in ms", **describe()}
    rows = []
    for shape, order in itertools.product(SHAPES, ORDERS):
        row = measure(shape, order, arguments.backend, arguments.rounds, exact=arguments.exact)
        peer = dict(zip(("peer_forward_ms", "peer_backward_ms"), PEER[shape], strict=True))
        rows.append({"shape_BDL": shape, "order": order, **row, **peer, **floors(shape)})
        torch.cuda.empty_cache()
        figures = (f"{row[key]:.3f}" for key in ("forward_ms", "backward_ms", "extra_gib"))
        print(shape, order, *figures, file=sys.stderr)
    result = {
        **header,
        "startup": startup(),
        "exact": arguments.exact,
        "backend": arguments.backend,
        "results": rows,
    }
    if arguments.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
