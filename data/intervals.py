"""Algebra of intervals: merge, intersect, subtract, complement, slop, nearest, centred windows.

Sets of intervals are bioframe's work, and this is the only module that asks it. Its operations on
arrays (`bioframe.arrops`) do it, contig by contig: those on data frames build several frames for
each contig, and know a strand in two cases out of five. The first call imports it, in 0.6 s.

What stays on numpy is something else:

- `slop` and `centred_windows` are arithmetic on one interval at a time. `bioframe.expand` knows no
  strand and cuts each side at the middle by itself; the rule of windows is `dnassm.data.centre`.
- `dnassm.data.runs` and `dnassm.data.places`: in one contig each, stretches that bases of windows
  are counted in, as those of N, and the starts that windows may have, which may be negative.
  Samplers count in them and draw from them in every run and every worker of the loader, which
  need no pandas for it.
- The parts of `dnassm.data.split`: they have labels, and two that overlap are an error that names
  file and line, not a union.

Without `stranded`, strands are ignored and every result lies on '+'. With it, an interval meets
only those of its own strand and keeps it. Results are sorted within a contig; contigs come in the
order in which they first occur.

>>> one = [Interval("c", 0, 10), Interval("c", 8, 20)]
>>> [str(interval) for interval in subtract(one, [Interval("c", 5, 6)])]
['c:0-5(+)', 'c:6-20(+)']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from dnassm.data.centre import centred_start
from dnassm.data.interval import Interval, Strand
from dnassm.errors import ConfigError, GenomeError
from dnassm.registry import did_you_mean

Key = tuple[str, Strand]
Positions = npt.NDArray[np.int64]
Edges = tuple[Positions, Positions]
"""Starts and ends."""


def merge(
    intervals: Iterable[Interval], *, stranded: bool = False, within: int = 0
) -> list[Interval]:
    """Union; overlapping and touching ones become one, and those at most `within` bases apart.

    Raises:
        ConfigError: `within` is negative.
    """
    if within < 0:
        raise ConfigError(f"merge: expected within >= 0 bases, got {within}")
    return _flat(_merged(intervals, stranded=stranded, within=within))


def intersect(
    one: Iterable[Interval], other: Iterable[Interval], *, stranded: bool = False
) -> list[Interval]:
    """Bases that lie in both, merged."""
    left, right = (_merged(each, stranded=stranded) for each in (one, other))
    return _flat({key: _common(edges, right[key]) for key, edges in left.items() if key in right})


def subtract(
    one: Iterable[Interval], other: Iterable[Interval], *, stranded: bool = False
) -> list[Interval]:
    """Bases of `one` that do not lie in `other`, merged."""
    from bioframe import arrops

    left, right = (_merged(each, stranded=stranded) for each in (one, other))
    holes = {key: arrops.complement_intervals(*edges) for key, edges in right.items()}
    return _flat(
        {key: _common(edges, holes[key]) if key in holes else edges for key, edges in left.items()}
    )


def complement(intervals: Iterable[Interval], lengths: Mapping[str, int]) -> list[Interval]:
    """Bases of the contigs that lie in no interval, on either strand.

    Raises:
        GenomeError: an interval lies outside of the genome.
    """
    inside = list(intervals)
    for interval in inside:
        check_inside(interval, lengths)
    whole = [Interval(contig, 0, length) for contig, length in lengths.items()]
    return subtract(whole, inside)


def slop(
    intervals: Iterable[Interval], lengths: Mapping[str, int], *, before: int, after: int
) -> list[Interval]:
    """Each interval with bases added in its reading direction, cut at the ends of its contig.

    Args:
        intervals: in any order, which is kept.
        lengths: contig name -> bases.
        before: bases upstream; to the left on '+', to the right on '-'. Negative ones are taken
            away, down to an empty interval at its middle.
        after: bases downstream, alike.

    Raises:
        GenomeError: an interval lies outside of the genome.
    """
    grown = []
    for interval in intervals:
        length = check_inside(interval, lengths)
        left, right = (before, after) if interval.strand == "+" else (after, before)
        start, end = max(interval.start - left, 0), min(interval.end + right, length)
        if start > end:
            start = end = min(max((interval.start + interval.end) // 2, 0), length)
        grown.append(Interval(interval.contig, start, end, interval.strand))
    return grown


def nearest(
    queries: Sequence[Interval], targets: Sequence[Interval], *, stranded: bool = False
) -> tuple[Positions, Positions]:
    """For each of Q queries the target on its contig with the fewest bases in between.

    Memory grows with the pairs that overlap, by about 60 bytes each.

    Returns:
        (Q,) index into `targets`, -1 where the contig has none; and (Q,) bases in between, 0 for
        an overlap and for neighbours that touch, -1 where there is none. Of several targets as
        near, one that overlaps goes before one that touches, then the one that begins first, so
        that left goes before right, then the longest, then the first in `targets`; a query of no
        length overlaps what has the base at its start.
    """
    index = np.full(len(queries), -1, dtype=np.int64)
    distance = np.full(len(queries), -1, dtype=np.int64)
    ours, theirs = _numbered(queries, stranded=stranded), _numbered(targets, stranded=stranded)
    for key, rows in ours.items():
        if key in theirs:
            found, distance[rows] = _nearest(_edges(queries, rows), _edges(targets, theirs[key]))
            index[rows] = theirs[key][found]
    return index, distance


def centred_windows(
    intervals: Iterable[Interval],
    length: int,
    lengths: Mapping[str, int],
    *,
    outside: Literal["drop", "shift"] = "drop",
) -> list[Interval]:
    """Window of `length` bases around each interval, by the rule of `dnassm.data.centre`.

    Args:
        intervals: in any order, which is kept; a window lies on the strand of its interval.
        length: bases of a window.
        lengths: contig name -> bases.
        outside: a window over the end of its contig is left out, or moved inside; one that is
            longer than its contig is left out.

    Raises:
        ConfigError: `length` is below 1.
        GenomeError: an interval lies outside of the genome.
    """
    windows = []
    for interval in intervals:
        size = check_inside(interval, lengths)
        start = centred_start(interval, length)
        if outside == "shift":
            start = min(max(start, 0), max(size - length, 0))
        if 0 <= start <= size - length:
            windows.append(Interval(interval.contig, start, start + length, interval.strand))
    return windows


def check_inside(interval: Interval, lengths: Mapping[str, int]) -> int:
    """Length of the contig of an interval.

    Raises:
        GenomeError: there is no such contig, or the interval ends past it.
    """
    if interval.contig not in lengths:
        raise GenomeError(
            f"{interval}: no contig {interval.contig!r} in the genome; it has "
            f"{', '.join(list(lengths)[:5])}.{did_you_mean(interval.contig, lengths)}"
        )
    length = lengths[interval.contig]
    if interval.end > length:
        raise GenomeError(f"{interval}: contig {interval.contig!r} ends at {length:,} bp")
    return length


def _by_key(intervals: Iterable[Interval], *, stranded: bool) -> dict[Key, Edges]:
    """Edges of the intervals that have a length; a key for the others, too."""
    edges: dict[Key, tuple[list[int], list[int]]] = {}
    for interval in intervals:
        starts, ends = edges.setdefault(_key(interval, stranded=stranded), ([], []))
        if len(interval):
            starts.append(interval.start)
            ends.append(interval.end)
    return {
        key: (np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64))
        for key, (starts, ends) in edges.items()
    }


def _merged(intervals: Iterable[Interval], *, stranded: bool, within: int = 0) -> dict[Key, Edges]:
    from bioframe import arrops

    return {
        key: arrops.merge_intervals(*edges, min_dist=within)[1:]
        for key, edges in _by_key(intervals, stranded=stranded).items()
    }


def _common(one: Edges, other: Edges) -> Edges:
    """What lies in both of two sorted, disjoint sets."""
    from bioframe import arrops

    left, right = arrops.overlap_intervals(*one, *other)
    starts = np.maximum(one[0][left], other[0][right])
    ends = np.minimum(one[1][left], other[1][right])
    return np.sort(starts), np.sort(ends)


def _nearest(queries: Edges, targets: Edges) -> Edges:
    """Row of the nearest target of each query, and the bases in between."""
    from bioframe import arrops

    # A target inside another is never nearer. Without those no two have the same start or end, of
    # which bioframe takes any; of several that overlap it takes the first, and in 0.8 it fails when
    # it is given an array to break ties by.
    order = np.lexsort([-targets[1], targets[0]])
    reach = np.maximum.accumulate(targets[1][order])
    outer = order[np.diff(reach, prepend=-1) > 0]
    (first, last), (starts, ends) = queries, (edge[outer] for edge in targets)
    _, found = arrops.closest_intervals(first, last, starts, ends)
    between = np.maximum(starts[found] - last, first - ends[found])
    return outer[found], np.maximum(between, 0)


def _numbered(intervals: Sequence[Interval], *, stranded: bool) -> dict[Key, Positions]:
    rows: dict[Key, list[int]] = {}
    for number, interval in enumerate(intervals):
        rows.setdefault(_key(interval, stranded=stranded), []).append(number)
    return {key: np.array(found, dtype=np.int64) for key, found in rows.items()}


def _edges(intervals: Sequence[Interval], rows: Positions) -> Edges:
    chosen = [intervals[row] for row in rows.tolist()]
    starts = np.array([interval.start for interval in chosen], dtype=np.int64)
    return starts, np.array([interval.end for interval in chosen], dtype=np.int64)


def _key(interval: Interval, *, stranded: bool) -> Key:
    return interval.contig, interval.strand if stranded else "+"


def _flat(groups: Mapping[Key, Edges]) -> list[Interval]:
    return [
        Interval(contig, start, end, strand)
        for (contig, strand), (starts, ends) in groups.items()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
