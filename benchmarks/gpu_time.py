"""How long a call takes on a GPU, and which kernels it runs, the same way in every benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

_FLUSH_BYTES = 256 << 20  # several times the L2 cache of any GPU so far
_FLUSH_S = _FLUSH_BYTES / 8e12  # and no GPU writes it in less
_MOST_FLUSHES = 600  # a call of which Python has had as much takes the GPU still longer


def require_gpu() -> None:
    """End the script in one line where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark measures a GPU: expected a CUDA device, found none")


def milliseconds(call: Callable[[], object], rounds: int) -> list[float]:
    """Of the GPU in each of `rounds` calls, by CUDA events, after three that do not count.

    Before each call the cache is overwritten, as many times as keep the GPU at work until Python is
    through with the call: what Python takes is not in it (`python_milliseconds`).
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    flushes = min(_MOST_FLUSHES, 1 + int(1.5e-3 * python_milliseconds(call, 3) / _FLUSH_S))
    timed = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(flushes):
            flush.zero_()
        start.record()
        call()
        end.record()
        timed.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in timed]


def python_milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Median of what Python takes for a call while the GPU has nothing else to do.

    Where it is more than the GPU takes, calls that follow each other take that long.
    """
    took = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        before = time.perf_counter()
        call()
        took.append((time.perf_counter() - before) * 1e3)
    torch.cuda.synchronize()
    return statistics.median(took)


def graphed(call: Callable[[], object]) -> Callable[[], None]:
    """The same call as a CUDA graph, which Python only starts."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what a call does once has no place in a graph
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def kernels(call: Callable[[], object]) -> list[tuple[str, float]]:
    """Name and milliseconds of each kernel and copy that a call runs on the device."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return [
        (event.name, event.time_range.elapsed_us() / 1e3)
        for event in recorded.events()
        if event.device_type == on_device
    ]


def listed(title: str, call: Callable[[], object]) -> str:
    """The kernels of a call, those that take longest first, and their sum."""
    took: dict[str, list[float]] = {}
    for name, ms in kernels(call):
        took.setdefault(name[:90], []).append(ms)
    count, total = sum(map(len, took.values())), sum(map(sum, took.values()))
    lines = [
        f"{sum(times):8.3f} ms in {len(times):3}  {name}"
        for name, times in sorted(took.items(), key=lambda item: -sum(item[1]))
    ]
    return "\n".join([f"{title}: {count} kernels and copies, {total:.3f} ms", *lines])
