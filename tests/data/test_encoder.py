"""The encoder's arithmetic agrees with the alphabet's table for every byte there is."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data.alphabet import ASCII_TO_CODE, LETTERS, NO_BASE
from dnassm.data.encoder import BlockEncoder, NotABaseError

CAPACITY = 5000
ENCODER = BlockEncoder(CAPACITY)
KINDS = ["ACGT", "acgt", "ACGTacgt", "ACGTN", "Nn", "ACGTNacgtn", "ACGTUu", LETTERS + "acgtnu"]


def encode(sequence: bytes):
    ENCODER.letters[: len(sequence)] = np.frombuffer(sequence, dtype=np.uint8)
    return ENCODER.encode(len(sequence))


def check(sequence: bytes) -> None:
    codes, upper, counts = encode(sequence)
    text = sequence.decode("ascii")
    capital = text.upper()
    assert codes.tolist() == ASCII_TO_CODE[np.frombuffer(sequence, dtype=np.uint8)].tolist()
    assert upper.tobytes() == capital.encode()
    assert dataclasses.asdict(counts) == {
        **{base: capital.count(base) for base in "ACGNU"},
        "T": capital.count("T") + capital.count("U"),
        "iupac": sum(base in LETTERS[5:] for base in capital),
        "soft_masked": sum(base.islower() for base in text),
    }
    assert all(
        type(getattr(counts, name)) is int for name in counts.__slots__
    )  # JSON takes no other


@pytest.mark.parametrize("around", [b"", b"A", b"ACGT" * 600, b"acgT" * 600, b"ACGTN" * 600])
@pytest.mark.parametrize("byte", range(256))
def test_every_byte_is_encoded_or_refused_as_the_table_says(byte, around):
    sequence = around + bytes([byte]) + around[:7]
    if ASCII_TO_CODE[byte] == NO_BASE:
        with pytest.raises(NotABaseError):
            encode(sequence)
    else:
        check(sequence)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 31, 32, 1023, 1024, 1025, 4096, CAPACITY])
def test_blocks_of_any_length_and_of_every_kind_of_letters_agree_with_the_table(kind, n):
    check(bytes(np.random.default_rng(n).choice(list(kind.encode()), n).tolist()))


@pytest.mark.parametrize("letter", "ACGTNacgtn")
def test_a_block_of_one_letter_overflows_no_count(letter):
    check(letter.encode() * CAPACITY)


@given(st.lists(st.sampled_from([kind.encode() * 150 for kind in KINDS]), max_size=3), st.binary())
def test_what_a_block_held_before_leaves_no_trace(parts, junk):
    sequence = b"".join(parts)[:CAPACITY]
    junk = junk[:CAPACITY]
    with contextlib.suppress(NotABaseError):
        encode(junk)
    check(sequence)


def test_an_empty_block_has_no_bases():
    check(b"")
