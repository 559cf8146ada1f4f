"""One FASTA file to codes: threads change nothing, and what fails in one is not lost."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import threading

import numpy as np
import pytest

from dnassm.data.alphabet import encode_ascii
from dnassm.data.store_writer import write_part
from dnassm.errors import FormatError


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


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


@pytest.mark.parametrize("suffix", [".fa", ".fa.gz"])
def test_threads_and_compiled_code_change_nothing(fasta, suffix, monkeypatch):
    path, texts = fasta
    parts, written = [], []
    for threads, from_bytes in itertools.product((False, True), (0, 1 << 40)):
        monkeypatch.setattr("dnassm.data.store_writer.WORTH_COMPILING", from_bytes)
        blocks: list[bytes] = []
        part = write_part(
            path.with_suffix(suffix), lambda b, to=blocks: to.append(bytes(b)), threads=threads
        )
        parts.append(part)
        written.append(b"".join(blocks))
    assert all(part == parts[0] for part in parts)
    assert all(codes == written[0] for codes in written)
    for contig, text in zip(parts[1].contigs, texts.values(), strict=True):
        codes = written[1][contig.offset : contig.offset + contig.length]
        assert codes == encode_ascii(text.encode()).tobytes()
        assert contig.sha256 == hashlib.sha256(codes).hexdigest()
        assert contig.md5 == hashlib.md5(text.upper().encode()).hexdigest()


@pytest.mark.parametrize("at", [0, 2, 8, -1])
def test_what_fails_in_a_thread_is_raised(fasta, at):
    sizes: list[int] = []
    write_part(fasta[0], lambda block: sizes.append(len(block)), threads=False)
    fails = range(len(sizes))[at]
    calls = 0

    def write(block):
        nonlocal calls
        calls += 1
        if calls == fails + 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_part(fasta[0], write, threads=True)


def test_bad_input_stops_the_threads(fasta, tmp_path):
    path = tmp_path / "bad.fa.gz"
    path.write_bytes(gzip.compress(fasta[0].read_bytes() + b">p\nMKVLAE\n", 1))
    with pytest.raises(FormatError, match="contig 'p'"):
        write_part(path, lambda block: None, threads=True)


@pytest.mark.parametrize("cut", [10, 5000, 1_000_000])
def test_gzip_that_is_cut_short_is_refused_as_without_threads(fasta, tmp_path, cut):
    whole = fasta[0].with_suffix(".fa.gz").read_bytes()
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(whole[:-cut])
    with pytest.raises(FormatError, match="the gzip data ends too early: the file is truncated"):
        write_part(path, lambda block: None, threads=True)
    path.write_bytes(whole[:cut] + bytes(50) + whole[cut + 50 :])
    with pytest.raises(FormatError):
        write_part(path, lambda block: None, threads=True)
