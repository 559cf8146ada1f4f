"""Letters, codes and complements."""

from __future__ import annotations

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data.alphabet import (
    ASCII_TO_CODE,
    COMPLEMENT,
    LETTERS,
    NO_BASE,
    PAD,
    SOFT_MASK,
    decode,
    encode_ascii,
    reverse_complement,
)
from dnassm.errors import FormatError

dna = st.text(alphabet=LETTERS + LETTERS.lower(), max_size=200)


@given(dna)
def test_decoding_gives_back_what_was_encoded(text):
    assert decode(encode_ascii(text.encode())) == text


@given(dna)
def test_the_reverse_complement_is_biopythons_and_its_own_inverse(text):
    codes = encode_ascii(text.encode())
    assert decode(reverse_complement(codes)) == str(Seq(text).reverse_complement())
    assert np.array_equal(reverse_complement(reverse_complement(codes)), codes)


def test_the_codes_are_those_that_stores_on_disk_hold():
    assert encode_ascii(b"ACGTNRYSWKMBDHV").tolist() == list(range(15))
    assert encode_ascii(b"acgtn").tolist() == [0x80, 0x81, 0x82, 0x83, 0x84]


def test_u_reads_as_t_in_either_case():
    assert decode(encode_ascii(b"UuTt")) == "TtTt"


def test_only_the_bases_have_a_code():
    bases = {chr(byte) for byte in np.flatnonzero(ASCII_TO_CODE != NO_BASE)}
    assert bases == set(LETTERS + LETTERS.lower() + "Uu")
    assert PAD not in ASCII_TO_CODE
    assert PAD | SOFT_MASK not in ASCII_TO_CODE


def test_padding_is_its_own_complement_and_shows_as_a_dot():
    assert COMPLEMENT[PAD] == PAD
    assert decode(np.array([0, PAD], dtype=np.uint8)) == "A."


@pytest.mark.parametrize("bad", [b"ACGX", b"AC-T", b"AC T", b"AC\nT", b"AC\xff", b"ACE"])
def test_a_character_that_is_no_base_is_named_with_its_position(bad):
    at = next(i for i, byte in enumerate(bad) if byte not in b"ACGT")
    with pytest.raises(FormatError, match=f"position {at} "):
        encode_ascii(bad)
