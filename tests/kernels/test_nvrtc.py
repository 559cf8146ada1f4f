"""Compiling at run time: the cache on disk, and what is said where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from dnassm.errors import BackendError
from dnassm.kernels import nvrtc

pytest.importorskip("cuda.core", reason="cuda-core is not installed: no NVRTC")
pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: no NVRTC")

SOURCE = 'extern "C" __global__ void fill(float *a) { a[threadIdx.x] = VALUE; }'
ELF = b"\x7fELF"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for compiled kernels."""
    forget = nvrtc._store.cache_clear
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
    """Files that hold compiled code."""
    return [path for path in cache.rglob("*") if path.is_file() and path.read_bytes()[:4] == ELF]


def test_a_second_process_is_served_from_the_cache(cache):
    code = compiled()
    (entry,) = entries(cache)
    assert entry.read_bytes() == code
    entry.write_bytes(ELF + b" from the cache")
    assert compiled() == ELF + b" from the cache"
    assert compiled(2).startswith(ELF)
    script = (
        "import sys; from dnassm.kernels import nvrtc; "
        f"sys.stdout.buffer.write(nvrtc.compile_source({SOURCE!r}, {{'VALUE': 1}}, 'sm_90'))"
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
    assert not any(path.is_file() for path in (cache / "tmp").rglob("*"))


def test_a_folder_that_cannot_be_made_costs_a_compile_and_is_said(tmp_path, monkeypatch, said):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNASSM_CACHE_DIR", str(tmp_path / "file" / "below"))
    nvrtc._store.cache_clear()
    assert compiled().startswith(ELF)
    assert compiled().startswith(ELF)
    nvrtc._store.cache_clear()
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_a_folder_that_is_read_only_serves_and_costs_a_compile(cache):
    first = compiled(1)
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    nvrtc._store.cache_clear()
    try:
        if os.access(cache, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert compiled(1) == first
        assert compiled(2).startswith(ELF)
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_disk_that_became_full_or_read_only_costs_a_compile(cache, monkeypatch, said):
    from cuda.core.utils import FileStreamProgramCache

    class Sealed(FileStreamProgramCache):
        def __setitem__(self, key, value):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(nvrtc, "_store", lambda: Sealed(cache))
    assert compiled().startswith(ELF)
    assert "compiled again in every process" in said[0]
    assert entries(cache) == []


@pytest.mark.parametrize("damage", [b"", b"garbage", ELF + b" cut off"])
def test_a_damaged_entry_is_compiled_anew(cache, tmp_path, monkeypatch, said, damage):
    source = tmp_path / "fill.cu"
    source.write_text(SOURCE)
    code = compiled()
    (entry,) = entries(cache)
    entry.write_bytes(damage)

    def load(code_given, arch):
        """As the driver does, which is not here: it takes whole code only."""
        if code_given != code:
            raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")
        return code_given

    monkeypatch.setattr(nvrtc, "_load", load)
    nvrtc._library.cache_clear()
    assert nvrtc._library(source, (("VALUE", 1),), "sm_90") == code
    nvrtc._library.cache_clear()
    assert "compiled anew" in said[0]
    (entry,) = entries(cache)
    assert entry.read_bytes() == code, "the entry is mended for the next process"


def test_a_source_with_a_mistake_is_an_error_with_the_compilers_words(cache):
    with pytest.raises(BackendError, match=r"sm_90(.|\n)*no_such_name"):
        nvrtc.compile_source(SOURCE, {"VALUE": "no_such_name"}, "sm_90")
    assert entries(cache) == []


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
