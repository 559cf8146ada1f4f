"""How long a call takes on a GPU, and which kernels it runs, the same way in every benchmark."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

_FLUSH_BYTES = 256 << 20  # several times the L2 cache of any GPU so far


def require_gpu() -> None:
    """End the script in one line where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark measures a GPU: expected a CUDA device, found none")


def milliseconds(call: Callable[[], object], rounds: int) -> list[float]:
    """Of each of `rounds` calls, by CUDA events, after three that do not count.

    Before each call the cache is overwritten. Calls are queued without waiting for the one before:
    what Python takes counts only where it takes longer than the GPU.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    timed = []
    for _ in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        call()
        end.record()
        timed.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in timed[3:]]


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
    for name, time in kernels(call):
        took.setdefault(name[:90], []).append(time)
    count, total = sum(map(len, took.values())), sum(map(sum, took.values()))
    lines = [
        f"{sum(times):8.3f} ms in {len(times):3}  {name}"
        for name, times in sorted(took.items(), key=lambda item: -sum(item[1]))
    ]
    return "\n".join([f"{title}: {count} kernels and copies, {total:.3f} ms", *lines])
