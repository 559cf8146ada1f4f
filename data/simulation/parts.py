"""Draws the parts of a bacterial genome: genes, promoters, terminators, repeats, background."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from dnassm.data.alphabet import SOFT_MASK, Codes, N, encode_ascii, reverse_complement
from dnassm.data.interval import Strand
from dnassm.data.simulation.tables import (
    BACKGROUND,
    BOXES,
    CODON_USAGE,
    SPACER_BP,
    START_CODONS,
    STOP_CODONS,
    Table,
)

# Length of genes in codons: gamma with the mean 310 and standard deviation 211 of NC_000913.3.
_GENE_SHAPE, _GENE_SCALE = 2.16, 143.5
# Chosen, not measured, as are the bases of leaders, terminators and insertion elements below.
_GENE_CODONS = (60, 1500)
_OPERON_STOP = 0.55  # a transcription unit has 1.8 genes on average
_OPERON_MOST = 6
_EXTENDED_MINUS_10 = 0.7  # share of promoters with TGn before the -10 box
_INVERTED_REPEAT_BP = 24
_Key = TypeVar("_Key", str, int)
_CUMULATED = [row.tolist() for row in np.cumsum(BACKGROUND, axis=1)[:, :3]]


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A named stretch of a part: bases [start, end), 0-based half-open within the part."""

    start: int
    end: int
    type: str
    strand: Strand = "+"
    attributes: tuple[tuple[str, str], ...] = ()

    def shifted(self, offset: int) -> Mark:
        """Return the same mark in a sequence that has `offset` bases before the part."""
        return dataclasses.replace(self, start=self.start + offset, end=self.end + offset)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A stretch of sequence (L,) with its marks."""

    codes: Codes
    marks: tuple[Mark, ...] = ()

    def __len__(self) -> int:
        return len(self.codes)

    def flipped(self) -> Part:
        """Return the part on the other strand: reverse complement, marks turned with it."""
        other: dict[Strand, Strand] = {"+": "-", "-": "+"}
        marks = tuple(
            dataclasses.replace(
                mark,
                start=len(self) - mark.end,
                end=len(self) - mark.start,
                strand=other[mark.strand],
            )
            for mark in self.marks
        )
        return Part(reverse_complement(self.codes), marks)


def join(parts: list[Part]) -> Part:
    """Return the parts end to end."""
    offsets = np.cumsum([0, *map(len, parts)]).tolist()
    marks = tuple(
        mark.shifted(offset)
        for part, offset in zip(parts, offsets, strict=False)
        for mark in part.marks
    )
    return Part(np.concatenate([part.codes for part in parts]), marks)


class PartMaker:
    """Draws parts from one random generator and numbers the genes, promoters and repeats."""

    def __init__(self, rng: np.random.Generator, *, families: int = 3) -> None:
        self.rng = rng
        self._numbers: dict[str, int] = {}
        self.families = [self._insertion_element() for _ in range(families)]

    def transcription_unit(self) -> Part:
        """Promoter, leader, one or more genes each with its ribosome binding site, terminator."""
        promoter = self._next("promoter")
        parts = [self._promoter(promoter), self.background(int(self.rng.integers(8, 40)))]
        genes = min(int(self.rng.geometric(_OPERON_STOP)), _OPERON_MOST)
        for index in range(genes):
            if index:
                parts.append(self.background(int(self.rng.integers(2, 25))))
            parts.append(self._gene(promoter))
        parts += [self.background(int(self.rng.integers(5, 25))), self._terminator()]
        return join(parts)

    def background(self, length: int) -> Part:
        """Second-order Markov chain with the composition of intergenic DNA."""
        context = int(self.rng.integers(16))
        bases = []
        for draw in self.rng.random(length).tolist():
            base = bisect.bisect_right(_CUMULATED[context], draw)
            bases.append(base)
            context = (context * 4 + base) % 16
        return Part(np.array(bases, dtype=np.uint8), (Mark(0, length, "background"),))

    def repeat(self) -> Part:
        """Return a soft-masked copy of a repeat family, 2 to 10 % mutated, on either strand."""
        family = int(self.rng.integers(len(self.families)))
        codes = self.families[family].copy()
        divergence = float(self.rng.uniform(0.02, 0.10))
        hits = np.flatnonzero(self.rng.random(len(codes)) < divergence)
        codes[hits] = (codes[hits] + self.rng.integers(1, 4, size=len(hits))) % 4
        attributes = (
            ("ID", self._next("repeat")),
            ("rpt_family", f"IS-like-{family + 1}"),
            ("divergence", f"{divergence:.3f}"),
        )
        mark = Mark(0, len(codes), "repeat_region", "+", attributes)
        copy = Part(codes | np.uint8(SOFT_MASK), (mark,))
        return copy.flipped() if self.rng.random() < 0.5 else copy

    def gap(self, length: int) -> Part:
        """N, as where an assembly could not be closed."""
        mark = Mark(0, length, "gap", "+", (("ID", self._next("gap")),))
        return Part(np.full(length, N, dtype=np.uint8), (mark,))

    def _promoter(self, name: str) -> Part:
        """Upstream element (Estrem et al. 1998, doi:10.1073/pnas.95.17.9761), boxes, start."""
        upstream = self._bases((0.38, 0.12, 0.12, 0.38), 18)
        spacer = self.background(self._pick(SPACER_BP)).codes.copy()
        if self.rng.random() < _EXTENDED_MINUS_10:
            spacer[-3:-1] = encode_ascii(b"TG")
        discriminator = self._bases((0.25, 0.25, 0.25, 0.25), int(self.rng.integers(5, 8)))
        start = self._bases((0.6, 0.0, 0.4, 0.0), 1)
        boxes = self._box("minus_35"), self._box("minus_10")
        pieces = [upstream, boxes[0], spacer, boxes[1], discriminator, start]
        ends = np.cumsum([len(piece) for piece in pieces]).tolist()
        parent = (("Parent", name),)
        marks = (
            Mark(0, ends[-1], "promoter", "+", (("ID", name),)),
            Mark(ends[0], ends[1], "minus_35_signal", "+", parent),
            Mark(ends[2], ends[3], "minus_10_signal", "+", parent),
        )
        return Part(np.concatenate(pieces), marks)

    def _gene(self, promoter: str) -> Part:
        """Ribosome binding site, spacer, start codon, codons, stop codon."""
        name = self._next("gene")
        site = self._box("rbs")
        # To the start codon 5 bases are best (Chen et al. 1994, doi:10.1093/nar/22.23.4953).
        spacer = self._bases((0.42, 0.13, 0.12, 0.33), int(self.rng.integers(4, 7)))
        coding = self._coding_sequence()
        first = len(site) + len(spacer)
        last = first + len(coding)
        parent = (("Parent", name),)
        marks = (
            Mark(0, len(site), "Shine_Dalgarno_sequence", "+", parent),
            Mark(first, last, "gene", "+", (("ID", name), ("operon", promoter))),
            Mark(first, last, "CDS", "+", (("ID", f"cds-{name}"), *parent)),
        )
        return Part(np.concatenate([site, spacer, coding]), marks)

    def _coding_sequence(self) -> Codes:
        least, most = _GENE_CODONS
        count = int(np.clip(self.rng.gamma(_GENE_SHAPE, _GENE_SCALE), least, most))
        codons = self.rng.choice(64, size=count - 2, p=CODON_USAGE)
        inner = np.stack([codons >> 4, codons >> 2 & 3, codons & 3], axis=1).astype(np.uint8)
        first, last = self._pick(START_CODONS), self._pick(STOP_CODONS)
        ends = (encode_ascii(codon.encode()) for codon in (first, last))
        return np.concatenate([next(ends), inner.reshape(-1), next(ends)])

    def _terminator(self) -> Part:
        """Hairpin rich in G and C, then a run of T."""
        stem = self._bases((0.1, 0.4, 0.4, 0.1), int(self.rng.integers(6, 10)))
        loop = encode_ascii(self._pick({"TTCG": 0.5, "GAAA": 0.5}).encode())
        tail = self._bases((0.04, 0.03, 0.03, 0.90), int(self.rng.integers(7, 10)))
        codes = np.concatenate([stem, loop, reverse_complement(stem), tail])
        return Part(codes, (Mark(0, len(codes), "terminator"),))

    def _insertion_element(self) -> Codes:
        """Transposase-like reading frames between two inverted repeats, 0.7 to 1.4 kb."""
        end = self._bases((0.25, 0.25, 0.25, 0.25), _INVERTED_REPEAT_BP)
        length = int(self.rng.integers(700, 1400))
        inner = np.concatenate([self.background(40).codes, self._coding_sequence()])
        while len(inner) < length:
            inner = np.concatenate([inner, self._coding_sequence()])
        return np.concatenate([end, inner[:length], reverse_complement(end)])

    def _box(self, motif: str) -> Codes:
        return np.concatenate([self._bases(row, 1) for row in BOXES[motif][1]])

    def _bases(self, frequencies: tuple[float, ...] | Table, length: int) -> Codes:
        cumulated = np.cumsum(frequencies)[:3]
        return np.searchsorted(cumulated, self.rng.random(length), side="right").astype(np.uint8)

    def _pick(self, weights: Mapping[_Key, float]) -> _Key:
        keys = list(weights)
        chances = np.array(list(weights.values()))
        return keys[int(self.rng.choice(len(keys), p=chances / chances.sum()))]

    def _next(self, kind: str) -> str:
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return f"{kind}{self._numbers[kind]:05d}"
