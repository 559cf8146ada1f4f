"""Cuts labelled windows out of a simulated contig: inside genes, and between them."""

from __future__ import annotations

import dataclasses

import numpy as np

from dnassm.data.interval import Interval
from dnassm.data.simulation.parts import Part

WINDOW_BP = 200
_NEITHER = ("repeat_region", "gap")


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the plus strand that is all coding or all intergenic.

    Attributes:
        interval: 0-based half-open; always read on the plus strand, so the strand tells nothing.
        label: ``coding`` or ``intergenic``.
        split: ``train`` in the first half of its contig, ``test`` in the second.
    """

    interval: Interval
    label: str
    split: str


def cut_windows(contig: str, part: Part, rng: np.random.Generator) -> list[Window]:
    """Draw windows that do not overlap, as many coding as intergenic ones in each half.

    Windows across the middle of the contig, in repeats and in gaps are left out.
    """
    coding = np.zeros(len(part), dtype=bool)
    other = np.zeros(len(part), dtype=bool)
    for mark in part.marks:
        if mark.type == "CDS":
            coding[mark.start : mark.end] = True
        elif mark.type in _NEITHER:
            other[mark.start : mark.end] = True
    starts = {
        "coding": _tile(coding & ~other, rng),
        "intergenic": _tile(~coding & ~other, rng),
    }
    half = len(part) // 2
    windows = []
    for split, first, last in (("train", 0, half), ("test", half, len(part))):
        inside = {
            label: [start for start in found if first <= start and start + WINDOW_BP <= last]
            for label, found in starts.items()
        }
        count = min(map(len, inside.values()))
        for label, found in inside.items():
            for start in rng.choice(found, size=count, replace=False).tolist() if count else []:
                interval = Interval(contig, int(start), int(start) + WINDOW_BP)
                windows.append(Window(interval, label, split))
    return sorted(windows, key=lambda window: window.interval)


def _tile(
    inside: np.ndarray[tuple[int], np.dtype[np.bool_]], rng: np.random.Generator
) -> list[int]:
    """Starts of windows side by side in each stretch of True, from a random offset on."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    starts: list[int] = []
    for first, last in edges.reshape(-1, 2).tolist():
        spare = (last - first) % WINDOW_BP
        offset = int(rng.integers(spare + 1))
        starts.extend(range(first + offset, last - WINDOW_BP + 1, WINDOW_BP))
    return starts
