"""Where Triton kernels run: GPUs, and CPU tensors in Triton's interpreter."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys

import torch

from dnassm.kernels.backends import Elsewhere

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What kernels read and write; they compute in float32."""
_OLDEST = (8, 0)


def unavailable(device: torch.device) -> str | None:
    """Why kernels cannot run on `device`, or None: CUDA, ROCm and XPU.

    On a CPU they run in the interpreter, slowly, for tests: TRITON_INTERPRET=1.
    """
    if device.type == "cpu" and not _interpreted():
        return Elsewhere("the tensors are on the CPU, it needs a GPU")
    if device.type not in ("cpu", "cuda", "xpu"):
        return Elsewhere(f"the tensors are on {device.type}, it needs a GPU")
    if not _installed():
        return "triton is not installed"
    return _too_old(device)


@functools.cache
def _too_old(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= _OLDEST:
        return None
    needed, has = (".".join(map(str, pair)) for pair in (_OLDEST, capability))
    return f"triton needs compute capability {needed}, this GPU has {has}"


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether TRITON_INTERPRET was set when triton was, or will be, imported."""
    if os.environ.get("TRITON_INTERPRET", "0").lower() not in ("1", "true", "on", "yes", "y"):
        return False
    library = sys.modules.get("triton.language.standard")
    return library is None or type(library.sum).__name__ != "JITFunction"
