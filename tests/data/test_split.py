"""Split rules: disjoint parts, stated gaps, full cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dnassm.data.interval import Interval
from dnassm.data.split import PARTS, parse_split
from dnassm.errors import ConfigError, GenomeError

genomes = st.lists(st.integers(1, 300), min_size=1, max_size=5).map(
    lambda lengths: {f"c{i}": length for i, length in enumerate(lengths)}
)


@st.composite
def rules(draw) -> str:
    gap = draw(st.integers(0, 10))
    if draw(st.booleans()):
        return f"halves:gap={gap}"
    size, every = draw(st.integers(1, 60)), draw(st.integers(2, 6))
    valid = draw(st.sampled_from(["none", *range(every)]))
    test = draw(st.sampled_from(["none", *range(every)]))
    assume(valid != test)
    return f"blocks:size={size},every={every},gap={gap},valid={valid},test={test}"


def painted(splits, lengths) -> dict[str, np.ndarray]:
    """Per base the number of its part, -1 where it has none; no base is painted twice."""
    canvas = {contig: np.full(length, -1) for contig, length in lengths.items()}
    for number, part in enumerate(PARTS):
        for interval in splits[part]:
            stretch = canvas[interval.contig][interval.start : interval.end]
            assert len(stretch) == len(interval) > 0
            assert (stretch == -1).all()
            stretch[:] = number
    return canvas


@given(rules(), genomes)
def test_parts_are_disjoint_and_keep_the_gap_and_without_a_gap_cover_the_genome(text, lengths):
    rule = parse_split(text)
    try:
        splits = rule.apply(lengths)
    except ConfigError:
        return  # a part is empty; has its own test
    ungapped = {c: np.concatenate([np.full(e - s, PARTS.index(p)) for s, e, p in pieces])
                for c, pieces in rule.tile(lengths)}  # fmt: skip
    for contig, canvas in painted(splits, lengths).items():
        borders = np.flatnonzero(np.diff(ungapped[contig])) + 1
        near = np.zeros(len(canvas), dtype=bool)
        for border in borders:
            near[max(0, border - rule.gap) : border + rule.gap] = True
        assert np.array_equal(canvas == -1, near)
        assert np.array_equal(canvas[~near], ungapped[contig][~near])


@given(rules())
def test_the_text_of_a_rule_reads_back_as_the_same_rule(text):
    try:
        rule = parse_split(text)
    except ConfigError:
        return
    assert parse_split(rule.text) == rule


def test_without_a_rule_everything_trains():
    splits = parse_split("none").apply({"a": 5, "b": 7})
    assert splits["train"] == (Interval("a", 0, 5), Interval("b", 0, 7))
    assert splits["valid"] == splits["test"] == ()


def test_whole_contigs_are_held_out_by_name():
    splits = parse_split("contig:valid=c,test=a,test=b").apply(dict.fromkeys("abcd", 9))
    assert [i.contig for i in splits["test"]] == ["a", "b"]
    assert [i.contig for i in splits["valid"]] == ["c"]
    assert [i.contig for i in splits["train"]] == ["d"]


def test_the_last_of_every_ten_blocks_tests_by_default():
    splits = parse_split("blocks:size=50000,every=10").apply({"chr": 4_641_652})
    assert splits["test"][0] == Interval("chr", 450_000, 500_000)
    assert len(splits["test"]) == 9
    assert splits["valid"] == ()
    assert sum(map(len, splits["train"] + splits["test"])) == 4_641_652


def test_blocks_are_numbered_through_all_contigs_so_that_small_contigs_are_held_out_too():
    splits = parse_split("blocks:size=100,every=4").apply({f"c{i}": 50 for i in range(8)})
    assert [i.contig for i in splits["test"]] == ["c3", "c7"]


def test_a_gap_is_dropped_on_both_sides_of_a_border_and_nowhere_else():
    splits = parse_split("halves:gap=3").apply({"a": 21})
    assert splits["train"] == (Interval("a", 0, 7),)
    assert splits["test"] == (Interval("a", 13, 21),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("blcoks:size=5,every=2", "Did you mean 'blocks'"),
        ("", "no split rule ''"),
        ("none:gap=3", "no option 'gap'"),
        ("blocks:every=2", "size=NUMBER once, got 0"),
        ("blocks:size=5,size=6,every=2", "size=NUMBER once, got 2"),
        ("blocks:size=0,every=2", "size must be a whole number >= 1"),
        ("blocks:size=5e3,every=2", "size must be a whole number >= 1, got '5e3'"),
        ("blocks:size=5,every=1", "every must be a whole number >= 2"),
        ("blocks:size=5,every=2,gap=-1", "gap must be"),
        ("blocks:size=5,every=4,test=4", "test=4 must be below every=4"),
        ("blocks:size=5,every=4,valid=3", "valid and test are both block 3"),
        ("blocks:size=5,every=4,test=none", "holds nothing out"),
        ("blocks:size=5,every=4,tset=1", "Did you mean 'test'"),
        ("blocks:5", "expected key=value, got '5'"),
        ("contig:", "expected valid=CONTIG or test=CONTIG"),
        ("contig:valid=a,test=a", "'a' is named twice"),
    ],
)
def test_a_wrong_rule_is_refused_with_what_is_wrong(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_split(text)
    assert words in str(caught.value)


def test_a_contig_that_does_not_exist_is_named_with_the_nearest_one():
    with pytest.raises(GenomeError, match=r"no contig 'chr9'.* Did you mean 'chr8'"):
        parse_split("contig:test=chr9").apply({"chr1": 5, "chr8": 5})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("blocks:size=50,every=10", "test"),
        ("contig:test=a", "train"),
        ("halves:gap=60", "train"),
        ("blocks:size=10,every=5,test=2,gap=5", "test"),
    ],
)
def test_a_rule_that_leaves_a_part_empty_is_refused(text, part):
    with pytest.raises(ConfigError, match=f"leaves no base to {part}"):
        parse_split(text).apply({"a": 100})
