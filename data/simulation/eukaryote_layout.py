"""Lays isochores, genes, repeats and gaps out along eukaryotic contigs, and labels splice sites."""

from __future__ import annotations

import dataclasses

import numpy as np

from dnassm.data.alphabet import A, C, G, T
from dnassm.data.interval import Interval, Strand
from dnassm.data.intervals import centred_windows
from dnassm.data.simulation.eukaryote import EukaryoteMaker
from dnassm.data.simulation.eukaryote_tables import ISOCHORES
from dnassm.data.simulation.parts import Mark, Part, join
from dnassm.data.simulation.windows import Window

LEAST_CONTIG_BP = 100_000
SPLICE_WINDOW_BP = 400
# Chosen, not measured: human isochores are far above 300 kb on average (doi:10.1101/gr.4910606).
_ISOCHORE_BP = (60_000, 300_000)
_SPACER_SHAPE, _SPACER_SCALE, _SPACER_LEAST = 1.2, 5000.0, 300
_GAP_EVERY = (300_000, 900_000)
_GAP_BP = (100, 5000)
_TRIES = 8
_SITES = {"five_prime_cis_splice_site": "donor", "three_prime_cis_splice_site": "acceptor"}
_HIDDEN = ("background", "intronic_background", "frame", "early_frame", "isochore")


def lay_out(maker: EukaryoteMaker, length: int) -> Part:
    """One contig of exactly `length` bases, with the marks of all its parts.

    Genes on either strand with filler between them; about every 600 kb a gap, at least one. What
    stands in an isochore has its GC: a new one begins, between two genes, every 60 to 300 kb.
    """
    layout = _Layout(maker, length)
    while layout.add_gene():
        layout.add_gap()
    layout.finish()
    return layout.joined()


def is_shown(mark: Mark) -> bool:
    """Whether a mark is a feature, not something that variants are planted by."""
    return mark.type not in _HIDDEN


def splice_windows(contig: str, part: Part, rng: np.random.Generator) -> list[Window]:
    """Windows read on the strand of their gene, centred on donors, acceptors and neither.

    The middle of a window is the first base of GT or the last of AG at the ends of an intron; of
    "neither" it is a G of GT or of AG elsewhere in background. Equally many of each label in
    each half of the contig, the first half train, the second test.
    """
    bases = {contig: len(part)}
    found: dict[str, list[Interval]] = {label: [] for label in _SITES.values()}
    for mark in part.marks:
        if mark.type in _SITES:
            at = mark.start if (mark.type[0] == "f") == (mark.strand == "+") else mark.end - 1
            found[_SITES[mark.type]].append(Interval(contig, at, at + 1, mark.strand))
    found["neither"] = _decoys(contig, part, rng, 2 * len(found["donor"]))
    windows = []
    half = len(part) // 2
    for split, first, last in (("train", 0, half), ("test", half, len(part))):
        inside = {
            label: [
                w
                for w in centred_windows(sites, SPLICE_WINDOW_BP, bases)
                if first <= w.start and w.end <= last
            ]
            for label, sites in found.items()
        }
        count = min(map(len, inside.values()))
        for label, each in inside.items():
            rows = np.sort(rng.choice(len(each), count, replace=False)).tolist()
            windows += [Window(each[row], label, split) for row in rows]
    return sorted(windows, key=lambda window: (window.interval, window.label))


def _decoys(contig: str, part: Part, rng: np.random.Generator, count: int) -> list[Interval]:
    """G of GT or of AG, as many of each, in background of genes and between them."""
    background = np.zeros(len(part), dtype=bool)
    for mark in part.marks:
        if mark.type in ("background", "intronic_background"):
            background[mark.start : mark.end] = True
    decoys = []
    strands: tuple[tuple[Strand, int, int, int], ...] = (("+", G, T, A), ("-", C, A, T))
    for strand, g, t, a in strands:
        letters = part.codes
        after, before = np.roll(letters, -1), np.roll(letters, 1)
        if strand == "-":
            after, before = before, after
        for neighbour, base in ((after, t), (before, a)):
            places = np.flatnonzero(background & (letters == g) & (neighbour == base))
            drawn = rng.choice(places, min(count, len(places)), replace=False)
            decoys += [Interval(contig, at, at + 1, strand) for at in np.sort(drawn).tolist()]
    return decoys


class _Layout:
    def __init__(self, maker: EukaryoteMaker, length: int) -> None:
        self.maker = maker
        self.rng = maker.rng
        self.length = length
        self.parts: list[Part] = []
        self.used = 0
        self.isochores: list[Mark] = []
        self.next_isochore = 0
        self.next_gap = int(min(0.5 * self.rng.integers(*_GAP_EVERY), length / 3))
        self._change_isochore()
        self._add(self._spacer())

    def add_gene(self) -> bool:
        """Add a gene and a spacer; False when none of a few draws fits into what is left."""
        self._change_isochore()
        for _ in range(_TRIES):
            gene, spacer = self.maker.gene(), self._spacer()
            if self.used + len(gene) + len(spacer) <= self.length:
                self._add(gene.flipped() if self.rng.random() < 0.5 else gene)
                self._add(spacer)
                return True
        return False

    def add_gap(self) -> None:
        """Add a gap where one is due."""
        if self.used < self.next_gap:
            return
        gap, spacer = self.maker.gap(int(self.rng.integers(*_GAP_BP))), self._spacer()
        if self.used + len(gap) + len(spacer) <= self.length:
            self._add(gap)
            self._add(spacer)
        self.next_gap = self.used + int(self.rng.integers(*_GAP_EVERY))

    def finish(self) -> None:
        """Filler up to the length of the contig."""
        if self.used < self.length:
            self._add(self.maker.filler(self.length - self.used))
        self._end_isochore()

    def joined(self) -> Part:
        """Return the contig; its isochores are marks as well."""
        whole = join(self.parts)
        return dataclasses.replace(whole, marks=(*whole.marks, *self.isochores))

    def _change_isochore(self) -> None:
        if self.used < self.next_isochore:
            return
        self._end_isochore()
        names = list(ISOCHORES)
        shares = np.array([ISOCHORES[name][1] for name in names])
        family = names[int(self.rng.choice(len(names), p=shares / shares.sum()))]
        self.maker.gc = ISOCHORES[family][0]
        attributes = (("family", family), ("gc", f"{self.maker.gc:.2f}"))
        self.isochores.append(Mark(self.used, self.length, "isochore", "+", attributes))
        self.next_isochore = self.used + int(self.rng.integers(*_ISOCHORE_BP))

    def _end_isochore(self) -> None:
        if self.isochores:
            self.isochores[-1] = dataclasses.replace(self.isochores[-1], end=self.used)

    def _add(self, part: Part) -> None:
        self.parts.append(part)
        self.used += len(part)

    def _spacer(self) -> Part:
        drawn = self.rng.gamma(_SPACER_SHAPE, _SPACER_SCALE)
        return self.maker.filler(_SPACER_LEAST + int(drawn))
