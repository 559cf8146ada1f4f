"""CUDA C++ compiled at first use: no compiler at install, a cache on disk, one call to launch.

NVRTC, the compiler as a library, comes with the CUDA build of torch; cuda-core drives it, imported
where something is compiled. A kernel is compiled once for a source, its macros, the release of
torch (which pins that of NVRTC) and the architecture, kept under ``$DNASSM_CACHE_DIR`` (else
``$XDG_CACHE_HOME/dnassm``, else ``~/.cache/dnassm``), and loaded once per process. A cache that
cannot be written costs a compile per process and nothing else.

Sources include no header: NVRTC then needs no CUDA toolkit, and compiles in less than a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnassm.artifact import staged_file
from dnassm.errors import ArtifactError, BackendError

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

    A GPU newer than NVRTC gets PTX for the newest that NVRTC knows.

    Raises:
        BackendError: NVRTC refuses the source; the message holds its log.
    """
    entry = _entry(source, macros, arch) if cached else None
    if entry is not None:
        with contextlib.suppress(OSError):
            return entry.read_bytes()
    return _compiled(source, macros, arch, entry)


def _compiled(source: str, macros: Macros, arch: str, entry: Path | None) -> bytes:
    """Compile now, and keep the code as `entry`."""
    from cuda.core import Program, ProgramOptions

    arch = _known(arch)
    options = ProgramOptions(
        arch=arch,
        std="c++17",
        define_macro=[(name, str(value)) for name, value in macros.items()],
    )
    target = "cubin" if arch.startswith("sm_") else "ptx"
    try:
        code = bytes(Program(source, "c++", options).compile(target).code)
    except Exception as error:
        raise BackendError(f"NVRTC cannot compile for {arch}: {error}") from error
    if entry is not None:
        _keep(entry, code)
    return code


def _known(arch: str) -> str:
    """`arch`, or for one newer than NVRTC the newest that it knows."""
    from cuda.bindings import nvrtc

    newest = max(nvrtc.nvrtcGetSupportedArchs()[1])
    return arch if int(arch.rpartition("_")[2]) <= newest else f"compute_{newest}"


# The cache


@functools.cache
def _folder() -> Path | None:
    """Where compiled code is kept, or None where nothing can be."""
    base = os.environ.get("DNASSM_CACHE_DIR")
    if base is None:
        user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        base = f"{user_cache}/dnassm"
    folder = Path(base).expanduser() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning(
            "kernels are compiled in every process, %s cannot be written: %s", folder, error
        )
        return None
    return folder


def _entry(source: str, macros: Macros, arch: str) -> Path | None:
    """The file of what `compile_source` makes of this, whether it is there or not."""
    folder = _folder()
    if folder is None:
        return None
    of_torch = [torch.__version__, torch.version.cuda]
    said = json.dumps([source, sorted(macros.items()), arch, of_torch])
    return folder / f"{hashlib.sha256(said.encode()).hexdigest()}.code"


def _keep(entry: Path, code: bytes) -> None:
    """Write `code`; the oldest entries make room for it."""
    try:
        with staged_file(entry) as staging:
            staging.write_bytes(code)
        left = _LARGEST_CACHE
        for path in sorted(entry.parent.glob("*.code"), key=_age):
            left -= path.stat().st_size
            if left < 0:
                path.unlink()
    except (OSError, ArtifactError) as error:
        log.warning("kernels are compiled again in every process: %s", str(error))


def _age(path: Path) -> float:
    return -path.stat().st_mtime


# Launches


class Kernel:
    """One compiled function on one device."""

    def __init__(self, handle: Any, device: torch.device) -> None:
        self._driver = importlib.import_module("cuda.bindings.driver")
        self._handle = handle
        self._index: int = device.index
        self._shared = 48 << 10
        self._launching = threading.Lock()
        self._parameters: dict[tuple[type, ...], _Parameters] = {}

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
        if torch._C._cuda_getDevice() != self._index:
            with torch.cuda.device(self._index):
                self.launch(grid, block, arguments, shared=shared)
            return
        driver = self._driver
        _enter_context(driver, self._index)
        if shared > self._shared:
            self._allow_shared(shared)
        stream = driver.CUstream(torch._C._cuda_getCurrentRawStream(self._index))
        # The driver copies the parameters before it returns, so one buffer serves every launch.
        with self._launching:
            parameters = self._filled(arguments)
            (status,) = driver.cuLaunchKernel(
                self._handle, *grid, block, 1, 1, shared, stream, parameters, 0
            )
        if int(status):
            raise _RefusedError(status, f"launch of {grid} blocks of {block} threads")

    def _filled(self, arguments: Sequence[Tensor | int | float | None]) -> int:
        kinds = tuple(map(type, arguments))
        parameters = self._parameters.get(kinds)
        if parameters is None:
            parameters = self._parameters[kinds] = _Parameters(kinds)
        return parameters.filled(arguments)

    def _allow_shared(self, size: int) -> None:
        driver = self._driver
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        kernel = driver.CUkernel(int(self._handle))
        (status,) = driver.cuKernelSetAttribute(attribute, size, kernel, self._index)
        if int(status):
            raise _RefusedError(status, f"{size} bytes of shared memory")
        self._shared = size


