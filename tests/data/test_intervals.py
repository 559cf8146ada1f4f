"""Interval algebra against the plainest truth: sets of bases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data.centre import centred_start
from dnassm.data.interval import Interval
from dnassm.data.intervals import (
    centred_windows,
    complement,
    intersect,
    merge,
    nearest,
    slop,
    subtract,
)
from dnassm.errors import ConfigError, GenomeError

LENGTHS = {"a": 40, "b": 25}
interval = st.builds(
    lambda contig, start, size, strand: Interval(
        contig, start, min(start + size, LENGTHS[contig]), strand
    ),
    st.sampled_from(sorted(LENGTHS)),
    st.integers(0, 24),
    st.integers(0, 12),
    st.sampled_from("+-"),
)
several = st.lists(interval, max_size=8)


def bases(intervals, stranded):
    return {
        (i.contig, i.strand if stranded else "+", at)
        for i in intervals
        for at in range(i.start, i.end)
    }


def is_tidy(found):
    """Sorted within a contig and strand, nothing empty, nothing that touches."""
    last = {}
    for i in found:
        assert len(i) > 0
        assert i.start > last.get((i.contig, i.strand), -1)
        last[i.contig, i.strand] = i.end


@given(several, several, st.booleans())
def test_the_algebra_is_that_of_sets_of_bases(one, other, stranded):
    left, right = bases(one, stranded), bases(other, stranded)
    for found, truth in [
        (merge(one, stranded=stranded), left),
        (merge([*one, *other], stranded=stranded), left | right),
        (intersect(one, other, stranded=stranded), left & right),
        (subtract(one, other, stranded=stranded), left - right),
    ]:
        is_tidy(found)
        assert bases(found, stranded) == truth
    whole = {(contig, "+", at) for contig, length in LENGTHS.items() for at in range(length)}
    assert bases(complement(one, LENGTHS), stranded=False) == whole - bases(one, stranded=False)


@given(several, st.integers(0, 6))
def test_merging_within_a_distance_fills_the_holes_up_to_it(one, within):
    truth = bases(one, stranded=False)
    for before, after in zip(merge(one), merge(one)[1:], strict=False):
        if before.contig == after.contig and after.start - before.end <= within:
            truth |= {(before.contig, "+", at) for at in range(before.end, after.start)}
    assert bases(merge(one, within=within), stranded=False) == truth


@given(several, st.integers(0, 9), st.integers(0, 9))
def test_slop_adds_bases_in_the_reading_direction_within_the_contig(one, before, after):
    for old, new in zip(one, slop(one, LENGTHS, before=before, after=after), strict=True):
        left, right = (before, after) if old.strand == "+" else (after, before)
        assert (new.contig, new.strand) == (old.contig, old.strand)
        assert new.start == max(0, old.start - left)
        assert new.end == min(LENGTHS[old.contig], old.end + right)


def test_slop_may_take_away_all_there_is():
    assert slop([Interval("a", 10, 14)], LENGTHS, before=-9, after=-9) == [Interval("a", 12, 12)]


def between(one, other):
    return max(one.start - other.end, other.start - one.end, 0)


@given(several, several, st.booleans())
def test_the_nearest_has_the_fewest_bases_in_between(queries, targets, stranded):
    index, distance = nearest(queries, targets, stranded=stranded)
    for query, at, bases_between in zip(queries, index.tolist(), distance.tolist(), strict=True):
        possible = [
            between(query, t)
            for t in targets
            if t.contig == query.contig and (not stranded or t.strand == query.strand)
        ]
        if not possible:
            assert (at, bases_between) == (-1, -1)
        else:
            assert bases_between == min(possible) == between(query, targets[at])
            assert targets[at].contig == query.contig


@given(several, st.integers(1, 30))
def test_windows_are_centred_by_the_one_rule_and_lie_inside(one, length):
    kept = centred_windows(one, length, LENGTHS)
    truth = [
        Interval(i.contig, start, start + length, i.strand)
        for i in one
        if 0 <= (start := centred_start(i, length)) <= LENGTHS[i.contig] - length
    ]
    assert kept == truth
    moved = centred_windows(one, length, LENGTHS, outside="shift")
    assert len(moved) == sum(LENGTHS[i.contig] >= length for i in one)
    assert all(0 <= w.start < w.end <= LENGTHS[w.contig] and len(w) == length for w in moved)
    assert set(kept) <= set(moved)


def test_many_intervals_merge_like_one_long_array():
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 1_000_000, 20_000)
    canvas = np.zeros(1_000_100, dtype=bool)
    for start in starts.tolist():
        canvas[start : start + 40] = True
    found = merge(Interval("c", start, start + 40) for start in starts.tolist())
    assert sum(map(len, found)) == canvas.sum()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: merge([], within=-1), "expected within >= 0 bases, got -1"),
        (lambda: complement([Interval("z", 0, 1)], LENGTHS), "no contig 'z'"),
        (lambda: slop([Interval("b", 0, 26)], LENGTHS, before=1, after=1), "'b' ends at 25 bp"),
        (lambda: centred_windows([Interval("a", 0, 1)], 0, LENGTHS), "at least 1 base"),
    ],
)
def test_what_lies_outside_of_the_genome_is_refused(what, said):
    with pytest.raises((ConfigError, GenomeError), match=said):
        what()
