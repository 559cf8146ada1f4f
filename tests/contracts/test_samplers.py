"""Laws over every registered sampler."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.admissible import admissible_starts
from dnassm.data.interval import Interval
from dnassm.data.runs import Runs
from dnassm.data.sampler import SAMPLERS, Sampler, splitmix64
from dnassm.data.store import GenomeStore, build_store
from dnassm.errors import ConfigError, GenomeError

NAMES = SAMPLERS.names()
LENGTH = 64
N_RUNS = {"one": [(0, 500), (3000, 3100), (4990, 5000)], "two": [(700, 1600)]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    """Runs of N longer and shorter than a window, and a contig shorter than a window."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("genome")
    with (folder / "genome.fa").open("w") as fasta:
        for name, size in (("one", 5000), ("two", 2000), ("short", LENGTH - 1)):
            bases = rng.choice(list("ACGTacgt"), size)
            for start, end in N_RUNS.get(name, []):
                bases[start:end] = "N"
            fasta.write(f">{name}\n{''.join(bases)}\n")
    return build_store(
        [folder / "genome.fa"], folder / "store", split="blocks:size=500,every=5,gap=10"
    )


@pytest.fixture(params=NAMES)
def sampler(request: pytest.FixtureRequest, store: GenomeStore) -> Sampler:
    return SAMPLERS[request.param](store, split="train", length=LENGTH, rc_probability=0.5)


def draw(sampler: Sampler, count: int, seed: int = 3) -> list[Interval]:
    return [sampler(seed, *divmod(i, len(sampler))) for i in range(count)]


def bases_of(store: GenomeStore, interval: Interval) -> np.ndarray:
    return store.fetch(interval) & 0x0F


def test_uniform_and_tiled_are_registered():
    assert {"uniform", "tiled"} <= set(NAMES)


def test_a_window_depends_on_seed_epoch_and_index_only(sampler):
    calls = [(seed, epoch, i) for seed in (0, 7) for epoch in (0, 1, 5) for i in range(40)]
    forward = {call: sampler(*call) for call in calls}
    random.Random(0).shuffle(calls)
    again = pickle.loads(pickle.dumps(sampler))
    assert {call: again(*call) for call in calls} == forward


IN_A_FRESH_PROCESS = """
import sys
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import GenomeStore

name, path, length = sys.argv[1:]
store = GenomeStore.open(path)
sampler = SAMPLERS[name](store, split="train", length=int(length), rc_probability=0.5)
print([str(sampler(3, *divmod(i, len(sampler)))) for i in range(100)])
"""


def test_another_process_draws_the_same_windows(sampler, store):
    name = next(name for name in NAMES if SAMPLERS[name] is type(sampler))
    arguments = [name, str(store.path), str(LENGTH)]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "123"},
    )
    assert done.stdout.strip() == str([str(window) for window in draw(sampler, 100)])


def test_windows_have_their_length_and_stay_inside_one_interval_of_the_split(sampler, store):
    for window in draw(sampler, 2000):
        assert len(window) == LENGTH
        assert any(
            part.contig == window.contig and part.start <= window.start and window.end <= part.end
            for part in store.splits["train"]
        )


def test_no_window_is_of_nothing_but_unknown_bases(sampler, store):
    assert all((bases_of(store, window) < 4).any() for window in draw(sampler, 2000))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_no_window_has_more_unknown_bases_than_allowed(name, fraction, store):
    sampler = SAMPLERS[name](
        store, split="train", length=LENGTH, rc_probability=0.5, max_n_fraction=fraction
    )
    unknown = [(bases_of(store, window) >= 4).sum() for window in draw(sampler, 2000)]
    assert max(unknown) <= min(fraction * LENGTH, LENGTH - 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_share_of_windows_on_the_minus_strand_is_the_one_asked_for(name, probability, store):
    sampler = SAMPLERS[name](store, split="train", length=LENGTH, rc_probability=probability)
    share = np.mean([window.strand == "-" for window in draw(sampler, 4000)])
    # five standard deviations of the mean of 4000 draws; exactly none and all at the ends
    assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / 4000)


def test_the_strand_says_nothing_about_the_place(sampler):
    windows = sorted(draw(sampler, 4000), key=lambda w: (w.contig, w.start))
    for half in (windows[:2000], windows[2000:]):
        assert 0.44 < np.mean([window.strand == "-" for window in half]) < 0.56


