"""Short contigs that are digested at once have hashlib's digests, whatever stands beside them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data import digest_batch, digest_code
from dnassm.data.digest_batch import digest_each
from dnassm.data.digest_code import BLOCK, LANES

pytestmark = pytest.mark.skipif(
    not digest_code.can_compile(), reason="the CPU has no SHA instructions"
)
LENGTHS = st.one_of(
    st.integers(0, 5 * BLOCK),
    st.sampled_from([n * BLOCK + more for n in (1, 2, 9, 100) for more in (-9, -8, -1, 0, 1)]),
)


def check(lengths, gap: int = 0) -> None:
    """Digests of contigs of random bytes, with some that belong to none between them."""
    ends = np.cumsum([length + gap for length in lengths], dtype=np.int64)
    spans = np.stack([ends - lengths, ends], axis=1)
    upper = np.random.default_rng(0).integers(0, 256, ends[-1], dtype=np.uint8)
    expected = [
        (hashlib.md5(upper[a:b]).hexdigest(), hashlib.sha256(~upper[a:b]).hexdigest())
        for a, b in spans.tolist()
    ]
    assert digest_each(upper, ~upper, spans) == expected


@given(st.lists(LENGTHS.filter(bool), min_size=1, max_size=3 * LANES), st.integers(0, 3))
def test_any_contigs_in_any_order(lengths, gap):
    check(lengths, gap)


@pytest.mark.parametrize("count", range(1, 2 * LANES + 2))
def test_any_number_of_contigs(count):
    check([3 * BLOCK + 5] * count)


def test_every_length_beside_others():
    check(range(300))


def test_more_contigs_than_are_taken_at_once(monkeypatch):
    monkeypatch.setattr(digest_batch, "_AT_ONCE", 5)
    check(range(1, 24))
