"""The digests of a contig are hashlib's, by own code too, however the bytes arrive."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data import digest_code
from dnassm.data.contig_digest import Hashlib, Interleaved


class BothByHashlib:
    """MD5 and SHA-256 of one contig."""

    def __init__(self) -> None:
        self._streams = Hashlib(hashlib.md5), Hashlib(hashlib.sha256)
        for stream in self._streams:
            stream.take(np.zeros(0, dtype=np.uint8), np.array([0, 0]))

    def update(self, *parts) -> None:
        for stream, part in zip(self._streams, parts, strict=True):
            stream.take(part, np.array([part.size]))

    def hexdigests(self) -> tuple[str, str]:
        md5, sha256 = (stream.finish()[0] for stream in self._streams)
        return md5, sha256


WAYS = {"hashlib": BothByHashlib}
if digest_code.can_compile():
    WAYS["own code"] = Interleaved
each_way = pytest.mark.parametrize("begin", WAYS.values(), ids=WAYS)


def check(begin, parts) -> None:
    """Digests of the parts, one stream of which is another one's complement."""
    digest = begin()
    for part in parts:
        upper = np.frombuffer(part, dtype=np.uint8)
        digest.update(upper, ~upper)
    text = np.frombuffer(b"".join(parts), dtype=np.uint8)
    expected = hashlib.md5(text).hexdigest(), hashlib.sha256(~text).hexdigest()
    assert digest.hexdigests() == expected
    assert digest.hexdigests() == expected  # asking changes nothing


@each_way
def test_every_length_up_to_several_blocks(begin):
    text = np.random.default_rng(0).bytes(300)
    for length in range(len(text)):
        check(begin, [text[:length]])


@each_way
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_where_the_stream_is_cut_changes_nothing(begin, parts):
    check(begin, parts)


@each_way
@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"A"])
def test_a_stream_of_one_byte(begin, byte):
    check(begin, [byte * 1000])


@pytest.mark.slow
@pytest.mark.skipif(len(WAYS) == 1, reason="the CPU has no SHA instructions")
def test_lengths_whose_bits_need_more_than_32():
    part = np.random.default_rng(1).integers(0, 256, 1 << 24, dtype=np.uint8)
    ways = [begin() for begin in WAYS.values()]
    for _ in range(33):
        for way in ways:
            way.update(part, part)
    assert ways[0].hexdigests() == ways[1].hexdigests()
