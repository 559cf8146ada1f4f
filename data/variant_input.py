"""From a VCF or BCF to variants that fit a genome: names, offsets, REF, indels, in one call."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnassm.data.aliases import match_contigs
from dnassm.data.genome import Genome
from dnassm.data.haplotypes import PhasedVariants, read_phased
from dnassm.data.variant_reference import (
    ReferenceCheck,
    RefMatch,
    check_variants,
    left_align_all,
    place_variants,
)
from dnassm.data.variants import Variant, VariantFile, read_variants
from dnassm.errors import ConfigError, GenomeError

MAX_WRONG = 0.01
"""Largest share of variants whose REF may be anything but what the genome has."""

_OFFSET = re.compile(r"(?P<contig>[^=\s]+)=(?P<name>\S+):(?P<start>[0-9][0-9,]{0,17})", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Offset:
    """A contig of the genome that is a part of a chromosome."""

    contig: str
    """Of the genome."""
    chromosome: str
    """As the file of variants calls it."""
    before: int
    """Bases of the chromosome before the first base of the contig."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedVariants:
    """The variants of a file, and those of them that can be cut out of a genome."""

    file: VariantFile
    """As the file has them, and what of it is no variant."""
    check: ReferenceCheck
    """How REF of each of them compares with the genome."""
    variants: list[Variant]
    """Those that match: in coordinates of the genome, indels as short and far left as possible."""
    indices: npt.NDArray[np.int64]
    """Which of `file.variants` each of `variants` is."""

    def summary(self) -> str:
        """Say in one line what was read, refused and compared with the genome."""
        counts = self.check.counts()
        said = ", ".join(f"{n:,} {kind.name.lower()}" for kind, n in counts.items())
        return f"{self.file.summary()}; REF against the genome: {said or 'nothing to compare'}"


def parse_offset(text: str) -> Offset:
    """Read ``CONTIG=CHROMOSOME:START``: which base of a chromosome, from 1, a contig begins with.

    >>> parse_offset("part=chr17:42,425,000")
    Offset(contig='part', chromosome='chr17', before=42424999)

    Raises:
        ConfigError: it is no such text.
    """
    found = _OFFSET.fullmatch(text)
    start = int(found["start"].replace(",", "")) if found else 0
    if not found or start < 1:
        raise ConfigError(
            f"offset {text!r}: expected CONTIG=CHROMOSOME:START, the contig of the genome and the "
            "place of its first base, counted from 1, such as part=chr17:42425000"
        )
    return Offset(found["contig"], found["name"], start - 1)


def load_variants(
    path: Path | str,
    genome: Genome,
    *,
    offsets: Sequence[Offset] = (),
    max_wrong: float | None = MAX_WRONG,
) -> LoadedVariants:
    """Read the variants of a VCF or BCF and bring them into the coordinates of a genome.

    Contigs are matched by the rule of `dnassm.data.aliases`. A variant of a chromosome of which the
    genome has a part, by `offsets`, and that lies beside this part, is OUTSIDE and not wrong.

    Args:
        path: the file.
        genome: what the variants were called on.
        offsets: contigs that begin in the middle of a chromosome.
        max_wrong: as in `check_variants`.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        ConfigError: two offsets for one chromosome.
        FormatError: no VCF, or a line that is no record; names file and line.
        GenomeError: the file does not fit the genome: its contigs, their lengths, REF.
    """
    file = read_variants(path, info=False)
    placed, check = _fit(file.variants, file.contigs, genome, offsets, max_wrong, str(path))
    indices = check.matching()
    variants = left_align_all([placed[i] for i in indices], genome)
    return LoadedVariants(file, check, variants, indices)


def load_phased(
    path: Path | str,
    genome: Genome,
    *,
    sample: str | None = None,
    offsets: Sequence[Offset] = (),
    max_wrong: float | None = MAX_WRONG,
) -> tuple[PhasedVariants, ReferenceCheck]:
    """Read what a sample carries, as `load_variants` does; only what matches the genome is kept.

    Returns:
        The variants for `dnassm.data.haplotypes.HaplotypeWindower`, and how REF of all compares.

    Raises:
        DnassmError: as `load_variants` and `read_phased`.
    """
    phased = read_phased(path, sample=sample)
    placed, check = _fit(phased.variants, phased.contigs, genome, offsets, max_wrong, str(path))
    return dataclasses.replace(phased, variants=placed).take(check.matching().tolist()), check


def _fit(
    variants: Sequence[Variant],
    lengths: Mapping[str, int | None],
    genome: Genome,
    offsets: Sequence[Offset],
    max_wrong: float | None,
    source: str,
) -> tuple[list[Variant], ReferenceCheck]:
    """Variants in coordinates of the genome, and how REF of each compares with it."""
    names = {offset.chromosome: offset.contig for offset in offsets}
    before = {offset.contig: offset.before for offset in offsets}
    if len(names) < len(offsets) or len(before) < len(offsets):
        raise ConfigError("offsets: expected every contig and every chromosome once")
    match = match_contigs(
        (variant.contig for variant in variants),
        genome,
        explicit=names,
        lengths=lengths,
        source=source,
    )
    placed = place_variants(variants, match, offsets=before)
    sizes = {contig: genome.contig(contig).length for contig in before}
    inside = np.fromiter(_inside(placed, sizes), bool, len(placed))
    if placed and not inside.any():
        raise GenomeError(
            f"{source}: none of its {len(placed):,} variants lies in the genome's part of the "
            f"chromosome; the first is {variants[0]}; is the offset right?"
        )
    status = np.full(len(placed), RefMatch.OUTSIDE, dtype=np.uint8)
    chosen = [placed[i] for i in np.flatnonzero(inside)]
    status[inside] = check_variants(chosen, genome, max_wrong=max_wrong).status
    return placed, ReferenceCheck(status)


def _inside(variants: Iterable[Variant], sizes: Mapping[str, int]) -> Iterable[bool]:
    """Whether each lies in the part of a chromosome that the genome has, where it is a part."""
    for variant in variants:
        size = sizes.get(variant.contig)
        yield size is None or 0 <= variant.position <= size - len(variant.ref)
