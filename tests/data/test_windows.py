"""Batches of windows: the same whatever the workers, and after a break."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import pickle
import time

import numpy as np
import pytest
import torch

from dnassm.data.interval import Interval
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.data.windows import WindowDataset, make_loader
from dnassm.errors import ConfigError

LENGTH = 50


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    folder = tmp_path_factory.mktemp("genome")
    bases = "".join(np.random.default_rng(2).choice(list("ACGTacgtN"), 1030))
    (folder / "genome.fa").write_text(f">c\n{bases}\n")
    return build_store([folder / "genome.fa"], folder / "store")


def make(store: GenomeStore, sampler: str = "uniform", **options) -> WindowDataset:
    chosen = SAMPLERS[sampler](store, split="train", length=LENGTH, **options)
    return WindowDataset(store, TOKENIZERS["single"](), chosen, seed=11)


def digests(loader) -> list[str]:
    return [hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest() for batch in loader]


def test_an_item_is_the_window_of_its_index_in_its_epoch(store):
    dataset = make(store)
    windows = len(dataset)
    assert windows == 1030 // LENGTH
    for index in (0, 1, windows - 1, windows, 5 * windows + 3):
        epoch, number = divmod(index, windows)
        interval = dataset.sampler(11, epoch, number)
        expected = dataset.tokenizer.encode_codes(store.fetch(interval))
        assert dataset[index].dtype == torch.int64
        np.testing.assert_array_equal(dataset[index].numpy(), expected)


def test_a_minus_strand_window_is_the_reverse_complement_of_the_plus_strand(store):
    dataset = make(store, rc_probability=1.0)
    interval = dataset.sampler(11, 0, 0)
    assert interval.strand == "-"
    plus = store.fetch(Interval(interval.contig, interval.start, interval.end))
    tokens = dataset.tokenizer.encode_codes(plus)
    np.testing.assert_array_equal(dataset.tokenizer.complement[tokens][::-1], dataset[0].numpy())


def test_batches_are_int64_and_hold_consecutive_items_over_the_end_of_an_epoch(store):
    dataset = make(store)
    loader = make_loader(dataset, batch_size=6, batches=8)
    batches = [batch.tokens for batch in loader]  # 48 windows of epochs of 20
    assert len(batches) == 8
    assert all(batch.shape == (6, LENGTH) and batch.dtype == torch.int64 for batch in batches)
    assert torch.equal(torch.cat(batches), torch.stack([dataset[i] for i in range(48)]))


def test_the_number_of_workers_changes_nothing(store):
    dataset = make(store)
    alone, one, two = (
        digests(make_loader(dataset, batch_size=4, batches=9, workers=workers))
        for workers in (0, 1, 2)
    )
    assert alone == one == two
    assert len(set(alone)) == 9


@pytest.mark.parametrize("k", [1, 6, 8])
def test_large_vocabularies_reach_the_loader_whole(store, k):
    """With 8, 5,469 and 87,391 tokens workers hand them over in 1, 2 and 4 bytes each."""
    sampler = SAMPLERS["uniform"](store, length=LENGTH)
    dataset = WindowDataset(store, TOKENIZERS["kmer"](k=k, overlap=True), sampler, seed=3)
    alone, two = (
        list(make_loader(dataset, batch_size=4, batches=9, workers=workers)) for workers in (0, 2)
    )
    assert len(alone) == len(two) == 9
    for one, other in zip(alone, two, strict=True):
        assert other.tokens.dtype == torch.int64
        assert torch.equal(one.tokens, other.tokens)
    most = max(int(batch.tokens.max()) for batch in two)
    assert most > {1: 0, 6: 255, 8: 2**15}[k]


def test_a_loader_started_later_returns_the_batches_that_were_left(store):
    dataset = make(store)
    whole = digests(make_loader(dataset, batch_size=4, batches=12))
    for start, workers in ((1, 0), (7, 2)):
        left = make_loader(
            dataset, batch_size=4, start_batch=start, batches=12 - start, workers=workers
        )
        assert digests(left) == whole[start:]


def test_several_devices_share_one_stream_of_batches(store):
    dataset = make(store)
    whole = digests(make_loader(dataset, batch_size=4, start_batch=2, batches=8))
    first, second = (
        digests(
            make_loader(dataset, batch_size=4, start_batch=1, batches=4, rank=rank, world_size=2)
        )
        for rank in (0, 1)
    )
    assert [digest for pair in zip(first, second, strict=True) for digest in pair] == whole


def test_without_a_number_of_batches_one_epoch_is_read_once(store):
    dataset = make(store, sampler="tiled", keep_partial=True)
    batches = [batch.tokens for batch in make_loader(dataset, batch_size=8)]
    assert [len(batch) for batch in batches] == [8, 8, 5]
    tokens = torch.cat(batches)
    pad = dataset.tokenizer.pad_id
    assert torch.equal(tokens[-1] == pad, torch.arange(LENGTH) >= 30)
    contig = dataset.tokenizer.encode_codes(store.fetch(Interval("c", 0, 1030)))
    np.testing.assert_array_equal(tokens[tokens != pad].numpy(), contig)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataset_that_was_used_before_reaches_a_worker_by_fork_and_by_spawn(store, method):
    dataset = make(store)
    expected = digests(make_loader(dataset, batch_size=4, batches=2))
    loader = make_loader(dataset, batch_size=4, batches=2, workers=1)
    loader.multiprocessing_context = method
    assert digests(loader) == expected


def test_a_dataset_is_small_to_send(store):
    dataset = make(store)
    _ = dataset[0]
    assert len(pickle.dumps(dataset)) < 5000


def test_a_loader_read_twice_gives_the_same_batches_and_leaves_no_process_behind(store):
    before = set(multiprocessing.active_children())
    loader = make_loader(make(store), batch_size=4, batches=5, workers=2)
    assert digests(loader) == digests(loader)
    assert len(set(multiprocessing.active_children()) - before) == 2
    unfinished = make_loader(make(store), batch_size=4, batches=50, workers=1)
    assert next(iter(unfinished)).tokens.shape == (4, LENGTH)
    del loader, unfinished
    gc.collect()
    deadline = time.monotonic() + 10
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(multiprocessing.active_children()) - before


def test_a_soft_masked_base_weighs_what_it_is_told_on_either_strand(store):
    plain, weighted = (
        WindowDataset(store, TOKENIZERS["single"](), sampler, seed=11, soft_masked_weight=weight)
        for sampler in [SAMPLERS["uniform"](store, length=LENGTH, rc_probability=0.5)]
        for weight in (1.0, 0.1)
    )
    assert plain.batch(0, 20).weights is None
    batch = next(iter(make_loader(weighted, batch_size=20, workers=1)))
    assert torch.equal(batch.tokens, plain.batch(0, 20).tokens)
    windows = [weighted.sampler(11, 0, i) for i in range(20)]
    assert {window.strand for window in windows} == {"+", "-"}
    lower = np.stack([store.fetch(window) >= 0x80 for window in windows])
    np.testing.assert_array_equal(batch.weights.numpy(), np.where(lower, 0.1, 1).astype("f4"))
    with pytest.raises(ConfigError, match=r"soft_masked_weight: expected .* got 1.5"):
        WindowDataset(store, plain.tokenizer, plain.sampler, seed=0, soft_masked_weight=1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"start_batch": -1}, "start_batch: expected at least 0, got -1"),
        ({"batches": -1}, "batches: expected at least 0"),
        ({"workers": -1}, "workers: expected at least 0"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 <= rank < world_size, got 2 of 2"),
    ],
)
def test_a_number_out_of_range_is_named(store, change, message):
    with pytest.raises(ConfigError, match=message):
        make_loader(make(store), **({"batch_size": 4} | change))
