"""Plants single-base variants whose effect is known from how the genome was made.

Motif-breaking: a base of a box or of a ribosome binding site that holds the consensus becomes the
base that the motif has least; a start codon stops being one; a codon becomes a stop codon in the
first 80 % of its gene. Silent: a codon becomes a synonymous one of similar usage, or a background
base one that the background chain expects about as much in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from dnassm.data.alphabet import BASE, COMPLEMENT, Codes, reverse_complement
from dnassm.data.simulation.parts import Mark, Part
from dnassm.data.simulation.tables import (
    AMINO_ACID,
    BACKGROUND,
    BOXES,
    CODON_USAGE,
    CODONS,
    START_CODONS,
    STOP_CODONS,
)

_LEAST_CONSENSUS = 0.6  # a position that holds its base less often does not make the motif
_SIMILAR_CODONS = 1.3  # highest ratio of usage between a codon and its silent replacement
_SIMILAR_BACKGROUND_BITS = 0.3
_FIRST_CODONS = 5
_NONSENSE_SHARE = 0.8


@dataclasses.dataclass(frozen=True, slots=True)
class Effect:
    """One planted variant, on the plus strand: position 0-based, codes of both alleles."""

    position: int
    ref: int
    alt: int
    effect: str
    site: str
    of: str


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A change in the reading direction of a mark: offset in it, and the new base there."""

    offset: int
    alt: int


