"""Annotation: features of GFF3, GTF and BED files, and windows labelled by them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from dnassm.data.interval import Interval, Strand
from dnassm.data.lines import read_lines
from dnassm.data.runs import Runs
from dnassm.errors import ConfigError, FormatError, GenomeError, LabelError
from dnassm.registry import did_you_mean

_GFF_COLUMNS = 9
_BED12_COLUMNS = 12
_GTF_PAIR = re.compile(r"""([^\s;]+)(?:\s+(?:"([^"]*)"|([^;]*)))?\s*(?:;|$)""")
_NOT_STRANDED = (".", "?", "*")
_BED_START_NAMES = ("start", "chromstart", "begin")
_GENIC = re.compile(r"(gene|RNA|transcript|CDS|exon|UTR|intron|codon)$")


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """One line of a GFF file."""

    interval: Interval
    """0-based, half-open; a feature without strand lies on '+'."""
    type: str
    """For example "gene" or "CDS"."""
    attributes: Mapping[str, str]
    """Column 9, percent-decoded; several values of one key are joined by commas."""
    line: int = 0
    """Line of the file, from 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class BedRecord:
    """One line of a BED file."""

    interval: Interval
    """0-based, half-open; on '+' when the file names no strand."""
    name: str | None = None
    """Column 4."""
    score: float | None = None
    """Column 5; None as well when the file holds something other than a number there."""
    columns: tuple[str, ...] = ()
    """Every column after the third, as written."""
    label: str | None = None
    """The column that the header line names "label"."""
    split: str | None = None
    """The column that the header line names "split"."""
    line: int = 0
    """Line of the file, from 1."""


def read_gff(path: Path | str) -> list[Feature]:
    """Read every feature of a GFF3 or GTF file, plain or gzip, up to ``##FASTA``.

    The file counts from 1 and includes the end; a `Feature` is 0-based and half-open.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: a line is no feature; names file, line, expected and got.
    """
    path = Path(path)
    features = []
    for number, line in read_lines(path):
        if line.startswith(("##FASTA", ">")):
            break
        if not line.strip() or line.startswith(("#", "track ", "browser ")):
            continue
        features.append(_feature(line, number, f"{path}:{number}"))
    return features


def read_bed(path: Path | str) -> list[BedRecord]:
    """Read every record of a BED file with 3 to 12 columns and any more, plain or gzip.

    Columns are separated by tabs, or by spaces in a line without any tab. Lines that begin with
    ``track``, ``browser`` or ``#`` are no records; a header line, with or without ``#``, names the
    columns, of which ``label`` and ``split`` are taken.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: a line is no record; names file, line, expected and got.
    """
    path = Path(path)
    records: list[BedRecord] = []
    header: dict[str, int] = {}
    for number, line in read_lines(path):
        fields = _bed_fields(line)
        if not fields or fields[0] in ("track", "browser"):
            continue
        if line.startswith("#") or (not records and _names_bed_columns(fields)):
            if _names_bed_columns(fields):
                header = {name.strip().lower(): i for i, name in enumerate(fields)}
            continue
        records.append(_bed_record(fields, header, number, f"{path}:{number}"))
    return records


def bed_blocks(record: BedRecord, *, source: Path | str = "BED") -> tuple[Interval, ...]:
    """The blocks of a record of BED12, on its strand; the record itself where it names none.

    Args:
        record: with columns 10 to 12: number, sizes and starts of its blocks.
        source: what the record comes from, for error messages.

    Raises:
        FormatError: the columns are no such numbers, or a block lies outside of the record.
    """
    whole = record.interval
    if len(record.columns) < _BED12_COLUMNS - 3:
        return (whole,)
    where = f"{source}:{record.line}"
    count = _integer(record.columns[6], "number of blocks", where)
    sizes, starts = (
        [_integer(item, f"block {name}", where) for item in text.split(",") if item.strip()]
        for text, name in ((record.columns[7], "size"), (record.columns[8], "start"))
    )
    if count != len(sizes) or count != len(starts):
        raise FormatError(
            f"{where}: expected {count} block sizes and starts, got {len(sizes)} and {len(starts)}"
        )
    blocks = []
    for size, start in zip(sizes, starts, strict=True):
        first, last = whole.start + start, whole.start + start + size
        if not whole.start <= first <= last <= whole.end:
            raise FormatError(
                f"{where}: block [{first}, {last}) lies outside of the record "
                f"[{whole.start}, {whole.end})"
            )
        blocks.append(Interval(whole.contig, first, last, whole.strand))
    return tuple(blocks) or (whole,)


def _feature(line: str, number: int, where: str) -> Feature:
    fields = line.split("\t")
    if len(fields) != _GFF_COLUMNS:
        raise FormatError(
            f"{where}: expected {_GFF_COLUMNS} tab-separated columns of GFF3 or GTF, got "
            f"{len(fields)}: {line[:60]!r}"
        )
    contig, _, kind, start, end, _, strand, _, attributes = fields
    first = _integer(start, "start", where)
    last = _integer(end, "end", where)
    if not 1 <= first <= last:
        raise FormatError(f"{where}: expected 1 <= start <= end, got start {first} and end {last}")
    interval = Interval(_percent_decoded(contig), first - 1, last, _strand(strand, where))
    return Feature(interval, kind, _attributes(attributes.strip()), number)


def _attributes(text: str) -> dict[str, str]:
    """Read column 9: ``key=value;`` of GFF3, or ``key "value";`` of GTF."""
    if text in ("", "."):
        return {}
    found: dict[str, str] = {}
    if re.match(r'[^\s="]+\s*=', text):
        pairs = [item.partition("=")[::2] for item in text.split(";") if item.strip()]
        pairs = [
            (_percent_decoded(key.strip()), _percent_decoded(value.strip())) for key, value in pairs
        ]
    else:
        pairs = [
            (match[1], match[2] if match[2] is not None else (match[3] or "").strip())
            for match in _GTF_PAIR.finditer(text)
        ]
    for key, value in pairs:
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


def _percent_decoded(text: str) -> str:
    return unquote(text) if "%" in text else text


def _bed_fields(line: str) -> list[str]:
    if not line.strip():
        return []
    if line.startswith(("track ", "browser ")):
        return line.split()
    return line.split("\t") if "\t" in line else line.split()


def _names_bed_columns(fields: Sequence[str]) -> bool:
    return len(fields) >= 3 and fields[1].strip().lower() in _BED_START_NAMES


def _bed_record(
    fields: Sequence[str], header: Mapping[str, int], number: int, where: str
) -> BedRecord:
    if len(fields) < 3:
        raise FormatError(
            f"{where}: expected at least 3 columns of BED (contig, start, end), got {len(fields)}: "
            f"{' '.join(fields)[:60]!r}"
        )
    start = _integer(fields[1], "start", where)
    end = _integer(fields[2], "end", where)
    if not 0 <= start <= end:
        raise FormatError(f"{where}: expected 0 <= start <= end, got start {start} and end {end}")
    if not fields[0].strip():
        raise FormatError(f"{where}: expected the name of a contig in column 1, got {fields[0]!r}")
    strand = _strand(fields[5], where) if len(fields) > 5 else "+"
    return BedRecord(
        Interval(fields[0], start, end, strand),
        name=(fields[3] or None) if len(fields) > 3 else None,
        score=_number_or_none(fields[4]) if len(fields) > 4 else None,
        columns=tuple(fields[3:]),
        label=_named(fields, header, "label", where),
        split=_named(fields, header, "split", where),
        line=number,
    )


def _named(fields: Sequence[str], header: Mapping[str, int], name: str, where: str) -> str | None:
    if name not in header:
        return None
    if header[name] >= len(fields) or not fields[header[name]].strip():
        raise FormatError(
            f"{where}: the header names a column {name!r}, this line has none in its "
            f"{len(fields)} columns"
        )
    return fields[header[name]].strip()


def _integer(text: str, name: str, where: str) -> int:
    # More digits than 18 are no length of any sequence, and no number of 64 bits.
    if not re.fullmatch(r" *[+-]?[0-9]{1,18} *", text):
        raise FormatError(f"{where}: {name}: expected a whole number of bases, got {text[:40]!r}")
    return int(text)


def _number_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _strand(text: str, where: str) -> Strand:
    if text in _NOT_STRANDED:
        return "+"
    if text not in ("+", "-"):
        raise FormatError(f"{where}: strand: expected '+', '-' or '.', got {text[:40]!r}")
    return cast(Strand, text)


WindowStrand = Literal["mixed", "gene"]


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledWindows:
    """Windows of one size in genome order, each with its label "coding" or "intergenic"."""

    intervals: tuple[Interval, ...]
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _ContigGenes:
    """Stretches of one contig that features cover."""

    genic: Runs
    coding: Mapping[str, Runs]
    """By strand: "+", "-", and "both"."""


def label_windows(
    regions: Mapping[str, int] | Iterable[Interval],
    features: Iterable[Feature],
    *,
    size: int,
    step: int,
    min_coding: float = 1.0,
    strand: WindowStrand = "mixed",
    balance: bool = True,
    seed: int = 0,
) -> LabelledWindows:
    """Label the windows of a genome that are coding or intergenic; leave out those between.

    A window is "coding" when a share of at least `min_coding` of its bases lies in CDS features of
    either strand, and "intergenic" when it shares no base with any gene, RNA or part of one, on
    either strand.

    Args:
        regions: contig lengths, or the intervals of a split, to take windows from.
        features: of the annotation; those on other contigs are ignored.
        size: bp of a window.
        step: bp from one window to the next.
        min_coding: least share of coding bases in a coding window, above 0, at most 1.
        strand: "mixed" reads every window on '+', so that coding windows show genes of both
            strands and the strand says nothing about the label; "gene" reads a coding window on
            the strand of its gene, an intergenic one on a strand drawn at random.
        balance: keep as many windows of the larger class, drawn at random, as the smaller has.
        seed: of the random draws.

    Raises:
        ConfigError: a number is out of range.
        GenomeError: no feature lies on any of the contigs.
        LabelError: there is no window of one of the classes.
    """
    if size < 1 or step < 1 or not 0.0 < min_coding <= 1.0:
        raise ConfigError(
            "label_windows: expected size >= 1, step >= 1 and 0 < min_coding <= 1, got "
            f"size {size}, step {step}, min_coding {min_coding}"
        )
    places = _as_intervals(regions)
    genes = _genes_by_contig(features, {place.contig for place in places})
    rng = np.random.default_rng(seed)
    coding: list[Interval] = []
    intergenic: list[Interval] = []
    for place in places:
        starts = np.arange(place.start, place.end - size + 1, step, dtype=np.int64)
        found = genes[place.contig]
        in_genes = found.genic.covered(starts, starts + size)
        in_coding = found.coding["both"].covered(starts, starts + size)
        signs = _signs(found, starts, size, strand, rng)
        coding += _windows(place.contig, starts, size, signs, in_coding >= min_coding * size)
        intergenic += _windows(place.contig, starts, size, signs, in_genes == 0)
    if not coding or not intergenic:
        raise LabelError(
            f"label_windows: expected both classes, got {len(coding)} coding and "
            f"{len(intergenic)} intergenic windows of {size} bp; choose a smaller size or step"
        )
    if balance:
        fewest = min(len(coding), len(intergenic))
        coding, intergenic = (_sample(windows, fewest, rng) for windows in (coding, intergenic))
    both = [(window, "coding") for window in coding]
    both += [(window, "intergenic") for window in intergenic]
    order = {place.contig: number for number, place in reversed(list(enumerate(places)))}
    both.sort(key=lambda item: (order[item[0].contig], item[0].start))
    return LabelledWindows(tuple(window for window, _ in both), tuple(label for _, label in both))


def _as_intervals(regions: Mapping[str, int] | Iterable[Interval]) -> list[Interval]:
    if isinstance(regions, Mapping):
        return [Interval(contig, 0, length) for contig, length in regions.items()]
    return list(regions)


def _genes_by_contig(features: Iterable[Feature], contigs: set[str]) -> dict[str, _ContigGenes]:
    genic: dict[str, list[Interval]] = {contig: [] for contig in contigs}
    coding: dict[str, list[Interval]] = {contig: [] for contig in contigs}
    elsewhere: dict[str, None] = {}
    for feature in features:
        contig = feature.interval.contig
        if contig not in contigs:
            elsewhere[contig] = None
            continue
        if _GENIC.search(feature.type):
            genic[contig].append(feature.interval)
        if feature.type == "CDS":
            coding[contig].append(feature.interval)
    if not any(genic.values()):
        known, other = ", ".join(sorted(contigs)[:5]), ", ".join(list(elsewhere)[:5]) or "nothing"
        near = did_you_mean(next(iter(elsewhere), ""), contigs)
        raise GenomeError(
            f"annotation: expected genes on the contigs of the genome ({known}), got features on "
            f"{other}; use the annotation of this assembly.{near}"
        )
    return {
        contig: _ContigGenes(
            _runs(genic[contig]),
            {
                "both": _runs(coding[contig]),
                "+": _runs([i for i in coding[contig] if i.strand == "+"]),
                "-": _runs([i for i in coding[contig] if i.strand == "-"]),
            },
        )
        for contig in contigs
    }


def _runs(intervals: Sequence[Interval]) -> Runs:
    return Runs.merge([i.start for i in intervals], [i.end for i in intervals])


def _signs(
    genes: _ContigGenes,
    starts: npt.NDArray[np.int64],
    size: int,
    strand: WindowStrand,
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Which windows (W,) are read on the minus strand."""
    if strand == "mixed":
        return np.zeros(starts.size, dtype=bool)
    plus = genes.coding["+"].covered(starts, starts + size)
    minus = genes.coding["-"].covered(starts, starts + size)
    drawn = rng.random(starts.size) < 0.5
    return np.where(plus == minus, drawn, minus > plus)


def _windows(
    contig: str,
    starts: npt.NDArray[np.int64],
    size: int,
    minus: npt.NDArray[np.bool_],
    chosen: npt.NDArray[np.bool_],
) -> list[Interval]:
    pairs = zip(starts[chosen].tolist(), minus[chosen].tolist(), strict=True)
    return [Interval(contig, start, start + size, "-" if rc else "+") for start, rc in pairs]


def _sample(windows: list[Interval], count: int, rng: np.random.Generator) -> list[Interval]:
    if count == len(windows):
        return windows
    kept = np.sort(rng.choice(len(windows), count, replace=False))
    return [windows[i] for i in kept.tolist()]
