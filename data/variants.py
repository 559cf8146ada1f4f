"""Variants of a genome: reading VCF and BCF, and writing VCF.

Positions are 0-based inside and 1-based in a VCF. A record with several alternative alleles becomes
one Variant each. Symbolic alleles, breakends and the ``*`` allele have no sequence that a model
could score and are counted and refused by name.
"""

from __future__ import annotations

import dataclasses
import gzip
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from dnassm.artifact import staged_file
from dnassm.data.vcf import COLUMNS, TELOMERE, VcfReader, VcfRecord, allele_kind, info_fields
from dnassm.errors import FormatError


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """`ref` at `position` of a contig's plus strand replaced by `alt`.

    Attributes:
        contig: name as in the genome.
        position: 0-based, of the first base of `ref`.
        ref: one or more of A C G T N, upper case.
        alt: the same.
        id: ``.`` when it has none.
        info: INFO keys as text; a flag has an empty value. Each of several alternative alleles gets
            the record's keys as they stand.
    """

    contig: str
    position: int
    ref: str
    alt: str
    id: str = "."
    info: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.contig}:{self.position + 1} {self.ref}>{self.alt}"


@dataclasses.dataclass(frozen=True, slots=True)
class VariantFile:
    """The variants of a VCF, and what of it is no variant."""

    path: Path
    variants: list[Variant]
    """In the order of the file; several alternatives of one record follow one another."""
    refused: Mapping[str, int]
    """Kind of `dnassm.data.vcf.REFUSED_KINDS` -> number of alleles of that kind."""
    examples: Mapping[str, tuple[str, int]]
    """Kind -> the first such allele and its line, from 1."""
    contigs: Mapping[str, int | None]
    """Name -> length, as far as the header says."""

    def summary(self) -> str:
        """Say in one line how many variants were read and which alleles were refused."""
        text = f"{self.path}: {len(self.variants):,} variants"
        kinds = [
            f"{count:,} {kind} (first: {self.examples[kind][0]} in line {self.examples[kind][1]})"
            for kind, count in self.refused.items()
        ]
        return f"{text}; refused: {', '.join(kinds)}" if kinds else text


def read_variants(path: Path | str, *, info: bool = True) -> VariantFile:
    """Read the variants of a VCF or BCF; count the alleles that have no sequence.

    Those are named in `VariantFile.refused`: symbolic alleles, breakends, ``*``, ``.``, and
    alleles with IUPAC letters other than A C G T N; so are all alleles of a record whose REF has
    such letters, or whose POS is 0, before the first base.

    Args:
        path: VCF, plain, gzip or bgzip, or BCF.
        info: keep the INFO column; without it `Variant.info` is empty and reading is faster.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        MissingExtraError: BCF without the extra that reads it.
        FormatError: no VCF, or a line that is no record; names file and line.
    """
    reader = VcfReader(path)
    variants: list[Variant] = []
    refused: Counter[str] = Counter()
    examples: dict[str, tuple[str, int]] = {}
    for record in reader:
        wrong_ref = ref_refusal(record)
        for alt in record.alts:
            if kind := wrong_ref or alt_refusal(alt, reader.path, record.line):
                refused[kind] += 1
                examples.setdefault(kind, (record.ref if wrong_ref else alt, record.line))
                continue
            fields = info_fields(record.info) if info else {}
            variants.append(
                Variant(record.contig, record.position, record.ref, alt, record.id, fields)
            )
    return VariantFile(reader.path, variants, dict(refused), examples, reader.contigs)


def read_vcf(path: Path | str) -> list[Variant]:
    """Read the variants of a VCF in which every allele must be a sequence.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: no VCF, or a record that cannot be used; names file and line.
    """
    found = read_variants(path)
    for kind, (allele, line) in found.examples.items():
        raise FormatError(
            f"{found.path}:{line}: {allele[:60]!r} ({kind}) has no sequence to score; "
            "remove the record"
        )
    return found.variants


def write_vcf(
    path: Path,
    variants: Iterable[Variant],
    *,
    contigs: Mapping[str, int] | None = None,
    info: Mapping[str, str] | None = None,
) -> None:
    """Write variants as VCF 4.3, gzip when the name ends in .gz.

    Args:
        path: replaced as a whole or left as it was.
        variants: written in the order given.
        contigs: name -> length, for the header.
        info: INFO key -> description, for the header; all are declared as one string.

    Raises:
        ArtifactError: the disk is full or the place is not writable.
    """
    lines = ["##fileformat=VCFv4.3"]
    lines += [f"##contig=<ID={name},length={size}>" for name, size in (contigs or {}).items()]
    lines += [
        f'##INFO=<ID={key},Number=1,Type=String,Description="{text}">'
        for key, text in (info or {}).items()
    ]
    lines.append("#" + "\t".join(COLUMNS))
    for variant in variants:
        fields = ";".join(f"{k}={v}" if v else k for k, v in variant.info.items()) or "."
        place = (variant.contig, str(variant.position + 1), variant.id, variant.ref, variant.alt)
        lines.append("\t".join((*place, ".", ".", fields)))
    text = ("\n".join(lines) + "\n").encode("utf-8")
    with staged_file(path) as staging:
        staging.write_bytes(gzip.compress(text, mtime=0) if path.name.endswith(".gz") else text)


def ref_refusal(record: VcfRecord) -> str | None:
    """Why no allele of a record is a sequence in place of another; None where they may be."""
    return allele_kind(record.ref) or (TELOMERE if record.position < 0 else None)


def alt_refusal(alt: str, path: Path, line: int) -> str | None:
    """What an alternative is instead of a sequence; None for a sequence.

    Raises:
        FormatError: nothing that VCF knows; names the file and the line.
    """
    try:
        return allele_kind(alt)
    except FormatError as error:
        raise FormatError(f"{path}:{line}: {error}") from error
