"""How the `cuda` backend cuts a row into chunks and channels into blocks.

A block is some warps that share B and C; a multiprocessor holds as many blocks as registers allow.
Few chunks mean little work twice (what a chunk hands on has to be found first), many fill the
device: the cheapest of all cuts by the model below is taken, once per problem size.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

_MOST_CHUNKS = 65535
# A multiprocessor with few warps waits for latencies that others would fill: a quarter of what it
# holds takes 0.42 of the time, half of it 0.64. From (8, 1536, 8192) uncut and (64, 512, 1024).
_ALONE = 0.26
# A block of half as many warps brings in B and C twice as often, and blocks that are not in step
# end at different times: 3.30 ms with 16 warps, 3.45 with 8, 3.96 with 4 at (1, 512, 2^20).
_NARROW = 0.1
# `chunk_ends` waits for memory more: half full it takes four fifths of the time. Its blocks end at
# different times, others take their place, and half of a block's warps wait for the others: at
# (8, 1536, 8192) blocks of 16, 8, 4 and 2 warps took 0.53, 0.49, 0.40 and 0.45 ms.
_ALONE_UNEVEN, _TAIL = 0.7, 0.5
# What `chunk_ends` costs of a main pass: all of it where nothing is forgotten, and for each state
# beyond that a reading of every step. From chunks of 1024 and 8192 steps.
_READING, _MEMORY = 0.35, 3000
_ENTERING = 100
"""Steps that a block takes as long for as to start, to load a state and to be chained."""


class Problem(NamedTuple):
    """Sizes that the cut follows from."""

    warps: int
    """Side by side along the channels of a group."""
    rows: int
    """Groups x batch."""
    steps: int
    multiprocessors: int
    held: int
    """Warps that a multiprocessor holds."""
    widths: tuple[int, ...]
    """Warps that a block may have, widest first."""

    def time(self, width: int, chunks: int) -> float:
        """Of all chunks, in times that a multiprocessor full of wide blocks takes for one."""
        blocks, slots = self._blocks(width, chunks)
        waves, rest = divmod(blocks, slots)
        narrow = 1 + _NARROW * math.log2(self.held / width)
        return narrow * (waves + (self._part(rest, width, _ALONE) if rest else 0.0))

    def time_uneven(self, width: int, chunks: int) -> float:
        """The same of `chunk_ends`, whose blocks end when all that they hold is forgotten."""
        blocks, slots = self._blocks(width, chunks)
        if blocks > slots:
            narrow = 1 + _NARROW * max(0.0, math.log2(self.held / 4 / width))
            return narrow * (blocks / slots + _TAIL * width / self.held)
        narrow = 1 + _NARROW * abs(math.log2(self.held / 2 / width))
        return narrow * self._part(blocks, width, _ALONE_UNEVEN)

    def _blocks(self, width: int, chunks: int) -> tuple[int, int]:
        """How many there are, and how many the device holds."""
        across = -(-self.warps // width) * self.rows
        return across * chunks, self.held // width * self.multiprocessors

    def _part(self, blocks: int, width: int, alone: float) -> float:
        """Of a wave that fills the device in part."""
        busy = -(-blocks // self.multiprocessors) * width / self.held
        return alone + (1 - alone) * busy


class Cut(NamedTuple):
    """Chunks of `steps` each, the last may be shorter, by blocks of `width` warps."""

    width: int
    steps: int
    chunks: int


@functools.cache
def cut(problem: Problem, span: int, pre_pass: float) -> Cut:
    """Of the main pass, in chunks of whole spans.

    `pre_pass` is the cost of finding what chunks hand on, as a share of the main pass, when all
    steps of a chunk have to be looked at.
    """
    spans = -(-problem.steps // span)
    best, cheapest = None, float("inf")
    for width, per_chunk in itertools.product(problem.widths, _divisions(spans, problem)):
        steps, chunks = per_chunk * span, -(-spans // per_chunk)
        cost = problem.time(width, chunks) * (steps + _ENTERING)
        if chunks > 1:
            cost *= 1 + pre_pass * _seen(steps)
        if cost < 0.985 * cheapest:
            best, cheapest = Cut(width, steps, chunks), cost
    if best is None:
        raise ValueError(f"no cut of {problem}")
    return best


@functools.cache
def cut_ends(problem: Problem, chunk: int, tile: int) -> Cut:
    """Of the pass before it: each chunk in 1, 2 or 4 pieces of whole tiles, for more blocks."""
    best, cheapest = None, float("inf")
    for width, pieces in itertools.product(problem.widths, (1, 2, 4)):
        if chunk % (pieces * tile):
            continue
        steps = chunk // pieces
        count = -(-problem.steps // steps)
        cost = problem.time_uneven(width, count - 1) * (steps + _ENTERING) * _seen(steps)
        if cost < 0.985 * cheapest:
            best, cheapest = Cut(width, steps, count), cost
    if best is None:
        raise ValueError(f"no cut of chunks of {chunk} steps into tiles of {tile}")
    return best


def _seen(steps: int) -> float:
    """Cost of a look at chunks of so many steps, as a share of a look at all of them."""
    return _READING + (1 - _READING) * min(1.0, _MEMORY / steps)


def _divisions(spans: int, problem: Problem) -> Iterator[int]:
    """Numbers of spans per chunk worth a look: up to four full devices of chunks."""
    across = -(-problem.warps // problem.widths[0]) * problem.rows
    slots = problem.held // problem.widths[-1] * problem.multiprocessors
    most = min(spans, max(1, 4 * slots // across), _MOST_CHUNKS)
    yield from sorted({-(-spans // wanted) for wanted in range(1, most + 1)}, reverse=True)
