"""Variants of a genome: reading and writing VCF, and checking REF against a genome store.

Positions are 0-based inside and 1-based in a VCF. A record with several alternative alleles becomes
one Variant each. Symbolic alleles, breakends and the ``*`` allele have no sequence that a model
could score and are refused by name.
"""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dnassm.artifact import staged_file
from dnassm.data.alphabet import decode
from dnassm.data.interval import Interval
from dnassm.data.lines import read_lines
from dnassm.errors import FormatError, GenomeError

if TYPE_CHECKING:
    from dnassm.data.store import GenomeStore

_COLUMNS = ["CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]
_LETTERS = frozenset("ACGTN")


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


def read_vcf(path: Path | str) -> list[Variant]:
    """Read the variants of a VCF, plain or gzip, in the order of the file.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: no VCF, or a record that cannot be used; names file and line.
    """
    path = Path(path)
    variants: list[Variant] = []
    header = False
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        if line.startswith("##") or not line.strip():
            continue
        if line.startswith("#"):
            _check_header(line, where)
            header = True
            continue
        if not header:
            raise FormatError(
                f"{where}: expected the header line #CHROM POS ID REF ALT ... before any record; "
                "is this a VCF?"
            )
        variants.extend(_record(line, where))
    if not header:
        raise FormatError(f"{path}: expected a VCF, found no header line #CHROM POS ID REF ALT ...")
    return variants


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
    lines.append("#" + "\t".join(_COLUMNS))
    for variant in variants:
        fields = ";".join(f"{k}={v}" if v else k for k, v in variant.info.items()) or "."
        place = (variant.contig, str(variant.position + 1), variant.id, variant.ref, variant.alt)
        lines.append("\t".join((*place, ".", ".", fields)))
    text = ("\n".join(lines) + "\n").encode("utf-8")
    with staged_file(path) as staging:
        staging.write_bytes(gzip.compress(text, mtime=0) if path.name.endswith(".gz") else text)


def check_reference(variants: Iterable[Variant], store: GenomeStore) -> None:
    """Compare REF of every variant with the genome; soft mask does not count.

    Raises:
        GenomeError: a contig does not exist, a variant lies past its end, or REF is another
            sequence than the genome's; names the first such variant.
    """
    for variant in variants:
        length = store.contig(variant.contig).length
        end = variant.position + len(variant.ref)
        if end > length:
            raise GenomeError(
                f"variant {variant}: ends at {end:,}, past the end of {variant.contig} "
                f"({length:,} bp); is this the right assembly?"
            )
        found = decode(store.fetch(Interval(variant.contig, variant.position, end))).upper()
        if found != variant.ref:
            raise GenomeError(
                f"variant {variant}: REF is {variant.ref}, the genome has {found} there; "
                "is this the right assembly?"
            )


def _check_header(line: str, where: str) -> None:
    names = line[1:].split("\t")
    if names[: len(_COLUMNS)] != _COLUMNS:
        raise FormatError(
            f"{where}: expected the header {' '.join(_COLUMNS)} with tabs between, "
            f"got {line[:80]!r}"
        )


def _record(line: str, where: str) -> Iterator[Variant]:
    columns = line.split("\t")
    if len(columns) < len(_COLUMNS):
        raise FormatError(
            f"{where}: expected at least {len(_COLUMNS)} columns with tabs between, got "
            f"{len(columns)}"
        )
    contig, position, name, ref, alternatives, _, _, info = columns[: len(_COLUMNS)]
    if not (position.isascii() and position.isdigit() and int(position) > 0):
        raise FormatError(f"{where}: POS must be a whole number from 1 on, got {position!r}")
    if not ref or not _LETTERS.issuperset(ref.upper()):
        raise FormatError(f"{where}: REF must be letters A C G T N, got {ref!r}")
    if alternatives == ".":
        raise FormatError(f"{where}: ALT is '.', no variant; remove records without an alternative")
    for alt in alternatives.split(","):
        _check_alternative(alt, where)
        fields = dict(_info(info))
        yield Variant(contig, int(position) - 1, ref.upper(), alt.upper(), name, fields)


def _check_alternative(alt: str, where: str) -> None:
    if alt and _LETTERS.issuperset(alt.upper()):
        return
    if alt == "*":
        kind = "the '*' allele (deleted by another record)"
    elif alt.startswith("<"):
        kind = f"the symbolic allele {alt}"
    elif "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        kind = f"the breakend {alt}"
    else:
        raise FormatError(f"{where}: ALT must be letters A C G T N, got {alt!r}")
    raise FormatError(f"{where}: {kind} has no sequence to score; remove the record")


def _info(text: str) -> Iterator[tuple[str, str]]:
    if text != ".":
        for field in filter(None, text.split(";")):
            key, _, value = field.partition("=")
            yield key, value
