"""Copies of whole windows anywhere in a genome, on either strand, by a rolling hash.

The hash of bases c[i] ... c[i+L-1] is the sum of v(c[i+j]) B^j modulo 2^64, v random numbers and B
odd (Karp and Rabin 1987, doi:10.1147/rd.312.0249). From prefix sums it costs a few operations per
base, whatever L is. A hash that is known is looked up base by base, so that nothing is counted that
is no copy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import BASE, Codes, reverse_complement

_WORD = 1 << 64
_B = 0x9E3779B97F4A7C15  # odd, hence with an inverse modulo 2^64
_B_INVERSE = pow(_B, -1, _WORD)
_VALUES = np.random.default_rng(0).integers(1, _WORD, size=16, dtype=np.uint64)
_LETTER = np.uint8(BASE)
_FILTER_BITS = 20
PIECE_BASES = 1 << 15  # the sums of a piece stay in the cache

Hashes = npt.NDArray[np.uint64]


class WindowFinder:
    """Remembers W windows of one length and marks those that occur in what it reads.

    Args:
        windows: (L,) codes of each; the soft mask does not count.
    """

    def __init__(self, windows: Sequence[Codes]) -> None:
        self.length = len(windows[0])
        self.exact = np.zeros(len(windows), dtype=bool)
        self.reverse_complement = np.zeros(len(windows), dtype=bool)
        forward = [window & _LETTER for window in windows]
        turned = [reverse_complement(window) for window in forward]
        self._targets = [*forward, *turned]
        hashes = np.concatenate([_rolling(target, self.length) for target in self._targets])
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=bool)
        self._filter[hashes >> np.uint64(64 - _FILTER_BITS)] = True

    def read(self, codes: Codes) -> None:
        """Mark the windows that occur in a stretch of codes (n,), n of any size."""
        bases = codes & _LETTER
        step = max(PIECE_BASES, 2 * self.length)
        for start in range(0, max(len(bases) - self.length + 1, 0), step):
            self._read(bases[start : start + step + self.length - 1])

    def _read(self, bases: Codes) -> None:
        hashes = _rolling(bases, self.length)
        # High bits: the low ones of such a sum depend on the low ones of its terms alone.
        possible = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        low = np.searchsorted(self._hashes, hashes[possible], side="left")
        high = np.searchsorted(self._hashes, hashes[possible], side="right")
        for at, first, last in zip(possible.tolist(), low.tolist(), high.tolist(), strict=True):
            for target in self._order[first:last].tolist():
                self._mark(target, bases[at : at + self.length])

    def _mark(self, target: int, found: Codes) -> None:
        strand, number = divmod(target, len(self.exact))
        marks = self.reverse_complement if strand else self.exact
        if not marks[number] and np.array_equal(self._targets[target], found):
            marks[number] = True


def find_windows(windows: Sequence[Codes], reference: Iterable[Codes]) -> WindowFinder:
    """Look for windows of one length in stretches of codes; a copy may not span two of them."""
    finder = WindowFinder(windows)
    for codes in reference:
        finder.read(codes)
    return finder


def _rolling(bases: Codes, length: int) -> Hashes:
    """Hash of every window (n - length + 1,) of bases (n,)."""
    sums = np.zeros(len(bases) + 1, dtype=np.uint64)
    np.cumsum(_VALUES[bases] * _powers(_B, len(bases)), out=sums[1:])
    count = len(bases) - length + 1
    hashes: Hashes = (sums[length:] - sums[:count]) * _powers(_B_INVERSE, count)
    return hashes


@functools.lru_cache(maxsize=8)
def _powers(base: int, count: int) -> Hashes:
    steps = np.full(count, base, dtype=np.uint64)
    steps[:1] = 1
    powers: Hashes = np.cumprod(steps)
    return powers