def plant_effects(
    part: Part,
    start: int,
    end: int,
    *,
    per_effect: int,
    rng: np.random.Generator,
    kinds: Kinds | None = None,
) -> list[Effect]:
    """Draw variants in [start, end) of a contig: up to `per_effect` of each effect, by position.

    Each motif, codon and background stretch gives one variant of its kind at most; the kinds of an
    effect are drawn evenly until one of them runs out.

    Args:
        part: the contig with its marks.
        start: first base of the stretch, 0-based.
        end: its end.
        per_effect: variants of each effect.
        rng: source of every draw.
        kinds: effect -> site -> type of the marks and the changes they allow; the bacterial ones
            when None.
    """
    taken: set[int] = set()
    found: list[Effect] = []
    marks = [mark for mark in part.marks if start <= mark.start and mark.end <= end]
    for effect, sites in (kinds or _KINDS).items():
        quota = -(-per_effect // len(sites))
        for site, (mark_type, changes) in sites.items():
            candidates = [mark for mark in marks if mark.type == mark_type]
            order = rng.permutation(len(candidates))
            drawn = (candidates[index] for index in order)
            planted = _plant(part.codes, drawn, changes, taken, rng)
            for _, (position, alt, name) in zip(range(quota), planted, strict=False):
                ref = int(part.codes[position] & BASE)
                found.append(Effect(position, ref, alt, effect, site, name))
    return sorted(found, key=lambda planted: planted.position)


Changes = Callable[[Codes, np.random.Generator], list[Change]]
"""From the codes of a mark in its reading direction, the changes that have the effect."""
Kinds = Mapping[str, Mapping[str, tuple[str, Changes]]]


def _plant(
    codes: Codes,
    marks: Iterator[Mark],
    changes: Changes,
    taken: set[int],
    rng: np.random.Generator,
) -> Iterator[tuple[int, int, str]]:
    """Yield (position, alternative, what it belongs to) on the plus strand, one per mark."""
    for mark in marks:
        plus = codes[mark.start : mark.end]
        read = plus if mark.strand == "+" else reverse_complement(plus)
        possible = changes(read, rng)
        if not possible:
            continue
        change = possible[int(rng.integers(len(possible)))]
        position, alt = mark.start + change.offset, change.alt
        if mark.strand == "-":
            position, alt = mark.end - 1 - change.offset, int(COMPLEMENT[change.alt])
        if position not in taken:
            taken.add(position)
            yield position, alt, dict(mark.attributes).get("Parent", "")


def _break_box(motif: str) -> Changes:
    consensus, weights = BOXES[motif]

    def changes(read: Codes, _rng: np.random.Generator) -> list[Change]:
        return [
            Change(offset, int(weights[offset].argmin()))
            for offset, base in enumerate(consensus)
            if "ACGT"[read[offset]] == base and weights[offset].max() >= _LEAST_CONSENSUS
        ]

    return changes


def _break_start(read: Codes, _rng: np.random.Generator) -> list[Change]:
    return [
        change
        for change in substitutions(read[:3], 0)
        if _codon_after(read[:3], 0, change) not in START_CODONS
    ]


def _stop_early(read: Codes, rng: np.random.Generator) -> list[Change]:
    return one_codon(read, rng, lambda _old, new: new in STOP_CODONS)


def _synonymous(read: Codes, rng: np.random.Generator) -> list[Change]:
    return one_codon(read, rng, _similar)


def _similar(old: str, new: str) -> bool:
    if old not in AMINO_ACID or AMINO_ACID[old] != AMINO_ACID.get(new):
        return False
    ratio = CODON_USAGE[CODONS.index(new)] / CODON_USAGE[CODONS.index(old)]
    return bool(1 / _SIMILAR_CODONS <= ratio <= _SIMILAR_CODONS)


def one_codon(
    read: Codes, rng: np.random.Generator, accept: Callable[[str, str], bool]
) -> list[Change]:
    """Substitutions accepted from old to new codon, of the first in a random order with any."""
    count = len(read) // 3
    for index in rng.permutation(np.arange(_FIRST_CODONS, int(count * _NONSENSE_SHARE))).tolist():
        first = 3 * index
        old = _letters(read[first : first + 3])
        accepted = [
            change
            for change in substitutions(read[first : first + 3], first)
            if accept(old, _codon_after(read[first : first + 3], first, change))
        ]
        if accepted:
            return accepted
    return []


def _unremarkable(read: Codes, rng: np.random.Generator) -> list[Change]:
    """A background base and one that its neighbours make about as likely."""
    if len(read) < 5:
        return []
    offset = int(rng.integers(2, len(read) - 2))
    around = read[offset - 2 : offset + 3].copy()
    before = _background_bits(around)
    accepted = []
    for change in substitutions(read[offset : offset + 1], offset):
        around[2] = change.alt
        if abs(_background_bits(around) - before) <= _SIMILAR_BACKGROUND_BITS:
            accepted.append(change)
    return accepted


def _background_bits(five: Codes) -> float:
    """Bits of the third base and the two after it, under the background chain."""
    a, b, c, d, e = (int(code) for code in five)
    chances = (BACKGROUND[4 * a + b, c], BACKGROUND[4 * b + c, d], BACKGROUND[4 * c + d, e])
    return float(-np.log2(np.prod(chances)))


def substitutions(read: Codes, first: int) -> list[Change]:
    """Every other base at every place of `read`, which begins at base `first` of the mark."""
    return [
        Change(first + offset, alt)
        for offset, base in enumerate(read.tolist())
        for alt in range(4)
        if alt != base
    ]


def _codon_after(codon: Codes, first: int, change: Change) -> str:
    changed = codon.copy()
    changed[change.offset - first] = change.alt
    return _letters(changed)


def _letters(codon: Codes) -> str:
    return CODONS[16 * int(codon[0]) + 4 * int(codon[1]) + int(codon[2])]


_KINDS: dict[str, dict[str, tuple[str, Changes]]] = {
    "motif_breaking": {
        "minus_10": ("minus_10_signal", _break_box("minus_10")),
        "minus_35": ("minus_35_signal", _break_box("minus_35")),
        "rbs": ("Shine_Dalgarno_sequence", _break_box("rbs")),
        "start_codon": ("CDS", _break_start),
        "nonsense": ("CDS", _stop_early),
    },
    "silent": {
        "synonymous": ("CDS", _synonymous),
        "background": ("background", _unremarkable),
    },
}
