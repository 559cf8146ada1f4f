"""What to embed: the records of a FASTA file, or intervals and windows of a genome store."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import encode_ascii
from dnassm.data.fasta import Header, read_fasta
from dnassm.data.interval import Interval
from dnassm.embedding.table import Row
from dnassm.errors import ConfigError, FormatError, GenomeError

if TYPE_CHECKING:
    from dnassm.data.annotation import BedRecord
    from dnassm.data.genome import Genome

Codes = npt.NDArray[np.uint8]
_NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Rows to embed and the way to their bases.

    Attributes:
        rows: one per embedding, in the order of the output.
        fetch: index of a row -> its store codes (L,), read on the row's strand.
        genome: digest of the genome store, empty for sequences.
        files: path of each input file -> sha256 of its bytes; empty when there is none.
    """

    rows: tuple[Row, ...]
    fetch: Callable[[int], Codes]
    genome: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Length of every row in bases."""
        return [len(row.interval) for row in self.rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Which inputs a user named: a FASTA file, or a store with a BED file, or with windows.

    Attributes:
        fasta: FASTA file, plain or gzip.
        genome: folder of a genome store.
        bed: BED file of intervals in `genome`.
        windows: "SIZE:STEP" in bp, cut from `genome`.
        split: cut the windows from this part of the genome only.
    """

    fasta: Path | None = None
    genome: Path | None = None
    bed: Path | None = None
    windows: str | None = None
    split: str | None = None

    def open(self) -> Inputs:
        """Read the inputs.

        Raises:
            ConfigError: not exactly one source is named.
            FormatError: a file is not what its name says.
            GenomeError: an interval lies outside of the genome.
        """
        named = sum(value is not None for value in (self.fasta, self.bed, self.windows))
        if named != 1 or (self.genome is None) != (self.fasta is not None):
            raise ConfigError(
                "expected one source: --fasta F, or --genome STORE with --bed BED, or --genome "
                "STORE with --windows SIZE:STEP"
            )
        if self.split is not None and self.windows is None:
            raise ConfigError("--split goes with --windows; a BED file or FASTA is embedded whole")
        if self.fasta is not None:
            return from_fasta(self.fasta)
        from dnassm.data.genome import open_genome

        store = open_genome(Path(str(self.genome)))
        if self.bed is not None:
            return from_bed(store, self.bed)
        size, step = parse_windows(str(self.windows))
        return from_intervals(store, tile(store, size, step, split=self.split))


def from_sequences(sequences: Sequence[str] | Mapping[str, str]) -> Inputs:
    """Inputs from letters; without names they are called seq1, seq2, ...

    Raises:
        FormatError: a sequence is empty or holds a letter that is no IUPAC nucleotide.
    """
    named = (
        sequences.items()
        if isinstance(sequences, Mapping)
        else ((f"seq{i}", sequence) for i, sequence in enumerate(sequences, 1))
    )
    rows, codes = [], []
    for name, sequence in named:
        codes.append(_encode(sequence, f"sequence {name!r}"))
        rows.append(Row(Interval(name, 0, len(sequence)), name=name))
    if not rows:
        raise FormatError("nothing to embed: expected at least one sequence, got none")
    return Inputs(tuple(rows), codes.__getitem__)


def from_fasta(path: Path) -> Inputs:
    """Inputs from a FASTA file, plain, gzip or bgzip; a record's name is its first word.

    Raises:
        ArtifactError: the file is missing or unreadable.
        FormatError: no FASTA, an empty record, or a letter that is no IUPAC nucleotide.
    """
    names: list[str] = []
    blocks: list[list[Codes]] = []
    digest: list[str | None] = []
    for part in read_fasta(path, on_end=digest.append):
        if isinstance(part, Header):
            names.append(part.name)
            blocks.append([])
        else:
            blocks[-1].append(part.codes.copy())
    codes = [np.concatenate(block) for block in blocks]
    rows = tuple(
        Row(Interval(name, 0, len(bases)), name=name)
        for name, bases in zip(names, codes, strict=True)
    )
    return Inputs(rows, codes.__getitem__, files={str(path): digest[0] or sha256_of(path)})


def from_bed(store: Genome, path: Path) -> Inputs:
    """Inputs from the intervals of a BED file, each read on the strand of its column 6.

    Raises:
        FormatError: the file is no BED, or holds no interval.
        GenomeError: a contig is not in the store, or an interval is empty or ends past its contig.
    """
    from dnassm.data.annotation import read_bed

    records = read_bed(path)
    if not records:
        raise FormatError(f"{path}: expected at least one interval, found none")
    check_contigs(store, records, path)
    for record in records:
        _check_inside(store, record.interval, f"{path}:{record.line}")
    inputs = from_intervals(store, records)
    return dataclasses.replace(inputs, files={str(path): sha256_of(path)})


def from_intervals(store: Genome, intervals: Sequence[Interval | BedRecord]) -> Inputs:
    """Inputs from intervals of a genome; bases are read batch by batch, never all at once.

    Rows without a split of their own get the part of the store that they lie in, if it is one.

    Raises:
        GenomeError: there is no interval, or one is empty or lies outside of its contig.
    """
    if not intervals:
        raise GenomeError("nothing to embed: expected at least one interval, got none")
    part_of = _PartIndex(store)
    rows = []
    for item in intervals:
        interval = item if isinstance(item, Interval) else item.interval
        _check_inside(store, interval, str(interval))
        name, label, split = "", "", ""
        if not isinstance(item, Interval):
            name, label, split = item.name or "", item.label or "", item.split or ""
        rows.append(Row(interval, name, label, split or part_of(interval)))
    return Inputs(tuple(rows), lambda i: store.fetch(rows[i].interval), genome=store.digest)


