"""Windows of one length around an interval or a position, and their bases, ends of contigs filled.

The rule of centring, for every kind of window: base ``len(interval) // 2`` of the interval, counted
in its reading direction, is base ``length // 2`` of the window. An interval of the window's own
length is its own window; a single base at p has the window that begins at ``p - length // 2``; and
the window of the other strand is the mirror image of the window that the reverse-complemented
genome would have.
"""

from __future__ import annotations

import numpy as np

from dnassm.data.alphabet import CODE_TO_ASCII, LETTERS, Codes, N, reverse_complement
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.errors import ConfigError

_LEAST_BLOCK, _MOST_BLOCK = 1 << 11, 1 << 16
_FIRST_OF_IUPAC = {"R": "A", "Y": "C", "S": "C", "W": "A", "K": "G", "M": "A"} | {
    "B": "C",
    "D": "A",
    "H": "A",
    "V": "A",
}


def _vcf_letters() -> Codes:
    table = CODE_TO_ASCII.copy()
    for code, letter in enumerate(LETTERS):
        concrete = ord(_FIRST_OF_IUPAC.get(letter, letter))
        table[code] = concrete
        table[code | 0x80] = concrete
    return table


VCF_LETTER = _vcf_letters()
"""uint8[256]: code -> ASCII byte as REF of a VCF spells it, see `GenomeReader.letters`."""


def centred_start(interval: Interval, length: int) -> int:
    """First base, 0-based on the plus strand, of the window of `length` bases around `interval`.

    It is negative where the window begins before the contig; the window ends at start + length.

    >>> centred_start(Interval("c", 100, 101), 10), centred_start(Interval("c", 100, 101, "-"), 10)
    (95, 96)

    Raises:
        ConfigError: length is below 1.
    """
    if length < 1:
        raise ConfigError(f"length of a window: expected at least 1 base, got {length}")
    if interval.strand == "+":
        return interval.start + len(interval) // 2 - length // 2
    return interval.end - len(interval) // 2 + length // 2 - length


def centred_codes(store: Genome, interval: Interval, length: int, *, fill: int = N) -> Codes:
    """Codes (length,) of the window around `interval`, read on its strand.

    Args:
        store: the genome.
        interval: what the window is centred on, by the rule of this module.
        length: bases of the window.
        fill: code of what lies outside of the contig: N, or PAD.

    Raises:
        ConfigError: length is below 1.
        GenomeError: no such contig.
    """
    start = centred_start(interval, length)
    codes = GenomeReader(store, fill=fill).codes(interval.contig, start, start + length)
    return reverse_complement(codes) if interval.strand == "-" else codes


class GenomeReader:
    """Bases of a store at any coordinates, those outside of a contig filled; for many short reads.

    It keeps a stretch around the last read, so that reads in the order of the genome cost a slice
    each: 2 kb after a jump, up to 64 kb while reads go on nearby. Not to be shared between threads.

    Args:
        store: the genome.
        fill: code of what lies outside of a contig.
    """

    def __init__(self, store: Genome, *, fill: int = N) -> None:
        self.store = store
        self.fill = fill
        self._contig = ""
        self._start = 0
        self._block = _LEAST_BLOCK
        self._codes: Codes = np.empty(0, dtype=np.uint8)
        self._letters: str | None = None

    def codes(self, contig: str, start: int, end: int) -> Codes:
        """Codes of ``[start, end)``, 0-based, half-open; may begin below 0. A view: do not write.

        Raises:
            GenomeError: no such contig.
        """
        offset = self._locate(contig, start, end)
        return self._codes[offset : offset + end - start]

    def letters(self, contig: str, start: int, end: int) -> str:
        """Letters A C G T N of ``[start, end)`` as REF of a VCF spells them; '.' outside.

        Upper case; another IUPAC letter is the first of its bases in the alphabet, as the VCF
        specification asks for: R is A.

        Raises:
            GenomeError: no such contig.
        """
        offset = self._locate(contig, start, end)
        if self._block == _LEAST_BLOCK:  # after a jump: no other read may come here
            return self._spelt(offset, offset + end - start)
        if self._letters is None:
            self._letters = self._spelt(0, self._codes.size)
        return self._letters[offset : offset + end - start]

    def _locate(self, contig: str, start: int, end: int) -> int:
        offset = start - self._start
        if contig != self._contig or offset < 0 or end - self._start > self._codes.size:
            self._load(contig, start, end)
            offset = start - self._start
        return offset

    def _load(self, contig: str, start: int, end: int) -> None:
        size = self.store.contig(contig).length
        reach = self._start - self._block, self._start + self._codes.size + self._block
        near = contig == self._contig and reach[0] <= start <= reach[1]
        self._block = min(self._block * 2, _MOST_BLOCK) if near else _LEAST_BLOCK
        margin = self._block // 4
        begin, stop = start - margin, end + self._block
        inside = slice(min(max(begin, 0), size), min(max(stop, 0), size))
        codes = np.full(stop - begin, self.fill, dtype=np.uint8)
        codes[inside.start - begin : inside.stop - begin] = self.store.fetch(
            Interval(contig, inside.start, inside.stop)
        )
        self._contig, self._start, self._codes, self._letters = contig, begin, codes, None

    def _spelt(self, first: int, last: int) -> str:
        """Letters of a part of the stretch that is kept."""
        letters = VCF_LETTER[self._codes[first:last]]
        start, size = self._start + first, self.store.contig(self._contig).length
        if start < 0 or start + letters.size > size:
            letters[: max(0, -start)] = ord(".")
            letters[max(0, size - start) :] = ord(".")
        return letters.tobytes().decode("ascii")
