"""Segments: the rows of a BED file that are of a split, and where windows around them may lie."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dnassm.data.admissible import admissible_starts, max_unknown, no_window, unknown_runs
from dnassm.data.aliases import match_contigs
from dnassm.data.annotation import BedRecord, read_bed
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.places import stretches, without
from dnassm.data.runs import Positions, Runs
from dnassm.data.sampler import intervals_of_split
from dnassm.errors import ConfigError, GenomeError
from dnassm.registry import did_you_mean

Row = tuple[Interval, Interval]
"""An interval, and the bounds that its windows stay in."""

_SPLIT_NAMES = {"val": "valid", "validation": "valid", "dev": "valid"}
_KNOWN_SPLITS = {"train", "valid", "test", *_SPLIT_NAMES}
_NO_RUNS = Runs.merge([], [])


class Segments:
    """Rows of a split, and the starts of windows that are allowed around them.

    A column that the file's header names ``split``, or a fourth column of nothing but train, valid
    and test, says which rows are of the split; windows then stay inside their contig. Without
    either, the rows that lie inside an interval of the store's split are taken, and windows stay
    inside it.

    Args:
        store: the genome.
        split: name of the split.
        length: L, bases per window.
        max_n_fraction: most unknown bases in a window, as a share of `length`; None refuses only
            windows of nothing else.
        bed: the file; ``chr1`` may be ``1`` in the store, see `match_contigs`. None: the intervals
            of the store's split.
        apart: allow no window that touches a row of another split.

    Raises:
        ConfigError: a number is out of range.
        GenomeError: no such split, or no row of it, or one that lies outside of the genome.
    """

    def __init__(
        self,
        store: Genome,
        *,
        split: str,
        length: int,
        max_n_fraction: float | None,
        bed: Path | str | None,
        apart: bool,
    ) -> None:
        if not isinstance(apart, bool):
            raise ConfigError(f"apart: expected true or false, got {apart!r}")
        self._store, self._split, self._length = store, split, length
        self._unknown = max_unknown(length, max_n_fraction)
        self._runs: dict[Interval, Runs] = {}
        self.rows, others = _rows(store, split, None if bed is None else Path(bed))
        self._held_out = _around(others if apart else [], length)

    def starts(self, interval: Interval, bounds: Interval) -> Positions:
        """Stretches (S, 2) ``[first, stop)`` of the starts of windows inside of both."""
        if bounds not in self._runs:
            self._runs[bounds] = unknown_runs(self._store, bounds)
        start, end = max(interval.start, bounds.start), min(interval.end, bounds.end)
        if end - start < self._length:
            return np.zeros((0, 2), dtype=np.int64)
        inside = Interval(bounds.contig, start, end)
        found = np.array([[start, end - self._length + 1]], dtype=np.int64)
        unknown = _near(self._runs[bounds], inside)
        if unknown is not None:
            found = admissible_starts(unknown, inside, self._length, self._unknown)
        held_out = _near(self._held_out.get(bounds.contig, _NO_RUNS), inside)
        if held_out is None:
            return found
        return stretches(without(Runs.merge(found[:, 0], found[:, 1]), held_out))

    def moved_inward(self, start: int, bounds: Interval) -> Interval:
        """The window at `start`, moved to where it lies in `bounds`; longer ones stick out."""
        start = max(min(start, bounds.end - self._length), bounds.start)
        return Interval(bounds.contig, start, start + self._length)

    def check(self, windows: int) -> None:
        """Refuse a sampler without windows.

        Raises:
            GenomeError: there are none.
        """
        if not windows:
            bounds = [bounds for _, bounds in self.rows]
            what = f"{self._length} bp with few enough N"
            raise no_window(self._store, self._split, bounds, what)


def _near(runs: Runs, interval: Interval) -> Runs | None:
    """Runs that touch an interval, None where there are none: most rows have an easy answer."""
    first = np.searchsorted(runs.ends, interval.start, side="right")
    stop = np.searchsorted(runs.starts, interval.end)
    if first == stop:
        return None
    return Runs.merge(runs.starts[first:stop], runs.ends[first:stop])


def _around(held_out: Iterable[Interval], length: int) -> dict[str, Runs]:
    """By contig, the starts of windows that touch one of the intervals."""
    by_contig: dict[str, list[Interval]] = {}
    for interval in held_out:
        by_contig.setdefault(interval.contig, []).append(interval)
    return {
        contig: Runs.merge([i.start - length + 1 for i in found], [i.end for i in found])
        for contig, found in by_contig.items()
    }


def _rows(store: Genome, split: str, bed: Path | None) -> tuple[list[Row], list[Interval]]:
    """Rows of a split, and the intervals of the other splits of the file."""
    if bed is None:
        return [(interval, interval) for interval in intervals_of_split(store, split)], []
    records = read_bed(bed)
    intervals = _on_contigs(store, records, bed)
    names = _splits_of(records)
    others: list[Interval] = []
    if names is None:
        rows = _inside_split(store, split, intervals)
    else:
        named = list(zip(intervals, names, strict=True))
        others = [interval for interval, name in named if name != split]
        rows = [
            (interval, Interval(interval.contig, 0, store.lengths[interval.contig]))
            for interval, name in named
            if name == split
        ]
    if not rows:
        why = "check its split column" if names else f"none is inside that split of {store.path}"
        raise GenomeError(
            f"{bed}: expected rows of split {split!r}, got none among {len(records)}; {why}"
        )
    return rows, others


def _on_contigs(store: Genome, records: Sequence[BedRecord], bed: Path) -> list[Interval]:
    """Intervals of the rows, on the contigs of the store that their names mean."""
    if not records:
        return []
    contigs = match_contigs((r.interval.contig for r in records), store, source=str(bed)).names
    found = []
    for record in records:
        contig, where = record.interval.contig, f"{bed}:{record.line}"
        if contig not in contigs:
            raise GenomeError(
                f"{where}: expected a contig of {store.path}, got {contig!r}; leave the row out, "
                f"or tokenize that contig too.{did_you_mean(contig, store.lengths)}"
            )
        length = store.lengths[contigs[contig]]
        if record.interval.end > length:
            raise GenomeError(
                f"{where}: expected an end of at most {length}, the length of {contigs[contig]}, "
                f"got {record.interval.end}; is it of another assembly?"
            )
        found.append(Interval(contigs[contig], record.interval.start, record.interval.end))
    return found


def _splits_of(records: Sequence[BedRecord]) -> list[str] | None:
    """Split of each row, None where the file names none."""
    for names in ([r.split for r in records], [r.name for r in records]):
        known = [name for name in names if name in _KNOWN_SPLITS]
        if records and len(known) == len(names):
            return [_SPLIT_NAMES.get(name, name) for name in known]
    return None


def _inside_split(store: Genome, split: str, intervals: Sequence[Interval]) -> list[Row]:
    parts: dict[str, list[Interval]] = {}
    for part in sorted(intervals_of_split(store, split)):
        parts.setdefault(part.contig, []).append(part)
    rows: list[Row] = []
    for interval in intervals:
        candidates = parts.get(interval.contig, [])
        at = bisect.bisect_right(candidates, interval.start, key=lambda part: part.start) - 1
        if at >= 0 and interval.end <= candidates[at].end:
            rows.append((interval, candidates[at]))
    return rows
