"""Leakage between the parts of a split: planted copies are found, all of them and no others."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.alphabet import decode, encode_ascii, reverse_complement
from dnassm.data.labelled import read_labelled
from dnassm.data.leakage import leakage_of_folds, leakage_of_sequences, leakage_of_store
from dnassm.data.leakage_copies import count_duplicates
from dnassm.data.leakage_sketch import Sketcher, containment, scaled_for
from dnassm.data.leakage_windows import find_windows
from dnassm.data.store import build_store
from dnassm.errors import ConfigError, GenomeError, MissingExtraError
from dnassm.pipelines.cli import cli

try:
    Sketcher()
except MissingExtraError:  # pragma: no cover
    sourmash = False
else:
    sourmash = True
needs_sourmash = pytest.mark.skipif(not sourmash, reason="sourmash is not installed")


def drawn(length, seed):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def turned(bases):
    return decode(reverse_complement(encode_ascii(bases.encode())))


def canonical(bases, k):
    words = [bases[i : i + k] for i in range(len(bases) - k + 1)]
    return {min(word, turned(word)) for word in words if set(word) <= set("ACGT")}


@needs_sourmash
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ACGTN", min_size=0, max_size=30), min_size=1, max_size=4),
    st.lists(st.text("ACGTN", min_size=0, max_size=60), max_size=4),
)
def test_unsampled_containment_is_the_share_of_canonical_k_mers(ours, theirs):
    sketcher = Sketcher(5)
    known = set().union(*(canonical(text, 5) for text in theirs))
    found = containment([sketcher(text) for text in ours], map(sketcher, theirs))
    for text, share in zip(ours, found, strict=True):
        words = canonical(text, 5)
        assert share == (pytest.approx(len(words & known) / len(words)) if words else None)


@needs_sourmash
def test_sampled_containment_is_near_the_true_share():
    ours, sketcher = drawn(20_000, 1), Sketcher(21, scaled_for(20_000, 21))
    assert sketcher.scaled == 64
    theirs = turned(ours[:5000]) + drawn(50_000, 2)
    (share,) = containment([sketcher(ours)], [sketcher(theirs)])
    assert share == pytest.approx(0.25, abs=0.08)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ACGTN", min_size=6, max_size=6), min_size=1, max_size=8),
    st.text("ACGTN", max_size=200),
)
def test_windows_are_found_wherever_they_lie_on_either_strand(windows, genome):
    codes = [encode_ascii(window.encode()) for window in windows]
    finder = find_windows(codes, [encode_ascii(genome.lower().encode())])
    assert finder.exact.tolist() == [window in genome for window in windows]
    assert finder.reverse_complement.tolist() == [turned(window) in genome for window in windows]


def test_windows_across_the_pieces_that_are_read_are_found():
    genome = encode_ascii(drawn(600_000, 3).encode())
    starts = [0, 262_144 - 50, 262_143, 524_288 - 1, 600_000 - 100]
    windows = [genome[start : start + 100] for start in starts]
    windows.append(reverse_complement(genome[300_000:300_100]))
    finder = find_windows(windows, [genome])
    assert finder.exact.tolist() == [True] * 5 + [False]
    assert finder.reverse_complement.tolist() == [False] * 5 + [True]


@needs_sourmash
def test_the_parts_of_labelled_sequences_are_compared():
    base = [drawn(60, seed) for seed in range(20)]
    half = base[3][:40] + drawn(20, 99)  # 20 of its 40 k-mers are known
    test = [base[0], turned(base[1]).lower(), half, drawn(60, 98)]
    leak = leakage_of_sequences({"train": [*base, base[5]], "test": test, "valid": [test[3]]})
    assert leak.scaled == 1
    assert {(o.part, o.against) for o in leak.overlaps} == {
        ("test", "train"), ("valid", "train"), ("test", "valid")
    }  # fmt: skip
    found = leak.to_json()
    assert found["within"]["train"] == {"exact": 1, "reverse_complement": 0}
    row = next(o for o in found["between"] if (o["part"], o["against"]) == ("test", "train"))
    assert (row["compared"], row["exact"], row["reverse_complement"]) == (4, 1, 1)
    assert row["containment"]["at_least"] == {"0.5": 3, "0.8": 2, "1.0": 2}
    assert row["containment"]["histogram"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert [each["name"] for each in row["closest"]] == ["test:1", "test:2", "test:3"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@needs_sourmash
def test_folds_are_compared_with_all_others_together():
    sequences = [drawn(50, seed) for seed in range(6)]
    sequences[4] = sequences[0][:45] + "ACGTA"
    folds = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])]
    leak = leakage_of_folds(sequences, folds)
    assert [o.part for o in leak.overlaps] == ["fold 1", "fold 2", "fold 3"]
    assert leak.overlaps[2].names == ("row:5", "row:6")
    assert leak.overlaps[2].shares[0] > 0.8 > leak.overlaps[2].shares[1] == 0


@needs_sourmash
def test_the_windows_of_a_genome_are_held_against_every_base_of_the_other_parts(tmp_path):
    train, test = drawn(30_000, 1), drawn(8_000, 2)
    # Two copies and half a third, none of them where windows of train would begin.
    test = train[777:1777] + turned(train[20_001:21_001]) + test[2000:4000]
    test += train[5:505] + drawn(3500, 4)
    (tmp_path / "genome.fa").write_text(f">a\n{train.lower()}\n>b\n{test}\n>c\n{'N' * 4000}\n")
    store = build_store([tmp_path / "genome.fa"], tmp_path / "s", split="contig:test=b,test=c")
    leak = leakage_of_store(store, window=1000)
    (overlap,) = leak.overlaps
    assert len(overlap.names) == 8  # none of N
    assert overlap.copies.to_json() == {"exact": 1, "reverse_complement": 1}
    assert overlap.shares[:2] == (1.0, 1.0)
    assert overlap.shares[4] == pytest.approx(0.49, abs=0.1)
    assert max(overlap.shares[2], overlap.shares[3], *overlap.shares[5:]) < 0.05
    assert "windows of 1000 bp; k-mers of 21 bases" in leak.render()
    few = leakage_of_store(store, window=1000, most=3).overlaps[0].names
    assert few == ("b:0-1000", "b:6000-7000")  # the third is of N


def test_without_sourmash_copies_are_counted_and_the_reason_stands_in_the_report(monkeypatch):
    def refuse(name, *rest):
        if name == "sourmash":
            raise ModuleNotFoundError("gone", name="sourmash")
        return real_import(name, *rest)

    real_import = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", refuse)
    leak = leakage_of_sequences({"train": ["ACGT" * 9], "test": ["ACGT" * 9]})
    assert leak.overlaps[0].copies.exact == 1
    assert leak.overlaps[0].shares is None
    assert "needs sourmash" in leak.missing
    assert "dnassm[leakage]" in leak.render()


def test_settings_that_measure_nothing_are_refused(tmp_path):
    (tmp_path / "genome.fa").write_text(f">a\n{drawn(500, 0)}\n>b\n{'N' * 500}\n")
    store = build_store([tmp_path / "genome.fa"], tmp_path / "s")
    with pytest.raises(GenomeError, match="'none' holds nothing out"):
        leakage_of_store(store)
    store = build_store([tmp_path / "genome.fa"], tmp_path / "t", split="contig:test=b")
    with pytest.raises(GenomeError, match="'test' has no window of 1024 bp"):
        leakage_of_store(store)
    with pytest.raises(ConfigError, match="expected window >= k = 21"):
        leakage_of_store(store, window=20)
    with pytest.raises(ConfigError, match="odd number from 5 to 51, got 20"):
        leakage_of_sequences({"train": [], "test": []}, k=20)


@needs_sourmash
def test_inspect_shows_the_leakage_of_a_store_and_of_labelled_sequences(tmp_path):
    (tmp_path / "genome.fa").write_text(f">a\n{drawn(5000, 0)}\n>b\n{drawn(5000, 0)[1:]}\n")
    build_store([tmp_path / "genome.fa"], tmp_path / "s", split="contig:test=b")
    result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "s"), "--leakage"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split()[:5] == ["test", "train", "4", "4", "0"]
    table = tmp_path / "data.csv"
    table.write_text("sequence,label,split\n" + "".join(
        f"{drawn(40, seed)},1,{part}\n" for seed, part in [(1, "train"), (2, "train"), (1, "dev")]
    ))  # fmt: skip
    result = CliRunner().invoke(cli, ["inspect", str(table), "--leakage", "--json"])
    (row,) = json.loads(result.stdout)["leakage"]["between"]
    assert (row["part"], row["against"], row["exact"]) == ("valid", "train", 1)


@pytest.mark.parametrize(
    ("name", "exact", "reverse_complement"),
    [("ecoli_promoters/v9d3.csv.gz", 1, 2), ("uci_splice_promoter/splice.csv.gz", 185, 0)],
)
def test_real_sets_have_the_copies_that_they_have(real_data, name, exact, reverse_complement):
    found = count_duplicates(read_labelled(real_data / name).sequences)
    assert (found.exact, found.reverse_complement) == (exact, reverse_complement)


@needs_sourmash
def test_the_official_parts_of_a_published_task_leak(real_data):
    task = read_labelled(real_data / "gue/prom/prom_300_tata")
    parts = {part: task.part(part).sequences for part in ("train", "valid", "test")}
    found = {(o.part, o.against): o for o in leakage_of_sequences(parts).overlaps}
    assert found["test", "train"].copies.to_json() == {"exact": 6, "reverse_complement": 0}
    assert found["valid", "train"].copies.to_json() == {"exact": 14, "reverse_complement": 0}
    assert (found["test", "train"].measured() >= 0.8).sum() == 16