def test_every_base_that_some_window_can_hold_is_covered_about_evenly(sampler, store):
    depth = {contig: np.zeros(length) for contig, length in store.lengths.items()}
    for window in draw(sampler, 40_000):
        depth[window.contig][window.start : window.end] += 1
    inner = np.concatenate(
        [
            depth[inside.contig][inside.start : inside.end][bases_of(store, inside) < 4]
            for part in store.splits["train"]
            if len(part) > 2 * LENGTH  # the ends of a part lie in fewer windows
            for inside in [Interval(part.contig, part.start + LENGTH, part.end - LENGTH)]
        ]
    )
    assert inner.size
    assert inner.min() > 0.7 * inner.mean()
    assert inner.max() < 1.3 * inner.mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_split_without_any_window_is_refused_at_once_naming_the_store(name, store, tmp_path):
    arguments = {"split": "train", "rc_probability": 0.5}
    with pytest.raises(GenomeError, match="no window of 6000 bp") as caught:
        SAMPLERS[name](store, length=6000, **arguments)
    assert str(store.path) in str(caught.value)
    assert "longest of" in str(caught.value)
    (tmp_path / "n.fa").write_text(">n\n" + "N" * 1000 + "\n")
    unknown = build_store([tmp_path / "n.fa"], tmp_path / "store")
    with pytest.raises(GenomeError, match="no window of 10 bp with few enough N"):
        SAMPLERS[name](unknown, length=10, **arguments)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "trian"}, GenomeError, "Did you mean 'train'"),
        ({"length": 0}, ConfigError, "length: expected at least 1"),
        ({"rc_probability": 1.5}, ConfigError, "rc_probability"),
        ({"max_n_fraction": -0.1}, ConfigError, "max_n_fraction"),
    ],
)
def test_a_wrong_argument_is_named(name, change, error, message, store):
    arguments = {"split": "train", "length": LENGTH, "rc_probability": 0.5} | change
    with pytest.raises(error, match=message):
        SAMPLERS[name](store, **arguments)


def test_an_index_outside_of_the_epoch_is_refused(sampler):
    for index in (-1, len(sampler)):
        with pytest.raises(ConfigError, match=f"got {index}"):
            sampler(0, 0, index)


def test_splitmix64_gives_the_published_numbers():
    """First outputs for the state 1234567, as Vigna's splitmix64.c prints them."""
    assert [splitmix64(1234567, i) for i in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_uniform_draws_every_admissible_start_and_no_other(store):
    sampler = SAMPLERS["uniform"](store, split="train", length=LENGTH, rc_probability=0.5)
    drawn = {(w.contig, w.start) for w in draw(sampler, 60_000)}
    expected = {
        (part.contig, start)
        for part in store.splits["train"]
        for start in range(part.start, part.end - LENGTH + 1)
        if (bases_of(store, Interval(part.contig, start, start + LENGTH)) < 4).any()
    }
    assert drawn == expected


def test_epochs_and_seeds_differ_and_seed_one_is_not_epoch_one(store):
    sampler = SAMPLERS["uniform"](store, split="train", length=LENGTH)
    streams = [
        tuple(sampler(seed, epoch, i) for i in range(20)) for seed in range(4) for epoch in range(4)
    ]
    assert len(set(streams)) == len(streams)


@pytest.mark.parametrize(
    ("step", "keep_partial"), [(64, False), (64, True), (17, True), (18, True), (90, True)]
)
def test_tiles_are_every_window_of_the_split_once_and_in_order(step, keep_partial, store):
    sampler = SAMPLERS["tiled"](
        store, split="train", length=LENGTH, step=step, keep_partial=keep_partial
    )
    expected = []
    for part in store.splits["train"]:
        end = part.start
        for start in range(part.start, part.end, step):
            if start + LENGTH > part.end and (not keep_partial or end >= part.end):
                break
            end = min(start + LENGTH, part.end)
            window = Interval(part.contig, start, end)
            if (bases_of(store, window) < 4).any():
                expected.append(window)
    assert draw(sampler, len(sampler)) == expected


@settings(max_examples=200)
@given(
    runs=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 25)), max_size=6),
    length=st.integers(1, 30),
    unknown=st.integers(0, 30),
    start=st.integers(0, 20),
    size=st.integers(0, 50),
)
def test_admissible_starts_are_those_that_counting_finds(runs, length, unknown, start, size):
    interval = Interval("c", start, start + size)
    mask = np.zeros(200, dtype=bool)
    for first, run in runs:
        mask[max(first, start) : min(first + run, start + size)] = True
    halves = [(0, mask[:37]), (37, mask[37:])]  # a run may be cut where a piece of the contig ends
    found = admissible_starts(Runs.of_mask(halves), interval, length, unknown)
    starts = [s for first, stop in found.tolist() for s in range(first, stop)]
    assert starts == [
        s for s in range(start, start + size - length + 1) if mask[s : s + length].sum() <= unknown
    ]
