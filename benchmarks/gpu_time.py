"""How long a call takes on a GPU, the same way in every benchmark."""

from __future__ import annotations

from collections.abc import Callable

import torch

_FLUSH_BYTES = 256 << 20  # several times the L2 cache of any GPU so far


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
