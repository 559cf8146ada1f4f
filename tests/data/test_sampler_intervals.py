"""One window per interval and epoch: where it lies, and which intervals are left out."""

from __future__ import annotations

import numpy as np
import pytest

from dnassm.data.annotation import read_bed
from dnassm.data.interval import Interval
from dnassm.data.samplers.intervals import IntervalsSampler
from dnassm.data.store import GenomeStore, build_store
from dnassm.errors import ConfigError, GenomeError

SIZE = 1000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    """The first half of c is for training; N from 300 to 400."""
    bases = np.random.default_rng(9).choice(list("ACGT"), SIZE)
    bases[300:400] = "N"
    folder = tmp_path_factory.mktemp("genome")
    (folder / "genome.fa").write_text(f">c\n{''.join(bases)}\n>d\n{'ACGTT' * 20}\n")
    return build_store([folder / "genome.fa"], folder / "store", split="halves")


def windows(store, tmp_path, text: str, *, epoch: int = 0, **options) -> list[Interval]:
    path = tmp_path / "rows.bed"
    path.write_text(text)
    options = {"length": 20, "rc_probability": 0.0} | options
    sampler = IntervalsSampler(store, bed=path, **options)
    return sorted(sampler(5, epoch, i) for i in range(len(sampler)))


def hyenadna(start: int, end: int, length: int, size: int) -> tuple[int, int]:
    """The rule of HyenaDNA's hg38_dataset.py, in words of its own."""
    size_of_row = end - start
    if size_of_row < length:
        lacking = length - size_of_row
        start, end = start - lacking // 2, end + (lacking - lacking // 2)
    start, end = max(start, 0), min(end, size)
    return (start, start + length) if size_of_row > length else (start, end)


@pytest.mark.parametrize("length", [10, 25, 26, 27, 40, 63, 100])
def test_a_window_is_the_one_of_hyenadna_where_that_is_not_cut_short(length, store, tmp_path):
    rows = [(100, 126), (450, 451), (700, 763), (820, 920)]
    text = "".join(f"c\t{start}\t{end}\ttrain\n" for start, end in rows)
    found = windows(store, tmp_path, text, length=length)
    assert [(w.start, w.end) for w in found] == [hyenadna(*row, length, SIZE) for row in rows]


def test_a_window_that_would_cross_an_end_moves_inward_and_keeps_its_length(store, tmp_path):
    text = "c\t0\t4\ttrain\nc\t996\t1000\ttrain\n"
    found = windows(store, tmp_path, text)
    assert [(w.start, w.end) for w in found] == [(0, 20), (980, 1000)]


def test_without_splits_of_its_own_a_file_keeps_to_the_split_of_the_store(store, tmp_path):
    text = "c\t495\t500\nc\t490\t510\nc\t600\t700\nd\t0\t10\n"
    assert windows(store, tmp_path, text) == [Interval("c", 480, 500), Interval("d", 0, 20)]
    assert windows(store, tmp_path, text, split="test") == [Interval("c", 600, 620)]


def test_splits_may_stand_in_the_fourth_column_or_in_a_named_one(store, tmp_path):
    fourth = "c\t0\t30\ttrain\nc\t600\t640\tval\nc\t700\t740\tvalid\n"
    expected = [Interval("c", 600, 620), Interval("c", 700, 720)]
    assert windows(store, tmp_path, fourth, split="valid") == expected
    named = "chrom\tstart\tend\tname\tsplit\nc\t0\t30\tx\ttrain\nc\t600\t640\ty\tvalid\n"
    assert windows(store, tmp_path, named, split="valid") == expected[:1]


@pytest.mark.parametrize(("place", "start"), [("start", 100), ("centre", 120)])
def test_a_window_lies_where_it_was_asked_for(place, start, store, tmp_path):
    found = windows(store, tmp_path, "c\t100\t161\ttrain\n", place=place)
    assert [(w.start, w.end) for w in found] == [(start, start + 20)]


