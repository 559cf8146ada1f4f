"""What a person sees while a command works: progress on stderr, aligned tables on stdout.

On a terminal, Progress is one bar that moves; in a log file, a pipe or a batch job it is a plain
line now and then. Both say the same words. A table:

>>> print(table([("mamba", 1234, 0.5), ("s4d", 56, None)], ["mixer", "parameters", "loss"]))
mixer  parameters  loss
mamba        1234   0.5
s4d            56     -
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_REDRAW_S = 0.1  # a bar drawn more often than the eye follows only costs time


class Progress:
    """Progress of one long job, as a context manager.

    >>> with Progress(450e6, "B", "tokenize") as progress:  # doctest: +SKIP
    ...     progress.update(120e6, contig="chr1")
    tokenize 120/450 MB 312 MB/s 1 s left contig chr1

    Args:
        total: amount of work in `unit`; None when it is not known. May be set anew at any time.
        unit: what is counted, in its base size: "B", "tokens", "windows". Large amounts get an SI
            prefix of their own.
        label: what is being done, one or two words.
        start: amount that was done before, by the run that this one takes up again. It counts in
            the percentage, never in the rate.
        every_s: off a terminal, the least time between two lines, in s.
        stream: where to write; stderr when None.
        clock: a monotonic time in s.
    """

    def __init__(
        self,
        total: float | None,
        unit: str,
        label: str,
        *,
        start: float = 0,
        every_s: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.unit = unit
        self.label = label
        self._start = start
        self._done = start
        self._facts: dict[str, object] = {}
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        # stderr is looked up late: tests and notebooks replace it after import.
        self._out = self._stream or sys.stderr
        self._began = self._shown = self._clock()
        if self._out.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _bar(self._out)
            self._task = self._bar.add_task(self.label, total=self.total, words="")
            self._every_s = _REDRAW_S
            self._bar.start()
            self._show()
        return self

    def update(self, done: float, **facts: object) -> None:
        """Say that `done` of the total is done by now, with facts to show: ``loss=1.93``."""
        self._done = done
        self._facts.update(facts)
        now = self._clock()
        if now - self._shown >= self._every_s:
            self._shown = now
            self._show()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._show()
            self._bar.stop()
            self._bar = None
            return
        if kind is not None and self._done == self._start:
            return  # refused before any work: what is said of it is enough
        end = "done in" if kind is None else "stopped after"
        took = _duration(self._clock() - self._began)
        self._line(f"{self._amount()} {self._rate()} {end} {took}{self._facts_text()}")

    def _show(self) -> None:
        words = f"{self._amount()} {self._rate()} {self._time()}{self._facts_text()}"
        if self._bar is None:
            self._line(words)
        else:
            self._bar.update(
                self._task, total=self.total, completed=self._done, words=words, refresh=True
            )

    def _line(self, words: str) -> None:
        self._out.write(f"{self.label} {words}\n")
        self._out.flush()

    def _amount(self) -> str:
        if self.total is None:
            return quantity(self._done, self.unit)
        scale, suffix = _scale(self.total, self.unit)
        return f"{_short(self._done / scale)}/{_short(self.total / scale)}{suffix}"

    def _per_second(self) -> float:
        return (self._done - self._start) / max(self._clock() - self._began, 1e-9)

    def _rate(self) -> str:
        return quantity(self._per_second(), self.unit) + "/s"

    def _time(self) -> str:
        if self.total is None:
            return f"{_duration(self._clock() - self._began)} so far"
        rate = self._per_second()
        if rate <= 0:
            return "? left"
        return f"{_duration(max(self.total - self._done, 0) / rate)} left"

    def _facts_text(self) -> str:
        return "".join(f" {name} {_cell(value)}" for name, value in self._facts.items())


def table(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> str:
    """Align `rows` under `columns` as plain text; numbers to the right, None as ``-``.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    cells = [list(row) for row in rows]
    lines = [list(columns), *([_cell(cell) for cell in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_right = [
        any(value is not None for value in column)
        and all(value is None or _is_number(value) for value in column)
        for column in zip(*cells, strict=True)
    ] or [False] * len(columns)
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, to_right, strict=True)
        ).rstrip()
        for line in lines
    )


def quantity(value: float, unit: str) -> str:
    """Write `value` with an SI prefix and its unit.

    >>> quantity(4_641_652, "B"), quantity(51e6, "tokens"), quantity(12, "windows")
    ('4.64 MB', '51M tokens', '12 windows')
    """
    scale, suffix = _scale(value, unit)
    return f"{_short(value / scale)}{suffix}"


def _bar(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        console=Console(file=stream),
        # A refreshing thread would live through the fork of a data loader's workers.
        auto_refresh=False,
    )


def _scale(value: float, unit: str) -> tuple[float, str]:
    """Divisor for `value` and what to write after it: (1e6, " MB"), (1e6, "M tokens")."""
    symbol = len(unit) == 1
    for scale, prefix in _PREFIXES:
        # 1000 steps read better than 1k steps, 567k tokens/s better than 567000 tokens/s.
        if abs(value) >= (scale if symbol else max(scale, 1e5)):
            return scale, f" {prefix}{unit}" if symbol else f"{prefix} {unit}"
    return 1.0, f" {unit}"


def _short(value: float) -> str:
    """Three significant digits, without an exponent: 0.512, 4.64, 46.4, 464, 4642."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
