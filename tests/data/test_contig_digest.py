"""The digests of a contig are hashlib's, by own code too, however the bytes arrive."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data import digest_code
from dnassm.data.contig_digest import Interleaved, contig_digest

WAYS = [False]
if digest_code.compiled() is not None:
    WAYS.append(True)
each_way = pytest.mark.parametrize("compile_code", WAYS)


def check(parts, *, compile_code: bool) -> None:
    """Digests of the parts, one stream of which is another one's complement."""
    digest = contig_digest(compile_code=compile_code)
    for part in parts:
        upper = np.frombuffer(part, dtype=np.uint8)
        digest.update(upper, ~upper)
        digest.update_other(~upper)
    text = np.frombuffer(b"".join(parts), dtype=np.uint8)
    expected = hashlib.md5(text).hexdigest(), hashlib.sha256(~text).hexdigest()
    assert digest.hexdigests() == expected
    assert digest.hexdigests() == expected  # asking changes nothing


@each_way
def test_every_length_up_to_several_blocks(compile_code):
    text = np.random.default_rng(0).bytes(300)
    for length in range(len(text)):
        check([text[:length]], compile_code=compile_code)


@each_way
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_where_the_stream_is_cut_changes_nothing(compile_code, parts):
    check(parts, compile_code=compile_code)


@each_way
@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"A"])
def test_a_stream_of_one_byte(compile_code, byte):
    check([byte * 1000], compile_code=compile_code)


@pytest.mark.slow
@pytest.mark.skipif(True not in WAYS, reason="the CPU has no SHA instructions")
def test_lengths_whose_bits_need_more_than_32():
    part = np.random.default_rng(1).integers(0, 256, 1 << 24, dtype=np.uint8)
    ways = [contig_digest(compile_code=compile_code) for compile_code in WAYS]
    for _ in range(33):
        for way in ways:
            way.update(part, part)
            way.update_other(part)
    assert ways[0].hexdigests() == ways[1].hexdigests()


def test_own_code_is_taken_where_the_cpu_has_its_instructions():
    way = contig_digest(compile_code=True)
    assert isinstance(way, Interleaved) == (digest_code.compiled() is not None)


def test_without_the_instructions_hashlib_answers(monkeypatch):
    monkeypatch.setattr("dnassm.data.contig_digest.compiled", lambda: None)
    check([b"ACGT" * 99], compile_code=True)
