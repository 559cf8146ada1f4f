"""Interval: a stretch of a contig, 0-based and half-open."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dnassm.errors import GenomeError

Strand = Literal["+", "-"]


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Interval:
    """Bases ``[start, end)`` of `contig`, 0-based, half-open; read on `strand`.

    Coordinates always count along the plus strand: ``strand="-"`` means that the bases of
    ``[start, end)`` are read as their reverse complement.

    Raises:
        GenomeError: start is negative, or end lies before start.
    """

    contig: str
    start: int
    end: int
    strand: Strand = "+"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise GenomeError(
                f"interval {self.contig}:[{self.start}, {self.end}): expected 0 <= start <= end "
                "(0-based, half-open)"
            )
        if self.strand not in ("+", "-"):
            raise GenomeError(
                f"interval {self.contig}: strand must be '+' or '-', got {self.strand!r}"
            )

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.contig}:{self.start}-{self.end}({self.strand})"

    def overlaps(self, other: Interval) -> bool:
        """Whether both share at least one base, on either strand."""
        return self.contig == other.contig and self.start < other.end and other.start < self.end
