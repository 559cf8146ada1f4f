"""Keys and answers: the label follows from the bases D before the key, and from nothing nearer."""

from __future__ import annotations

import csv
import json
from itertools import pairwise

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.baselines.kmer import KmerClassifier
from dnassm.data.annotation import read_bed
from dnassm.data.simulation.long_range import simulate_long_range, write_long_range
from dnassm.data.split import parse_split
from dnassm.errors import ConfigError
from dnassm.metrics import auroc
from dnassm.pipelines.simulate import command

DISTANCE = 500_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("sim") / "far"
    result = simulate_long_range(length=2_400_000, seed=1, contigs=3, distance=DISTANCE)
    write_long_range(result, out)
    records = (out / "genome.fa").read_text().split(">")[1:]
    contigs = {r.split()[0]: "".join(r.splitlines()[1:]) for r in records}
    with (out / "truth.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    truth = json.loads((out / "run.json").read_text())["config"]["truth"]
    return out, contigs, rows, truth


def test_every_answer_stands_behind_the_signal_that_lies_the_distance_before_its_key(made):
    _, contigs, rows, truth = made
    words = truth["words"]
    for row in rows:
        bases = contigs[row["contig"]]
        signal, key = int(row["signal_start"]), int(row["key_start"])
        assert key - signal == DISTANCE
        assert bases[signal : signal + 12] == words["signal"]
        assert bases[key : key + 12] == words["key"]
        assert bases[signal + 12 : signal + 24] == bases[key + 12 : key + 24] == row["barcode"]
        value = bases[signal + 24 : signal + 32]
        assert value == words[row["label"]] == row["value"]
        assert bases[int(row["answer_start"]) : int(row["answer_end"])] == value
        assert int(row["answer_start"]) == key + 24


def test_the_label_can_be_looked_up_from_the_sequence_alone(made):
    _, contigs, rows, truth = made
    words = truth["words"]
    found = 0
    for name, bases in contigs.items():
        values, at = {}, bases.find(words["signal"])
        while at >= 0:
            assert values.setdefault(bases[at + 12 : at + 24], bases[at + 24 : at + 32])
            at = bases.find(words["signal"], at + 1)
        keys = [row for row in rows if row["contig"] == name]
        assert len(values) == len(keys) == bases.count(words["key"])
        found += len(keys)
        assert all(words[row["label"]] == values[row["barcode"]] for row in keys)
    assert found == len(rows) > 1500
    assert len({row["barcode"] for row in rows}) == len(rows)


def test_labels_are_even_and_what_stands_near_the_key_does_not_tell_them(made):
    _, contigs, rows, _ = made
    near = {"train": ([], []), "test": ([], []), "valid": ([], [])}
    for row in rows:
        at = int(row["answer_start"])
        near[row["split"]][0].append(contigs[row["contig"]][at - 100 : at])
        near[row["split"]][1].append(row["label"])
    for _, labels in near.values():
        assert abs(labels.count("0") - labels.count("1")) <= 1
    scores = KmerClassifier().fit(*near["train"]).predict_proba(near["test"][0])
    chance = auroc([int(x) for x in near["test"][1]], scores[:, 1], resamples=200)
    assert chance.low < 0.5 < chance.high or abs(chance.value - 0.5) < 0.06


def test_windows_hold_signal_and_key_without_the_answer_and_are_split_by_contig(made):
    out, contigs, rows, truth = made
    records = read_bed(out / "labels.bed")
    rule = parse_split(truth["split"])
    part_of = {
        interval.contig: part
        for part, intervals in rule.apply({n: len(s) for n, s in contigs.items()}).items()
        for interval in intervals
    }
    assert part_of == {"far1": "train", "far2": "valid", "far3": "test"}
    for record, row in zip(records, rows, strict=True):
        assert (record.interval.start, record.interval.end) == (
            int(row["signal_start"]),
            int(row["answer_start"]),
        )
        assert (record.label, record.split) == (row["label"], row["split"])
        assert part_of[record.interval.contig] == record.split


@settings(max_examples=15, deadline=None)
@given(st.integers(1000, 9000), st.integers(2, 4), st.integers(0, 5000), st.integers(0, 10**6))
def test_any_distance_gives_examples_that_do_not_overlap(distance, contigs, more, seed):
    length = contigs * (distance + 1000) + more
    made = simulate_long_range(length=length, seed=seed, contigs=contigs, distance=distance)
    assert made == simulate_long_range(length=length, seed=seed, contigs=contigs, distance=distance)
    assert sum(map(len, made.contigs.values())) == length
    for name, bases in made.contigs.items():
        mine = [e for e in made.examples if e.contig == name]
        assert len(mine) >= 2
        starts = sorted([e.signal for e in mine] + [e.key for e in mine])
        assert all(b - a >= 32 for a, b in pairwise(starts))
        assert starts[-1] + 32 <= len(bases)
        for word, place in (("signal", "signal"), ("key", "key")):
            places = {getattr(e, place) for e in mine}
            assert bases.count(made.words[word]) == len(places)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"contigs": 1}, "at least 2 contigs"),
        ({"distance": 999}, "distance must be at least 1000"),
        ({"length": 1_001_999}, "at least 501,000 bases for each contig"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_settings_that_leave_no_room_are_refused(settings_, words):
    with pytest.raises(ConfigError, match=words):
        simulate_long_range(**({"length": 2_000_000, "seed": 0} | settings_))


def test_the_command_knows_every_kind(tmp_path):
    out = str(tmp_path / "sim")
    options = ["--out", out, "--kind", "long-range", "--length", "20000", "--distance", "3000"]
    result = CliRunner().invoke(command, [*options, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["split"] == "contig:test=far2"
    again = CliRunner().invoke(command, [*options, "--force"])
    assert "contig:test=far2" in again.stdout
