"""One FASTA file to codes: threads change nothing, and what fails in one is not lost."""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import os
import sys
import threading
import types

import numpy as np
import pytest

from dnassm.data import digest_code
from dnassm.data.alphabet import encode_ascii
from dnassm.data.codes_file import CodesFile
from dnassm.data.digest_lanes import DigestLanes
from dnassm.data.fasta import BLOCK_BYTES, read_blocks
from dnassm.data.store_writer import Part, write_part
from dnassm.errors import FormatError


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Sha256:
    """hashlib's, with a method that a test can replace."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, data) -> None:
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def written(path, folder, *, threads: bool, compiled: bool, monkeypatch) -> tuple[Part, bytes]:
    """What a file gives, behind the codes of another one."""
    monkeypatch.setattr("dnassm.data.store_writer.WORTH_COMPILING", 0 if compiled else 1 << 40)
    codes = folder / f"codes {threads} {compiled}"
    codes.write_bytes(b"before")
    with CodesFile(codes) as file:
        part = write_part(path, file, threads=threads)
    return part, codes.read_bytes().removeprefix(b"before")


def use_own_sha256(monkeypatch) -> None:
    own = types.SimpleNamespace(md5=hashlib.md5, sha256=Sha256)
    monkeypatch.setattr("dnassm.data.store_writer.hashlib", own)


def write(path, folder) -> None:
    with CodesFile(folder / "codes") as file:
        write_part(path, file, threads=True)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    """Contigs of many blocks, of a few bases, and of both in turn."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("fasta") / "g.fa"
    texts = {}
    with path.open("w") as file:
        for number, size in enumerate([5, 3_000_000, 1, 200, 1_500_000, 70_000, 9, 2_000_000]):
            bases = rng.choice(np.frombuffer(b"ACGTacgtN", np.uint8), size).tobytes().decode()
            texts[f"c{number}"] = bases
            lines = "\n".join(bases[i : i + 60] for i in range(0, size, 60))
            file.write(f">c{number}\n{lines}\n")
    path.with_suffix(".fa.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    return path, texts


def check(path, texts, folder, monkeypatch) -> None:
    """All ways give the same, and that is what the texts say."""
    ways = list(itertools.product((False, True), (False, True)))
    first, *others = (
        written(path, folder, threads=threads, compiled=compiled, monkeypatch=monkeypatch)
        for threads, compiled in ways
    )
    assert all(other == first for other in others)
    part, codes = first
    for contig, text in zip(part.contigs, texts.values(), strict=True):
        expected = encode_ascii(text.encode()).tobytes()
        assert codes[contig.offset : contig.offset + contig.length] == expected
        assert contig.sha256 == hashlib.sha256(expected).hexdigest()
        assert contig.md5 == hashlib.md5(text.upper().encode()).hexdigest()
        assert [contig.counts[base] for base in "ACGN"] == [text.upper().count(b) for b in "ACGN"]
        assert contig.counts["U"] == text.upper().count("U")


@pytest.mark.parametrize("suffix", [".fa", ".fa.gz"])
def test_threads_and_compiled_code_change_nothing(fasta, suffix, tmp_path, monkeypatch):
    path, texts = fasta
    check(path.with_suffix(suffix), texts, tmp_path, monkeypatch)


@pytest.mark.parametrize("block", [5000, BLOCK_BYTES])
def test_u_is_digested_as_it_was_written(tmp_path, monkeypatch, block):
    read = functools.partial(read_blocks, block_bytes=block)
    monkeypatch.setattr("dnassm.data.store_writer.read_blocks", read)
    texts = {
        "dna": "ACGTacgtNRYK" * 300,
        "late": "ACGTtA" * 900 + "U" + "ACGTtA" * 900,
        "rna": "ACGUacgu" * 500,
        "both": "TU" * 3000,
        "last": "GATTACA" * 999,
    }
    path = tmp_path / "u.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in texts.items()))
    check(path, texts, tmp_path, monkeypatch)


@pytest.mark.parametrize("block", [900, 20_000, BLOCK_BYTES])
def test_many_contigs_of_any_length(tmp_path, monkeypatch, block):
    read = functools.partial(read_blocks, block_bytes=block)
    monkeypatch.setattr("dnassm.data.store_writer.read_blocks", read)
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGTacgtNRYU", np.uint8)
    sizes = [*range(1, 200), 70_000, 5, 100_000, 66_000, *rng.integers(1, 900, 200)]
    texts = {
        f"c{number}": rng.choice(letters[: 12 - number % 2], size).tobytes().decode()
        for number, size in enumerate(sizes)
    }
    path = tmp_path / "many.fa"
    path.write_text("".join(f">{name} of {len(text)}\n{text}\n" for name, text in texts.items()))
    check(path, texts, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("owner", "name", "compiled"),
    [(CodesFile, "append", False), (Sha256, "update", False), (DigestLanes, "_turn", True)],
)
@pytest.mark.parametrize("at", [0, 2, -1])
def test_what_fails_is_raised_from_whatever_thread(
    fasta, tmp_path, monkeypatch, owner, name, compiled, at
):
    if compiled and not digest_code.can_compile():
        pytest.skip("the CPU has no SHA instructions")
    use_own_sha256(monkeypatch)
    original = getattr(owner, name)
    calls = 0
    fails = None

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if fails is not None and calls - 1 == fails:
            raise OSError(28, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(owner, name, counted)
    written(fasta[0], tmp_path, threads=False, compiled=compiled, monkeypatch=monkeypatch)
    fails = range(min(calls, 5))[at]
    calls = 0
    with pytest.raises(OSError, match="No space left"):
        written(fasta[0], tmp_path, threads=True, compiled=compiled, monkeypatch=monkeypatch)


def test_bad_input_stops_the_threads(fasta, tmp_path):
    path = tmp_path / "bad.fa.gz"
    path.write_bytes(gzip.compress(fasta[0].read_bytes() + b">p\nMKVLAE\n", 1))
    with pytest.raises(FormatError, match="contig 'p'"):
        write(path, tmp_path)


@pytest.mark.parametrize("cut", [10, 5000, 1_000_000])
def test_gzip_that_is_cut_short_is_refused_as_without_threads(fasta, tmp_path, cut):
    whole = fasta[0].with_suffix(".fa.gz").read_bytes()
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(whole[:-cut])
    with pytest.raises(FormatError, match="the gzip data ends too early: the file is truncated"):
        write(path, tmp_path)
    path.write_bytes(whole[:cut] + bytes(50) + whole[cut + 50 :])
    with pytest.raises(FormatError):
        write(path, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
def test_only_the_thread_of_the_digests_gives_way(fasta, tmp_path, monkeypatch):
    use_own_sha256(monkeypatch)
    found = []
    update = Sha256.update

    def look(*arguments):
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        update(*arguments)

    monkeypatch.setattr(Sha256, "update", look)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    written(fasta[0], tmp_path, threads=True, compiled=False, monkeypatch=monkeypatch)
    assert max(found) == min(before + 10, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
