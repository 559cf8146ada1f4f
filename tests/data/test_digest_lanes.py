"""Contigs that are digested side by side have hashlib's digests, whatever stands beside them."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnassm.data import digest_code, digest_lanes
from dnassm.data.alphabet import LETTERS, SOFT_MASK, decode
from dnassm.data.codes_file import CodesFile
from dnassm.data.digest_code import BLOCK, LANES
from dnassm.data.digest_lanes import DigestLanes

pytestmark = pytest.mark.skipif(
    not digest_code.can_compile(), reason="the CPU has no SHA instructions"
)
ROW = 4 * BLOCK
ALL_CODES = np.arange(len(LETTERS), dtype=np.uint8)
ALL_CODES = np.concatenate([ALL_CODES, ALL_CODES | SOFT_MASK])
LENGTHS = st.one_of(
    st.integers(0, 3 * ROW),
    st.sampled_from([n * BLOCK + more for n in (1, 2, 4, 8, 9, 40) for more in (-9, -8, -1, 0, 1)]),
)


@pytest.fixture(autouse=True)
def _short_rows(monkeypatch):
    monkeypatch.setattr(digest_lanes, "_ROW", ROW)
    monkeypatch.setattr(digest_lanes, "_LAG", 3 * ROW)


def contig(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(ALL_CODES, length)


def by_hashlib(codes) -> tuple[str, str]:
    letters = decode(codes).upper().encode()
    return hashlib.md5(letters).hexdigest(), hashlib.sha256(codes.tobytes()).hexdigest()


def check(folder, lengths, *, piece: int, eager: bool, before: int = 0) -> None:
    """Write contigs piece by piece, digesting on the way, into a file that holds something."""
    path = folder / "codes"
    path.write_bytes(bytes(before))
    contigs = [contig(length, seed) for seed, length in enumerate(lengths)]
    with CodesFile(path) as file:
        lanes = DigestLanes(file)
        digests = []
        for codes in contigs:
            digests.append(lanes.begin(file.size))
            for start in range(0, codes.size, piece):
                file.append(codes[start : start + piece].data)
                lanes.grow(file.size)
                lanes.run(1000, eager=eager)
        lanes.drain()
    assert [digest.hexdigests() for digest in digests] == [by_hashlib(codes) for codes in contigs]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(LENGTHS, max_size=3 * LANES), st.integers(1, 3 * ROW), st.booleans())
def test_any_contigs_in_any_pieces(tmp_path, lengths, piece, eager):
    check(tmp_path, lengths, piece=max(piece, sum(lengths) // 20 + 1), eager=eager)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("count", range(2 * LANES + 2))
def test_any_number_of_contigs_behind_another_file_s(tmp_path, count, eager):
    check(tmp_path, [5 * ROW + 63] * count, piece=1000, eager=eager, before=777)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("long", range(LANES + 1))
def test_one_contig_much_longer_than_the_others(tmp_path, long, eager):
    lengths = [100 * ROW if number == long else 70 for number in range(LANES + 1)]
    check(tmp_path, lengths, piece=3000, eager=eager)


def test_every_length_beside_others(tmp_path):
    check(tmp_path, range(200), piece=64, eager=False)


def test_nothing_is_taken_before_there_is_a_choice_but_it_is_then(tmp_path):
    with CodesFile(tmp_path / "codes") as file:
        lanes = DigestLanes(file)
        digests = []
        for number in range(LANES):
            assert all(digest.state.tolist() == digests[0].state.tolist() for digest in digests)
            digests.append(lanes.begin(file.size))
            file.append(contig(2 * ROW, number).data)
            lanes.grow(file.size)
            lanes.run(1, eager=False)
    assert len({tuple(digest.state.tolist()) for digest in digests}) == LANES


def test_the_last_contigs_end_together(tmp_path, monkeypatch):
    monkeypatch.setattr(digest_lanes, "_LAG", 1 << 30)
    turns = []
    turn = DigestLanes._turn
    monkeypatch.setattr(
        DigestLanes, "_turn", lambda *both: (turns.append(len(both[1])), turn(*both))
    )
    check(tmp_path, [40 * ROW] * (LANES + 1), piece=ROW, eager=False)
    assert turns.count(LANES) > 0.9 * 40 * (LANES + 1) / LANES


def test_a_thread_that_digests_while_another_one_writes(tmp_path):
    contigs = [contig(50_000 + 7 * seed, seed) for seed in range(6)]
    done = threading.Event()
    with CodesFile(tmp_path / "codes") as file:
        lanes = DigestLanes(file)

        def digest() -> None:
            while not done.is_set():
                lanes.run(3, eager=True)

        thread = threading.Thread(target=digest)
        thread.start()
        digests = []
        for codes in contigs:
            digests.append(lanes.begin(file.size))
            for start in range(0, codes.size, 900):
                file.append(codes[start : start + 900].data)
                lanes.grow(file.size)
        done.set()
        thread.join()
        lanes.drain()
    assert [digest.hexdigests() for digest in digests] == [by_hashlib(codes) for codes in contigs]


def test_codes_that_are_gone_are_an_error(tmp_path):
    with CodesFile(tmp_path / "codes") as file:
        lanes = DigestLanes(file)
        lanes.begin(file.size)
        file.append(bytes(1000))
        lanes.grow(file.size)
        file.truncate(500)
        with pytest.raises(OSError, match="cut short while it was written"):
            lanes.drain()
