"""Regions of a split, read from BED files: one file that names the parts, or one file per part."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dnassm.data.annotation import BedRecord, read_bed
from dnassm.data.interval import Interval
from dnassm.errors import ArtifactError, FormatError, GenomeError
from dnassm.registry import did_you_mean

_PART_OF = {"train": "train", "valid": "valid", "test": "test"} | dict.fromkeys(
    ("val", "validation", "dev"), "valid"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """A stretch that belongs to one part."""

    interval: Interval
    """As the file has it: its contig may be `1` where the genome says `chr1`."""
    part: str
    """ "train", "valid" or "test"."""
    where: str
    """FILE:LINE."""


def read_regions(files: Sequence[tuple[str | None, str]]) -> tuple[Region, ...]:
    """Read the regions of BED files, in their order.

    Args:
        files: (part, path) of each. With the part None the file names it in each line: in the
            column that its header calls ``split``, or else in column 4.

    Raises:
        ArtifactError: a file is missing or cannot be read.
        FormatError: a line is no region or names no part; names file and line.
    """
    regions = []
    for part, path in files:
        for record in read_bed(path):
            where = f"{path}:{record.line}"
            if not len(record.interval):
                raise FormatError(f"{where}: expected a region of at least 1 base, got none")
            regions.append(Region(record.interval, part or _part_of(record, where), where))
    return tuple(regions)


def digest_of(files: Sequence[tuple[str | None, str]]) -> str:
    """sha256 of the bytes of the files, one after the other.

    Raises:
        ArtifactError: a file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for _, path in files:
        try:
            digest.update(Path(path).read_bytes())
        except OSError as error:
            raise ArtifactError(
                f"split: {path}: expected a BED file, cannot read it ({error.strerror}); check "
                "the path"
            ) from error
    return digest.hexdigest()


def place_regions(
    regions: Iterable[Region], lengths: Mapping[str, int]
) -> dict[str, list[tuple[int, int, str]]]:
    """Contig of the genome -> its [start, end) and parts, sorted; overlaps of one part joined.

    A name is that of the contig, or of the same chromosome: ``chr1`` is ``1``, by points 2 and 3 of
    the rule of `dnassm.data.aliases`.

    Raises:
        GenomeError: a region lies outside of the genome, or two parts share a base; names file and
            line.
    """
    found: dict[str, list[tuple[int, int, str, str]]] = {}
    contigs: dict[str, str] = {}
    for region in regions:
        at = region.interval
        if at.contig not in contigs:
            contigs[at.contig] = _contig_of(region, lengths)
        contig = contigs[at.contig]
        if at.end > lengths[contig]:
            raise GenomeError(
                f"{region.where}: contig {contig!r} of the genome ends at {lengths[contig]:,} bp, "
                f"the region is [{at.start:,}, {at.end:,}); is this the right assembly?"
            )
        found.setdefault(contig, []).append((at.start, at.end, region.part, region.where))
    return {contig: _joined(contig, sorted(rows)) for contig, rows in found.items()}


def _part_of(record: BedRecord, where: str) -> str:
    name = (record.split or record.name or "").strip()
    if name.lower() not in _PART_OF:
        raise FormatError(
            f"{where}: expected train, valid or test in column 4 or in the column that the header "
            f"names 'split', got {name!r}.{did_you_mean(name.lower(), _PART_OF)}"
        )
    return _PART_OF[name.lower()]


def _contig_of(region: Region, lengths: Mapping[str, int]) -> str:
    from dnassm.data.aliases import chromosome_key  # imports the store, which imports the splits

    name = region.interval.contig
    if name in lengths:
        return name
    key = chromosome_key(name)
    same = [contig for contig in lengths if chromosome_key(contig) == key]
    if len(same) != 1:
        first = ", ".join(list(lengths)[:5])
        raise GenomeError(
            f"{region.where}: {'no' if not same else 'more than one'} contig {name!r} in the "
            f"genome; it has {first}{', ...' if len(lengths) > 5 else ''}."
            f"{did_you_mean(name, lengths)}"
        )
    return same[0]


def _joined(contig: str, rows: list[tuple[int, int, str, str]]) -> list[tuple[int, int, str]]:
    joined = rows[:1]
    for row in rows[1:]:
        start, end, part, where = row
        before, reach, previous, its_place = joined[-1]
        if start < reach and part != previous:
            raise GenomeError(
                f"{where}: {part} region {contig}:[{start:,}, {end:,}) overlaps the {previous} "
                f"region [{before:,}, {reach:,}) of {its_place}; a base belongs to one part"
            )
        if start < reach:
            # The line that reaches furthest is the one that a later overlap is with.
            joined[-1] = (before, end, part, where) if end > reach else joined[-1]
        else:
            joined.append(row)
    return [(start, end, part) for start, end, part, _ in joined]
