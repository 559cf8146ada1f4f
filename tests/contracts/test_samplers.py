"""Laws over every registered sampler."""

from __future__ import annotations

import json
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
from dnassm.data.sampler import SAMPLERS, Sampler, mix64, permuted, splitmix64
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.data.windows import WindowDataset, make_loader
from dnassm.errors import ConfigError, GenomeError

NAMES = SAMPLERS.names()
LENGTH = 64
EVEN = ["tiled", "uniform"]
"""Samplers that promise to cover every base as often as every other."""
IN_ORDER = ["tiled"]
"""Samplers whose epochs are all the same, but for the strands."""
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
    (folder / "features.bed").write_text("one\t600\t1700\tgene\none\t3200\t3300\texon\n")
    rows = [f"{name}\t{i}\t{i + 130}" for name in ("one", "two") for i in range(0, 1850, 37)]
    (folder / "rows.bed").write_text("\n".join(rows))
    return build_store(
        [folder / "genome.fa"], folder / "store", split="blocks:size=500,every=5,gap=10"
    )


def options_of(name: str, store: GenomeStore) -> dict:
    """Settings of the sampler `name`, those that it cannot be without or says little without."""
    files = {
        "annotated": ("annotation", "features.bed"),
        **dict.fromkeys(("intervals", "caduceus", "mamba-dna"), ("bed", "rows.bed")),
    }
    own = {}
    if name in files:
        option, file = files[name]
        own[option] = str(store.path.parent / file)
    return {"split": "train", "length": LENGTH, "rc_probability": 0.5} | own


def build(name: str, store: GenomeStore, **changes) -> Sampler:
    return SAMPLERS[name](store, **(options_of(name, store) | changes))


@pytest.fixture(params=NAMES)
def sampler(request: pytest.FixtureRequest, store: GenomeStore) -> Sampler:
    return build(request.param, store)


def draw(sampler: Sampler, count: int, seed: int = 3) -> list[Interval]:
    return [sampler(seed, *divmod(i, len(sampler))) for i in range(count)]


def bases_of(store: GenomeStore, interval: Interval) -> np.ndarray:
    return store.fetch(interval) & 0x0F


def test_the_documented_samplers_are_registered():
    assert {"uniform", "tiled", "species", "annotated"} <= set(NAMES)
    assert {"intervals", "caduceus", "mamba-dna"} <= set(NAMES), "the published ones of rows"


def test_a_window_depends_on_seed_epoch_and_index_only(sampler):
    calls = [(seed, epoch, i) for seed in (0, 7) for epoch in (0, 1, 5) for i in range(40)]
    forward = {call: sampler(*call) for call in calls}
    random.Random(0).shuffle(calls)
    again = pickle.loads(pickle.dumps(sampler))
    assert {call: again(*call) for call in calls} == forward


IN_A_FRESH_PROCESS = """
import pickle, sys

sampler = pickle.load(sys.stdin.buffer)
print([str(sampler(3, *divmod(i, len(sampler)))) for i in range(100)])
"""


def test_another_process_draws_the_same_windows(sampler):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS],
        input=pickle.dumps(sampler),
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "123"},
    )
    assert done.stdout.decode().strip() == str([str(window) for window in draw(sampler, 100)])


