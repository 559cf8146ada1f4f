"""One window per interval of a BED file and epoch: the sampling of HyenaDNA."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from dnassm.data.admissible import admissible_starts, max_unknown, no_window, unknown_runs
from dnassm.data.aliases import match_contigs
from dnassm.data.annotation import BedRecord, read_bed
from dnassm.data.interval import Interval
from dnassm.data.places import Places
from dnassm.data.runs import Positions, Runs
from dnassm.data.sampler import SAMPLERS, Sampler, intervals_of_split, permuted, stream_of
from dnassm.data.store import GenomeStore
from dnassm.errors import ConfigError, GenomeError
from dnassm.registry import did_you_mean

Place = Literal["start", "centre", "random"]
Row = tuple[Interval, Interval]
"""An interval, and the bounds that its window stays in."""

_PLACES = ("start", "centre", "random")
_SPLIT_NAMES = {"val": "valid", "validation": "valid", "dev": "valid"}
_KNOWN_SPLITS = {"train", "valid", "test", *_SPLIT_NAMES}


@SAMPLERS.register("intervals")
class IntervalsSampler(Sampler):
    """Read one window of every interval in every epoch, in an order that is new in each.

    The sampling of HyenaDNA (Nguyen et al. 2023, arXiv:2306.15794; hg38_dataset.py): an epoch has
    as many windows as there are intervals, whatever `length` is. The window of a longer interval
    lies inside it, where `place` says; a shorter interval grows by half of what it lacks, rounded
    down, to its left, and by the rest to its right. Where that crosses a border the window moves
    inward and keeps its length; HyenaDNA's is cut short there. Intervals whose window would have
    too many unknown bases, or no room, are left out.

    Args:
        store: the genome.
        split: name of the split.
        length: L, bases per window.
        rc_probability: share of windows that are read on the minus strand.
        max_n_fraction: most unknown bases in a window, as a share of `length`; None refuses only
            windows of nothing else.
        bed: BED file of the intervals; ``chr1`` may be ``1`` in the store, see `match_contigs`. A
            column that its header names ``split``, or a fourth column of nothing but train, valid
            and test, says which rows are of `split`; windows then stay inside their contig.
            Without either, the rows that lie inside an interval of the store's split are taken,
            and windows stay inside it. None: those intervals themselves.
        place: "start", as HyenaDNA; "centre": base ``len(interval) // 2`` of any interval is base
            ``length // 2`` of its window; or "random": drawn anew in each epoch.

    Raises:
        ConfigError: a number or `place` is out of range.
        GenomeError: no such split, a row lies outside of the genome, or there is no window.
    """

    files: ClassVar[tuple[str, ...]] = ("bed",)

    def __init__(
        self,
        store: GenomeStore,
        *,
        split: str = "train",
        length: int,
        rc_probability: float = 0.5,
        max_n_fraction: float | None = None,
        bed: Path | str | None = None,
        place: Place = "start",
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
        if place not in _PLACES:
            raise ConfigError(f"place: expected one of {', '.join(_PLACES)}, got {place!r}")
        self.place = place
        rows = _rows(store, split, None if bed is None else Path(bed))
        unknown = max_unknown(length, max_n_fraction)
        runs: dict[Interval, Runs] = {}
        self._rows: list[Places] = []
        for interval, bounds in rows:
            if bounds not in runs:
                runs[bounds] = unknown_runs(store, bounds)
            places = Places()
            places.add(bounds.contig, self._starts(interval, bounds, runs[bounds], unknown))
            if len(places):
                self._rows.append(places)
        if not self._rows:
            raise no_window(store, split, [b for _, b in rows], f"{length} bp with few enough N")

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        place, strand = self._draw(seed, epoch, index)
        row = permuted(index, len(self._rows), stream_of(seed, epoch))
        contig, start = self._rows[row].draw(place)
        return Interval(contig, start, start + self.length, self._strand(strand))

    def __len__(self) -> int:
        return len(self._rows)

    def _starts(self, interval: Interval, bounds: Interval, runs: Runs, unknown: int) -> Positions:
        spare = len(interval) - self.length
        if self.place == "centre":
            start = interval.start + len(interval) // 2 - self.length // 2
        elif spare < 0:
            start = interval.start - -spare // 2
        elif self.place == "random":
            return admissible_starts(runs, interval, self.length, unknown)
        else:
            start = interval.start
        start = max(min(start, bounds.end - self.length), bounds.start)
        window = Interval(bounds.contig, start, start + self.length)
        if window.end > bounds.end:
            return np.zeros((0, 2), dtype=np.int64)
        return admissible_starts(runs, window, self.length, unknown)


def _rows(store: GenomeStore, split: str, bed: Path | None) -> list[Row]:
    if bed is None:
        return [(interval, interval) for interval in intervals_of_split(store, split)]
    records = read_bed(bed)
    intervals = _on_contigs(store, records, bed)
    names = _splits_of(records)
    if names is None:
        rows = _inside_split(store, split, intervals)
    else:
        chosen = [i for i, name in zip(intervals, names, strict=True) if name == split]
        rows = [(i, Interval(i.contig, 0, store.lengths[i.contig])) for i in chosen]
    if not rows:
        why = "check its split column" if names else f"none is inside that split of {store.path}"
        raise GenomeError(
            f"{bed}: expected rows of split {split!r}, got none among {len(records)}; {why}"
        )
    return rows


def _on_contigs(store: GenomeStore, records: Sequence[BedRecord], bed: Path) -> list[Interval]:
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


def _inside_split(store: GenomeStore, split: str, intervals: Sequence[Interval]) -> list[Row]:
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
