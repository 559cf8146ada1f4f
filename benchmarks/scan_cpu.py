"""Selective scan on CPU: seconds of every backend beside a loop over time, and memory against L.

    python -m benchmarks.scan_cpu [--out benchmarks/results/scan_cpu.json]

Speed: float32, N 16, z + D + dt_bias + softplus. In every round each contender runs once, so that a
load that comes and goes hits all of them; the ratio is between medians. `loop` is what one writes
first: the recurrence in float32 as a loop over positions, differentiated by autograd.

Memory: forward and backward in a process of its own per length; the most memory it held beyond what
it held before the call (inputs, libraries), from /proc (Linux only).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import ROOT, describe
from dnassm.artifact import write_json
from dnassm.kernels.selective_scan import BACKENDS, selective_scan
from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.selective_scan.cases import Case

SHAPES = [(1, 256, 16384), (1, 256, 1024), (8, 256, 1024), (16, 256, 1024)]
STATES = 16
MEMORY_LENGTHS = [1 << power for power in range(10, 18)]
MEMORY_CHANNELS = 64

Contender = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]


def loop(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The recurrence as written, one position after the other; G = 1."""
    delta = F.softplus(inputs["dt"] + inputs["dt_bias"])
    x, h = inputs["x"], inputs["initial_state"]
    outputs = []
    # unbind: the gradient of a slice x[:, t] would be a tensor of the size of x at every step.
    along_time = (tensor.unbind(1) for tensor in (delta, x, inputs["B"], inputs["C"]))
    for d, x_t, B_t, C_t in zip(*along_time, strict=True):
        h = torch.exp(d[..., None] * inputs["A"]) * h + (d * x_t)[..., None] * B_t
        outputs.append((h * C_t).sum(-1))
    y = (torch.stack(outputs, dim=1) + inputs["D"] * x) * F.silu(inputs["z"])
    return y, h


def _scan(backend: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return selective_scan(**inputs, return_state=True, backend=backend)


def runnable() -> list[str]:
    """Backends that run on CPU tensors here, the preferred first, without the one for tests."""
    inputs = Case().inputs(torch.float32)
    call = Scan(**inputs, cu_seqlens=None, dt_softplus=True, reverse=False, exact=True)
    found = [name for name, module in BACKENDS.all().items() if module.supports(call) is None]
    return [name for name in found if name != "reference"]


def contenders(names: list[str]) -> dict[str, Contender]:
    """Name -> function; `loop` is always one of them."""
    found: dict[str, Contender] = {"loop": loop}
    for name in names:
        found[name] = functools.partial(_scan, name)
    return found


def seconds(scan: Contender, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """Forward without gradients; forward and backward of every input."""
    with torch.no_grad():
        begin = time.perf_counter()
        scan(inputs)
        forward = time.perf_counter() - begin
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    begin = time.perf_counter()
    y, state = scan(leaves)
    torch.autograd.backward((y, state), (torch.ones_like(y), torch.ones_like(state)))
    both = time.perf_counter() - begin
    for tensor in inputs.values():
        tensor.requires_grad_(requires_grad=False)
        tensor.grad = None
    return forward, both


def race(
    shape: tuple[int, int, int], scans: dict[str, Contender], rounds: int
) -> list[dict[str, Any]]:
    """One row per contender: medians and how many times faster than the loop."""
    batch, channels, length = shape
    case = Case(batch=batch, channels=channels, length=length, states=STATES)
    inputs = case.inputs(torch.float32)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in scans}
    for turn in range(rounds + 1):
        for name, scan in scans.items():
            measured = seconds(scan, inputs)
            if turn:  # the first round warms caches and threads
                times[name].append(measured)
        print(f"{shape} round {turn} of {rounds}", file=sys.stderr)
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in times.items()
    }
    return [
        {
            "shape_BDL": list(shape),
            "backend": name,
            "forward_s": round(forward, 4),
            "forward_backward_s": round(both, 4),
            "forward_times_faster_than_loop": round(medians["loop"][0] / forward, 2),
            "forward_backward_times_faster_than_loop": round(medians["loop"][1] / both, 2),
            "all_forward_s": [round(row[0], 4) for row in times[name]],
            "all_forward_backward_s": [round(row[1], 4) for row in times[name]],
        }
        for name, (forward, both) in medians.items()
    ]


def memory_kib(field: str) -> int:
    """A field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")


def peak_mib(name: str, length: int) -> float:
    """Memory of forward and backward beyond what the process held before."""
    scan = contenders([name] if name != "loop" else [])[name]
    warm = Case(batch=1, channels=MEMORY_CHANNELS, length=64, states=STATES)
    seconds(scan, warm.inputs(torch.float32))
    case = Case(batch=1, channels=MEMORY_CHANNELS, length=length, states=STATES)
    leaves = {n: t.requires_grad_() for n, t in case.inputs(torch.float32).items()}
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    before = memory_kib("VmRSS")
    y, state = scan(leaves)
    torch.autograd.backward((y, state), (torch.ones_like(y), torch.ones_like(state)))
    return (memory_kib("VmHWM") - before) / 1024


def memory(names: list[str], lengths: list[int]) -> list[dict[str, Any]]:
    """One row per backend and length, each from a process of its own."""
    rows = []
    for name in names:
        for length in lengths:
            command = [sys.executable, "-m", "benchmarks.scan_cpu", "--peak", name, str(length)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout)
            one = 4 * MEMORY_CHANNELS * length / 2**20
            row = {
                "backend": name,
                "shape_BDL": [1, MEMORY_CHANNELS, length],
                "peak_mib": round(found, 2),
                "peak_over_one_BLD_tensor": round(found / one, 2),
            }
            rows.append(row)
            print(row, file=sys.stderr)
    return rows


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=runnable())
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--peak", nargs=2, metavar=("BACKEND", "L"), help="one memory measurement")
    return parser.parse_args()


def main() -> None:
    """Measure, write or print."""
    options = parse()
    if options.peak:
        print(json.dumps(peak_mib(options.peak[0], int(options.peak[1]))))
        return
    header = describe()
    shapes = [(1, 16, 256), (2, 16, 64)] if options.quick else SHAPES
    lengths = MEMORY_LENGTHS[:2] if options.quick else MEMORY_LENGTHS
    scans = contenders(options.backends)
    result = {
        "what": "selective scan on CPU, float32, N 16, z + D + dt_bias + softplus; medians",
        **header,
        "speed": [row for shape in shapes for row in race(shape, scans, options.rounds)],
        "memory": memory(options.backends, lengths),
    }
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
