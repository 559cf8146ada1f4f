"""CUDA C++ compiled at first use: no compiler at install, a cache on disk, one call to launch.

NVRTC, the compiler as a library, comes with the CUDA build of torch; cuda-core drives it. A kernel
is compiled once for a source, its macros, the NVRTC version and the architecture, kept under
``$DNASSM_CACHE_DIR`` (else ``$XDG_CACHE_HOME/dnassm``, else ``~/.cache/dnassm``), and loaded once
per process. A cache that cannot be written costs a compile per process and nothing else.

Sources include no header: NVRTC then needs no CUDA toolkit, and compiles in less than a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnassm.errors import BackendError

log = logging.getLogger("dnassm.kernels")

Macros = Mapping[str, int | str]

_LOADING = threading.Lock()
_LARGEST_CACHE = 256 << 20
_OLDEST = (8, 0)  # cvt.rn.bf16 and mma with tf32 begin here


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why kernels of this kind cannot run on `device`, or None."""
    if device.type != "cuda":
        return f"needs a CUDA device, got {device.type}"
    if torch.version.cuda is None:
        return "needs an NVIDIA GPU (this torch is built for ROCm)"
    # Both come with dnassm and the CUDA build of torch on Linux.
    major = torch.version.cuda.partition(".")[0]
    packages = {"cuda.core": "cuda-core>=1.2", "cuda.bindings": f"cuda-bindings=={major}.*"}
    for package, requirement in packages.items():
        if not _installed(package):
            return f"{package} is not installed: pip install '{requirement}'"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"needs compute capability {_OLDEST[0]}.{_OLDEST[1]}, the GPU has {capability}"
    return None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def compile_source(source: str, macros: Macros, arch: str, *, cached: bool = True) -> bytes:
    """Compile CUDA C++ to a cubin for `arch` ("sm_90"), or to PTX ("compute_90"); needs no GPU.

    Raises:
        BackendError: NVRTC refuses the source; the message holds its log.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        arch=arch,
        std="c++17",
        define_macro=[(name, str(value)) for name, value in macros.items()],
    )
    target = "cubin" if arch.startswith("sm_") else "ptx"
    store = _store() if cached else None
    try:
        program = Program(source, "c++", options)
        return bytes(program.compile(target, cache=store).code)
    except OSError as error:
        log.warning("kernels are compiled again in every process: %s", str(error))
        return compile_source(source, macros, arch, cached=False)
    except Exception as error:
        raise BackendError(f"NVRTC cannot compile for {arch}: {error}") from error


@functools.cache
def _store() -> Any | None:
    """The cache on disk, or None where none can be made."""
    from cuda.core.utils import FileStreamProgramCache

    base = os.environ.get("DNASSM_CACHE_DIR")
    if base is None:
        user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        base = f"{user_cache}/dnassm"
    folder = Path(base).expanduser() / "kernels"
    try:
        return FileStreamProgramCache(folder, max_size_bytes=_LARGEST_CACHE)
    except OSError as error:
        log.warning(
            "kernels are compiled in every process, %s cannot be written: %s", folder, error
        )
        return None


def _architecture(device: torch.device) -> str:
    """What to compile for: the GPU itself, or for one newer than NVRTC the newest that it knows."""
    from cuda.bindings import nvrtc

    major, minor = torch.cuda.get_device_capability(device)
    _, known = nvrtc.nvrtcGetSupportedArchs()
    own = major * 10 + minor
    return f"sm_{own}" if own <= max(known) else f"compute_{max(known)}"


class Kernel:
    """One compiled function on one device."""

    def __init__(self, handle: Any, device: torch.device) -> None:
        self._handle = handle
        self._device = device
        self._shared = 48 << 10
        self._launching = threading.Lock()
        self._values: Any = (ctypes.c_int64 * 0)()
        self._addresses: Any = None

    def launch(
        self,
        grid: tuple[int, int, int],
        block: int,
        arguments: Sequence[Tensor | int | float | None],
        *,
        shared: int = 0,
    ) -> None:
        """Run on torch's current stream: a tensor goes as its address, None as 0, an int as int64.

        Args:
            grid: blocks in x, y, z.
            block: threads of a block.
            arguments: one per parameter of the function; its integers are all 64 bits wide.
            shared: bytes of dynamic shared memory.

        Raises:
            BackendError: the driver refuses the launch.
        """
        from cuda.bindings import driver

        if shared > self._shared:
            self._allow_shared(shared)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        values = [_word(argument) for argument in arguments]
        # The driver copies the parameters before it returns, so one buffer serves every launch.
        with self._launching, torch.cuda.device(self._device):
            self._enter_context()
            (status,) = driver.cuLaunchKernel(
                self._handle, *grid, block, 1, 1, shared, stream, self._parameters(values), 0
            )
        _check(status, f"launch of {grid} blocks of {block} threads")

    def _enter_context(self) -> None:
        """A thread of autograd may have no context yet: torch makes it current at its first use."""
        from cuda.bindings import driver
        from cuda.core import Device

        _, context = driver.cuCtxGetCurrent()
        if not int(context):
            Device(self._index()).set_current()

    def _index(self) -> int:
        return torch.cuda.current_device() if self._device.index is None else self._device.index

    def _parameters(self, values: list[int]) -> int:
        """Address of the list of addresses of the parameters."""
        count = len(values)
        if len(self._values) != count:
            self._values = (ctypes.c_int64 * count)()
            first = ctypes.addressof(self._values)
            self._addresses = (ctypes.c_int64 * count)(*range(first, first + 8 * count, 8))
        self._values[:] = values
        return ctypes.addressof(self._addresses)

    def _allow_shared(self, size: int) -> None:
        from cuda.bindings import driver

        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        kernel = driver.CUkernel(int(self._handle))
        (status,) = driver.cuKernelSetAttribute(attribute, size, kernel, self._index())
        _check(status, f"{size} bytes of shared memory")
        self._shared = size


def _word(value: Tensor | int | float | None) -> int:
    """A parameter as the 8 bytes that the kernel reads; little-endian, a float is the first 4."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<f", value), "little")
    return value or 0


