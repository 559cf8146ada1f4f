"""The genome store: how long, of which bases, and which part the model learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnassm.errors import FormatError
from dnassm.report import formats
from dnassm.report.content import Column, Fact, Section, Table
from dnassm.report.figures.genome import composition_figure, splits_figure
from dnassm.report.loading import need, read_provenance, read_record
from dnassm.report.section import SECTIONS, SectionReader

_SHOWN = 20
_PARTS = ("train", "valid", "test")
_COUNTS = ("A", "C", "G", "T", "N", "iupac", "soft_masked")
_COLUMNS = (
    Column(key="name", title="Contig", form="code"),
    Column(key="length", title="Length (bp)", form="count"),
    Column(key="gc", title="G+C", form="percent"),
    Column(key="n", title="N", form="percent"),
    Column(key="iupac", title="Other IUPAC (bp)", form="count"),
    Column(key="soft_masked", title="Soft-masked", form="percent"),
    Column(key="md5", title="MD5 (SAM M5)", form="code"),
)


@SECTIONS.register("genome")
class GenomeReader(SectionReader):
    """Reads store.json; the bases themselves are not touched."""

    order = 1
    holds = "genome store (folder with store.json)"

    def recognises(self, path: Path) -> bool:
        """Whether the folder holds store.json."""
        return (path / "store.json").is_file()

    def read(self, path: Path, key: str) -> Section:
        """Read the header of the store."""
        header_path = path / "store.json"
        header = read_record(header_path)
        contigs = [
            _contig(each, header_path) for each in need(header, "contigs", header_path, list)
        ]
        if not contigs:
            return Section(
                title="Genome",
                source=str(path),
                says=("This genome store holds no contig.",),
                provenance=read_provenance(path / "run.json"),
            )
        whole = _total(contigs)
        parts = _parts(header, header_path)
        longest = sorted(contigs, key=lambda contig: -contig["length"])[:_SHOWN]
        return Section(
            title="Genome",
            source=str(path),
            says=(f"{_sentence(contigs, whole)} {_split_sentence(parts)}",),
            notes=_notes(header, whole),
            facts=(Fact(value=formats.bases(whole["length"]), label="of genome"),),
            blocks=(
                composition_figure(key, whole, longest, len(contigs)),
                *splits_figure(key, longest, parts, len(contigs)),
                _table(contigs, whole),
            ),
            provenance=read_provenance(path / "run.json"),
        )


def _contig(record: Any, path: Path) -> dict[str, Any]:
    counts = need(record, "counts", path, dict)
    return _row(
        str(need(record, "name", path, str)),
        need(record, "length", path, int),
        {letter: int(counts.get(letter) or 0) for letter in _COUNTS},
        str(record.get("md5") or ""),
    )


def _row(name: str, length: int, counts: dict[str, int], md5: str) -> dict[str, Any]:
    known = sum(counts[base] for base in "ACGT")
    return {
        "name": name,
        "length": length,
        "gc": (counts["G"] + counts["C"]) / known if known else None,
        "n": counts["N"] / length if length else None,
        "iupac": counts["iupac"],
        "soft_masked": counts["soft_masked"] / length if length else None,
        "md5": md5,
        "counts": counts,
    }


def _total(contigs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = {letter: sum(c["counts"][letter] for c in contigs) for letter in _COUNTS}
    return _row("whole genome", sum(c["length"] for c in contigs), counts, "")


def _parts(header: Mapping[str, Any], path: Path) -> dict[str, list[tuple[str, int, int]]]:
    """Read the split as part -> (contig, start, end), 0-based half-open."""
    splits = header.get("splits") or {}
    found = {part: splits.get(part) or [] for part in _PARTS}
    for part, intervals in found.items():
        for each in intervals:
            if not (isinstance(each, list) and len(each) == 3):
                raise FormatError(
                    f"{path}: expected [contig, start, end] in splits.{part}, got {each!r}"
                )
    return {
        part: [(str(name), int(start), int(end)) for name, start, end in intervals]
        for part, intervals in found.items()
        if intervals
    }


def _sentence(contigs: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> str:
    number = formats.plural(len(contigs), "contig")
    text = f"The genome has {formats.bases(whole['length'])} in {number}"
    if whole["gc"] is not None:
        text += f"; {formats.percent(whole['gc'])} of its bases are G or C"
    if whole["soft_masked"]:
        text += f", {formats.percent(whole['soft_masked'])} are soft-masked as repeats"
    if whole["n"]:
        text += f", {formats.percent(whole['n'])} are unknown (N)"
    return text + "."


def _split_sentence(parts: Mapping[str, Sequence[tuple[str, int, int]]]) -> str:
    sizes = {part: sum(end - start for _, start, end in each) for part, each in parts.items()}
    held_out = [
        f"{formats.bases(sizes[part])} for {purpose}"
        for part, purpose in (("valid", "validation"), ("test", "testing"))
        if part in sizes
    ]
    if not held_out:
        return "Nothing is held out: every base may be trained on."
    trained = f"{formats.bases(sizes.get('train', 0))} are for training"
    return f"{trained}; held out are {' and '.join(held_out)}."


def _notes(header: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    rule = (header.get("splits") or {}).get("rule")
    if rule:
        gap = (header.get("splits") or {}).get("gap")
        border = f", {formats.bases(gap)} dropped on each side of a border" if gap else ""
        notes.append(f"Split rule: {rule}{border}.")
    if whole["iupac"]:
        notes.append(
            f"{formats.count(whole['iupac'])} bases are other IUPAC codes, "
            "which the model reads as N."
        )
    return tuple(notes)


def _table(contigs: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> Table:
    rows = list(contigs) if len(contigs) == 1 else [whole, *contigs]
    hidden = len(contigs) - _SHOWN
    return Table(
        name="contigs",
        caption="Contigs, in the order of the FASTA file",
        columns=_COLUMNS if any(row["iupac"] for row in rows) else _without(_COLUMNS, "iupac"),
        rows=rows,
        own=frozenset() if len(contigs) == 1 else frozenset({0}),
        shown=_SHOWN + 1 if hidden > 0 else None,
        more=f"{formats.count(hidden)} more contigs" if hidden > 0 else "",
    )


def _without(columns: Sequence[Column], key: str) -> tuple[Column, ...]:
    return tuple(column for column in columns if column.key != key)
