"""ASCII letters to store codes, block by block, in buffers that are made once."""

from __future__ import annotations

import dataclasses

import numpy as np

from dnassm.data.alphabet import ASCII_TO_CODE, BASE, NO_BASE, A, C, Codes, G, N, T

_UPPER = np.uint8(0xDF)
"""Clears the bit that tells lower from upper case; A a C c G g T t and nothing else become ACGT."""
_TABLE = ASCII_TO_CODE.tobytes()


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
    """Encodes up to `capacity` letters at a time; the results live until the next call."""

    def __init__(self, capacity: int) -> None:
        self._upper = np.empty(capacity, dtype=np.uint8)
        self._codes = np.empty(capacity, dtype=np.uint8)
        self._scratch = np.empty(capacity, dtype=np.uint8)

    def encode(self, letters: Codes) -> tuple[Codes, Codes, BaseCounts]:
        """Codes of ASCII letters, and the letters in upper case as SAM's M5 wants them.

        Args:
            letters: (n,) uint8 ASCII, no white space.

        Returns:
            codes (n,), upper-case letters (n,), counts; both arrays are views of reused buffers.

        Raises:
            NotABaseError: a character is no base.
        """
        n = letters.size
        upper, codes = self._upper[:n], self._codes[:n]
        np.bitwise_and(letters, _UPPER, out=upper)
        counts = BaseCounts(*(self._count(upper, ord(letter)) for letter in "ACGT"))
        counts.soft_masked = n - self._count(upper, letters)
        if n == counts.A + counts.C + counts.G + counts.T:
            self._encode_acgt(letters, upper, codes, masked=counts.soft_masked > 0)
        else:
            self._encode_any(letters, codes, counts)
            counts.U = self._count(upper, ord("U"))
        return codes, upper, counts

    def _encode_acgt(self, letters: Codes, upper: Codes, codes: Codes, *, masked: bool) -> None:
        """Bits 1 and 2 of A, C, G, T tell them apart: arithmetic, faster than any table."""
        scratch = self._scratch[: letters.size]
        np.right_shift(upper, 1, out=codes)
        np.right_shift(upper, 2, out=scratch)
        np.bitwise_xor(codes, scratch, out=codes)
        np.bitwise_and(codes, 3, out=codes)
        if masked:
            np.bitwise_and(letters, 0x20, out=scratch)
            np.left_shift(scratch, 2, out=scratch)
            np.bitwise_or(codes, scratch, out=codes)

    def _encode_any(self, letters: Codes, codes: Codes, counts: BaseCounts) -> None:
        # bytes.translate walks a table twice as fast as np.take
        codes[:] = np.frombuffer(letters.tobytes().translate(_TABLE), dtype=np.uint8)
        if codes.max() == NO_BASE:
            raise NotABaseError
        bases = np.bitwise_and(codes, BASE)
        counts.A, counts.C, counts.G, counts.T, counts.N = (
            self._count(bases, code) for code in (A, C, G, T, N)
        )
        known = counts.A + counts.C + counts.G + counts.T + counts.N
        counts.iupac = letters.size - known

    def _count(self, values: Codes, wanted: int | Codes) -> int:
        flags = self._scratch[: values.size].view(np.bool_)
        np.equal(values, wanted, out=flags)
        return int(np.count_nonzero(flags))
