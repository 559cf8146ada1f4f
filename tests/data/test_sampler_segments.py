"""Caduceus's and Mamba's windows of the rows of a BED file, beside their published rules."""

from __future__ import annotations

import numpy as np
import pytest

from dnassm.data.interval import Interval
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import GenomeStore, build_store
from dnassm.errors import ConfigError, GenomeError

SIZE = 1000
ROWS = [(0, 64), (100, 164), (600, 664), (870, 934)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    """The first half of c is for training; N from 300 to 400."""
    bases = np.random.default_rng(9).choice(list("ACGT"), SIZE)
    bases[300:400] = "N"
    folder = tmp_path_factory.mktemp("genome")
    (folder / "genome.fa").write_text(f">c\n{''.join(bases)}\n")
    return build_store([folder / "genome.fa"], folder / "store", split="halves")


def rows(splits: str = "train") -> str:
    names = splits.split() * len(ROWS)
    return "".join(
        f"c\t{start}\t{end}\t{name}\n" for (start, end), name in zip(ROWS, names, strict=False)
    )


def build(name: str, store, tmp_path, text: str, **options):
    path = tmp_path / "rows.bed"
    path.write_text(text)
    return SAMPLERS[name](store, bed=path, **({"rc_probability": 0.0} | options))


def starts(sampler, epoch: int = 0) -> list[int]:
    return sorted(sampler(5, epoch, i).start for i in range(len(sampler)))


def with_bases(found: list[int], length: int) -> list[int]:
    """Those of the windows that are not of nothing but N."""
    return sorted(s for s in found if not (s >= 300 and s + length <= 400))


def caduceus(start: int, length: int, extent: int) -> list[int]:
    """Starts by the rule of Caduceus's hg38_dataset.py; each of them once."""
    found: list[int] = []
    for shift in range(extent // length):
        first, last = start + shift * length, start + (shift + 1) * length
        if last > SIZE:
            first = SIZE - length
        if first not in found:
            found.append(first)
    return found


@pytest.mark.parametrize("length", [16, 32, 64, 128, 256])
def test_caduceus_reads_an_extended_row_in_windows_side_by_side(length, store, tmp_path):
    sampler = build("caduceus", store, tmp_path, rows(), length=length, extent=256)
    expected = [s for start, _ in ROWS for s in caduceus(start, length, 256)]
    assert starts(sampler) == with_bases(expected, length)


def test_caduceus_reads_a_mebibase_from_the_start_of_a_row_unless_told_otherwise(store, tmp_path):
    far = build("caduceus", store, tmp_path, "c\t600\t664\ttrain\n", length=100)
    assert starts(far) == [600, 700, 800, 900]
    uneven = build("caduceus", store, tmp_path, "c\t650\t664\ttrain\n", length=100)
    assert starts(uneven) == [650, 750, 850, 900], "the last one moves inward"
    row = build("caduceus", store, tmp_path, "c\t600\t664\ttrain\n", length=30, extent=None)
    assert starts(row) == [600, 630]


def mamba(start: int, end: int, length: int) -> list[int]:
    """Starts by appendix E.3.1; moved inward at the ends of the contig."""
    if length <= end - start:
        return list(range(start, end - length + 1, length))
    return [min(max(place, 0), SIZE - length) for place in (start, end - length)]


@pytest.mark.parametrize("length", [16, 24, 64, 65, 128, 500])
def test_mamba_reads_the_whole_of_a_row_whatever_the_length(length, store, tmp_path):
    sampler = build("mamba-dna", store, tmp_path, rows(), length=length)
    expected = [s for row in ROWS for s in mamba(*row, length)]
    assert starts(sampler) == with_bases(expected, length)
    bases = len(ROWS) * 64
    if length in (16, 64):
        assert len(sampler) * length == bases, "each base of a row once in an epoch"
    if length > 64:
        assert len(sampler) == 2 * len(ROWS)


@pytest.mark.parametrize("name", ["caduceus", "mamba-dna", "intervals"])
def test_no_window_touches_a_row_of_another_split(name, store, tmp_path):
    text = rows("train test")
    held_out = [Interval("c", *row) for row in ROWS[1::2]]

    def touches(window: Interval) -> bool:
        return any(window.start < row.end and row.start < window.end for row in held_out)

    options = {"extent": 512} if name == "caduceus" else {}
    for length in (16, 64, 128):
        apart = build(name, store, tmp_path, text, length=length, **options)
        windows = [apart(0, 0, i) for i in range(len(apart))]
        assert not any(map(touches, windows))
        published = build(name, store, tmp_path, text, length=length, apart=False, **options)
        every = [published(0, 0, i) for i in range(len(published))]
        key = lambda w: (w.start, w.end)  # noqa: E731
        assert sorted(windows, key=key) == sorted((w for w in every if not touches(w)), key=key)
        if name == "caduceus":
            assert any(map(touches, every)), "an extended row reaches into the next one"


@pytest.mark.parametrize("name", ["caduceus", "mamba-dna"])
def test_without_splits_of_its_own_a_file_keeps_to_the_split_of_the_store(name, store, tmp_path):
    text = "c\t400\t470\nc\t490\t520\nc\t600\t700\n"
    sampler = build(name, store, tmp_path, text, length=80)
    found = [sampler(0, 0, i) for i in range(len(sampler))]
    assert found
    assert all(window.end <= 500 for window in found)


@pytest.mark.parametrize("name", ["caduceus", "mamba-dna"])
def test_every_window_comes_once_in_an_epoch_in_an_order_of_its_own(name, store, tmp_path):
    sampler = build(name, store, tmp_path, rows(), length=16)
    orders = {
        tuple(sampler(seed, epoch, i).start for i in range(len(sampler)))
        for seed in range(2)
        for epoch in range(3)
    }
    assert len(orders) == 6
    assert len({tuple(sorted(order)) for order in orders}) == 1


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "caduceus",
            {"extent": 8},
            ConfigError,
            "extent: expected at least length=16 bases, got 8",
        ),
        ("caduceus", {"apart": 1}, ConfigError, "apart: expected true or false, got 1"),
        ("mamba-dna", {"split": "valid"}, GenomeError, "got none among 4; check its split"),
        ("mamba-dna", {"length": 1001}, GenomeError, "no window of 1001 bp"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_its_reason(
    name, options, error, message, store, tmp_path
):
    with pytest.raises(error, match=message):
        build(name, store, tmp_path, rows(), **({"length": 16} | options))
