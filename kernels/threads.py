"""Compiled code on as many threads as torch uses, without a pool that a fork would break.

Not on torch's own OpenMP threads (``GOMP_parallel`` can be called): they wait for each other awake,
and where another process has a core a call of 1 ms took 8 to 20 (README of selective_scan).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_POOLS: dict[int, ThreadPoolExecutor] = {}
_LOCK = threading.Lock()


def _after_fork() -> None:
    """A child has none of its parent's threads, and perhaps a lock that nobody will release."""
    global _LOCK
    _LOCK = threading.Lock()
    _POOLS.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)


def run_on_threads(function: Callable[[int], None], argument: int, threads: int) -> None:
    """Call ``function(argument)`` on this many threads at once; one of them is the caller's.

    The function shares the work out among its calls (a counter in memory) and releases Python's
    lock. Where no thread can be had (the interpreter is ending) the caller does all of it.
    """
    others = []
    if threads > 1:
        try:
            pool = _pool(threads - 1)
            others = [pool.submit(function, argument) for _ in range(threads - 1)]
        except RuntimeError:
            pass
    function(argument)
    for other in others:
        if not other.cancel():  # still waiting behind another caller's: nothing is left for it
            other.result()


def thread_count(tasks: int) -> int:
    """Threads for this many tasks: no more than torch's setting."""
    return max(1, min(torch.get_num_threads(), tasks))


def _pool(workers: int) -> ThreadPoolExecutor:
    with _LOCK:
        if workers not in _POOLS:
            _POOLS[workers] = ThreadPoolExecutor(workers, thread_name_prefix="dnassm-kernel")
        return _POOLS[workers]