def _check(status: Any, what: str) -> None:
    if int(status):
        raise BackendError(f"the CUDA driver refuses the {what}: {status.name}")


def kernel(source: Path, name: str, macros: Macros, device: torch.device) -> Kernel:
    """The function `name` of the file `source`, compiled with `macros` for `device`.

    Raises:
        BackendError: it cannot be compiled or loaded.
    """
    with _LOADING:
        return _loaded(source, name, tuple(sorted(macros.items())), device)


@functools.cache
def _loaded(
    source: Path, name: str, macros: tuple[tuple[str, int | str], ...], device: torch.device
) -> Kernel:
    library = _library(source, macros, _architecture(device))
    return Kernel(_function(library, name), device)


@functools.cache
def _library(source: Path, macros: tuple[tuple[str, int | str], ...], arch: str) -> Any:
    text = source.read_text(encoding="utf-8")
    code = compile_source(text, dict(macros), arch)
    try:
        return _load(code, arch)
    except Exception as error:  # a damaged cache entry: whatever the driver says, compile again
        log.warning("the kernel of %s cannot be loaded (%s): compiled anew", source, str(error))
        _forget_all()
        return _load(compile_source(text, dict(macros), arch), arch)


def _forget_all() -> None:
    """Empty the cache: the name of the damaged entry is not known here, the others are cheap."""
    store = _store()
    if store is not None:
        with contextlib.suppress(OSError):
            store.clear()


def _load(code: bytes, arch: str) -> Any:
    from cuda.core import ObjectCode

    make = ObjectCode.from_cubin if arch.startswith("sm_") else ObjectCode.from_ptx
    library = make(code)
    _ = library.handle  # loaded now, so that damage shows here
    return library


def _function(library: Any, name: str) -> Any:
    from cuda.bindings import driver

    return driver.CUfunction(int(library.get_kernel(name).handle))
