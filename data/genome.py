"""Genome: what every reader of reference bases can do, whatever holds them.

`GenomeStore` holds them as memory-mapped codes, `FastaGenome` reads a FASTA file through its index.
Whoever takes a Genome (samplers, windows, embedding, variants) takes either.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dnassm.data.alphabet import PAD, Codes, reverse_complement
from dnassm.data.interval import Interval
from dnassm.errors import GenomeError
from dnassm.registry import did_you_mean


class Contig(Protocol):
    """One sequence of a genome."""

    @property
    def name(self) -> str:
        """First word of its FASTA header."""

    @property
    def description(self) -> str:
        """The rest of the header."""

    @property
    def length(self) -> int:
        """Bases."""

    @property
    def sha256(self) -> str:
        """Over its codes, as a store has them: one byte per base, soft mask included."""

    @property
    def md5(self) -> str:
        """Over its letters as written, in upper case, without line ends: M5 of a SAM header."""

    @property
    def counts(self) -> Mapping[str, int]:
        """A, C, G, T, N, iupac, soft_masked, and U: the part of T that was written U."""


class Genome(abc.ABC):
    """Contigs, their bases at any interval, and which parts of them train, validate and test.

    Args:
        path: what holds the bases.
        contigs: in their order.
        split_rule: text of the rule that made `splits`.
        splits: intervals of "train", "valid" and "test".
    """

    def __init__(
        self,
        path: Path,
        contigs: Sequence[Contig],
        split_rule: str,
        splits: Mapping[str, tuple[Interval, ...]],
    ) -> None:
        self.path = path
        self.contigs = tuple(contigs)
        self.lengths: dict[str, int] = {contig.name: contig.length for contig in self.contigs}
        self.split_rule = split_rule
        self.splits = splits
        self._by_name = {contig.name: contig for contig in self.contigs}

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """Identity of the genome: the `genome_digest` of its contigs."""

    @abc.abstractmethod
    def _read(self, contig: str, start: int, end: int) -> Codes:
        """Codes of ``[start, end)``, which lies inside of the contig; nobody writes to them."""

    def __repr__(self) -> str:
        total = sum(self.lengths.values())
        kind = type(self).__name__
        return f"{kind}({str(self.path)!r}, {len(self.contigs)} contigs, {total:,} bases)"

    def contig(self, name: str) -> Contig:
        """The contig called `name`; raises GenomeError with a near-miss hint."""
        if name not in self._by_name:
            first = ", ".join(list(self._by_name)[:5])
            raise GenomeError(
                f"{self.path}: no contig {name!r}; it has {first}"
                f"{', ...' if len(self._by_name) > 5 else ''}.{did_you_mean(name, self._by_name)}"
            )
        return self._by_name[name]

    def fetch(self, interval: Interval, *, pad: bool = False) -> Codes:
        """Codes (L,) uint8 of an interval, a copy; the reverse complement on strand '-'.

        Args:
            interval: 0-based, half-open.
            pad: fill what lies past the end of the contig with PAD instead of raising.

        Raises:
            GenomeError: no such contig, or the interval ends past the contig and `pad` is off.
        """
        length = self.contig(interval.contig).length
        if interval.end > length and not pad:
            raise GenomeError(
                f"{self.path}: contig {interval.contig!r} ends at {length:,} bp, asked for "
                f"[{interval.start:,}, {interval.end:,}); shorten the interval, or use pad=True"
            )
        start, end = min(interval.start, length), min(interval.end, length)
        codes = self._read(interval.contig, start, end)
        if interval.end > length:
            missing = interval.end - interval.start - codes.size
            codes = np.concatenate([codes, np.full(missing, PAD, dtype=np.uint8)])
        return reverse_complement(codes) if interval.strand == "-" else codes.copy()


def genome_digest(contigs: Iterable[Contig]) -> str:
    """sha256 over a line ``name TAB length TAB sha256`` per contig, in order."""
    lines = (f"{contig.name}\t{contig.length}\t{contig.sha256}\n" for contig in contigs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_genome(path: Path | str, *, split: str = "none") -> Genome:
    """Open what holds a genome: the folder of a store, or a FASTA file, plain or bgzip.

    Args:
        path: a store, made by `dnassm tokenize`, or a FASTA file, which is read through its index.
        split: rule of dnassm.data.split for a FASTA file; a store has its own.

    Raises:
        ArtifactError: it is missing, or neither of both.
        FormatError: a FASTA file that cannot be read at any place; says what to do.
    """
    from dnassm.data.faidx import FastaGenome
    from dnassm.data.store import GenomeStore

    path = Path(path)
    if path.is_file():
        return FastaGenome.open(path, split=split)
    return GenomeStore.open(path)
