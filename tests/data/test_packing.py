"""Packed rows: every base once, borders kept, the same whatever the workers, ranks and breaks."""

from __future__ import annotations

import collections
import itertools
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.interval import Interval
from dnassm.data.packing import PackedDataset, PackedRows, _best_fit
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.data.windows import make_loader
from dnassm.errors import ConfigError, GenomeError
from dnassm.kernels.selective_scan import selective_scan

LENGTH = 96
SINGLE = TOKENIZERS["single"]()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    """Contigs shorter and longer than a row, one of them of nothing but N."""
    rng = np.random.default_rng(6)
    folder = tmp_path_factory.mktemp("genome")
    with (folder / "genome.fa").open("w") as fasta:
        for i, size in enumerate([*rng.integers(1, 2 * LENGTH, 60), 10 * LENGTH, LENGTH]):
            fasta.write(f">c{i}\n{''.join(rng.choice(list('ACGTacgtN'), size))}\n")
        fasta.write(f">unknown\n{'N' * 50}\n")
    return build_store([folder / "genome.fa"], folder / "store")


@pytest.fixture
def rows(store: GenomeStore) -> PackedRows:
    return PackedRows(store, length=LENGTH, rc_probability=0.5)


def epoch_of(rows: PackedRows, epoch: int, seed: int = 3) -> list[tuple[Interval, ...]]:
    return [rows(seed, epoch, i) for i in range(len(rows))]


def plus(piece: Interval) -> Interval:
    return Interval(piece.contig, piece.start, piece.end)


def known(store: GenomeStore, piece: Interval) -> bool:
    return bool(((store.fetch(piece) & 0x0F) < 4).any())


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_holds_every_base_of_the_split_once(epoch, rows, store):
    pieces = sorted(plus(piece) for row in epoch_of(rows, epoch) for piece in row)
    expected = [
        Interval(name, start, min(start + LENGTH, size))
        for name, size in store.lengths.items()
        for start in range(0, size, LENGTH)
    ]
    assert pieces == sorted(piece for piece in expected if known(store, piece))


def test_no_row_is_overfull_and_few_positions_are_lost(rows, store):
    sizes = [sum(map(len, row)) for row in epoch_of(rows, 0)]
    assert max(sizes) <= LENGTH
    assert rows.fill == sum(sizes) / (LENGTH * len(rows))
    assert rows.fill > 0.97
    longest_alone = -(-sum(sizes) // LENGTH)
    assert len(rows) <= longest_alone + 2


def test_a_row_depends_on_seed_epoch_and_index_only(rows):
    calls = [(seed, epoch, i) for seed in (0, 7) for epoch in (0, 1, 5) for i in range(len(rows))]
    forward = {call: rows(*call) for call in calls}
    random.Random(0).shuffle(calls)
    again = pickle.loads(pickle.dumps(rows))
    assert {call: again(*call) for call in calls} == forward


IN_A_FRESH_PROCESS = """
import sys
from dnassm.data.packing import PackedRows
from dnassm.data.store import GenomeStore

rows = PackedRows(GenomeStore.open(sys.argv[1]), length=int(sys.argv[2]), rc_probability=0.5)
print([[str(piece) for piece in rows(3, 1, i)] for i in range(len(rows))])
"""


def test_another_process_packs_the_same_rows(rows, store):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, str(store.path), str(LENGTH)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "99"},
    )
    assert done.stdout.strip() == str([[str(p) for p in row] for row in epoch_of(rows, 1)])


