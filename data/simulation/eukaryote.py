"""Draws the parts of a eukaryotic genome: genes with introns, promoters, repeats, background."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from dnassm.data.alphabet import A, C, Codes, G, N, T, decode, encode_ascii
from dnassm.data.simulation.eukaryote_tables import (
    ACCEPTOR,
    BRANCH,
    BRANCH_A,
    CODON_USAGE,
    CPG_KEPT,
    DONOR,
    ISLAND_GC,
    KOZAK,
    POLY_A,
    START_CODON,
    STOP_CODONS,
    TATA,
    TRACT,
)
from dnassm.data.simulation.parts import Mark, Part, join
from dnassm.data.simulation.repeats import draw_families, interspersed, tandem
from dnassm.data.simulation.tables import Table

# Chosen, not measured, where no source stands beside it.
_CODONS = (80, 900)
_CODON_SHAPE, _CODON_SCALE = 2.0, 160.0
_EXON_BP = 150  # mean coding bases per exon; human: 160 (doi:10.1186/s13104-019-4343-8, table 2)
_LEAST_EXON_BP = 24
_INTRON_LOG_MEAN, _INTRON_LOG_SD = 6.6, 0.8  # median 735 bp; human: 1,747 (ibid.), fewer per Mb
_INTRON_BP = (120, 8000)
_ISLAND_SHARE = 0.65  # of promoters, in mammals about two thirds; the others have a TATA box
_REPEAT_EVERY_BP = 700.0
_TANDEM_SHARE = 0.15
_FIRST_PART = 0.8  # of a coding sequence, in which a stop codon certainly breaks the protein
_CUT_TRIES = 12


class EukaryoteMaker:
    """Draws parts from one random generator and numbers the genes and repeats.

    Attributes:
        gc: of background that is drawn from now on; set by the layout to that of its isochore.
        families: of interspersed repeats.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.gc = 0.41
        self.families = draw_families(rng)
        self._numbers: dict[str, int] = {}

    def background(self, length: int, kind: str = "background") -> Part:
        """Bases with the GC of the isochore, CpG decayed to TpG or CpA as methylation does it."""
        # GC lost to the decay is put in before.
        gc = self.gc + (1 - CPG_KEPT) * (self.gc / 2) ** 2
        codes = self._bases(np.array([1 - gc, gc, gc, 1 - gc]) / 2, length)
        sites = np.flatnonzero((codes[:-1] == C) & (codes[1:] == G))
        decayed = sites[self.rng.random(len(sites)) >= CPG_KEPT]
        to_t = self.rng.random(len(decayed)) < 0.5
        codes[decayed[to_t]] = T
        codes[decayed[~to_t] + 1] = A
        return Part(codes, (Mark(0, length, kind),))

    def filler(self, length: int, kind: str = "background") -> Part:
        """Background with repeats in between, of exactly `length` bases."""
        parts: list[Part] = []
        left = length
        while left:
            stretch = min(left, 30 + int(self.rng.exponential(_REPEAT_EVERY_BP)))
            parts.append(self.background(stretch, kind))
            left -= stretch
            repeat = self._repeat()
            if len(repeat) + 30 <= left:
                parts.append(repeat)
                left -= len(repeat)
        return join(parts) if parts else Part(np.zeros(0, dtype=np.uint8))

    def gap(self, length: int) -> Part:
        """N, as where an assembly could not be closed."""
        mark = Mark(0, length, "gap", "+", (("ID", self._next("gap")),))
        return Part(np.full(length, N, dtype=np.uint8), (mark,))

    def gene(self) -> Part:
        """Promoter, then a transcript of exons and introns, on the plus strand."""
        name = self._next("gene")
        coding = self._coding_sequence()
        leader = self.background(int(self.rng.integers(40, 200)), "utr").codes
        leader = np.concatenate([leader, self._motif(KOZAK)])
        trailer = self._trailer()
        pieces = self._exons(coding, len(leader), len(trailer))
        transcript = np.concatenate([leader, coding, trailer])
        parts = [self._promoter(name)]
        at = 0
        for number, size in enumerate(pieces):
            if number:
                parts.append(self._intron(name))
            exon = Mark(0, size, "exon", "+", (("Parent", f"{name}.t1"),))
            inner = _coding_marks(name, at, size, len(leader), len(coding))
            parts.append(Part(transcript[at : at + size], (exon, *inner)))
            at += size
        signal = Mark(size - 25, size - 19, "polyA_signal_sequence", "+", (("Parent", name),))
        parts[-1] = Part(parts[-1].codes, (*parts[-1].marks, signal))
        return _with_gene(join(parts), len(parts[0]), name)

    def _promoter(self, name: str) -> Part:
        """Island of CpG up to the start of transcription, or a TATA box 30 bases before it."""
        parent = (("Parent", name),)
        identity = (("ID", f"{name}.p"), ("gene", name))
        if self.rng.random() < _ISLAND_SHARE:
            length = int(self.rng.integers(400, 1200))
            gc = np.array([1 - ISLAND_GC, ISLAND_GC, ISLAND_GC, 1 - ISLAND_GC]) / 2
            codes = self._bases(gc, length)
            island = Mark(0, length, "CpG_island", "+", (("ID", f"{name}.cgi"),))
            promoter = Mark(length - 100, length, "promoter", "+", identity)
            return Part(codes, (island, promoter))
        codes = self.background(150).codes
        codes[-30:-24] = encode_ascii(TATA.encode())
        promoter = Mark(50, 150, "promoter", "+", identity)
        return Part(codes, (promoter, Mark(120, 126, "TATA_box", "+", parent)))

    def _intron(self, gene: str) -> Part:
        """Donor site, filler, branch point, pyrimidines without AG, acceptor site."""
        drawn = self.rng.lognormal(_INTRON_LOG_MEAN, _INTRON_LOG_SD)
        length = int(np.clip(drawn, *_INTRON_BP))
        donor, branch = self._motif(DONOR), self._motif(BRANCH)
        tract = self._bases(TRACT, int(self.rng.integers(14, 32)))
        end = np.concatenate([branch[BRANCH_A + 1 :], tract, self._motif(ACCEPTOR)])
        early = np.flatnonzero((end[:-3] == A) & (end[1:-2] == G))
        end[early] = T  # the spliceosome takes the first AG after the branch point
        tail = np.concatenate([branch[: BRANCH_A + 1], end])
        middle = self.filler(length - len(donor) - len(tail), "intronic_background")
        parent = (("Parent", f"{gene}.t1"),)
        last = length - 3 - len(tract)
        marks = (
            Mark(0, length, "intron", "+", parent),
            Mark(0, 2, "five_prime_cis_splice_site", "+", parent),
            *(mark.shifted(len(donor)) for mark in middle.marks),
            Mark(last - len(branch), last, "branch_site", "+", parent),
            Mark(last, length - 3, "polypyrimidine_tract", "+", parent),
            Mark(length - 2, length, "three_prime_cis_splice_site", "+", parent),
        )
        return Part(np.concatenate([donor, middle.codes, tail]), marks)

    def _trailer(self) -> Codes:
        """3' untranslated region with the signal of polyadenylation 25 bases before its end."""
        codes = self.background(int(self.rng.integers(120, 600)), "utr").codes
        codes[-25:-19] = encode_ascii(self._pick(POLY_A).encode())
        return codes

    def _coding_sequence(self) -> Codes:
        count = int(np.clip(self.rng.gamma(_CODON_SHAPE, _CODON_SCALE), *_CODONS))
        codons = self.rng.choice(64, size=count - 2, p=CODON_USAGE)
        inner = np.stack([codons >> 4, codons >> 2 & 3, codons & 3], axis=1).astype(np.uint8)
        ends = encode_ascii(START_CODON.encode()), encode_ascii(self._pick(STOP_CODONS).encode())
        return np.concatenate([ends[0], inner.reshape(-1), ends[1]])

    def _exons(self, coding: Codes, leader: int, trailer: int) -> list[int]:
        """Sizes of the exons; the coding sequence is cut after AG where one is near."""
        wanted = int(self.rng.poisson(len(coding) / _EXON_BP))
        cuts: set[int] = set()
        for _ in range(wanted):
            drawn = self.rng.integers(_LEAST_EXON_BP, len(coding) - _LEAST_EXON_BP, _CUT_TRIES)
            after = [c for c in drawn.tolist() if coding[c - 2] == A and coding[c - 1] == G]
            cut = (after or drawn.tolist())[0]
            if all(abs(cut - other) >= _LEAST_EXON_BP for other in cuts):
                cuts.add(cut)
        edges = [0, *(leader + cut for cut in sorted(cuts)), leader + len(coding) + trailer]
        return [last - first for first, last in itertools.pairwise(edges)]

    def _repeat(self) -> Part:
        if self.rng.random() < _TANDEM_SHARE:
            return tandem(self._next("repeat"), self.rng)
        copy = interspersed(self.families, self._next("repeat"), self.rng)
        return copy.flipped() if self.rng.random() < 0.5 else copy

    def _motif(self, weights: Table) -> Codes:
        return np.concatenate([self._bases(row, 1) for row in weights])

    def _bases(self, frequencies: Table, length: int) -> Codes:
        cumulated = np.cumsum(frequencies)[:3]
        return np.searchsorted(cumulated, self.rng.random(length), side="right").astype(np.uint8)

    def _pick(self, weights: Mapping[str, float]) -> str:
        keys = list(weights)
        chances = np.array(list(weights.values()))
        return keys[int(self.rng.choice(len(keys), p=chances / chances.sum()))]

    def _next(self, kind: str) -> str:
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return f"{kind}{self._numbers[kind]:05d}"


