"""How the `cuda` backend cuts a row into chunks and channels into blocks.

A block is some warps that share B and C; a multiprocessor holds as many blocks as registers allow.
Few chunks mean little work twice (what a chunk hands on has to be found first), many fill the
device: the cheapest of all cuts by the model below is taken, once per problem size. Few channels
per thread make more warps of the same work, each of which costs more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

# A multiprocessor with few warps waits for latencies that others would fill: a quarter of what it
# holds takes 0.42 of the time, half of it 0.64. From (8, 1536, 8192) uncut and (64, 512, 1024).
_ALONE = 0.26
# A block of half as many warps brings in B and C twice as often, and blocks that are not in step
# end at different times: 3.30 ms with 16 warps, 3.45 with 8, 3.96 with 4 at (1, 512, 2^20).
_NARROW = 0.1
# Blocks of `chunk_ends` end at different times. Where others take their place, half of a block's
# warps wait for the others, and the last ones go on by themselves, for longer where columns are
# few; where all are there at once, what remembers for long does, at a quarter of the pace of all.
# Half full it takes four fifths of the time.
_ALONE_UNEVEN, _TAIL, _LAST, _FEW = 0.6, 0.4, 0.35, 0.6
_AT_ONCE, _MOST_AT_ONCE, _STRAGGLER = 1.2, 0.75, 0.4
# What it costs to look at a step, on average: less in long chunks, where most is forgotten before
# the end. Full multiprocessors took 180, 135 and 115 ns with 2048, 4096 and 8192 steps. _FIRST and
# _STRAGGLER are fitted to the backward's at ten shapes, cut in every way, channels in order of
# their steps and at random: what is then chosen takes 2.5 % more than the best, on average.
_FIRST, _LATER = 0.57, 0.28
_ENTERING, _ENTERING_ENDS = 100, 30
"""Steps that a block takes as long for as to start, to load a state and to be chained."""
_WORTH = 0.995
"""Longer chunks are left for shorter ones that take less than this share of their time."""


class Layout(NamedTuple):
    """How many channels a thread holds, and what follows."""

    channels: int
    """Of a thread."""
    tile: int
    """Steps of a tile."""
    rows: int
    """Steps of B and C that the widest block brings in at once."""
    warps: int
    """A multiprocessor holds so many."""
    widths: tuple[int, ...]
    """Warps that a block may have, widest first."""
    time: float
    """Of a full multiprocessor for a step of all its channels."""
    shortest: int = 1
    """Steps of a chunk from which on it is offered."""


class Problem(NamedTuple):
    """Sizes that the cut follows from."""

    channels: int
    """Of a group, in warps whose threads hold one channel."""
    rows: int
    """Groups x batch."""
    steps: int
    multiprocessors: int
    joined: int = 1
    """Rows that have been laid end to end, of which each has a like share of `steps`."""

    def end_to_end(self, unit: int) -> Problem:
        """All rows as one, each in whole multiples of `unit` steps."""
        steps = -(-self.steps // unit) * unit
        return self._replace(rows=1, steps=self.rows * steps, joined=self.rows)

    @property
    def row(self) -> int:
        """Steps of what was one row."""
        return self.steps // self.joined

    def first_border(self, steps: int) -> int:
        """Of any row, where at the earliest a chunk of so many steps ends inside of it."""
        return steps if self.joined == 1 else math.gcd(self.row, steps)

    def borders(self, steps: int) -> int:
        """How many chunks of so many steps begin inside of a row."""
        at_once = -(-self.joined * self.first_border(steps) // steps)
        return -(-self.steps // steps) - at_once

    def time(self, layout: Layout, width: int, chunks: int) -> float:
        """Of a step of all chunks, in those of one multiprocessor full of the widest layout."""
        blocks, slots = self._blocks(layout, width, chunks)
        waves, rest = divmod(blocks, slots)
        narrow = 1 + _NARROW * math.log2(layout.widths[0] / width)
        part = self._part(rest, width / layout.warps, _ALONE) if rest else 0.0
        return layout.time * narrow * (waves + part)

    def time_uneven(self, layout: Layout, width: int, chunks: int, steps: int) -> float:
        """Of a step of `chunk_ends`, whose blocks end when all that they hold is forgotten."""
        blocks, slots = self._blocks(layout, width, chunks)
        share = width / layout.warps
        seen = _LATER + (1 - _LATER) * 740 / steps
        if blocks > slots:
            narrow = 1 + _NARROW * max(0.0, -math.log2(4 * share))
            last = _LAST + _FEW / self.across(layout, width) * self.rows
            full = layout.time * min(_FIRST, seen)
            return full * narrow * (blocks / slots + _TAIL * share + last)
        narrow = 1 + _NARROW * abs(math.log2(2 * share))
        full = layout.time * min(_MOST_AT_ONCE, _AT_ONCE * seen)
        return max(full * narrow * self._part(blocks, share, _ALONE_UNEVEN), _STRAGGLER)

    def across(self, layout: Layout, width: int) -> int:
        """Blocks of a chunk, of all rows."""
        return -(-self.channels // (width * layout.channels)) * self.rows

    def _blocks(self, layout: Layout, width: int, chunks: int) -> tuple[int, int]:
        """How many there are, and how many the device holds."""
        return self.across(layout, width) * chunks, layout.warps // width * self.multiprocessors

    def _part(self, blocks: int, share: float, alone: float) -> float:
        """Of a wave that fills the device in part; a block has a `share` of a multiprocessor."""
        return alone + (1 - alone) * -(-blocks // self.multiprocessors) * share


class Cut(NamedTuple):
    """Chunks of `steps` each, the last may be shorter, by blocks of `width` warps."""

    layout: Layout
    width: int
    steps: int
    chunks: int
    cost: float


class PrePass(NamedTuple):
    """What finds the states that enter chunks."""

    layouts: tuple[Layout, ...]
    tile: int
    """Steps of which a chunk's pieces are whole multiples."""
    share: float
    """Its time for a step, of that of the main pass."""