IN_ANOTHER_PROCESS = """
import json, sys
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import GenomeStore

name, path, options = sys.argv[1:]
sampler = SAMPLERS[name](GenomeStore.open(path), **json.loads(options))
print([str(sampler(3, *divmod(i, len(sampler)))) for i in range(100)])
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_built_in_another_process_draws_the_same_windows(name, store):
    options = json.dumps(options_of(name, store))
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, name, str(store.path), options],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "123"},
    )
    assert done.stdout.strip() == str([str(window) for window in draw(build(name, store), 100)])


def batches(store: GenomeStore, sampler: Sampler, **loading) -> list[list]:
    dataset = WindowDataset(store, TOKENIZERS["single"](), sampler, seed=3)
    return [batch.tokens.tolist() for batch in make_loader(dataset, batch_size=3, **loading)]


def epoch_and_a_half(sampler: Sampler) -> int:
    """Batches of 3, so that a break can be in the middle of the second epoch."""
    return min(len(sampler) // 2 + 1, 40)


def test_a_run_resumed_anywhere_under_other_workers_sees_the_same_batches(sampler, store):
    count = epoch_and_a_half(sampler)
    whole = batches(store, sampler, batches=count)
    for seen, workers in ((1, 0), (count // 2, 2), (count - 1, 1)):
        rest = batches(store, sampler, batches=count - seen, start_batch=seen, workers=workers)
        assert rest == whole[seen:]


def test_ranks_share_one_stream_and_may_change_in_number_at_a_break(sampler, store):
    whole = batches(store, sampler, batches=12)
    for world_size in (2, 3):
        for rank in range(world_size):
            mine = batches(
                store, sampler, batches=12 // world_size, rank=rank, world_size=world_size
            )
            assert mine == whole[rank::world_size]
    first = [batches(store, sampler, batches=3, rank=r, world_size=2) for r in range(2)]
    rest = [
        batches(store, sampler, start_batch=2, batches=2, rank=r, world_size=3) for r in range(3)
    ]
    assert [b for pair in zip(*first, strict=True) for b in pair] == whole[:6]
    assert [b for three in zip(*rest, strict=True) for b in three] == whole[6:]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_ORDER])
def test_epochs_and_seeds_are_different_streams(name, store):
    sampler = build(name, store)
    streams = [
        tuple(sampler(seed, epoch, i) for i in range(min(20, len(sampler))))
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(streams)) == len(streams)


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
    sampler = build(name, store, max_n_fraction=fraction)
    unknown = [(bases_of(store, window) >= 4).sum() for window in draw(sampler, 2000)]
    assert max(unknown) <= min(fraction * LENGTH, LENGTH - 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_share_of_windows_on_the_minus_strand_is_the_one_asked_for(name, probability, store):
    sampler = build(name, store, rc_probability=probability)
    share = np.mean([window.strand == "-" for window in draw(sampler, 4000)])
    # five standard deviations of the mean of 4000 draws; exactly none and all at the ends
    assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / 4000)


def test_the_strand_says_nothing_about_the_place(sampler):
    windows = sorted(draw(sampler, 4000), key=lambda w: (w.contig, w.start))
    for half in (windows[:2000], windows[2000:]):
        assert 0.44 < np.mean([window.strand == "-" for window in half]) < 0.56


@pytest.mark.parametrize("name", EVEN)
def test_every_base_that_some_window_can_hold_is_covered_about_evenly(name, store):
    sampler = build(name, store)
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
    with pytest.raises(GenomeError, match="no window of 6000 bp") as caught:
        build(name, store, length=6000)
    assert str(store.path) in str(caught.value)
    assert "longest of" in str(caught.value)
    (tmp_path / "n.fa").write_text(">one\n" + "N" * 5000 + "\n")
    for file in ("features.bed", "rows.bed"):
        (tmp_path / file).write_text("one\t600\t1700\n")
    unknown = build_store([tmp_path / "n.fa"], tmp_path / "store")
    with pytest.raises(GenomeError, match="no window of 10 bp with few enough N"):
        build(name, unknown, length=10)


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
    with pytest.raises(error, match=message):
        build(name, store, **change)


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


@given(count=st.integers(1, 300), stream=st.integers(0, (1 << 64) - 1))
def test_a_permutation_has_every_place_once(count, stream):
    assert sorted(permuted(i, count, stream) for i in range(count)) == list(range(count))


def test_permutations_send_an_index_anywhere_and_neighbours_apart():
    """Chi-square of 20 places over 4000 streams: 19 degrees of freedom, mean 19, sd 6.2."""
    for index in (0, 7, 19):
        counts = np.bincount([permuted(index, 20, mix64(s)) for s in range(4000)], minlength=20)
        assert ((counts - 200) ** 2 / 200).sum() < 50
    together = sum(abs(permuted(i, 1000, 5) - permuted(i + 1, 1000, 5)) == 1 for i in range(999))
    assert together < 12  # 2 in 999 pairs by chance


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
