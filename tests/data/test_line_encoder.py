"""Compiled code reads lines of bases as the alphabet's table does, at every place and length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data.alphabet import ASCII_TO_CODE, LETTERS, NO_BASE
from dnassm.data.encoder import NotABaseError
from dnassm.data.line_code import AHEAD, TOTALS, WHITE, compiled
from dnassm.data.line_encoder import ArrayLines, CompiledLines, line_encoder

CAPACITY = 3000
ENCODERS = [line_encoder(CAPACITY, compile_code=compile_code) for compile_code in (False, True)]
KINDS = [b"ACGT", b"acgt", b"ACGTN", b"ACGTNacgtn\n", b"ACGUacgu\r\n", LETTERS.encode() + WHITE]
each = pytest.mark.parametrize("encoder", ENCODERS, ids=["numpy", "compiled"])


def encode(encoder, text: bytes, behind: bytes):
    """What the encoder says of `text`, where other bytes follow."""
    memory = np.frombuffer(text + (behind * AHEAD)[:AHEAD], dtype=np.uint8)
    return encoder.encode(memory, [(0, len(text))])


def check(encoder, text: bytes, behind: bytes) -> None:
    bases = text.translate(None, WHITE)
    capital = bases.upper()
    codes, upper, totals = encode(encoder, text, behind)
    found = dict(zip(TOTALS, totals[0].tolist(), strict=True))
    assert codes.tolist() == ASCII_TO_CODE[np.frombuffer(bases, dtype=np.uint8)].tolist()
    assert upper.tobytes() == capital
    assert found == totals_of(text)


def totals_of(text: bytes) -> dict[str, int]:
    bases = text.translate(None, WHITE)
    capital = bases.upper()
    return {
        "bases": len(bases),
        "end": len(text),
        "lines": text.count(b"\n"),
        **{base: capital.count(base.encode()) for base in "ACGNU"},
        "T": capital.count(b"T") + capital.count(b"U"),
        "iupac": sum(chr(base) in LETTERS[5:] for base in capital),
        "soft_masked": sum(chr(base).islower() for base in bases),
    }


def test_the_code_is_compiled_where_it_can_be():
    assert isinstance(ENCODERS[0], ArrayLines)
    assert isinstance(ENCODERS[1], CompiledLines) == (compiled() is not None)


@each
@pytest.mark.parametrize("at", [0, 1, 63, 64, 65, 127, 200])
def test_every_byte_at_every_place_is_taken_or_refused_as_the_table_says(encoder, at):
    for byte in range(256):
        text = bytearray(b"ACGTacgtNn" * 21)
        text[at] = byte
        if ASCII_TO_CODE[byte] == NO_BASE and byte not in WHITE:
            with pytest.raises(NotABaseError):
                encode(encoder, bytes(text), b"A")
        else:
            check(encoder, bytes(text), b"A")


@each
@pytest.mark.parametrize("behind", [b"A", b"n", b"\n", b">", b"R", b"\xff"])
def test_every_length_ends_where_it_ends_whatever_follows(encoder, behind):
    text = np.random.default_rng(0).choice(np.frombuffer(b"ACGTacgtN", np.uint8), 200).tobytes()
    for length in range(len(text)):
        check(encoder, text[:length], behind)


@each
@pytest.mark.parametrize("width", [1, 2, 59, 60, 63, 64, 65, 80, 128, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_of_every_width(encoder, width, end):
    text = np.random.default_rng(1).choice(np.frombuffer(b"ACGTacgtN", np.uint8), 900).tobytes()
    check(encoder, b"".join(text[i : i + width] + end for i in range(0, 900, width)), b"C")


@each
@given(
    st.lists(st.sampled_from(KINDS).flatmap(lambda kind: st.text(kind.decode(), max_size=150))),
    st.binary(min_size=1, max_size=AHEAD),
)
def test_any_letters_and_white_space_agree_with_the_table(encoder, parts, behind):
    check(encoder, "".join(parts).encode()[:CAPACITY], behind)


@each
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS).flatmap(lambda kind: st.text(kind.decode(), max_size=150)),
            st.sampled_from(["", ">a", ">header\n", "\xff"]),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_stretches_are_counted_each_and_what_stands_between_them_is_not_read(encoder, parts):
    text, stretches = b"", []
    for stretch, between in parts:
        stretches.append((len(text), len(text) + len(stretch)))
        text += (stretch + between).encode("latin-1")
    memory = np.frombuffer(text + bytes(AHEAD), dtype=np.uint8)
    codes, upper, totals = encoder.encode(memory, stretches)
    expected = [text[start:end] for start, end in stretches]
    assert upper.tobytes() == b"".join(expected).translate(None, WHITE).upper()
    assert codes.size == upper.size
    found = [dict(zip(TOTALS, row.tolist(), strict=True)) for row in totals]
    assert found == [totals_of(stretch) for stretch in expected]
    with pytest.raises(NotABaseError):
        encoder.encode(memory, [*stretches, (len(text), len(text) + 1)])