def test_epochs_and_seeds_differ_in_the_order_of_rows_of_pieces_and_in_strands(rows):
    epochs = [epoch_of(rows, epoch, seed) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    together = [frozenset(map(plus, row)) for row in epochs[0]]
    for epoch in epochs[1:]:
        others = [frozenset(map(plus, row)) for row in epoch]
        assert set(others) == set(together)
        assert others != together
    orders = collections.Counter(
        tuple(map(plus, row)) for epoch in range(40) for row in epoch_of(rows, epoch)
    )
    some = next(row for row in orders if len(row) == 2)
    assert 5 <= orders[some] <= 35
    assert orders[some] + orders[some[::-1]] == 40


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_each_piece_has_a_strand_of_its_own(probability, store):
    rows = PackedRows(store, length=LENGTH, rc_probability=probability)
    pieces = [piece for epoch in range(40) for row in epoch_of(rows, epoch) for piece in row]
    share = np.mean([piece.strand == "-" for piece in pieces])
    assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / len(pieces))
    pairs = [row[:2] for epoch in range(40) for row in epoch_of(rows, epoch) if len(row) > 1]
    differ = np.mean([one.strand != other.strand for one, other in pairs])
    expected = 2 * probability * (1 - probability)
    assert abs(differ - expected) <= 5 * np.sqrt(expected * (1 - expected) / len(pairs))


@pytest.mark.parametrize("settings", [{}, {"k": 3}, {"k": 6}])
def test_each_sequence_of_a_batch_is_a_piece_and_the_rest_is_padding(settings, store):
    tokenizer = TOKENIZERS["kmer"](**settings) if settings else SINGLE
    rows = PackedRows(store, length=LENGTH, multiple=tokenizer.bases_per_token)
    batch = PackedDataset(store, tokenizer, rows, seed=3).batch(2, 7)
    assert batch.weights is None
    tokens, cu_seqlens = batch.tokens.numpy(), batch.cu_seqlens.numpy()
    L = LENGTH // tokenizer.bases_per_token
    assert tokens.shape == (1, 5 * L)
    assert tokens.dtype == np.int64
    assert cu_seqlens.dtype == np.int32
    assert (cu_seqlens[0], cu_seqlens[-1]) == (0, 5 * L)
    assert (np.diff(cu_seqlens) > 0).all()
    assert {i * L for i in range(6)} <= set(cu_seqlens.tolist())
    found = [tokens[0, a:b] for a, b in itertools.pairwise(cu_seqlens)]
    found = [part.tolist() for part in found if (part != tokenizer.pad_id).any()]
    pieces = [piece for index in range(2, 7) for piece in rows(3, 0, index)]
    assert found == [tokenizer.encode_codes(store.fetch(piece)).tolist() for piece in pieces]
    whole = sum(len(part) for part in found)
    assert (tokens == tokenizer.pad_id).sum() == tokens.size - whole


@pytest.mark.parametrize("k", [1, 3])
def test_weights_follow_the_pieces_of_a_packed_batch(k, store):
    tokenizer = TOKENIZERS["kmer"](k=k)
    rows = PackedRows(store, length=LENGTH, multiple=k)
    batch = PackedDataset(store, tokenizer, rows, seed=3, soft_masked_weight=0.1).batch(0, 4)
    assert batch.weights.shape == batch.tokens.shape
    found = [
        batch.weights[0, a:b].numpy()
        for a, b in itertools.pairwise(batch.cu_seqlens.tolist())
        if (batch.tokens[0, a:b] != tokenizer.pad_id).any()
    ]
    for weights, piece in zip(found, (p for i in range(4) for p in rows(3, 0, i)), strict=True):
        of_bases = np.where(store.fetch(piece) >= 0x80, 0.1, 1.0)
        of_words = [of_bases[at : at + k].mean() for at in range(0, len(of_bases), k)]
        np.testing.assert_allclose(weights, of_words, rtol=1e-6)


