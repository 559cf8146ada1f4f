"""The bases of a genome store: one byte per base, soft mask kept, N apart from padding.

The low four bits hold the letter (A C G T N, the ten IUPAC ambiguity letters, PAD), the top bit
says that the base was lower case, i.e. soft-masked. U reads as T. Any other character is no base.

>>> decode(reverse_complement(encode_ascii(b"AACgtN")))
'NacGTT'
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dnassm.errors import FormatError

Codes = npt.NDArray[np.uint8]

LETTERS = "ACGTNRYSWKMBDHV"
A, C, G, T, N = range(5)
PAD = 15
"""Beyond the end of a contig; never inside a store."""
SOFT_MASK = 0x80
"""Bit of a lower-case base."""
BASE = 0x0F
"""Bits of the letter."""
NO_BASE = 0xFF
"""What `ASCII_TO_CODE` says of a character that is no base."""

_COMPLEMENTS = str.maketrans("ACGTRYKMBVDH", "TGCAYRMKVBHD")  # N, S and W are their own


def _ascii_to_code() -> Codes:
    table = np.full(256, NO_BASE, dtype=np.uint8)
    for code, letter in [*enumerate(LETTERS), (T, "U")]:
        table[ord(letter)] = code
        table[ord(letter.lower())] = code | SOFT_MASK
    return table


def _code_to_ascii() -> Codes:
    table = np.full(256, ord("?"), dtype=np.uint8)
    for code, letter in enumerate(LETTERS):
        table[code] = ord(letter)
        table[code | SOFT_MASK] = ord(letter.lower())
    table[PAD] = ord(".")
    return table


def _complement() -> Codes:
    table = np.arange(256, dtype=np.uint8)
    for code, letter in enumerate(LETTERS):
        partner = LETTERS.index(letter.translate(_COMPLEMENTS))
        table[code] = partner
        table[code | SOFT_MASK] = partner | SOFT_MASK
    return table


ASCII_TO_CODE = _ascii_to_code()
"""uint8[256]: ASCII byte -> code, NO_BASE for everything that is no base."""
CODE_TO_ASCII = _code_to_ascii()
"""uint8[256]: code -> ASCII byte; PAD reads as '.'."""
COMPLEMENT = _complement()
"""uint8[256]: code -> code of the complement; keeps the soft mask and PAD."""
_COMPLEMENT_TABLE = COMPLEMENT.tobytes()


def encode_ascii(sequence: bytes) -> Codes:
    """Codes (L,) uint8 of a sequence of letters; no white space.

    Raises:
        FormatError: a character is no base; names the first one and its 0-based position.
    """
    codes = ASCII_TO_CODE[np.frombuffer(sequence, dtype=np.uint8)]
    wrong = np.flatnonzero(codes == NO_BASE)
    if wrong.size:
        at = int(wrong[0])
        raise FormatError(
            f"expected DNA letters (A C G T U N and IUPAC), got {chr(sequence[at])!r} at position "
            f"{at} of the sequence; remove it or write N"
        )
    return codes


def decode(codes: Codes) -> str:
    """Letters of codes (L,): lower case where soft-masked, '.' for PAD."""
    return CODE_TO_ASCII[codes].tobytes().decode("ascii")


def reverse_complement(codes: Codes) -> Codes:
    """Codes (L,) of the other strand, read in its own direction."""
    # Bytes are translated several times faster than an array is indexed.
    return np.frombuffer(bytearray(codes[::-1].tobytes().translate(_COMPLEMENT_TABLE)), np.uint8)
