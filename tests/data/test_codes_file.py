"""The file of codes: what is appended is read again, and goes to the disk stretch by stretch."""

from __future__ import annotations

import os

import numpy as np
import pytest

from dnassm.data import codes_file
from dnassm.data.codes_file import CodesFile


def test_what_is_appended_is_read_again_at_any_place(tmp_path):
    path = tmp_path / "codes"
    path.write_bytes(b"old")
    with CodesFile(path) as file:
        for block in (b"", b"ACG", memoryview(b"TTT"), bytes(100_000), b"end"):
            file.append(block)
        content = path.read_bytes()  # nothing is held back
        assert content == b"oldACGTTT" + bytes(100_000) + b"end"
        assert file.size == len(content)
        for at, size in ((0, 5), (2, 0), (4, 100_000), (100_011, 1)):
            codes = np.full(size, 9, dtype=np.uint8)
            file.fetch(codes, at)
            assert codes.tobytes() == content[at : at + size]
        with pytest.raises(OSError, match="cut short"):
            file.fetch(np.zeros(2, dtype=np.uint8), 100_011)


def test_a_write_that_takes_less_is_gone_on_with(tmp_path, monkeypatch):
    with CodesFile(tmp_path / "codes") as file:
        descriptor = file.fileno()
        monkeypatch.setattr(CodesFile, "write", lambda _, part: os.write(descriptor, part[:7]))
        file.append(bytes(range(100)))
    assert (tmp_path / "codes").read_bytes() == bytes(range(100))


def test_it_is_flushed_stretch_by_stretch_from_where_it_grows(tmp_path, monkeypatch):
    stretches: list[tuple[int, int]] = []
    start_flush = codes_file._start_flush

    def flush(descriptor, start, length):
        stretches.append((start, length))
        assert os.fstat(descriptor).st_size == start + length
        start_flush(descriptor, start, length)

    monkeypatch.setattr(codes_file, "_FLUSH_BYTES", 1 << 20)
    monkeypatch.setattr(codes_file, "_start_flush", flush)
    (tmp_path / "codes").write_bytes(bytes(24))
    with CodesFile(tmp_path / "codes") as file:
        for _ in range(50):
            file.append(bytes(100_000))
    assert stretches[0][0] == 24
    ends = [start + length for start, length in stretches]
    assert [start for start, _ in stretches[1:]] == ends[:-1]
    assert file.size - ends[-1] < 1 << 20
