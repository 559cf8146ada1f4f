"""Interval algebra against the plainest truth: sets of bases."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
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


@settings(deadline=None)
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


@settings(deadline=None)
@given(several, st.integers(0, 6))
def test_merging_within_a_distance_fills_the_holes_up_to_it(one, within):
    truth = bases(one, stranded=False)
    for before, after in zip(merge(one), merge(one)[1:], strict=False):
        if before.contig == after.contig and after.start - before.end <= within:
            truth |= {(before.contig, "+", at) for at in range(before.end, after.start)}
    assert bases(merge(one, within=within), stranded=False) == truth


@settings(deadline=None)
@given(several, st.integers(0, 9), st.integers(0, 9))
def test_slop_adds_bases_in_the_reading_direction_within_the_contig(one, before, after):
    for old, new in zip(one, slop(one, LENGTHS, before=before, after=after), strict=True):
        left, right = (before, after) if old.strand == "+" else (after, before)
        assert (new.contig, new.strand) == (old.contig, old.strand)
        assert new.start == max(0, old.start - left)
        assert new.end == min(LENGTHS[old.contig], old.end + right)


def test_slop_may_take_away_all_there_is():
    assert slop([Interval("a", 10, 14)], LENGTHS, before=-9, after=-9) == [Interval("a", 12, 12)]


def test_results_come_contig_by_contig_as_they_first_occur_and_strand_by_strand():
    names = ["chr10", "chr2", "a:5-9", "HLA-A*01:01", "", "7"]
    one = [
        Interval(name, start, start + 5, strand)
        for start in (20, 3, 9)
        for name, strand in itertools.product(names, "-+")
    ]
    assert list(dict.fromkeys(i.contig for i in merge(one))) == names
    assert [(i.contig, i.strand, i.start) for i in merge(one, stranded=True)] == [
        (name, strand, start)
        for name, strand in itertools.product(names, "-+")
        for start in (3, 9, 20)
    ]
    late = [*reversed(one), Interval("none", 0, 9)]
    for found in (intersect(one, late), subtract(one, [i for i in late if i.start == 3])):
        assert list(dict.fromkeys(i.contig for i in found)) == names
    whole = dict.fromkeys(names[::-1], 30)
    assert list(dict.fromkeys(i.contig for i in complement(one, whole))) == names[::-1]
    index, distance = nearest(one, late)
    assert distance.tolist() == [0] * len(one)
    assert all(late[at].contig == i.contig for at, i in zip(index.tolist(), one, strict=True))


def test_nothing_makes_nothing_and_an_empty_interval_holds_no_base():
    nothing, empty, some = [], [Interval("a", 4, 4), Interval("b", 0, 0)], [Interval("a", 2, 9)]
    for void in (nothing, empty):
        assert merge(void) == intersect(void, some) == intersect(some, void) == []
        assert subtract(void, some) == []
        assert subtract(some, void) == some
    assert merge([*empty, *some]) == some
    assert complement(empty, {"a": 9, "b": 0, "c": 3}) == [Interval("a", 0, 9), Interval("c", 0, 3)]
    assert complement([Interval("a", 0, 9)], {"a": 9}) == complement([], {}) == []


def test_bases_beyond_32_bits_and_at_the_ends_of_what_a_bed_file_may_say_are_exact():
    last = 10**18 - 1
    far = [Interval("a", 3 * 10**9, 3 * 10**9 + 5), Interval("a", last - 2, last)]
    assert merge(far) == intersect(far, far) == far
    assert subtract([Interval("a", 0, last)], far)[1] == Interval("a", far[0].end, far[1].start)
    assert nearest([Interval("a", 0, 1)], far)[1].tolist() == [3 * 10**9 - 1]
    assert merge(far, within=last) == [Interval("a", far[0].start, last)]


def test_the_library_behind_the_algebra_waits_for_its_first_use():
    code = (
        "import sys, dnassm.data.intervals, dnassm.pipelines.cli; "
        "sys.exit(any(name in sys.modules for name in ('bioframe', 'pandas')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def between(one, other):
    return max(one.start - other.end, other.start - one.end, 0)


@settings(deadline=None)
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


@settings(deadline=None)
@given(several, several.map(lambda targets: [t for t in targets if len(t)]))
def test_of_several_targets_as_near_one_goes_first_by_a_rule(queries, targets):
    def rank(query, target):
        base = Interval(query.contig, query.start, max(query.end, query.start + 1))
        return between(query, target), not base.overlaps(target), target.start, -target.end

    index, _ = nearest(queries, targets)
    for query, at in zip(queries, index.tolist(), strict=True):
        here = [n for n, target in enumerate(targets) if target.contig == query.contig]
        assert at == min(here, key=lambda n: rank(query, targets[n]), default=-1)


@settings(deadline=None)
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
