"""Evolution of one contig along a branch: substitutions, insertions and deletions.

Every base keeps an identity, a number, and `Alignment` the order of all numbers that ever were:
what descends from one base stands in one column, so that the alignment of the species is known, not
estimated.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import BASE, SOFT_MASK, Codes, T

CONSERVED_RATE = 0.1
"""Rate of substitution in a conserved element; a neutral site has 1. Chosen, not measured."""
KAPPA = 4.0
"""Rate of a transition over that of one transversion. Chosen, not measured."""
INDEL_RATE = 0.03
"""Insertions, and as many deletions, per neutral site and substitution. Chosen: of both kinds
together half of what human and chimpanzee have, five million beside 35 million substitutions
(doi:10.1038/nature04072)."""
_INDEL_MEAN_BP = 4.0  # chosen, not measured

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Lineage:
    """One contig of one species.

    Attributes:
        codes: (L,) bases with their soft mask.
        numbers: (L,) identity of each base.
        element: (L,) number of the conserved element that the base is in, -1 for none.
    """

    codes: Codes
    numbers: Numbers
    element: Numbers


class Alignment:
    """The order of the columns of a contig; grows with every insertion."""

    def __init__(self, length: int) -> None:
        self.order: Numbers = np.arange(length, dtype=np.int64)

    def insert(self, after: Numbers) -> Numbers:
        """Add a column behind each of those numbers; returns their numbers."""
        new = np.arange(len(self.order), len(self.order) + len(after), dtype=np.int64)
        self.order = np.insert(self.order, self._places()[after] + 1, new)
        return new

    def row(self, lineage: Lineage, letters: npt.NDArray[np.uint8]) -> str:
        """Text of a lineage with '-' where it has no base; `letters` maps codes to ASCII."""
        text = np.full(len(self.order), ord("-"), dtype=np.uint8)
        text[self._places()[lineage.numbers]] = letters[lineage.codes]
        return text.tobytes().decode("ascii")

    def _places(self) -> Numbers:
        places = np.empty(len(self.order), dtype=np.int64)
        places[self.order] = np.arange(len(self.order))
        return places


def evolve(
    lineage: Lineage, length: float, alignment: Alignment, rng: np.random.Generator
) -> Lineage:
    """Return the lineage at the end of a branch of `length` substitutions per neutral site.

    No indel touches a conserved element or an unknown base.
    """
    changed = dataclasses.replace(lineage, codes=_substituted(lineage, length, rng))
    return _inserted(_deleted(changed, length, rng), length, alignment, rng)


def _substituted(lineage: Lineage, length: float, rng: np.random.Generator) -> Codes:
    """Substitute by the model of Kimura 1980, doi:10.1007/BF01731581."""
    codes = lineage.codes.copy()
    drawn = rng.random(len(codes))
    known = (codes & np.uint8(BASE)) <= T
    for inside, rate in ((lineage.element >= 0, CONSERVED_RATE), (lineage.element < 0, 1.0)):
        transition, transversion = _chances(rate * length)
        # A C G T are 0 1 2 3: a transition flips the second bit, a transversion the first.
        limits = np.array([transition, transition + transversion, transition + 2 * transversion])
        flip = np.array([2, 1, 3, 0], dtype=np.uint8)[np.searchsorted(limits, drawn, side="right")]
        hit = inside & known
        codes[hit] ^= flip[hit]
    return codes


def _chances(length: float) -> tuple[float, float]:
    """Probability of a transition, and of each of both transversions."""
    beta = 1 / (KAPPA + 2)
    slow, fast = math.exp(-4 * beta * length), math.exp(-2 * (KAPPA + 1) * beta * length)
    return 0.25 + 0.25 * slow - 0.5 * fast, 0.25 - 0.25 * slow


def _deleted(lineage: Lineage, length: float, rng: np.random.Generator) -> Lineage:
    starts, sizes = _events(lineage, length, rng)
    kept = np.ones(len(lineage.codes), dtype=bool)
    fixed = np.concatenate([[0], np.cumsum(_fixed(lineage))])
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        end = min(start + size, len(kept))
        if fixed[end] == fixed[start]:
            kept[start:end] = False
    return Lineage(lineage.codes[kept], lineage.numbers[kept], lineage.element[kept])


def _inserted(
    lineage: Lineage, length: float, alignment: Alignment, rng: np.random.Generator
) -> Lineage:
    starts, sizes = _events(lineage, length, rng)
    fixed, element = _fixed(lineage), lineage.element
    inside = np.zeros(len(fixed), dtype=bool)
    # Between two bases of one element, or of one gap, nothing is inserted.
    inside[:-1] = fixed[:-1] & fixed[1:] & (element[:-1] == element[1:])
    free = ~inside[starts]
    # By place: what goes in behind one base then has one order, here and in the alignment.
    starts, sizes = starts[free], sizes[free]
    order = np.argsort(starts, kind="stable")
    after = np.repeat(starts[order], sizes[order])
    numbers = alignment.insert(lineage.numbers[after])
    bases = rng.integers(0, 4, len(after)).astype(np.uint8)
    bases |= lineage.codes[after] & np.uint8(SOFT_MASK)
    return Lineage(
        np.insert(lineage.codes, after + 1, bases),
        np.insert(lineage.numbers, after + 1, numbers),
        np.insert(lineage.element, after + 1, np.full(len(after), -1)),
    )


def _events(lineage: Lineage, length: float, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    count = int(rng.poisson(INDEL_RATE * length * len(lineage.codes)))
    starts = rng.integers(0, len(lineage.codes), count)
    return starts, rng.geometric(1 / _INDEL_MEAN_BP, count)


def _fixed(lineage: Lineage) -> Flags:
    unknown = (lineage.codes & np.uint8(BASE)) > T
    fixed: Flags = (lineage.element >= 0) | unknown
    return fixed
