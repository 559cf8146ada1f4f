"""Lays transcription units, repeats and gaps out along contigs."""

from __future__ import annotations

import numpy as np

from dnassm.data.simulation.parts import Part, PartMaker, join

_SPACER_SHAPE, _SPACER_SCALE, _SPACER_LEAST = 1.5, 80.0, 15
_REPEAT_EVERY = (15_000, 45_000)
_GAP_EVERY = (100_000, 300_000)
_GAP_BP = (50, 500)
_TRIES = 12


def lay_out(maker: PartMaker, length: int) -> Part:
    """One contig of exactly `length` bases, with the marks of all its parts.

    Units follow one another with background between them, each on a random strand. A repeat stands
    every 15 to 45 kb and a gap every 100 to 300 kb, in the first third of a shorter contig.
    """
    layout = _Layout(maker, length)
    while layout.add_unit():
        layout.add_repeat_or_gap()
    layout.fill()
    return join(layout.parts)


class _Layout:
    def __init__(self, maker: PartMaker, length: int) -> None:
        self.maker = maker
        self.rng: np.random.Generator = maker.rng
        self.length = length
        self.parts: list[Part] = []
        self.used = 0
        self.next_repeat = self._ahead(_REPEAT_EVERY, 0.1)
        self.next_gap = self._ahead(_GAP_EVERY, 0.5)
        self._add(self._spacer())

    def add_unit(self) -> bool:
        """Add a unit and a spacer; False when none of a few draws fits into what is left."""
        for _ in range(_TRIES):
            unit, spacer = self.maker.transcription_unit(), self._spacer()
            if self.used + len(unit) + len(spacer) <= self.length:
                self._add(unit.flipped() if self.rng.random() < 0.5 else unit)
                self._add(spacer)
                return True
        return False

    def add_repeat_or_gap(self) -> None:
        """Add what is due at this place."""
        if self.used >= self.next_repeat:
            self._add_if_it_fits(self.maker.repeat())
            self.next_repeat = self.used + self._ahead(_REPEAT_EVERY, 1.0)
        if self.used >= self.next_gap:
            self._add_if_it_fits(self.maker.gap(int(self.rng.integers(*_GAP_BP))))
            self.next_gap = self.used + self._ahead(_GAP_EVERY, 1.0)

    def fill(self) -> None:
        """Background up to the length of the contig."""
        if self.used < self.length:
            self._add(self.maker.background(self.length - self.used))

    def _add_if_it_fits(self, part: Part) -> None:
        spacer = self._spacer()
        if self.used + len(part) + len(spacer) <= self.length:
            self._add(part)
            self._add(spacer)

    def _add(self, part: Part) -> None:
        self.parts.append(part)
        self.used += len(part)

    def _spacer(self) -> Part:
        drawn = self.rng.gamma(_SPACER_SHAPE, _SPACER_SCALE)
        return self.maker.background(_SPACER_LEAST + int(drawn))

    def _ahead(self, every: tuple[int, int], share: float) -> int:
        """Bases to the next one: `share` of a draw from `every`, a third of the contig at most."""
        return int(min(share * self.rng.integers(*every), self.length / 3))