def family_fasta(maker: EukaryoteMaker) -> str:
    """Consensus of every family of repeats, as FASTA."""
    return "".join(
        f">{family.name} {family.type}, divergence {family.divergence:.3f}\n"
        f"{decode(family.consensus)}\n"
        for family in maker.families
    )


def _coding_marks(name: str, at: int, size: int, leader: int, coding: int) -> list[Mark]:
    """Marks of what an exon of `size` bases from base `at` of the transcript holds.

    Beside the features, "frame" is what of it are whole codons, and "early_frame" is a frame in the
    first part of the coding sequence: variants are planted by them, they are not written.
    """
    parent = (("Parent", f"{name}.t1"),)
    marks = []
    first, last = max(at, leader), min(at + size, leader + coding)
    if at < leader:
        marks.append(Mark(0, min(size, leader - at), "five_prime_UTR", "+", parent))
    if first < last:
        phase = -(first - leader) % 3
        identity = (("ID", f"{name}.cds"), *parent, ("phase", str(phase)))
        marks.append(Mark(first - at, last - at, "CDS", "+", identity))
        begin, whole = first + phase, (last - first - phase) // 3 * 3
        owner = (("Parent", name),)
        marks.append(Mark(begin - at, begin - at + whole, "frame", "+", owner))
        if begin + whole - leader <= _FIRST_PART * coding:
            marks.append(Mark(begin - at, begin - at + whole, "early_frame", "+", owner))
        if first == leader:
            marks.append(Mark(first - at, first - at + 3, "start_codon", "+", parent))
    if at + size > leader + coding:
        begin = max(at, leader + coding)
        marks.append(Mark(begin - at, size, "three_prime_UTR", "+", parent))
    return marks


def _with_gene(part: Part, before: int, name: str) -> Part:
    """Add the gene and its transcript, which begin `before` bases into the part."""
    gene = Mark(before, len(part), "gene", "+", (("ID", name),))
    transcript = Mark(before, len(part), "mRNA", "+", (("ID", f"{name}.t1"), ("Parent", name)))
    return Part(part.codes, (gene, transcript, *part.marks))