def test_the_scan_of_a_packed_batch_is_that_of_each_sequence_alone(rows, store):
    batch = next(iter(make_loader(PackedDataset(store, SINGLE, rows, seed=3), batch_size=16)))
    values = torch.linspace(-1, 1, SINGLE.vocab_size, dtype=torch.float64)

    def scan(tokens: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
        x = values[tokens][..., None]
        ones = torch.ones_like(x)[..., None]
        A = torch.full((1, 1), -0.1, dtype=torch.float64)
        return selective_scan(x, torch.ones_like(x), A, ones, ones, cu_seqlens=cu_seqlens)

    packed = scan(batch.tokens, batch.cu_seqlens)
    assert len(batch.cu_seqlens) > 17  # short pieces among whole rows
    for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
        alone = scan(batch.tokens[:, start:end], None)
        torch.testing.assert_close(packed[:, start:end], alone)


def batches(loader) -> list[tuple[list, list]]:
    return [(batch.tokens.tolist(), batch.cu_seqlens.tolist()) for batch in loader]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_packs_the_same_batches(workers, rows, store):
    dataset = PackedDataset(store, SINGLE, rows, seed=11)
    alone = batches(make_loader(dataset, batch_size=3, batches=30))
    assert batches(make_loader(dataset, batch_size=3, batches=30, workers=workers)) == alone


@pytest.mark.parametrize("seen", [0, 1, 11, 27])
def test_a_run_resumed_in_the_middle_of_an_epoch_sees_the_batches_it_would_have_seen(
    seen, rows, store
):
    dataset = PackedDataset(store, SINGLE, rows, seed=11)
    assert len(rows) < 30 * 3  # so that a break is in the second epoch, too
    whole = batches(make_loader(dataset, batch_size=3, batches=30))
    again = pickle.loads(pickle.dumps(dataset))
    rest = make_loader(again, batch_size=3, start_batch=seen, batches=30 - seen, workers=2)
    assert batches(rest) == whole[seen:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_stream_of_batches(world_size, rows, store):
    dataset = PackedDataset(store, SINGLE, rows, seed=11)
    alone = batches(make_loader(dataset, batch_size=2, batches=6 * world_size))
    for rank in range(world_size):
        shard = make_loader(dataset, batch_size=2, batches=6, rank=rank, world_size=world_size)
        assert batches(shard) == alone[rank::world_size]


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(1, 30), max_size=60),
    room=st.integers(30, 60),
    multiple=st.sampled_from([1, 2, 5]),
)
def test_packing_keeps_every_piece_and_leaves_no_two_rows_that_would_fit_in_one(
    sizes, room, multiple
):
    length = room - room % multiple
    pieces = [Interval("c", 100 * i, 100 * i + size) for i, size in enumerate(sizes)]
    rows = _best_fit(pieces, length, multiple)
    assert sorted(piece for row in rows for piece in row) == pieces
    used = sorted(sum(-(-len(piece) // multiple) * multiple for piece in row) for row in rows)
    assert all(size <= length for size in used)
    assert all(one + other > length for one, other in itertools.pairwise(used))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "trian"}, GenomeError, "Did you mean 'train'"),
        ({"length": 0}, ConfigError, "length: expected at least 1"),
        ({"rc_probability": 1.5}, ConfigError, "rc_probability"),
        ({"max_n_fraction": -0.1}, ConfigError, "max_n_fraction"),
        ({"min_bases": 0}, ConfigError, "min_bases: expected 1 to length=96, got 0"),
        ({"multiple": 5}, ConfigError, "multiple: expected a divisor of length=96, got 5"),
        ({"length": 5000, "min_bases": 4000}, GenomeError, "no window of 4000 bp or more"),
    ],
)
def test_a_wrong_argument_is_named(change, error, message, store):
    with pytest.raises(error, match=message):
        PackedRows(store, **({"length": LENGTH} | change))


def test_pieces_too_short_or_too_unknown_are_left_out(store):
    rows = PackedRows(store, length=LENGTH, min_bases=40, max_n_fraction=0.1)
    pieces = [piece for row in epoch_of(rows, 0) for piece in row]
    assert min(map(len, pieces)) >= 40
    for piece in pieces:
        assert ((store.fetch(piece) & 0x0F) >= 4).sum() <= 0.1 * len(piece)


def test_an_index_outside_of_the_epoch_is_refused(rows):
    for index in (-1, len(rows)):
        with pytest.raises(ConfigError, match=f"got {index}"):
            rows(0, 0, index)


def test_a_tokenizer_whose_tokens_could_cross_a_border_is_refused(rows, store):
    for tokenizer in (TOKENIZERS["kmer"](k=3), TOKENIZERS["bpe"](merges=["A C"])):
        with pytest.raises(ConfigError, match="pack with multiple=bases_per_token"):
            PackedDataset(store, tokenizer, rows, seed=0)
