"""Lines of bases to codes: white space dropped, letters checked, encoded and counted.

Two ways with one answer: numpy, whose passes need no preparation, and one pass of compiled code
(`data/line_code.py`), which pays for its compilation where a file is long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from dnassm.data.alphabet import Codes
from dnassm.data.encoder import BaseCounts, BlockEncoder, NotABaseError
from dnassm.data.line_code import AHEAD, KINDS, TOTALS, WHITE, compiled
from dnassm.machine_code import Compiled

_NEWLINE, _RETURN = 10, 13
_FEW = 4096
"""Below this many bytes the general way is faster than looking for a fixed line width."""

Encoded = tuple[Codes, Codes, BaseCounts]
"""Codes (n,), upper-case ASCII (n,), counts; the arrays are valid until the next call."""


class LineEncoder(ABC):
    """Encodes text of up to a number of bytes at a time, in buffers that are reused."""

    @abstractmethod
    def encode(self, text: Codes) -> tuple[Encoded, int]:
        """What the bases of `text` are, and the line ends in it.

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
        self._encode = code.functions["encode"]
        self._upper, self._codes = np.zeros((2, capacity + AHEAD), dtype=np.uint8)
        self._totals = np.zeros(len(TOTALS), dtype=np.int64)

    def encode(self, text: Codes) -> tuple[Encoded, int]:
        """In one pass."""
        upper, codes, kinds, totals = (
            array.ctypes.data for array in (self._upper, self._codes, KINDS, self._totals)
        )
        self._encode(text.ctypes.data, text.size, upper, codes, kinds, totals)
        found = dict(zip(TOTALS, self._totals.tolist(), strict=True))
        bases, end, lines = (found.pop(name) for name in ("bases", "end", "lines"))
        if end < text.size:
            raise NotABaseError
        return (self._codes[:bases], self._upper[:bases], BaseCounts(**found)), lines


class ArrayLines(LineEncoder):
    """By numpy."""

    def __init__(self, capacity: int) -> None:
        self._encoder = BlockEncoder(capacity)

    def encode(self, text: Codes) -> tuple[Encoded, int]:
        """By the width of the lines if they have one."""
        bases, lines = _strip_lines(text, self._encoder.letters)
        try:
            return self._encoder.encode(bases), lines
        except NotABaseError:  # or white space between regular lines, which the general way drops
            bases, lines = _strip_any(text, self._encoder.letters)
            return self._encoder.encode(bases), lines


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
