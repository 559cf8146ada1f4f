"""Lines of bases to codes: white space dropped, letters checked, encoded and counted.

Two ways with one answer: numpy, whose passes need no preparation, and one pass of compiled code
(`data/line_code.py`), which pays for its compilation where a file is long.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import BASE, SOFT_MASK, Codes, N
from dnassm.data.encoder import BlockEncoder, NotABaseError
from dnassm.data.line_code import AHEAD, KINDS, TOTALS, WHITE, compiled
from dnassm.machine_code import Compiled

_NEWLINE, _RETURN = 10, 13
_BASES, _END, _LINES, _COUNTS = range(4)
"""Columns of TOTALS; from the last one on stand the counts."""
_FEW = 4096
"""Below this many bytes the general way is faster than looking for a fixed line width."""

_Strip = Callable[[Codes, Codes], tuple[int, int]]


class Encoded(NamedTuple):
    """The bases of all stretches, one behind the other; valid until the next call."""

    codes: Codes
    """(n,)"""
    upper: Codes
    """(n,) ASCII, the letters in upper case."""
    totals: npt.NDArray[np.int64]
    """(stretches, len(TOTALS))"""


class LineEncoder(ABC):
    """Encodes text of up to a number of bytes at a time, in buffers that are reused."""

    @abstractmethod
    def encode(self, text: Codes, spans: Sequence[tuple[int, int]]) -> Encoded:
        """What the bases of stretches ``[start, end)`` of `text` are, which do not overlap.

        AHEAD bytes behind the text must belong to the same memory; what they are does not matter.

        Raises:
            NotABaseError: a character is neither a base nor white space.
        """


def line_encoder(capacity: int, *, compile_code: bool) -> LineEncoder:
    """An encoder of up to `capacity` bytes; with `compile_code` by compiled code where it can."""
    code = compiled() if compile_code else None
    return ArrayLines(capacity) if code is None else CompiledLines(capacity, code)


class CompiledLines(LineEncoder):
    """By `code`."""

    def __init__(self, capacity: int, code: Compiled) -> None:
        self._encode_all = code.functions["encode_all"]
        self._upper, self._codes = np.zeros((2, capacity + AHEAD), dtype=np.uint8)

    def encode(self, text: Codes, spans: Sequence[tuple[int, int]]) -> Encoded:
        """In one pass."""
        table = np.array(spans, dtype=np.int64)
        totals = np.zeros((len(spans), len(TOTALS)), dtype=np.int64)
        into = (array.ctypes.data for array in (self._upper, self._codes, KINDS, totals))
        self._encode_all(text.ctypes.data, table.ctypes.data, len(spans), *into)
        if np.any(totals[:, _END] < table[:, 1] - table[:, 0]):
            raise NotABaseError
        bases = int(totals[:, _BASES].sum())
        return Encoded(self._codes[:bases], self._upper[:bases], totals)


class ArrayLines(LineEncoder):
    """By numpy."""

    def __init__(self, capacity: int) -> None:
        self._encoder = BlockEncoder(capacity)

    def encode(self, text: Codes, spans: Sequence[tuple[int, int]]) -> Encoded:
        """By the width of the lines if they have one."""
        try:
            return self._encode(text, spans, _strip_lines)
        except NotABaseError:  # or white space between regular lines, which the general way drops
            return self._encode(text, spans, _strip_any)

    def _encode(self, text: Codes, spans: Sequence[tuple[int, int]], strip: _Strip) -> Encoded:
        totals = np.zeros((len(spans), len(TOTALS)), dtype=np.int64)
        at = 0
        for row, (start, end) in zip(totals, spans, strict=True):
            bases, lines = strip(text[start:end], self._encoder.letters[at:])
            row[_BASES], row[_END], row[_LINES] = bases, end - start, lines
            at += bases
        codes, upper, counts = self._encoder.encode(at)
        with_bases = np.flatnonzero(totals[:, _BASES])
        if with_bases.size == 1:
            totals[with_bases, _COUNTS:] = dataclasses.astuple(counts)
        elif with_bases.size:
            sizes = totals[with_bases, _BASES]
            totals[with_bases, _COUNTS:] = _count_each(codes, upper, sizes.cumsum() - sizes)
        return Encoded(codes, upper, totals)


def _count_each(codes: Codes, upper: Codes, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts (stretches, len(COUNTS)) of stretches that begin at `starts`, none of them empty."""
    bases = codes & BASE
    kinds = [bases == code for code in range(N + 1)]
    flags = [*kinds, bases > N, codes >= SOFT_MASK, upper == ord("U")]
    return np.stack([np.add.reduceat(each, starts, dtype=np.int64) for each in flags], axis=1)


def _strip_lines(text: Codes, letters: Codes) -> tuple[int, int]:
    """Copy `text` without white space into `letters`; returns the bases and the line ends in it.

    The lines of a genome have one width: the middle of the block is a table whose last column holds
    the line ends, and a copy of the other columns is many times faster than a search for them.
    White space elsewhere comes through; the alphabet check finds it, and the caller asks again for
    the general way.
    """
    period, first = _line_period(text)
    if period == 0:
        return _strip_any(text, letters)
    rows = (text.size - first) // period
    table = text[first : first + rows * period].reshape(rows, period)
    width = period - 1
    if table[:, width].tobytes() != b"\n" * rows:
        return _strip_any(text, letters)
    if table[0, width - 1] == _RETURN:
        width -= 1
        if table[:, width].tobytes() != b"\r" * rows:
            return _strip_any(text, letters)
    head, head_lines = _strip_any(text[:first], letters)
    body = rows * width
    line = f"V{width}"  # one item per line: numpy copies each with one memcpy
    np.copyto(letters[head : head + body].view(line), table[:, :width].view(line)[:, 0])
    tail, tail_lines = _strip_any(text[first + rows * period :], letters[head + body :])
    return head + body + tail, head_lines + rows + tail_lines


def _line_period(text: Codes) -> tuple[int, int]:
    """Bytes per line with its end, and where the first whole line begins; (0, 0) when unclear."""
    if text.size < _FEW:
        return 0, 0
    start = text[:_FEW].tobytes()
    first = start.find(b"\n")
    second = start.find(b"\n", first + 1)
    if first < 0 or second - first < 3:
        return 0, 0
    return second - first, first + 1


def _strip_any(text: Codes, letters: Codes) -> tuple[int, int]:
    raw = text.tobytes()
    found = np.frombuffer(raw.translate(None, WHITE), dtype=np.uint8)
    letters[: found.size] = found
    return found.size, raw.count(b"\n")
