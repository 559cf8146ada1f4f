"""Pairs of windows, with the reference and with the alternative allele, around variants.

The rule: the first base of REF is base ``length // 2`` of both windows (the rule of
`dnassm.data.centre` for a single base), and both begin at the same base of the genome. What a
deletion takes away comes in at the right end, and what an insertion adds goes out there, so that
both windows have the same length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import ASCII_TO_CODE, PAD, SOFT_MASK, Codes, N
from dnassm.data.centre import VCF_LETTER, GenomeReader
from dnassm.data.genome import Genome
from dnassm.data.variants import Variant
from dnassm.errors import ConfigError, GenomeError

Ends = Literal["n", "pad", "drop"]
"""What becomes of a window that reaches over an end of its contig: the rest is filled with N, or
with padding, or the window is left out."""

TOO_LONG = "allele longer than the right half of the window"
OVER_THE_END = "window over the end of the contig"


@dataclasses.dataclass(frozen=True, slots=True)
class VariantWindows:
    """Windows of equal length, one pair for each variant that is kept."""

    reference: Codes
    """(n, L) store codes."""
    alternative: Codes
    """(n, L) store codes; inserted bases have the soft mask of the first base of REF."""
    kept: npt.NDArray[np.int64]
    """(n,) which of the variants each row belongs to."""
    refused: dict[str, int]
    """Why variants have no window: TOO_LONG, OVER_THE_END -> how many."""


class VariantWindower:
    """Makes pairs of windows around variants, batch after batch.

    Args:
        store: the genome.
        length: L, bases of a window.
        ends: what becomes of windows over the end of a contig. Padding at the left end is for
            models that see both sides only.

    Raises:
        ConfigError: length is below 2, or `ends` is no such name.
    """

    def __init__(self, store: Genome, length: int, *, ends: Ends = "n") -> None:
        check_ends(length, ends)
        self.length = length
        self.ends = ends
        self._sizes = store.lengths
        self._reader = GenomeReader(store, fill=PAD if ends == "pad" else N)

    def __call__(self, variants: Sequence[Variant]) -> VariantWindows:
        """Make the windows of some variants.

        Args:
            variants: in coordinates of the store, with REF as the genome has it, see
                `dnassm.data.variant_reference`.

        Raises:
            GenomeError: no such contig, or REF is not what the genome has.
        """
        kept: list[int] = []
        single: list[int] = []
        refused: dict[str, int] = {}
        reference = np.empty((len(variants), self.length), dtype=np.uint8)
        alternative = np.empty_like(reference)
        half = self.length // 2
        for index, variant in enumerate(variants):
            is_single = len(variant.ref) == len(variant.alt) == 1
            if not is_single or not 0 <= variant.position < self._sizes.get(variant.contig, 0):
                check_ref(variant, self._reader)
            if (not is_single or self.ends == "drop") and (why := self._refusal(variant)):
                refused[why] = refused.get(why, 0) + 1
                continue
            row = len(kept)
            kept.append(index)
            if is_single:
                single.append(row)
                start = variant.position - half
                reference[row] = self._reader.codes(variant.contig, start, start + self.length)
            else:
                self._fill(variant, reference[row], alternative[row])
        self._exchange(variants, kept, single, reference, alternative)
        n = len(kept)
        return VariantWindows(reference[:n], alternative[:n], np.array(kept, np.int64), refused)

    def _exchange(
        self,
        variants: Sequence[Variant],
        kept: list[int],
        single: list[int],
        reference: Codes,
        alternative: Codes,
    ) -> None:
        """Check REF and fill `alternative` in rows of single bases, all at once: most are such."""
        half = self.length // 2
        found = reference[single, half]
        given = "".join(variants[kept[row]].ref for row in single).encode("ascii")
        for row in np.flatnonzero(VCF_LETTER[found] != np.frombuffer(given, dtype=np.uint8))[:1]:
            check_ref(variants[kept[single[row]]], self._reader)
        letters = "".join(variants[kept[row]].alt for row in single).encode("ascii")
        codes = ASCII_TO_CODE[np.frombuffer(letters, dtype=np.uint8)]
        alternative[single] = reference[single]
        alternative[single, half] = codes | (found & SOFT_MASK)

    def _refusal(self, variant: Variant) -> str | None:
        half = self.length // 2
        ref, alt = len(variant.ref), len(variant.alt)
        if ref > self.length - half or alt > self.length - half:
            return TOO_LONG
        if self.ends == "drop":
            start = variant.position - half
            end = start + self.length + max(0, ref - alt)
            if start < 0 or end > self._sizes[variant.contig]:
                return OVER_THE_END
        return None

    def _fill(self, variant: Variant, reference: Codes, alternative: Codes) -> None:
        half, length = self.length // 2, self.length
        ref, alt = len(variant.ref), len(variant.alt)
        start = variant.position - half
        span = self._reader.codes(variant.contig, start, start + length + max(0, ref - alt))
        reference[:] = span[:length]
        alternative[:half] = span[:half]
        alternative[half + alt :] = span[half + ref : length + ref - alt]
        letters = np.frombuffer(variant.alt.encode("ascii"), dtype=np.uint8)
        alternative[half : half + alt] = ASCII_TO_CODE[letters] | (span[half] & SOFT_MASK)


def check_ends(length: int, ends: str) -> None:
    """Raise ConfigError unless a window may have this length and these ends."""
    if length < 2:
        raise ConfigError(f"length of a window: expected at least 2 bases, got {length}")
    if ends not in ("n", "pad", "drop"):
        raise ConfigError(f"ends: expected 'n', 'pad' or 'drop', got {ends!r}")


def check_ref(variant: Variant, reader: GenomeReader) -> None:
    """Raise GenomeError unless REF is what the genome has."""
    end = variant.position + len(variant.ref)
    found = reader.letters(variant.contig, variant.position, end)
    if found != variant.ref:
        raise GenomeError(
            f"variant {variant}: REF is {variant.ref[:60]}, the genome has {found[:60]} there; "
            "leave out what check_variants calls anything but MATCH"
        )
