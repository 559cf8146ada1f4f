"""Time and memory of the selective scan against L on a GPU, beside attention, FFT and LSTM.

    python -m benchmarks.scan_length [--out benchmarks/results/scan_length.json]

L from 2^10 to 2^22, one sequence, 512 channels, each method alone: no projections around it. The
others get the layout they like best: attention (1, 8, L, 64), the FFT convolution (1, 512, L) with
a filter as long as the sequence, the LSTM a projection of 512 to 512 channels that it cannot do
without. Gradients go to every input and weight.

Medians of CUDA events, of the GPU alone, which never waits for Python. `peak` is all memory of
forward + backward, inputs and gradients included; `extra` is what is left of it without inputs,
output, its gradient and the gradients of the inputs.
`slope` is d log / d log L over the larger half of the lengths (1 is linear, 2 quadratic), and
`off_line` the largest factor between a point and that line. A point that cannot be had is null and
says why. benchmarks.scan_figure draws the result.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_time import milliseconds, require_gpu
from benchmarks.machine import describe
from benchmarks.scan_gpu import inputs
from dnassm.artifact import write_json
from dnassm.kernels.selective_scan import selective_scan

CHANNELS, HEADS = 512, 8
SHORTEST, LONGEST = 10, 22
"""Powers of two."""
FEWEST_ROUNDS, MOST_ROUNDS = 3, 31
MEASURED = ("forward_ms", "forward_backward_ms", "peak_mib", "extra_mib")


class Problem(NamedTuple):
    """One method at one length."""

    call: Callable[[], Tensor]
    leaves: list[Tensor]


class Method(NamedTuple):
    """How to set a method up, and the power of two up to which it is worth waiting for."""

    name: str
    dtype: str
    longest: int
    build: Callable[[int], Problem]


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    """A leaf that wants its gradient."""
    return torch.randn(shape, device="cuda", dtype=dtype).requires_grad_()


def scan(length: int, **how: Any) -> Problem:
    """N 16, z + D + dt_bias + softplus."""
    leaves = {name: t.requires_grad_() for name, t in inputs(1, CHANNELS, length).items()}
    return Problem(lambda: selective_scan(**leaves, **how), list(leaves.values()))


def attention(length: int) -> Problem:
    """Causal, FlashAttention as torch ships it."""
    shape = (1, HEADS, length, CHANNELS // HEADS)
    q, k, v = (normal(*shape, dtype=torch.bfloat16) for _ in range(3))

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return Problem(call, [q, k, v])


def fft_convolution(length: int) -> Problem:
    """Causal: padded to 2 L. torch has no FFT in bf16."""
    x = normal(1, CHANNELS, length, dtype=torch.float32)
    taps = normal(CHANNELS, length, dtype=torch.float32)

    def call() -> Tensor:
        spectrum = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(taps, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length]

    return Problem(call, [x, taps])


def lstm(length: int) -> Problem:
    """By cuDNN, which torch asks in fp16 and fp32 only: bf16 would fall back to a slow loop."""
    layer = nn.LSTM(CHANNELS, CHANNELS, batch_first=True, device="cuda", dtype=torch.float16)
    x = normal(1, length, CHANNELS, dtype=torch.float16)

    def call() -> Tensor:
        layer.train(torch.is_grad_enabled())
        return layer(x)[0]

    return Problem(call, [x, *layer.parameters()])


def timed(call: Callable[[], object], cap_s: float) -> list[float]:
    """Milliseconds of as many calls as fit into `cap_s` seconds."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    fitting = int(cap_s / (time.perf_counter() - begin))
    return milliseconds(call, max(FEWEST_ROUNDS, min(MOST_ROUNDS, fitting)))


def measure(build: Callable[[int], Problem], length: int, cap_s: float) -> dict[str, Any]:
    """Times and memory of one point."""
    gc.collect()  # what a point before left in cycles would be counted as there before
    before = torch.cuda.memory_allocated()
    call, leaves = build(length)
    with torch.no_grad():
        forward = timed(call, cap_s)
        dy = torch.randn_like(call())

    def both() -> tuple[Tensor, ...]:
        y = call()
        return (y, *torch.autograd.grad(y, leaves, dy))

    forward_backward = timed(both, cap_s)
    torch.cuda.reset_peak_memory_stats()
    given = torch.cuda.memory_allocated()
    results = both()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return {
        "forward_ms": statistics.median(forward),
        "forward_backward_ms": statistics.median(forward_backward),
        "peak_mib": (peak - before) / (1 << 20),
        "extra_mib": (peak - given - sum(t.nbytes for t in results)) / (1 << 20),
        "forward_all_ms": forward,
        "forward_backward_all_ms": forward_backward,
    }


def try_point(method: Method, length: int, cap_s: float) -> dict[str, Any]:
    """`measure`, or nulls and the reason: mostly that memory is full."""
    try:
        return measure(method.build, length, cap_s)
    except RuntimeError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = "out of memory" if _is_memory(error) else lines[0][:160]
        return {**dict.fromkeys(MEASURED), "reason": reason}


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def sweep(
    method: Method, lengths: list[int], cap_s: float, deadline: float
) -> list[dict[str, Any]]:
    """One row per length; after the first that cannot be had none longer is tried."""
    rows: list[dict[str, Any]] = []
    reason = ""
    for length in lengths:
        head = {"method": method.name, "dtype": method.dtype, "length": length}
        if not reason and time.monotonic() > deadline:
            reason = "out of time"
        if reason:
            row = {**dict.fromkeys(MEASURED), "reason": f"not tried: {reason} before"}
        else:
            row = try_point(method, length, cap_s)
            reason = row.get("reason", "")
            torch.cuda.empty_cache()
        rows.append({**head, **row})
        found = (row[key] for key in MEASURED)
        words = ["-" if value is None else f"{value:.3f}" for value in found]
        print(method.name, length, *words, row.get("reason", ""), file=sys.stderr)
    return rows


def fit(rows: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """A straight line through the larger half of the points, in logarithms."""
    points = [(row["length"], row[key]) for row in rows if row[key] is not None and row[key] > 0]
    points = points[len(points) // 2 :]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    slope, height = np.polyfit(x, y, 1)
    off = np.abs(y - slope * x - height).max()
    return {
        "slope": round(float(slope), 4),
        "off_line": round(math.exp(off), 4),
        "lengths": [points[0][0], points[-1][0]],
    }


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--longest", type=int, default=LONGEST, help="power of two")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--cap", type=float, default=0.5, help="seconds per time measured")
    parser.add_argument("--seconds", type=float, default=120, help="start no point after so many")
    return parser.parse_args()


def main() -> None:
    """Measure every method at every length and write it down."""
    options = parse()
    require_gpu()
    deadline = time.monotonic() + options.seconds
    how = {"backend": options.backend, "exact": options.exact}
    methods = [
        Method("selective scan", "bfloat16", LONGEST, lambda length: scan(length, **how)),
        Method("FlashAttention", "bfloat16", 17, attention),
        Method("LSTM", "float16", 14, lstm),
        Method("FFT convolution", "float32", LONGEST, fft_convolution),  # last: it fills the GPU
    ]
    result = {
        "what": "time and memory against L on a GPU, B 1, D 512; medians",
        **describe(),
        **how,
        "results": [],
        "fits": [],
    }
    for method in methods:
        powers = range(SHORTEST, min(method.longest, options.longest) + 1)
        rows = sweep(method, [1 << power for power in powers], options.cap, deadline)
        result["results"] += rows
        lines = {key: fit(rows, key) for key in MEASURED}
        result["fits"].append({"method": method.name, **lines})
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
