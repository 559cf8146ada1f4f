"""ASCII letters to store codes, block by block, in buffers that are made once."""

from __future__ import annotations

import dataclasses

import numpy as np

from dnassm.data.alphabet import ASCII_TO_CODE, NO_BASE, SOFT_MASK, Codes

_TABLE = ASCII_TO_CODE.tobytes()
_ROW_BYTES = 1024
MAX_LETTERS = 255 * _ROW_BYTES
"""255 rows: with one more a byte of their sum could overflow. The buffers fit a core's cache."""


def _in_every_byte(value: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([value] * 8)))


_ONE, _TWO, _FIVE = np.uint64(1), np.uint64(2), np.uint64(5)
_LOWER_BIT = _in_every_byte(0x20)
_MASK_BIT = _in_every_byte(SOFT_MASK)
_UPPER_BITS = _in_every_byte(0xDF)
_TWO_BITS = _in_every_byte(0x03)


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


class NotABaseError(Exception):
    """A character that is no base; whoever knows file and line turns it into a DnassmError."""


class BlockEncoder:
    """Encodes up to `capacity` <= MAX_LETTERS letters at a time, in buffers that are reused.

    Eight letters to a machine word, few passes over buffers that stay in the processor's cache: at
    hundreds of megabytes per second a table look-up per letter would be the slowest part.
    """

    def __init__(self, capacity: int) -> None:
        if capacity > MAX_LETTERS:
            raise ValueError(f"expected a capacity of at most {MAX_LETTERS}, got {capacity}")
        padded = -(-capacity // _ROW_BYTES) * _ROW_BYTES
        self.letters: Codes = np.zeros(padded, dtype=np.uint8)
        """Write ASCII letters here, then call `encode`."""
        self._upper, self._codes, self._scratch = (
            np.zeros(padded, dtype=np.uint8) for _ in range(3)
        )
        self._sums = np.empty((4, _ROW_BYTES // 8), dtype=np.uint64)

    def encode(self, n: int) -> tuple[Codes, Codes, BaseCounts]:
        """Codes of the first `n` bytes of `letters`, and these in upper case as SAM's M5 has them.

        Returns:
            codes (n,), upper-case ASCII (n,), counts; both arrays are views of reused buffers.

        Raises:
            NotABaseError: a character is no base.
        """
        padded = -(-n // _ROW_BYTES) * _ROW_BYTES
        self.letters[n:padded] = 0
        letters, codes = self.letters[:padded], self._codes[:padded]
        upper, soft_masked = self._to_upper(letters, n)
        a, c, g, t = self._count(upper, b"ACGT")
        counts = BaseCounts(A=a, C=c, G=g, T=t, soft_masked=soft_masked)
        if a + c + g + t == n:
            self._encode_acgt(upper, codes)
            if soft_masked == n:
                np.bitwise_or(codes.view(np.uint64), _MASK_BIT, out=codes.view(np.uint64))
            elif soft_masked:
                self._mask(letters, codes)
        else:
            self._encode_any(letters[:n], upper, codes[:n], counts)
        return codes[:n], upper[:n], counts

    def _to_upper(self, letters: Codes, n: int) -> tuple[Codes, int]:
        """Upper-case letters and how many were lower case."""
        words = letters.view(np.uint64)
        if not np.bitwise_or.reduce(words) & _LOWER_BIT:
            return letters, 0
        upper = self._upper[: letters.size]
        np.bitwise_and(words, _UPPER_BITS, out=upper.view(np.uint64))
        flags = self._scratch[: letters.size].view(np.uint64)
        np.bitwise_and(words, _LOWER_BIT, out=flags)
        np.right_shift(flags, _FIVE, out=flags)
        rows = flags.reshape(-1, _ROW_BYTES // 8)
        np.add.reduce(rows, axis=0, out=self._sums[0])
        return upper, int(self._sums[0].view(np.uint8).sum())

    def _encode_acgt(self, upper: Codes, codes: Codes) -> None:
        """Bits 1 and 2 of A, C, G, T tell them apart: arithmetic, faster than any table."""
        source, target = upper.view(np.uint64), codes.view(np.uint64)
        scratch = self._scratch[: upper.size].view(np.uint64)
        np.right_shift(source, _ONE, out=target)
        np.right_shift(source, _TWO, out=scratch)
        np.bitwise_xor(target, scratch, out=target)
        np.bitwise_and(target, _TWO_BITS, out=target)

    def _mask(self, letters: Codes, codes: Codes) -> None:
        scratch = self._scratch[: letters.size].view(np.uint64)
        np.bitwise_and(letters.view(np.uint64), _LOWER_BIT, out=scratch)
        np.left_shift(scratch, _TWO, out=scratch)
        target = codes.view(np.uint64)
        np.bitwise_or(target, scratch, out=target)

    def _encode_any(self, letters: Codes, upper: Codes, codes: Codes, counts: BaseCounts) -> None:
        # bytes.translate walks a table twice as fast as np.take
        codes[:] = np.frombuffer(letters.tobytes().translate(_TABLE), dtype=np.uint8)
        if codes.max() == NO_BASE:
            raise NotABaseError
        counts.N, counts.U = self._count(upper, b"NU")
        counts.T += counts.U
        counts.iupac = letters.size - counts.A - counts.C - counts.G - counts.T - counts.N

    def _count(self, values: Codes, wanted: bytes) -> list[int]:
        """How often each byte of `wanted` occurs; sums words, twice as fast as np.count_nonzero."""
        flags = self._scratch[: values.size]
        rows = flags.view(np.uint64).reshape(-1, _ROW_BYTES // 8)
        for number, byte in enumerate(wanted):
            np.equal(values, byte, out=flags.view(np.bool_))
            np.add.reduce(rows, axis=0, out=self._sums[number])
        sums: list[int] = self._sums[: len(wanted)].view(np.uint8).sum(axis=1).tolist()
        return sums
