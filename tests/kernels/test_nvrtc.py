"""Compiling at run time: the cache on disk, and what is said where it cannot be; launches."""

from __future__ import annotations

import ctypes
import enum
import os
import struct
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest
import torch

from dnassm.errors import ArtifactError, BackendError
from dnassm.kernels import nvrtc

pytest.importorskip("cuda.core", reason="cuda-core is not installed: no NVRTC")
pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: no NVRTC")

SOURCE = 'extern "C" __global__ void fill(float *a) { a[threadIdx.x] = VALUE; }'
ELF = b"\x7fELF"


class Status(enum.IntEnum):
    """As of the driver."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_VALUE = 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for compiled kernels."""
    forget = nvrtc._folder.cache_clear
    monkeypatch.setenv("DNASSM_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "kernels"
    forget()


@pytest.fixture
def said(monkeypatch):
    """Warnings as text: a record would keep what it was made from alive."""
    lines = []
    monkeypatch.setattr(nvrtc.log, "warning", lambda text, *given: lines.append(text % given))
    return lines


def compiled(value: int = 1, arch: str = "sm_90") -> bytes:
    return nvrtc.compile_source(SOURCE, {"VALUE": value}, arch)


def entries(cache):
    """Files that hold compiled code; there are no others."""
    assert [path for path in cache.rglob("*") if path.suffix != ".code"] == []
    return sorted(cache.iterdir())


def test_a_second_process_is_served_from_the_cache(cache):
    code = compiled()
    (entry,) = entries(cache)
    assert entry.read_bytes() == code
    entry.write_bytes(ELF + b" from the cache")
    assert compiled() == ELF + b" from the cache"
    assert compiled(2).startswith(ELF)
    script = (
        "import sys; from dnassm.kernels import nvrtc; "
        f"sys.stdout.buffer.write(nvrtc.compile_source({SOURCE!r}, {{'VALUE': 1}}, 'sm_90'));"
        "assert 'cuda.core' not in sys.modules, 'a tenth of a second'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == ELF + b" from the cache"


def test_what_makes_other_code_has_an_entry_of_its_own(cache):
    assert compiled(1) != compiled(2)
    assert compiled(1) != compiled(1, "sm_80")
    assert len(entries(cache)) == 3


def test_two_processes_that_start_at_once_both_have_the_code(cache):
    script = (
        "import sys; from dnassm.kernels import nvrtc; sys.stdin.read(1); "
        "[sys.stdout.buffer.write(nvrtc.compile_source("
        f"{SOURCE!r}, {{'VALUE': n}}, 'sm_90')[:4]) for n in range(5)]"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for process in both:
        process.stdin.write(b"go")
        process.stdin.flush()
    for process in both:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, ELF * 5, b"")
    assert len(entries(cache)) == 5


def test_a_folder_that_cannot_be_made_costs_a_compile_and_is_said(tmp_path, monkeypatch, said):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNASSM_CACHE_DIR", str(tmp_path / "file" / "below"))
    nvrtc._folder.cache_clear()
    assert compiled().startswith(ELF)
    assert compiled().startswith(ELF)
    nvrtc._folder.cache_clear()
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_a_folder_that_is_read_only_serves_and_costs_a_compile(cache):
    first = compiled(1)
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    nvrtc._folder.cache_clear()
    try:
        if os.access(cache, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert compiled(1) == first
        assert compiled(2).startswith(ELF)
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_disk_that_became_full_or_read_only_costs_a_compile(cache, monkeypatch, said):
    def sealed(target):
        raise ArtifactError(f"{target}: the disk is full")

    monkeypatch.setattr(nvrtc, "staged_file", sealed)
    assert compiled().startswith(ELF)
    assert "compiled again in every process" in said[0]
    assert entries(cache) == []


def test_the_oldest_entries_make_room(cache, monkeypatch):
    size = len(compiled(0))
    monkeypatch.setattr(nvrtc, "_LARGEST_CACHE", size * 5 // 2)
    (oldest,) = entries(cache)
    os.utime(oldest, (1, 1))
    compiled(1)
    assert oldest.exists()
    compiled(2)
    assert len(entries(cache)) == 2
    assert not oldest.exists()


def test_another_torch_compiles_anew(cache, monkeypatch):
    compiled()
    monkeypatch.setattr(torch, "__version__", "99.0")
    compiled()
    assert len(entries(cache)) == 2


def test_a_gpu_newer_than_the_compiler_gets_ptx_for_the_newest_known():
    from cuda.bindings import nvrtc as compiler

    newest = max(compiler.nvrtcGetSupportedArchs()[1])
    assert nvrtc._known(f"sm_{newest}") == f"sm_{newest}"
    assert nvrtc._known(f"sm_{newest + 1}") == f"compute_{newest}"
    assert nvrtc._known("compute_80") == "compute_80"


@pytest.mark.parametrize("damage", [b"", b"garbage", ELF + b" cut off"])
def test_a_damaged_entry_is_compiled_anew(cache, tmp_path, monkeypatch, said, damage):
    files = (tmp_path / "common.cu", tmp_path / "fill.cu")
    for file, text in zip(files, ("typedef float T;\n", SOURCE.replace("float", "T")), strict=True):
        file.write_text(text)
    code = nvrtc.compile_source(nvrtc.joined(files), {"VALUE": 1}, "sm_90")
    (entry,) = entries(cache)
    entry.write_bytes(damage)

    def load(code_given):
        """As the driver does, which is not here: it takes whole code only."""
        if code_given != code:
            raise nvrtc._RefusedError(Status.CUDA_ERROR_INVALID_IMAGE, "compiled code")
        return code_given

    monkeypatch.setattr(nvrtc, "_load", load)
    nvrtc._library.cache_clear()
    assert nvrtc._library(files, (("VALUE", 1),), "sm_90") == code
    nvrtc._library.cache_clear()
    assert "CUDA_ERROR_INVALID_IMAGE" in said[0]
    assert "fill.cu" in said[0]
    assert "compiled anew" in said[0]
    (entry,) = entries(cache)
    assert entry.read_bytes() == code, "the entry is mended for the next process"


def test_a_source_with_a_mistake_is_an_error_with_the_compilers_words(cache):
    with pytest.raises(BackendError, match=r"sm_90(.|\n)*no_such_name"):
        nvrtc.compile_source(SOURCE, {"VALUE": "no_such_name"}, "sm_90")
    assert entries(cache) == []


def test_a_mistake_is_named_by_its_own_file_and_line(cache, tmp_path):
    files = (tmp_path / "common.cu", tmp_path / "fill.cu")
    files[0].write_text("typedef float T;\n\n\n")
    files[1].write_text("\n" + SOURCE)
    with pytest.raises(BackendError, match=r"fill\.cu\(2\): error(.|\n)*no_such_name"):
        nvrtc.compile_source(nvrtc.joined(files), {"VALUE": "no_such_name"}, "sm_90")


def test_what_is_missing_is_named_with_how_to_get_it(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(nvrtc, "_installed", lambda package: package != "cuda.bindings")
    assert nvrtc.unavailable.__wrapped__(gpu) == (
        "cuda.bindings is not installed: pip install 'cuda-bindings==13.*'"
    )
    monkeypatch.setattr(nvrtc, "_installed", lambda package: False)
    assert nvrtc.unavailable.__wrapped__(gpu) == (
        "cuda.core is not installed: pip install 'cuda-core>=1.2'"
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "ROCm" in nvrtc.unavailable.__wrapped__(gpu)
    assert "cpu" in nvrtc.unavailable.__wrapped__(torch.device("cpu"))


# Launches


# ruff: noqa: N802  the names of the driver's functions are its own
class Driver:
    """Stands in for cuda.bindings.driver: a launch is remembered as its parameters' 8 bytes."""

    CUstream = CUkernel = CUdevice = int
    CUfunction_attribute = types.SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="largest shared"
    )

    def __init__(self) -> None:
        self.context = 7
        self.status = Status.CUDA_SUCCESS
        self.launches: list[tuple[tuple[int, ...], list[bytes]]] = []
        self.shared: list[int] = []
        self.parameters = 0

    def cuCtxGetCurrent(self):
        return Status.CUDA_SUCCESS, self.context

    def cuDeviceGet(self, index):
        return Status.CUDA_SUCCESS, 100 + index

    def cuDevicePrimaryCtxRetain(self, device):
        return Status.CUDA_SUCCESS, 1000 + device

    def cuCtxSetCurrent(self, context):
        self.context = context
        return (self.status,)

    def cuKernelSetAttribute(self, attribute, size, kernel, device):
        assert (attribute, kernel, device) == ("largest shared", 30, 1)
        self.shared.append(size)
        return (self.status,)

    def cuLaunchKernel(self, handle, *given):
        *sizes, stream, addresses, extra = given
        assert (handle, stream, extra) == (30, 55, 0)
        where = (ctypes.c_int64 * self.parameters).from_address(addresses)
        self.launches.append((tuple(sizes), [ctypes.string_at(at, 8) for at in where]))
        return (self.status,)


@pytest.fixture
def driver(monkeypatch) -> Iterator[Driver]:
    """A driver, and a torch with two GPUs of which the second is current."""
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", {0: 44, 1: 55}.__getitem__, raising=False
    )
    return Driver()


@pytest.fixture
def fill(driver) -> nvrtc.Kernel:
    made = nvrtc.Kernel(30, torch.device("cuda", 1))
    made._driver = driver
    return made


def word(value: int | float) -> bytes:
    return struct.pack("<f4x" if isinstance(value, float) else "<q", value)


def test_parameters_are_addresses_integers_and_floats_of_8_bytes(driver, fill):
    x, weight = torch.zeros(3), torch.nn.Parameter(torch.zeros(2))
    driver.parameters = 6
    for edge, number in ((None, -1), (x, 1 << 40), (x[1:], 0), (None, 7), (12, 3)):
        fill.launch((4, 5, 6), 128, [x, edge, number, 0.25, weight, True])
        sizes, words = driver.launches.pop()
        assert sizes == (4, 5, 6, 128, 1, 1, 0)
        at = edge.data_ptr() if isinstance(edge, torch.Tensor) else edge or 0
        known = (x.data_ptr(), at, number, 0.25, weight.data_ptr(), 1)
        assert words == [word(value) for value in known]


def test_an_integer_tensor_is_never_taken_for_its_number(driver, fill):
    driver.parameters = 1
    count = torch.tensor(3)
    for argument, value in ((3, 3), (count, count.data_ptr()), (3, 3)):
        fill.launch((1, 1, 1), 32, (argument,))
        assert driver.launches.pop()[1] == [word(value)]


def test_shared_memory_is_asked_for_once(driver, fill):
    for size in (0, 48 << 10, 60 << 10, 50 << 10, 60 << 10, 61 << 10):
        fill.launch((1, 1, 1), 32, [], shared=size)
        assert driver.launches.pop()[0][-1] == size
    assert driver.shared == [60 << 10, 61 << 10]


def test_a_thread_without_a_context_enters_that_of_the_device(driver, fill):
    fill.launch((1, 1, 1), 32, [])
    assert driver.context == 7, "one that is there stays"
    driver.context = 0
    fill.launch((1, 1, 1), 32, [])
    assert driver.context == 1101
    assert len(driver.launches) == 2


def test_a_kernel_runs_on_its_own_device_whichever_is_current(driver, fill, monkeypatch):
    current = [0]
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current[-1], raising=False)

    class Entered:
        def __init__(self, index):
            current.append(index)

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: current.pop() and None  # noqa: E731

    monkeypatch.setattr(torch.cuda, "device", Entered)
    fill.launch((1, 1, 1), 32, [])
    assert len(driver.launches) == 1
    assert current == [0]


def test_what_the_driver_refuses_is_an_error_with_its_name(driver, fill):
    driver.status = Status.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(BackendError) as refused:
        fill.launch((1, 2, 3), 2048, [])
    assert str(refused.value) == (
        "the CUDA driver refuses the launch of (1, 2, 3) blocks of 2048 threads: "
        "CUDA_ERROR_INVALID_VALUE"
    )
    with pytest.raises(BackendError, match="refuses the 99999 bytes of shared memory"):
        fill.launch((1, 1, 1), 32, [], shared=99999)
    driver.context = 0
    with pytest.raises(BackendError, match="refuses the context of GPU 1"):
        fill.launch((1, 1, 1), 32, [])
