"""ASCII letters to store codes, block by block, in buffers that are made once."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import ASCII_TO_CODE, NO_BASE, SOFT_MASK, Codes, N

_TABLE = ASCII_TO_CODE.tobytes()
_A, _T, _N = b"ATN"
_LAST_UPPER, _UPPER_BITS = 0x5F, 0xDF
_HASH, _HASHES_PER_CODE = 138, 24
"""_HASH * letter modulo 256 // _HASHES_PER_CODE is the code of A, C, G and T."""
_LETTER_BITS, _HASH_BITS = 0x57, 0x5E
"""All bits that occur in A, C, G and T, and in their hashes.

No other byte is from A to T and has no further bit, neither in itself nor in its hash.
"""
_EVEN_BITS = np.uint64(0x5555555555555555)
_ALIGNMENT = 1024
"""Lengths that BlockEncoder._count can halve and view as words down to the end."""


@dataclasses.dataclass(slots=True)
class BaseCounts:
    """How often each kind of base occurs; `U` is the part of `T` that was written U."""

    A: int = 0
    C: int = 0
    G: int = 0
    T: int = 0
    N: int = 0
    iupac: int = 0
    soft_masked: int = 0
    U: int = 0

    def add(self, other: BaseCounts) -> None:
        """Add the counts of another block."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COUNTS: tuple[str, ...] = tuple(BaseCounts.__slots__)
"""Their names, in the order in which tables and stores hold them."""


class NotABaseError(Exception):
    """A character that is no base; whoever knows file and line turns it into a DnassmError."""


class BlockEncoder:
    """Encodes up to `capacity` letters at a time, in buffers that are reused.

    Arithmetic on whole arrays, in few passes over buffers that fit a core's cache: at hundreds of
    megabytes per second a table look-up per letter would be the slowest part.
    """

    def __init__(self, capacity: int) -> None:
        padded = _padded(capacity)
        self.letters: Codes = np.zeros(padded, dtype=np.uint8)
        """Write ASCII letters here, then call `encode`, which turns them into upper case."""
        self._lower, self._is_n, self._acgt, self._codes = np.zeros((4, padded), dtype=np.uint8)
        self._pairs = np.empty(padded // 16, dtype=np.uint64)

    def encode(self, n: int) -> tuple[Codes, Codes, BaseCounts]:
        """Codes of the first `n` bytes of `letters`, and these in upper case as SAM's M5 has them.

        Returns:
            codes (n,), upper-case ASCII (n,), counts; both arrays are views of reused buffers.

        Raises:
            NotABaseError: a character is no base.
        """
        size = _padded(n)
        self.letters[n:size] = _A
        letters, codes = self.letters[:size], self._codes[:size]
        soft_masked = self._to_upper(letters)
        if _encode_acgt(letters, codes):
            counts = self._count(codes, n)
        else:
            counts = self._encode_acgtn(letters, codes, n) or _encode_any(letters[:n], codes[:n])
        if soft_masked:
            counts.soft_masked = soft_masked
            _mark(codes, self._lower[:size], SOFT_MASK)
        return codes[:n], letters[:n], counts

    def _to_upper(self, letters: Codes) -> int:
        """Count lower-case letters and turn them into upper case; `_lower` is 1 where they were."""
        if np.maximum.reduce(letters) <= _LAST_UPPER:
            return 0
        lower = self._lower[: letters.size].view(np.bool_)
        np.greater(letters, _LAST_UPPER, out=lower)
        np.bitwise_and(letters, _UPPER_BITS, out=letters)
        return int(np.count_nonzero(lower))

    def _encode_acgtn(self, letters: Codes, codes: Codes, n: int) -> BaseCounts | None:
        """Encode N as A and then mark it; None if there are other letters than A, C, G, T, N."""
        is_n, acgt = self._is_n[: letters.size], self._acgt[: letters.size]
        np.equal(letters, _N, out=is_n.view(np.bool_))
        np.multiply(is_n, _A ^ _N, out=acgt)
        np.bitwise_xor(letters, acgt, out=acgt)
        if not _encode_acgt(acgt, codes):
            return None
        counts = self._count(codes, n)
        counts.N = int(np.count_nonzero(is_n))
        counts.A -= counts.N
        _mark(codes, is_n, N)
        return counts

    def _count(self, codes: Codes, n: int) -> BaseCounts:
        """Counts of the first `n` codes, which are of A, C, G and T; the rest is padding with A.

        Four codes to a byte, then population counts: faster than looking for each of them.
        """
        words = codes.view(np.uint64).reshape(2, -1)
        pairs = self._pairs[: words[0].size]
        np.left_shift(words[1], 4, out=pairs)
        np.bitwise_or(words[0], pairs, out=pairs)
        low, high = bits = pairs.reshape(2, -1)
        np.left_shift(high, 2, out=high)
        np.bitwise_or(low, high, out=low)
        np.right_shift(low, 1, out=high)
        np.bitwise_and(bits, _EVEN_BITS, out=bits)
        with_low, with_high = _ones(bits)
        np.bitwise_and(low, high, out=low)
        (t,) = _ones(bits[:1])
        c, g = with_low - t, with_high - t
        return BaseCounts(A=n - c - g - t, C=c, G=g, T=t)


def _padded(n: int) -> int:
    return -(-max(n, 1) // _ALIGNMENT) * _ALIGNMENT


def _ones(words: npt.NDArray[np.uint64]) -> list[int]:
    """Bits that are set in each row of words of which at most every second bit is set."""
    # Up to 32 of a word: four of these counts are summed in a byte.
    counts = np.bitwise_count(words).view(np.uint64).reshape(len(words), 4, -1)
    sums: list[int] = np.add.reduce(np.add.reduce(counts, axis=1).view(np.uint8), axis=1).tolist()
    return sums


def _encode_acgt(letters: Codes, codes: Codes) -> bool:
    """Encode upper-case letters if all of them are A, C, G or T."""
    np.multiply(letters, _HASH, out=codes)
    if (
        np.minimum.reduce(letters) < _A
        or np.maximum.reduce(letters) > _T
        or int(np.bitwise_or.reduce(letters)) | _LETTER_BITS != _LETTER_BITS
        or int(np.bitwise_or.reduce(codes)) | _HASH_BITS != _HASH_BITS
    ):
        return False
    np.floor_divide(codes, _HASHES_PER_CODE, out=codes)
    return True


def _encode_any(letters: Codes, codes: Codes) -> BaseCounts:
    """Encode any upper-case letters, by the table."""
    codes[:] = np.frombuffer(letters.tobytes().translate(_TABLE), dtype=np.uint8)
    if codes.max() == NO_BASE:
        raise NotABaseError
    a, c, g, t, n, u = (int(np.count_nonzero(letters == base)) for base in b"ACGTNU")
    return BaseCounts(a, c, g, t + u, n, letters.size - a - c - g - t - u - n, U=u)


def _mark(codes: Codes, flags: Codes, value: int) -> None:
    """Set the bits of `value` where `flags` is 1; `flags` is overwritten."""
    np.multiply(flags, value, out=flags)
    np.bitwise_or(codes, flags, out=codes)
