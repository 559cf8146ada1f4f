"""Variants against a genome: whether REF is what the genome has, and indels in one spelling.

A file names contigs in its own way and counts from the start of a chromosome; a store may have
other names, or hold a part of a chromosome only. `place_variants` brings variants into the
coordinates of the store, `check_variants` compares REF, `left_align` spells an indel as bcftools
norm and vt do.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dnassm.data.aliases import ContigMatch
from dnassm.data.centre import GenomeReader
from dnassm.data.genome import Genome
from dnassm.data.variants import Variant
from dnassm.errors import ConfigError, GenomeError

_STEP = 256


class RefMatch(enum.IntEnum):
    """How REF compares with the genome."""

    MATCH = 0
    """REF is what the genome has."""
    SWAPPED = 1
    """ALT is what the genome has and REF is not: the file takes the other allele as reference."""
    MISMATCH = 2
    """Neither is."""
    OUTSIDE = 3
    """REF reaches over an end of the contig."""
    NO_CONTIG = 4
    """The genome has no such contig."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """How every variant compares with the genome."""

    status: npt.NDArray[np.uint8]
    """(n,) values of `RefMatch`."""

    def counts(self) -> dict[RefMatch, int]:
        """Count the variants of each kind, those of none left out."""
        numbers = np.bincount(self.status, minlength=len(RefMatch))
        return {kind: int(numbers[kind]) for kind in RefMatch if numbers[kind]}

    def matching(self) -> npt.NDArray[np.int64]:
        """Indices of the variants whose REF is what the genome has."""
        return np.flatnonzero(self.status == RefMatch.MATCH)


def place_variants(
    variants: Sequence[Variant], match: ContigMatch, *, offsets: Mapping[str, int] | None = None
) -> list[Variant]:
    """Give variants the contig names and the coordinates of a store.

    Args:
        variants: as a file has them.
        match: what the file's contig names mean; a variant on a missing one keeps its name.
        offsets: contig of the store -> bases of the chromosome that lie before it: a FASTA of
            chr17:42,425,000-43,600,000 (from 1) begins after 42,424,999 bases. A variant before
            the first base gets a negative position, which `check_variants` calls OUTSIDE.

    Raises:
        ConfigError: an offset is negative.
    """
    offsets = offsets or {}
    for contig, offset in offsets.items():
        if offset < 0:
            raise ConfigError(f"offset of {contig!r}: expected 0 or more bases, got {offset}")
    placed = []
    for variant in variants:
        contig = match.names.get(variant.contig, variant.contig)
        position = variant.position - offsets.get(contig, 0)
        if contig != variant.contig or position != variant.position:
            variant = Variant(contig, position, variant.ref, variant.alt, variant.id, variant.info)
        placed.append(variant)
    return placed


def check_variants(
    variants: Sequence[Variant], store: Genome, *, max_wrong: float | None = 0.01
) -> ReferenceCheck:
    """Compare REF of every variant with the genome.

    Soft mask and case do not count. Where the genome has an IUPAC letter other than N, the first of
    its bases in the alphabet counts, which the VCF specification prescribes for REF; N is only N.

    Args:
        variants: in coordinates of the store, see `place_variants`.
        store: the genome.
        max_wrong: largest share of variants on contigs of the genome that may be anything but
            MATCH; above it the check stops the run. None: never.

    Raises:
        ConfigError: `max_wrong` is no share.
        GenomeError: more are wrong than `max_wrong`, or all lie on contigs the genome has not;
            names counts and the first wrong variant.
    """
    if max_wrong is not None and not 0 <= max_wrong <= 1:
        raise ConfigError(f"max_wrong: expected a share from 0 to 1, got {max_wrong}")
    reader = GenomeReader(store)
    lengths = store.lengths
    status = np.fromiter(
        (_status(variant, reader, lengths) for variant in variants), np.uint8, len(variants)
    )
    check = ReferenceCheck(status)
    if max_wrong is not None:
        _require(check, variants, store, max_wrong)
    return check


def left_align(variant: Variant, reader: GenomeReader) -> Variant:
    """Spell a variant in the shortest way and as far left as the genome allows.

    Common bases at the ends are cut off, the end first; an insertion or deletion moves left as long
    as the sequence that results is the same, and keeps one base before it, or the base after it at
    the start of a contig. N equals nothing, not even N. Id and INFO stay.

    Args:
        variant: whose REF is what the genome has.
        reader: of the genome.
    """
    if variant.ref == variant.alt:
        return variant
    position, ref, alt = _trimmed(variant)
    if ref and alt:
        return _respelt(variant, position, ref, alt)
    position, shift = _shifted(reader, variant.contig, position, ref or alt)
    ref, alt = (_rotated(text, shift) for text in (ref, alt))
    size = reader.store.contig(variant.contig).length
    if position > 0:
        position -= 1
        anchor = reader.letters(variant.contig, position, position + 1)
        ref, alt = anchor + ref, anchor + alt
    elif len(ref) < size:
        anchor = reader.letters(variant.contig, len(ref), len(ref) + 1)
        ref, alt = ref + anchor, alt + anchor
    else:  # the whole contig is deleted: no base is left to hold on to
        return variant
    return _respelt(variant, position, ref, alt)


def left_align_all(variants: Sequence[Variant], store: Genome) -> list[Variant]:
    """Left-align variants whose REF is what the genome has; single bases stay as they are.

    Raises:
        GenomeError: a variant lies on no contig of the genome.
    """
    reader = GenomeReader(store)
    return [
        variant if len(variant.ref) == len(variant.alt) == 1 else left_align(variant, reader)
        for variant in variants
    ]


def _status(variant: Variant, reader: GenomeReader, lengths: Mapping[str, int]) -> RefMatch:
    contig, start, ref = variant.contig, variant.position, variant.ref
    length = lengths.get(contig)
    if length is None:
        return RefMatch.NO_CONTIG
    end = start + len(ref)
    if start < 0 or end > length:
        return RefMatch.OUTSIDE
    if reader.letters(contig, start, end) == ref:
        return RefMatch.MATCH
    end = start + len(variant.alt)
    if end <= length and reader.letters(contig, start, end) == variant.alt:
        return RefMatch.SWAPPED
    return RefMatch.MISMATCH


def _require(
    check: ReferenceCheck, variants: Sequence[Variant], store: Genome, max_wrong: float
) -> None:
    counts = check.counts()
    known = len(variants) - counts.get(RefMatch.NO_CONTIG, 0)
    if variants and not known:
        raise GenomeError(
            f"{store.path}: has no contig of any of the {len(variants):,} variants; the first is "
            f"{variants[0]}; the genome has {', '.join(list(store.lengths)[:5])}"
        )
    wrong = known - counts.get(RefMatch.MATCH, 0)
    if wrong > max_wrong * known:
        bad = (check.status != RefMatch.MATCH) & (check.status != RefMatch.NO_CONTIG)
        first = variants[int(np.flatnonzero(bad)[0])]
        said = ", ".join(f"{n:,} {kind.name.lower()}" for kind, n in counts.items())
        raise GenomeError(
            f"{store.path}: REF of {wrong:,} of {known:,} variants is not what the genome has, "
            f"more than {max_wrong:.2%} ({said}); the first is {first}; "
            "is this the right assembly, or does it need an offset?"
        )


def _trimmed(variant: Variant) -> tuple[int, str, str]:
    """Cut common bases other than N off the end, then off the start; an allele may become empty."""
    position, ref, alt = variant.position, variant.ref, variant.alt
    shorter = min(len(ref), len(alt))
    cut = next((i for i in range(shorter) if not _equal(ref[-1 - i], alt[-1 - i])), shorter)
    ref, alt = ref[: len(ref) - cut], alt[: len(alt) - cut]
    shorter = min(len(ref), len(alt))
    cut = next((i for i in range(shorter) if not _equal(ref[i], alt[i])), shorter)
    return position + cut, ref[cut:], alt[cut:]


def _respelt(variant: Variant, position: int, ref: str, alt: str) -> Variant:
    if position == variant.position and ref == variant.ref and alt == variant.alt:
        return variant
    return Variant(variant.contig, position, ref, alt, variant.id, variant.info)


def _equal(one: str, other: str) -> bool:
    return one == other != "N"


def _shifted(reader: GenomeReader, contig: str, position: int, text: str) -> tuple[int, int]:
    """How far left an inserted or deleted text can move: its new position, and by how much."""
    shift = 0
    while position > 0:
        begin = max(0, position - _STEP)
        before = reader.letters(contig, begin, position)
        for letter in reversed(before):
            if not _equal(letter, text[-1 - shift % len(text)]):
                return position, shift
            position -= 1
            shift += 1
    return position, shift


def _rotated(text: str, shift: int) -> str:
    cut = len(text) - shift % len(text) if text else 0
    return text[cut:] + text[:cut]