def test_a_random_window_is_anywhere_in_its_interval_and_new_in_each_epoch(store, tmp_path):
    starts = [
        windows(store, tmp_path, "c\t100\t130\ttrain\n", place="random", epoch=epoch)[0].start
        for epoch in range(150)
    ]
    assert set(starts) == set(range(100, 111))


def test_intervals_of_too_many_unknown_bases_are_left_out(store, tmp_path):
    text = "c\t290\t320\ttrain\nc\t300\t330\ttrain\nc\t385\t420\ttrain\n"
    assert [w.start for w in windows(store, tmp_path, text)] == [290, 385]
    assert [w.start for w in windows(store, tmp_path, text, max_n_fraction=0.5)] == [290]
    moved = windows(store, tmp_path, text, place="random", max_n_fraction=0.0)
    assert [(w.start >= 400, w.end <= 420) for w in moved] == [(True, True)]


def test_a_contig_may_have_another_of_its_names_in_the_file(store, tmp_path):
    assert windows(store, tmp_path, "chrc\t100\t130\ttrain\n") == [Interval("c", 100, 120)]


def test_every_interval_comes_once_per_epoch_in_another_order(store, tmp_path):
    path = tmp_path / "rows.bed"
    path.write_text("".join(f"c\t{i}\t{i + 30}\ttrain\n" for i in range(0, 280, 7)))
    sampler = IntervalsSampler(store, length=20, rc_probability=0.0, bed=path)
    epochs = [[sampler(5, epoch, i).start for i in range(40)] for epoch in range(3)]
    assert len(sampler) == 40
    for starts in epochs:
        assert sorted(starts) == list(range(0, 280, 7))
    assert len({tuple(starts) for starts in epochs}) == 3


def test_without_a_file_the_intervals_of_the_split_have_a_window_each(store):
    sampler = IntervalsSampler(store, length=20, rc_probability=0.0, split="test")
    assert {sampler(0, 0, i) for i in range(2)} == {Interval("c", 500, 520), Interval("d", 50, 70)}


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("c\t0\t9\ttrain\n", {"place": "end"}, ConfigError, "place: expected one of start, centre"),
        ("c\t0\t9\ttrain\n", {"split": "valid"}, GenomeError, "got none among 1; check its split"),
        ("c\t0\t9\n", {"split": "valid"}, GenomeError, "split 'valid' is empty"),
        ("c\t490\t510\n", {}, GenomeError, "got none among 1; none is inside that split"),
        ("", {}, GenomeError, "got none among 0"),
        ("c\t990\t1001\n", {}, GenomeError, r"rows.bed:1: expected an end of at most 1000"),
        ("x\t0\t9\n", {}, GenomeError, "rows.bed"),
        ("c\t0\t9\ncc\t0\t9\n", {}, GenomeError, "rows.bed:2: expected a contig of .*got 'cc'"),
        ("d\t0\t9\n", {"length": 51}, GenomeError, "no window of 51 bp"),
        ("c\t310\t350\n", {}, GenomeError, "no window of 20 bp with few enough N"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_its_reason(
    text, options, error, message, store, tmp_path
):
    with pytest.raises(error, match=message) as caught:
        windows(store, tmp_path, text, **options)
    assert "\n" not in str(caught.value)


def test_transcripts_of_yeast_have_a_window_each_though_their_contigs_are_called_chr(
    real_data, tmp_path
):
    folder = real_data / "yeast_s288c"
    genome = next(folder.glob("*.fa.gz"))
    store = build_store([genome], tmp_path / "store")
    bed = folder / "Scer_transcripts_w_verifiedORFs.bed.gz"
    sampler = IntervalsSampler(store, length=1024, bed=bed, place="centre")
    records = read_bed(bed)
    assert len(sampler) == len(records)
    found = {sampler(0, 0, i) for i in range(len(sampler))}
    for record in records[::100]:
        interval = record.interval
        start = interval.start + len(interval) // 2 - 512
        contig = interval.contig.removeprefix("chr")
        assert {Interval(contig, start, start + 1024, strand) for strand in "+-"} & found
