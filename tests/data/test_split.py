"""Split rules: disjoint parts, stated gaps, full cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dnassm.data.interval import Interval
from dnassm.data.split import PARTS, parse_split
from dnassm.data.store import append_to_store, build_store
from dnassm.errors import ArtifactError, ConfigError, FormatError, GenomeError

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


def bed(tmp_path, text, name="split.bed"):
    path = tmp_path / name
    path.write_text(text.replace(" ", "\t"))
    return path


def test_a_bed_names_the_part_of_each_region_and_the_rest_belongs_to_none(tmp_path):
    path = bed(tmp_path, "a 0 10 train\na 5 12 train\na 20 30 test\nb 3 9 dev\n")
    splits = parse_split(f"bed:{path}").apply({"a": 40, "b": 9})
    assert splits["train"] == (Interval("a", 0, 12),)
    assert splits["test"] == (Interval("a", 20, 30),)
    assert splits["valid"] == (Interval("b", 3, 9),)


def test_a_header_column_split_goes_before_column_4_and_the_rest_may_train(tmp_path):
    path = bed(tmp_path, "#chrom start end name split\na 5 10 enhancer test\n")
    splits = parse_split(f"bed:{path},rest=train").apply({"a": 12, "b": 4})
    assert splits["train"] == (Interval("a", 0, 5), Interval("a", 10, 12), Interval("b", 0, 4))


def test_one_bed_per_part_is_the_same_split(tmp_path):
    one = bed(tmp_path, "1 0 10 train\n1 10 30 test\n")
    train, test = bed(tmp_path, "1 0 10\n", "a"), bed(tmp_path, "1 10 30\n", "b")
    lengths = {"chr1": 40}
    two = parse_split(f"bed:train={train},test={test},gap=2")
    assert two.apply(lengths) == parse_split(f"bed:{one},gap=2").apply(lengths)
    assert two.apply(lengths)["train"] == (Interval("chr1", 0, 8),)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 15), st.sampled_from(PARTS)), min_size=2),
    st.integers(0, 12),
    st.booleans(),
)
@example(
    rows=[(1, 1, "valid"), (1, 0, "valid"), (1, 1, "train"), (1, 0, "train")], gap=3, rest=False
)
def test_any_bed_keeps_its_regions_and_the_gap_between_parts(tmp_path_factory, rows, gap, rest):
    at, lines, truth = 0, [], []
    for length, hole, part in rows:
        lines.append(f"c\t{at}\t{at + length}\t{part}")
        truth += [PARTS.index(part)] * length + [0 if rest else -1] * hole
        at += length + hole
    path = tmp_path_factory.mktemp("bed") / "split.bed"
    path.write_text("\n".join(lines))
    try:
        rule = parse_split(f"bed:{path},gap={gap}" + (",rest=train" if rest else ""))
        splits = rule.apply({"c": at})
    except ConfigError:
        return  # a part is empty, or nothing is held out; have their own tests
    assert parse_split(rule.text) == rule
    canvas = painted(splits, {"c": at})["c"]
    kept = np.flatnonzero(canvas >= 0)
    assert np.array_equal(canvas[kept], np.array(truth)[kept])
    borders = np.flatnonzero(np.diff(canvas[kept]))
    assert (kept[borders + 1] - kept[borders] > 2 * gap).all()
    if gap == 0:
        assert np.array_equal(canvas, truth)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 0 10 train\na 9 20 test\n", r"split.bed:2: test region a:\[9, 20\) overlaps the train"),
        ("a 0 9 train\na 1 2 train\na 3 4 test\n", r"split.bed:3: .* of .*split.bed:1; a base"),
        ("a 0 10 train\nz 9 20 test\n", "split.bed:2: no contig 'z' in the genome"),
        ("a 0 10 train\na 10 41 test\n", r"split.bed:2: contig 'a' of the genome ends at 40 bp"),
        ("a 0 10 train\na 10 20 tset\n", "split.bed:2: expected train, .*Did you mean 'test'"),
        ("a 0 10 train\na 10 20\n", "split.bed:2: expected train, valid or test .* got ''"),
        ("a 0 10 train\na 10 10 test\n", "split.bed:2: expected a region of at least 1 base"),
        ("a 0 10 train\n", "holds nothing out"),
        ("a 0 10 test\n", "leaves no base to train"),
    ],
)
def test_a_bed_that_makes_no_split_is_refused_with_its_line(tmp_path, text, words):
    path = bed(tmp_path, text)
    with pytest.raises((GenomeError, FormatError, ConfigError), match=words):
        parse_split(f"bed:{path}").apply({"a": 40})


def test_rules_that_name_no_bed_files_are_refused(tmp_path):
    path = bed(tmp_path, "a 0 10 train\na 10 20 test\n")
    for rule, words in [
        ("bed:", "expected bed:FILE"),
        (f"bed:{path},test={path}", "expected bed:FILE"),
        (f"bed:{path},rest=test", "rest must be none or train, got test"),
        (f"bed:{path},gpa=3", "Did you mean 'gap'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            parse_split(rule)
    with pytest.raises(ArtifactError, match=r"nothing\.bed: expected a BED file"):
        parse_split(f"bed:{tmp_path / 'nothing.bed'}")


def test_a_rule_that_a_store_keeps_refuses_a_bed_that_has_changed(tmp_path):
    path = bed(tmp_path, "a 0 10 train\na 10 20 test\n")
    text = parse_split(f"bed:{path}").text
    bed(tmp_path, "a 0 10 train\na 10 30 test\n")
    with pytest.raises(ConfigError, match="the BED files have changed"):
        parse_split(text)


def test_a_store_is_built_and_appended_to_under_the_split_of_a_bed(tmp_path):
    for name, contig in (("one.fa", "a"), ("two.fa", "b")):
        (tmp_path / name).write_text(f">{contig}\n{'ACGT' * 5}\n")
    path = bed(tmp_path, "a 0 10 train\na 12 20 test\n")
    store = build_store([tmp_path / "one.fa"], tmp_path / "s", split=f"bed:{path},rest=train")
    assert store.splits["train"] == (Interval("a", 0, 12),)
    store = append_to_store([tmp_path / "two.fa"], tmp_path / "s")
    assert store.splits["train"] == (Interval("a", 0, 12), Interval("b", 0, 20))
    assert store.splits["test"] == (Interval("a", 12, 20),)
