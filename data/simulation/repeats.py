"""Repeats of a eukaryotic genome: families of interspersed ones with their age, and tandem ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dnassm.data.alphabet import SOFT_MASK, Codes, decode, reverse_complement
from dnassm.data.simulation.parts import Mark, Part

# Class -> bases of the consensus, share among copies, shortest copy as a share of the consensus.
# These and all numbers below are chosen, not measured.
_CLASSES = {
    "SINE": ((280, 320), 0.45, 0.8),
    "LINE": ((3000, 5000), 0.30, 0.05),
    "LTR": ((1200, 2500), 0.15, 0.2),
    "DNA": ((500, 1500), 0.10, 0.3),
}
_DIVERGENCE = (0.01, 0.25)
_FAMILIES_OF_CLASS = 2
_TERMINAL_BP = {"LTR": 250, "DNA": 24}
_TAIL_BP = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """A family of interspersed repeats: its consensus (L,) codes and how old its copies are."""

    name: str
    type: str
    consensus: Codes
    divergence: float


def draw_families(rng: np.random.Generator) -> list[Family]:
    """Two families of each class; the copies of one differ by its age from their consensus."""
    families = []
    for kind, ((least, most), _, _) in _CLASSES.items():
        for number in range(1, _FAMILIES_OF_CLASS + 1):
            length = int(rng.integers(least, most))
            consensus = rng.choice(4, size=length, p=(0.26, 0.22, 0.26, 0.26)).astype(np.uint8)
            if kind in ("SINE", "LINE"):  # copied from an RNA with its tail
                consensus[-_TAIL_BP:] = 0
            else:
                size = _TERMINAL_BP[kind]
                end = consensus[:size]
                consensus[-size:] = end if kind == "LTR" else reverse_complement(end)
            age = float(rng.uniform(*_DIVERGENCE))
            families.append(Family(f"{kind}-like-{number}", kind, consensus, age))
    return families


def interspersed(families: Sequence[Family], name: str, rng: np.random.Generator) -> Part:
    """Return a copy of a family, on the plus strand: its 3' part, substituted, soft-masked."""
    shares = np.array([_CLASSES[family.type][1] for family in families])
    family = families[int(rng.choice(len(families), p=shares / shares.sum()))]
    shortest = _CLASSES[family.type][2]
    # Reverse transcription stops early: short copies of LINEs are the rule, and all end alike.
    share = shortest + (1 - shortest) * float(rng.beta(0.6, 1.2))
    first = len(family.consensus) - max(50, int(share * len(family.consensus)))
    codes, differing = _substituted(family.consensus[first:], family.divergence, rng)
    attributes = (
        ("ID", name),
        ("rpt_type", "dispersed"),
        ("rpt_class", family.type),
        ("rpt_family", family.name),
        ("consensus_start", str(first + 1)),
        ("divergence", f"{differing / len(codes):.4f}"),
    )
    mark = Mark(0, len(codes), "dispersed_repeat", "+", attributes)
    return Part(codes | np.uint8(SOFT_MASK), (mark,))


def tandem(name: str, rng: np.random.Generator) -> Part:
    """Return a microsatellite of units of 1 to 6 bases, or a minisatellite of 10 to 60."""
    micro = rng.random() < 0.8
    size = int(rng.integers(1, 7) if micro else rng.integers(10, 61))
    copies = int(rng.integers(12, 40) if micro else rng.integers(5, 25))
    unit = rng.integers(0, 4, size=size).astype(np.uint8)
    codes, differing = _substituted(np.tile(unit, copies), float(rng.uniform(0, 0.05)), rng)
    attributes = (
        ("ID", name),
        ("rpt_type", "tandem"),
        ("rpt_unit_seq", decode(unit)),
        ("divergence", f"{differing / len(codes):.4f}"),
    )
    mark = Mark(0, len(codes), "tandem_repeat", "+", attributes)
    return Part(codes | np.uint8(SOFT_MASK), (mark,))


def _substituted(codes: Codes, divergence: float, rng: np.random.Generator) -> tuple[Codes, int]:
    """Bases with a share of them replaced by another one, and how many are."""
    changed = codes.copy()
    hits = np.flatnonzero(rng.random(len(codes)) < divergence)
    changed[hits] = (changed[hits] + rng.integers(1, 4, size=len(hits))) % 4
    return changed, len(hits)