def parse_windows(text: str) -> tuple[int, int]:
    """Read "SIZE:STEP" in bp; SIZE alone means windows that touch.

    >>> parse_windows("1000:500"), parse_windows("1000")
    ((1000, 500), (1000, 1000))
    """
    size, _, step = text.partition(":")
    try:
        numbers = int(size), int(step or size)
    except ValueError:
        numbers = 0, 0
    if min(numbers) < 1:
        raise ConfigError(
            f"--windows {text!r}: expected SIZE:STEP, two whole numbers of bp above 0 such as "
            "1000:500"
        )
    return numbers


def tile(store: Genome, size: int, step: int, *, split: str | None = None) -> list[Interval]:
    """Windows of `size` bp every `step` bp, in the order of the genome; a shorter rest is dropped.

    Args:
        store: the genome.
        size: length of a window in bp.
        step: distance between the starts of two windows in bp.
        split: only windows that lie within this part of the genome.

    Raises:
        ConfigError: the store has no such split, or size or step is below 1.
        GenomeError: every piece of the genome is shorter than `size`.
    """
    if min(size, step) < 1:
        raise ConfigError(f"windows: expected size and step of 1 bp or more, got {size}, {step}")
    pieces: Sequence[Interval] = [Interval(c.name, 0, c.length) for c in store.contigs]
    if split is not None:
        if not store.splits.get(split):
            have = ", ".join(name for name, parts in store.splits.items() if parts) or "none"
            raise ConfigError(f"{store.path} has nothing in split {split!r}; it has {have}")
        pieces = store.splits[split]
    windows = [
        Interval(piece.contig, start, start + size)
        for piece in pieces
        for start in range(piece.start, piece.end - size + 1, step)
    ]
    if not windows:
        longest = max((len(piece) for piece in pieces), default=0)
        raise GenomeError(
            f"{store.path}: no window of {size} bp fits, the longest piece has {longest} bp; "
            "choose a smaller SIZE"
        )
    return windows


def check_contigs(store: Genome, records: Sequence[BedRecord], path: Path) -> None:
    """Raise GenomeError when a record names a contig that the store does not have."""
    known = set(store.lengths)
    missing = [record for record in records if record.interval.contig not in known]
    if not missing:
        return
    first = missing[0]
    asked = dict.fromkeys(record.interval.contig for record in records)
    alias = _alias(first.interval.contig, known)
    hint = (
        f"they name contigs differently: {first.interval.contig!r} there is {alias!r} here, so "
        "rename the contigs of the BED file"
        if alias
        else "is this the genome of that file?"
    )
    raise GenomeError(
        f"{path}:{first.line}: contig {first.interval.contig!r} is not in {store.path} "
        f"({len(missing)} of {len(records)} rows have such a contig); the file names "
        f"{_some(asked)}, the genome has {_some(store.lengths)}; {hint}"
    )


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _PartIndex:
    """Which part of the genome (train, valid, test) holds the whole of an interval."""

    def __init__(self, store: Genome) -> None:
        self._parts: dict[str, list[tuple[int, int, str]]] = {}
        for split, intervals in store.splits.items():
            for part in intervals:
                self._parts.setdefault(part.contig, []).append((part.start, part.end, split))
        for parts in self._parts.values():
            parts.sort()

    def __call__(self, interval: Interval) -> str:
        parts = self._parts.get(interval.contig, [])
        at = bisect.bisect_right(parts, interval.start, key=lambda part: part[0]) - 1
        return parts[at][2] if at >= 0 and interval.end <= parts[at][1] else ""


def _check_inside(store: Genome, interval: Interval, where: str) -> None:
    length = store.contig(interval.contig).length
    if interval.end > length:
        raise GenomeError(
            f"{where}: contig {interval.contig!r} ends at {length} bp, asked for "
            f"[{interval.start}, {interval.end}) (0-based, half-open); shorten the interval"
        )
    if len(interval) == 0:
        raise GenomeError(f"{where}: {interval} is empty; expected start < end")


def _encode(sequence: str, where: str) -> Codes:
    if not sequence:
        raise FormatError(f"{where} is empty; remove it or give its bases")
    try:
        return encode_ascii(sequence.encode("latin-1", errors="replace"))
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def _alias(name: str, known: set[str]) -> str | None:
    """Name under which `known` most likely has the contig `name`: chr4, 4, IV and chrIV are one."""
    same = [other for other in sorted(known) if _number(other) == _number(name)]
    return min(same, key=lambda other: _bare(other) != _bare(name), default=None)


def _bare(name: str) -> str:
    bare = name.lower().removeprefix("chr")
    return "mt" if bare in {"m", "mt", "mito", "mitochondrion"} else bare


def _number(name: str) -> str:
    return str(_ROMAN.get(_bare(name), _bare(name)))


_NUMERALS = "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi"
_ROMAN = {numeral: value for value, numeral in enumerate(_NUMERALS.split(), start=1)}


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(list(names)[:_NAMES_SHOWN])
    return f"{shown}, ..." if len(names) > _NAMES_SHOWN else shown
