"""Large tensors on the CPU without a page fault for every 4 KiB."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WORTH_ASKING = 4 << 20  # bytes; a huge page is 2 MiB


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocate like `torch.empty`, on huge pages where the system gives them on request (Linux).

    The first write to a page costs a microsecond; with 4 KiB each, that is a kernel's own time.
    """
    tensor = torch.empty(shape, dtype=dtype)
    size, advise = tensor.nbytes, _madvise()
    if advise is not None and size >= _WORTH_ASKING:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        within = tensor.data_ptr() + size - start
        # No answer is needed: without huge pages the memory is slower, not wrong.
        advise(start, within // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found: Callable[[int, int, int], int] = function
    return found