class _Parameters:
    """Where the driver reads the parameters of a kernel, 8 bytes each, for arguments of one kind.

    Little-endian: the first 4 bytes are a float.
    """

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self._pointers = [issubclass(kind, Tensor) for kind in kinds]
        codes = ("f4x" if issubclass(kind, float) else "q" for kind in kinds)
        layout = struct.Struct("<" + "".join(codes))
        values = (ctypes.c_char * layout.size)()
        first = ctypes.addressof(values)
        self._addresses = (ctypes.c_int64 * len(kinds))(*range(first, first + layout.size, 8))
        self._address = ctypes.addressof(self._addresses)
        self._pack = functools.partial(layout.pack_into, values, 0)

    def filled(self, arguments: Sequence[Any]) -> int:
        """Address of the list of their addresses."""
        words = [
            argument.data_ptr() if pointer else 0 if argument is None else argument
            for pointer, argument in zip(self._pointers, arguments, strict=True)
        ]
        self._pack(*words)
        return self._address


def _enter_context(driver: Any, index: int) -> None:
    """A thread of autograd may have no context yet: torch makes it current at its first use."""
    _, context = driver.cuCtxGetCurrent()
    if not int(context):
        _, device = driver.cuDeviceGet(index)
        _, context = driver.cuDevicePrimaryCtxRetain(device)
        (status,) = driver.cuCtxSetCurrent(context)
        if int(status):
            raise _RefusedError(status, f"context of GPU {index}")


class _RefusedError(BackendError):
    """The driver's word."""

    def __init__(self, status: Any, what: str) -> None:
        super().__init__(f"the CUDA driver refuses the {what}: {status.name}")


# Kernels by name


def joined(files: Sequence[Path]) -> str:
    """The text of `files`, one after the other; the compiler names a line as its own file does."""
    return "".join(f'#line 1 "{file.name}"\n{file.read_text(encoding="utf-8")}' for file in files)


def kernel(
    source: Path | Sequence[Path], name: str, macros: Macros, device: torch.device
) -> Kernel:
    """The function `name` of the file `source`, compiled with `macros` for `device`.

    Several files are compiled as one text; the last is named where something is wrong with it.

    Raises:
        BackendError: it cannot be compiled or loaded.
    """
    if device.index is None:
        device = torch.device(device.type, torch.cuda.current_device())
    files = (source,) if isinstance(source, Path) else tuple(source)
    with _LOADING:
        return _loaded(files, name, tuple(sorted(macros.items())), device)


@functools.cache
def _loaded(
    files: tuple[Path, ...],
    name: str,
    macros: tuple[tuple[str, int | str], ...],
    device: torch.device,
) -> Kernel:
    major, minor = torch.cuda.get_device_capability(device)
    library = _library(files, macros, f"sm_{major}{minor}")
    return Kernel(_function(library, name), device)


@functools.cache
def _library(files: tuple[Path, ...], macros: tuple[tuple[str, int | str], ...], arch: str) -> Any:
    text, named = joined(files), dict(macros)
    try:
        return _load(compile_source(text, named, arch))
    except _RefusedError as error:  # a damaged cache entry: whatever the driver says, compile again
        log.warning("the kernel of %s cannot be loaded (%s): compiled anew", files[-1], str(error))
        return _load(_compiled(text, named, arch, _entry(text, named, arch)))


def _load(code: bytes) -> Any:
    """The library of a cubin or of PTX, loaded now, so that damage shows here."""
    from cuda.bindings import driver

    status, library = driver.cuLibraryLoadData(code, [], [], 0, [], [], 0)
    if int(status):
        raise _RefusedError(status, "compiled code")
    return library


def _function(library: Any, name: str) -> Any:
    from cuda.bindings import driver

    status, found = driver.cuLibraryGetKernel(library, name.encode())
    if int(status):
        raise _RefusedError(status, f"kernel {name}")
    return driver.CUfunction(int(found))