@functools.cache
def cut(problem: Problem, layouts: tuple[Layout, ...], pre_pass: PrePass, whole: int) -> Cut:
    """Of the main pass, in chunks of whole multiples of `whole` steps and of the layout's tile.

    What enters a chunk has to be found where it begins inside of a row.
    """
    best = None
    for layout in layouts:
        unit = math.lcm(whole, layout.tile)
        for steps in _lengths(problem, layout, unit):
            chunks = -(-problem.steps // steps)
            cost, width = min(
                (problem.time(layout, width, chunks), -width) for width in layout.widths
            )
            cost *= steps + _ENTERING
            worth = math.inf if best is None else _WORTH * best.cost
            if cost < worth and problem.borders(steps):
                cost += pre_pass.share * cut_ends(problem, pre_pass, steps).cost
            if cost < worth:
                best = Cut(layout, -width, steps, chunks, cost)
    if best is None:
        raise ValueError(f"no cut of {problem}")
    return best


@functools.cache
def cut_ends(problem: Problem, pre_pass: PrePass, chunk: int) -> Cut:
    """Of the pass before it: chunks at a border in 1, 2 or 4 pieces each, for more blocks."""
    best = None
    chunks = problem.borders(chunk)
    for pieces in (1, 2, 4):
        steps = chunk // pieces
        if chunk % (pieces * pre_pass.tile):
            continue
        for layout in pre_pass.layouts:
            if steps < layout.shortest:
                continue
            for width in layout.widths:
                time = problem.time_uneven(layout, width, chunks * pieces, steps)
                cost = time * (steps + _ENTERING_ENDS)
                if best is None or cost < 0.985 * best.cost:
                    best = Cut(layout, width, steps, chunks * pieces, cost)
    if best is None:
        raise ValueError(f"no cut of chunks of {chunk} steps into tiles of {pre_pass.tile}")
    return best


def _lengths(problem: Problem, layout: Layout, unit: int) -> Iterator[int]:
    """Steps per chunk worth a look, longest first: up to four full devices of chunks.

    Any number of chunks up to 32, those that fill the device a whole number of times, some between,
    and those of whole rows.
    """
    units = -(-problem.steps // unit)
    slots = layout.warps // layout.widths[-1] * problem.multiprocessors
    most = min(units, max(1, 4 * slots // problem.across(layout, layout.widths[-1])))
    wanted = {*range(1, min(most, 32) + 1), most}
    count = 32.0
    while (count := count * 1.1) < most:
        wanted.add(int(count))
    for width in layout.widths:
        full = layout.warps // width * problem.multiprocessors / problem.across(layout, width)
        wanted |= {int(full * waves) for waves in range(1, 5) if 1 <= full * waves <= most}
    lengths = {-(-units // chunks) * unit for chunks in wanted}
    if problem.joined > 1:
        lengths |= {-(-problem.joined // chunks) * problem.row for chunks in wanted}
        lengths.add(problem.row)
    yield from sorted(lengths, reverse=True)
