"""Records of a VCF as they stand in the file: header, columns, alleles; no genome needed.

Read from plain, gzip and bgzip text, and from BCF by way of the text that it stands for. What a
record says in REF and ALT is sorted into sequences, which are kept, and alleles without a sequence,
which are named by their kind (`allele_kind`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dnassm.data.bcf import MAGIC, bcf_lines, is_bcf
from dnassm.data.lines import read_lines
from dnassm.errors import FormatError

COLUMNS = ("CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
MISSING = "no alternative ('.')"
STAR = "'*' (deleted by another record)"
SYMBOLIC = "symbolic"
BREAKEND = "breakend"
AMBIGUOUS = "ambiguous letters"
TELOMERE = "at the telomere (POS 0)"
REFUSED_KINDS = (MISSING, STAR, SYMBOLIC, BREAKEND, AMBIGUOUS, TELOMERE)
"""What an allele can be instead of a sequence of A C G T N at bases of the contig."""

_BASES = frozenset("ACGTN")
_SEQUENCE = re.compile(r"[ACGTN]+")
_IUPAC = re.compile(r"[ACGTNRYSWKMBDHV]+")
_BREAKEND = re.compile(
    r"[A-Z]*([\[\]])[^\[\]\s]+:[0-9]+\1[A-Z]*|[A-Z]*([\[\]])<[^<>\s]+>(:[0-9]+)?\2[A-Z]*"
    r"|\.[A-Z]+|[A-Z]+\.",
    re.IGNORECASE,
)
_MOST_DIGITS = 18
_LENGTH = re.compile(rf"[0-9]{{1,{_MOST_DIGITS}}}", re.ASCII)
_CONTIG_LINE = re.compile(r"##contig=<(.*)>\s*$", re.IGNORECASE)
# From the beginning of a word, and all of it: a long word is looked at once.
_CONTIG_FIELD = re.compile(r'(?<!\w)(\w++)=("(?:[^"\\]|\\.)*"|[^,]*)')
_NAME_OF_ALLELE = re.compile(r"(<[^<>]*>)")


class VcfRecord(NamedTuple):
    """One line of a VCF."""

    line: int
    """From 1."""
    contig: str
    position: int
    """0-based, of the first base of `ref`; the file counts from 1, and -1 is its POS 0."""
    id: str
    ref: str
    """Upper case: letters A C G T N, or other IUPAC letters."""
    alts: tuple[str, ...]
    """Upper case where it is a sequence; as written otherwise."""
    info: str
    """Column 8 as written."""
    samples: str
    """FORMAT and the columns of samples as written, with their tabs; "" without any."""


class VcfReader:
    """Iterates over the records of a VCF or BCF; the header is read when the object is made.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        MissingExtraError: BCF without the extra that reads it.
        FormatError: no VCF, or, while iterating, a line that is no record; names file, line,
            expected and got.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.contigs: dict[str, int | None] = {}
        """Name -> length, as far as ``##contig`` lines say."""
        self.samples: tuple[str, ...] = ()
        self._lines = (bcf_lines if is_bcf(self.path) else read_lines)(self.path)
        self._columns = self._read_header()

    def __iter__(self) -> Iterator[VcfRecord]:
        for number, line in self._lines:
            if line.startswith("#") or not line.strip():
                continue
            yield _record(line, number, self._columns, self.path)

    def _read_header(self) -> int:
        for number, line in self._lines:
            where = f"{self.path}:{number}"
            if number == 1 and line.startswith(MAGIC.decode()):
                raise FormatError(
                    f"{where}: expected VCF as text, got BCF from a pipe; give the file itself"
                )
            if line.startswith("##"):
                self._read_meta(line)
            elif line.startswith("#"):
                line = line.rstrip("\t")  # some writers end the header line, and only it, with one
                self.samples = _samples(line, where)
                return line.count("\t") + 1
            elif line.strip():
                raise FormatError(
                    f"{where}: expected the header line #CHROM POS ID REF ALT ... before any "
                    "record; is this a VCF?"
                )
        raise FormatError(
            f"{self.path}: expected a VCF, found no header line #CHROM POS ID REF ALT ..."
        )

    def _read_meta(self, line: str) -> None:
        found = _CONTIG_LINE.match(line)
        if not found:
            return
        fields = {key.lower(): value.strip('" ') for key, value in _CONTIG_FIELD.findall(found[1])}
        if fields.get("id"):
            length = fields.get("length", "")
            self.contigs[fields["id"]] = int(length) if _LENGTH.fullmatch(length) else None


def allele_kind(allele: str) -> str | None:
    """Name what an allele is instead of a sequence: one of REFUSED_KINDS; None for a sequence.

    Raises:
        FormatError: it is nothing that VCF knows.
    """
    if allele in _BASES or _SEQUENCE.fullmatch(allele):
        return None
    if allele == ".":
        return MISSING
    if allele == "*":
        return STAR
    if re.fullmatch(r"<[^<>\s]+>", allele):
        return SYMBOLIC
    if _IUPAC.fullmatch(allele):
        return AMBIGUOUS
    if _BREAKEND.fullmatch(allele):
        return BREAKEND
    raise FormatError(f"ALT must be letters A C G T N, got {allele[:60]!r}")


def info_fields(text: str) -> dict[str, str]:
    """Split column 8 into keys and values as text; a flag has an empty value."""
    if text == ".":
        return {}
    return {key: value for key, _, value in (f.partition("=") for f in text.split(";") if f)}


def _samples(line: str, where: str) -> tuple[str, ...]:
    names = line[1:].split("\t")
    if tuple(names[: len(COLUMNS)]) != COLUMNS:
        raise FormatError(
            f"{where}: expected the header {' '.join(COLUMNS)} with tabs between, got {line[:80]!r}"
        )
    return tuple(names[len(COLUMNS) + 1 :])


def _record(line: str, number: int, header: int, path: Path) -> VcfRecord:
    columns = line.split("\t", len(COLUMNS))
    least = len(COLUMNS)
    if len(columns) < least or (header > least and line.count("\t") + 1 < header):
        raise FormatError(
            f"{path}:{number}: expected at least {header} columns with tabs between, got "
            f"{len(line.split(chr(9)))}; is the file cut off?"
        )
    contig, position, name, ref, alts, _, _, info = columns[:least]
    if not contig or " " in contig:
        raise FormatError(
            f"{path}:{number}: CHROM must be a name without white space, got {contig[:60]!r}"
        )
    if not (position.isdigit() and position.isascii() and len(position) <= _MOST_DIGITS):
        raise FormatError(f"{path}:{number}: POS must be a whole number, got {position[:40]!r}")
    ref = ref.upper() if ref.isascii() else ref  # the upper case of ß is SS
    if ref not in _BASES and not _IUPAC.fullmatch(ref):
        raise FormatError(
            f"{path}:{number}: REF must be letters A C G T N or IUPAC, got {ref[:60]!r}"
        )
    samples = columns[least] if len(columns) > least else ""
    return VcfRecord(number, contig, int(position) - 1, name, ref, _alts(alts), info, samples)


def _alts(text: str) -> tuple[str, ...]:
    """Split column 5; sequences in upper case, names in <> as written."""
    if not text.isascii():
        return tuple(text.split(","))  # nothing that VCF knows; the upper case of ß is SS
    if text.isalpha():
        return (text.upper(),)
    alts = [""]
    for number, part in enumerate(_NAME_OF_ALLELE.split(text)):
        first, *others = [part] if number % 2 else part.split(",")  # a name may have commas
        alts[-1] += first
        alts += others
    return tuple(alt.upper() if alt.isalpha() else alt for alt in alts)
