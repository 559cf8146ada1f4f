"""Whether a VCF, BED, GFF or bigWig file belongs to a genome: what it says of contigs, compared.

What a file can say of a contig, from the strongest to the weakest: the MD5 of its letters and its
length (``##contig`` of a VCF), its length (``##sequence-region`` of a GFF3 that begins at 1, the
contigs of a bigWig), how far it reaches at least (the ends of intervals and variants). Names are
resolved by dnassm.data.aliases. Those without an answer there may still be found by their MD5, and
where no name at all has an answer, as where one side has accessions, by lengths that occur once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dnassm.data.aliases import resolve_contigs
from dnassm.data.annotation import read_bed
from dnassm.data.bigwig import MAGIC, BigWig
from dnassm.data.genome import Genome
from dnassm.data.lines import read_lines
from dnassm.data.vcf import VcfReader
from dnassm.errors import ArtifactError, ConfigError, FormatError, GenomeError

_CONTIG_LINE = re.compile(r"##contig=<(.*)>\s*$", re.IGNORECASE)
_CONTIG_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,]*)')
_MD5 = re.compile(r"[0-9a-f]{32}")
_SEQUENCE_REGION = re.compile(r"##sequence-region\s+(\S+)\s+(\d+)\s+(\d+)\s*$", re.ASCII)
_SUFFIXES = {
    "VCF": (".vcf",),
    "BED": (".bed",),
    "GFF": (".gff", ".gff3", ".gtf"),
}
AGREE = ("same MD5", "same length", "inside")
DIFFER = ("other MD5", "other length", "past the end")
MISSING = "not in the genome"


@dataclasses.dataclass(slots=True)
class Statement:
    """What a file says of one contig; None and 0 where it says nothing."""

    length: int | None = None
    """Bases, exactly."""
    reach: int = 0
    """Bases that it has at least."""
    md5: str | None = None
    """Of its letters in upper case, lower-case hexadecimal."""
    assembly: str | None = None
    """Name of the assembly; nothing in a genome to compare it with."""


@dataclasses.dataclass(frozen=True, slots=True)
class ContigCheck:
    """One contig of the file beside that of the genome."""

    name: str
    """In the file."""
    contig: str | None
    """In the genome."""
    verdict: str
    """One of AGREE, from strong to weak, of DIFFER, or MISSING."""
    stated: str
    """What the file says, of what the verdict is about."""
    found: str
    """The same of the genome."""


@dataclasses.dataclass(frozen=True, slots=True)
class AssemblyCheck:
    """All contigs of a file beside those of a genome."""

    path: Path
    kind: str
    """VCF, BED, GFF or bigWig."""
    genome: Path
    rows: tuple[ContigCheck, ...]
    assemblies: tuple[str, ...]
    """Names of assemblies that the file states."""

    @property
    def belongs(self) -> bool:
        """Whether a contig agrees and none differs."""
        return self.first_mismatch is None

    @property
    def first_mismatch(self) -> str | None:
        """What differs first, in one line."""
        for row in self.rows:
            if row.verdict in DIFFER:
                return (
                    f"contig {row.name!r} has {row.stated} in {self.path}, {row.contig!r} of "
                    f"{self.genome} has {row.found}"
                )
        if not any(row.verdict in AGREE for row in self.rows):
            names = ", ".join(row.name for row in self.rows[:5]) or "no contig at all"
            return f"no contig of {self.path} ({names}) is in {self.genome}"
        return None

    def summary(self) -> str:
        """The answer, and how many contigs say so, in one line."""
        counts = {
            verdict: sum(row.verdict == verdict for row in self.rows)
            for verdict in (*AGREE, *DIFFER, MISSING)
        }
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        answer = "belongs" if self.belongs else "does not belong"
        assembly = f"; it says {', '.join(self.assemblies)}" if self.assemblies else ""
        return f"{self.path} ({self.kind}) {answer} to {self.genome}: {said}{assembly}"

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "belongs": self.belongs,
            "first_mismatch": self.first_mismatch,
            "assemblies": list(self.assemblies),
            "contigs": [dataclasses.asdict(row) for row in self.rows],
        }

    def require(self) -> None:
        """Raise GenomeError with the first mismatch, if there is one."""
        if self.first_mismatch is not None:
            raise GenomeError(f"{self.first_mismatch}; is this the right assembly?")


def check_assembly(
    path: Path | str, genome: Genome, *, explicit: Mapping[str, str] | None = None
) -> AssemblyCheck:
    """Compare what a VCF, BED, GFF3, GTF or bigWig file says of its contigs with a genome.

    Args:
        path: plain or gzip where it is text; known by its content, else by its name.
        genome: a store or a FASTA file.
        explicit: name in the file -> contig of the genome, above every rule.

    Raises:
        ConfigError: the file is of none of these kinds.
        ArtifactError, FormatError: it cannot be read.
        GenomeError: two of its names mean one contig, or one could mean two.
    """
    path = Path(path)
    kind = _kind(path)
    stated = _READERS[kind](path)
    names = resolve_contigs(stated, genome, explicit=explicit, source=str(path))
    names |= _by_fact("md5", stated, names, genome)
    if not names:
        names = _by_fact("length", stated, names, genome)
    rows = tuple(_compare(name, names.get(name), what, genome) for name, what in stated.items())
    assemblies = dict.fromkeys(what.assembly for what in stated.values() if what.assembly)
    return AssemblyCheck(path, kind, genome.path, rows, tuple(assemblies))


def _by_fact(
    fact: Literal["md5", "length"],
    stated: Mapping[str, Statement],
    names: Mapping[str, str],
    genome: Genome,
) -> dict[str, str]:
    """Contigs for names without one, where a fact is that of one name and of one contig alone."""
    theirs = {name: getattr(what, fact) for name, what in stated.items() if name not in names}
    if not any(theirs.values()):
        return {}  # an MD5 of a FASTA file costs reading it
    ours = [contig for contig in genome.contigs if contig.name not in set(names.values())]
    values = [getattr(contig, fact) for contig in ours]
    found = {
        value: contig.name
        for value, contig in zip(values, ours, strict=True)
        if values.count(value) == 1 and list(theirs.values()).count(value) == 1
    }
    return {name: found[value] for name, value in theirs.items() if value in found}


def _compare(name: str, contig: str | None, stated: Statement, genome: Genome) -> ContigCheck:
    if contig is None:
        return ContigCheck(name, None, MISSING, "", "")
    length = genome.lengths[contig]
    if stated.length is not None and stated.length != length:
        verdict, theirs, ours = "other length", f"{stated.length:,} bp", f"{length:,} bp"
    elif stated.reach > length:
        verdict, theirs, ours = "past the end", f"a position {stated.reach:,}", f"{length:,} bp"
    elif stated.md5 is not None:
        found = genome.contig(contig).md5
        verdict = "same MD5" if stated.md5 == found else "other MD5"
        theirs, ours = f"MD5 {stated.md5}", f"MD5 {found}"
    elif stated.length is not None:
        verdict, theirs, ours = "same length", f"{stated.length:,} bp", f"{length:,} bp"
    else:
        verdict, theirs, ours = "inside", f"a position {stated.reach:,}", f"{length:,} bp"
    return ContigCheck(name, contig, verdict, theirs, ours)


def _kind(path: Path) -> str:
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, expected a file; name the file in it")
    try:
        with path.open("rb") as file:
            if file.read(4) in MAGIC:
                return "bigWig"
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    first = next((line for _, line in read_lines(path)), "")
    if first.startswith(("##fileformat=VCF", "BCF")):
        return "VCF"
    if first.startswith("##gff-version"):
        return "GFF"
    name = path.name.lower().removesuffix(".gz").removesuffix(".bgz")
    for kind, suffixes in _SUFFIXES.items():
        if name.endswith(suffixes):
            return kind
    raise ConfigError(
        f"{path}: expected VCF, BED, GFF3, GTF or bigWig, known by its first bytes or its name "
        "(.bed, .gtf ...); rename it"
    )


def _read_vcf(path: Path) -> dict[str, Statement]:
    """From the header; from the records where it names no contig."""
    stated: dict[str, Statement] = {}
    for number, line in read_lines(path):
        if not line.startswith("##"):
            break
        found = _CONTIG_LINE.match(line)
        if found is None:
            continue
        fields = {k.lower(): v.strip('" ') for k, v in _CONTIG_FIELD.findall(found[1])}
        if fields.get("id"):
            stated[fields["id"]] = _contig_line(fields, f"{path}:{number}")
    if not stated:
        for record in VcfReader(path):
            what = stated.setdefault(record.contig, Statement())
            what.reach = max(what.reach, record.position + len(record.ref))
    return stated


def _contig_line(fields: Mapping[str, str], where: str) -> Statement:
    length = fields.get("length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise FormatError(f"{where}: length of a contig must be a whole number, got {length!r}")
    md5 = (fields.get("md5") or fields.get("m5") or "").lower()
    if md5 and not _MD5.fullmatch(md5):
        raise FormatError(f"{where}: MD5 of a contig must be 32 hexadecimal digits, got {md5!r}")
    return Statement(
        length=None if length is None else int(length),
        md5=md5 or None,
        assembly=fields.get("assembly") or None,
    )


def _read_bed(path: Path) -> dict[str, Statement]:
    stated: dict[str, Statement] = {}
    for record in read_bed(path):
        what = stated.setdefault(record.interval.contig, Statement())
        what.reach = max(what.reach, record.interval.end)
    return stated


def _read_gff(path: Path) -> dict[str, Statement]:
    """Regions and ends of features, up to ``##FASTA``.

    Features that cross the origin of a circular contig end past it, as GFF3 asks for.
    """
    stated: dict[str, Statement] = {}
    circular: set[str] = set()
    for number, line in read_lines(path):
        if line.startswith(("##FASTA", ">")):
            break
        region = _SEQUENCE_REGION.match(line)
        if region is not None:
            what = stated.setdefault(region[1], Statement())
            start, end = int(region[2]), int(region[3])
            if start == 1:
                what.length = end
            what.reach = max(what.reach, end)
        columns = line.split("\t")
        if line.startswith("#") or len(columns) < 9:
            continue
        if not (columns[4].isascii() and columns[4].isdigit()):
            raise FormatError(f"{path}:{number}: end must be a whole number, got {columns[4]!r}")
        what = stated.setdefault(columns[0], Statement())
        if "Is_circular=true" in columns[8]:
            circular.add(columns[0])
        elif columns[0] not in circular:
            what.reach = max(what.reach, int(columns[4]))
    return stated


def _read_bigwig(path: Path) -> dict[str, Statement]:
    return {name: Statement(length=length) for name, length in BigWig(path).lengths.items()}


_READERS: dict[str, Callable[[Path], dict[str, Statement]]] = {
    "VCF": _read_vcf,
    "BED": _read_bed,
    "GFF": _read_gff,
    "bigWig": _read_bigwig,
}
