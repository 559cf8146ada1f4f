"""Bits per base: by hand, by law, and beside Markov models."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from dnassm.config import RunConfig
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import build_store
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.errors import GenomeError
from dnassm.training import evaluate
from dnassm.training.evaluate import bits_per_base, evaluate_run, held_out_split
from dnassm.training.hardware import Hardware
from dnassm.training.pretrain import pretrain

CPU = Hardware(accelerator="cpu")
SINGLE = TOKENIZERS["single"]()
ACGT = sorted(SINGLE.bases.values())


class Bigram(nn.Module):
    """Logits of the next token are a row of a table: what a model is, without the model."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, tokens, state=None):
        return self.table[tokens], None


def measure(store, table: torch.Tensor, *, length: int = 64, windows: int | None = None):
    config = RunConfig().override([f"data.length={length}"])
    return bits_per_base(Bigram(table).eval(), SINGLE, config, store, split="test", windows=windows)


def test_bits_per_base_is_the_mean_of_minus_log2_p_by_hand(store):
    table = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    bits = []
    for interval in store.splits["test"]:
        tokens = SINGLE.encode_codes(store.fetch(interval))
        for start in range(0, len(tokens), 64):
            for before, after in itertools.pairwise(tokens[start : start + 64].tolist()):
                if after in ACGT:
                    row = table[before].double()
                    bits.append(-float(row[after] - row.logsumexp(0)) / math.log(2))
    value, count = measure(store, table)
    assert count == len(bits)
    assert value == pytest.approx(np.mean(bits), rel=1e-6)


def test_a_model_that_knows_nothing_pays_for_the_whole_vocabulary(store):
    # The softmax is over all 8 tokens: [MASK] and [PAD] cost until the model has unlearnt them.
    value, _ = measure(store, torch.zeros(8, 8))
    assert value == pytest.approx(3.0, abs=1e-6)


def test_a_model_that_knows_the_alphabet_alone_pays_two_bits(store):
    table = torch.full((8, 8), -torch.inf)
    table[:, ACGT] = 0.0
    value, _ = measure(store, table)
    assert value == pytest.approx(2.0, abs=1e-6)


def test_some_windows_are_a_part_of_all_and_length_only_cuts(store):
    table = torch.zeros(8, 8)
    _, every = measure(store, table)
    _, some = measure(store, table, windows=4)
    assert 0 < some <= 4 * 63 < every
    # One window per held-out interval: only the first base of each has nothing before it.
    _, longer = measure(store, table, length=100_000)
    assert longer > every


def test_no_window_of_training_touches_what_is_held_out_on_either_strand(store):
    sampler = SAMPLERS["uniform"](store, split="train", length=64, rc_probability=0.5)
    held_out = [i for part in ("valid", "test") for i in store.splits[part]]
    strands = set()
    for epoch, index in itertools.product(range(3), range(len(sampler))):
        window = sampler(7, epoch, index)
        strands.add(window.strand)
        # Coordinates are those of the plus strand for both: a reverse complement is no other place.
        assert not any(
            window.contig == other.contig and window.start < other.end and other.start < window.end
            for other in held_out
        )
    assert strands == {"+", "-"}


def test_valid_is_watched_before_test(tmp_path):
    (tmp_path / "g.fa").write_text(">a\n" + "ACGT" * 300 + "\n")
    rule = "blocks:size=100,every=4,valid=2,test=3"
    stores = {
        name: build_store([tmp_path / "g.fa"], tmp_path / name, split=split)
        for name, split in (("both", rule), ("test", "halves"), ("none", "none"))
    }
    found = {name: held_out_split(store) for name, store in stores.items()}
    assert found == {"both": "valid", "test": "test", "none": None}


@pytest.fixture(scope="module")
def run(store, tiny, tmp_path_factory):
    return pretrain(tiny, store, tmp_path_factory.mktemp("evaluate") / "run", hardware=CPU)


def test_the_evaluation_has_its_schema_and_the_markov_models(run, store, monkeypatch):
    monkeypatch.setattr(evaluate, "MARKOV_ORDERS", range(1, 4))
    monkeypatch.setattr(evaluate, "_MIXTURE_ORDERS", (3,))
    result = evaluate_run(run, store)
    assert json.loads((run.path / "evaluation.json").read_text()) == result
    assert set(result) == {"objective", "split", "bits_per_base", "bases", "baselines"}
    assert (result["objective"], result["split"]) == ("next", "test")
    assert [row["order"] for row in result["baselines"]] == [1, 2, 3, 3]
    for row in result["baselines"]:
        assert set(row) == {"name", "order", "bits_per_base"}
        assert 1.8 < row["bits_per_base"] < 2.3, "a random genome has two bits per base"
    assert result["bases"] == measure(store, torch.zeros(8, 8))[1]


def test_without_anything_held_out_there_is_nothing_to_measure(run, tmp_path):
    (tmp_path / "g.fa").write_text(">a\n" + "ACGT" * 300 + "\n")
    store = build_store([tmp_path / "g.fa"], tmp_path / "none")
    with pytest.raises(GenomeError, match="nothing is held out; tokenize with --split"):
        evaluate_run(run, store)


def test_a_masked_model_of_random_sequence_cannot_get_below_two_bits(tmp_path):
    # It could, if a tenth of the bases to predict were shown: what training does for other reasons.
    rng = np.random.default_rng(0)
    (tmp_path / "g.fa").write_text(">a\n" + "".join(rng.choice(list("ACGT"), 8000)) + "\n")
    store = build_store([tmp_path / "g.fa"], tmp_path / "store", split="halves")
    copying = torch.full((8, 8), -torch.inf)
    copying[:, ACGT] = 0.0
    copying[ACGT, ACGT] = 3.0
    config = RunConfig().override(["objective.name=masked", "data.length=64"])
    value, _ = bits_per_base(Bigram(copying).eval(), SINGLE, config, store, split="test")
    assert value == pytest.approx(2.0, abs=1e-6)


# Tokens of several bases


def measure_words(store, tokenizer, model: nn.Module, *settings: str):
    config = RunConfig().override(["data.length=32", *settings])
    return bits_per_base(model.eval(), tokenizer, config, store, split="test")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A random genome without unknown bases, half of it held out."""
    folder = tmp_path_factory.mktemp("plain")
    letters = np.random.default_rng(5).choice(list("ACGT"), 4000)
    (folder / "g.fa").write_text(">a\n" + "".join(letters) + "\n")
    return build_store([folder / "g.fa"], folder / "store", split="halves")


def test_words_side_by_side_tell_all_of_their_bases(plain):
    kmer = TOKENIZERS["kmer"](k=3)
    table = torch.full((kmer.vocab_size, kmer.vocab_size), -torch.inf)
    table[:, : 4**3 + 4**2] = 0.0  # whole words, and those of two bases at an end
    value, bases = measure_words(plain, kmer, Bigram(table))
    # 2000 bases in windows of 96, the first word of each has nothing before it; the last has 80.
    assert bases == 20 * 93 + 77
    words = 20 * 31 + 26
    assert value == pytest.approx(words * math.log2(80) / bases, rel=1e-5)


def test_overlapping_words_tell_one_base_each(plain):
    kmer = TOKENIZERS["kmer"](k=3, overlap=True)
    table = torch.full((kmer.vocab_size, kmer.vocab_size), -torch.inf)
    table[:, 4**3 : -3] = -30.0  # the shorter words at the ends; they do not count
    for word, after in itertools.product(range(4**3), range(4)):
        table[word, word % 16 * 4 + after] = 0.0
    value, bases = measure_words(plain, kmer, Bigram(table))
    assert value == pytest.approx(2.0, abs=1e-5)
    # Windows of 34 bases: 32 words, of which the first is no target; 2000 = 58 * 34 + 28.
    assert bases == 58 * 31 + 25


def test_byte_pairs_pay_for_the_bases_that_they_have(plain):
    pytest.importorskip("tokenizers")
    pairs = TOKENIZERS["bpe"](merges=["A C", "G T", "AC GT", "T T"])
    know_nothing = Bigram(torch.zeros(pairs.vocab_size, pairs.vocab_size))
    value, bases = measure_words(plain, pairs, know_nothing)
    length = evaluate.window_bases(pairs, 32, plain, split="test")
    codes = plain.fetch(plain.splits["test"][0])
    tiles = [pairs.encode_codes(codes[at : at + length]) for at in range(0, len(codes), length)]
    assert bases == sum(len(pairs.decode(tokens[1:])) for tokens in tiles)
    cost = sum(len(tokens) - 1 for tokens in tiles) * math.log2(pairs.vocab_size)
    assert value == pytest.approx(cost / bases, rel=1e-5)


class Speller(nn.Module):
    """Knows of a hidden overlapping word what the visible ones show of its bases."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, tokens, state=None):
        k, size = self.tokenizer.k, self.tokenizer.vocab_size
        logits = torch.full((*tokens.shape, size), -torch.inf)
        for row, ids in enumerate(tokens.tolist()):
            letters: dict[int, str] = {}
            for at, token in enumerate(ids):
                text = self.tokenizer.vocab[token]
                if text[0] != "[":
                    letters |= {at + i: letter for i, letter in enumerate(text)}
            for at, word in itertools.product(range(len(ids)), range(4**k)):
                text = self.tokenizer.vocab[word]
                if all(letters.get(at + i, letter) == letter for i, letter in enumerate(text)):
                    logits[row, at, word] = 0.0
        return logits, None


def test_masked_overlapping_words_of_random_sequence_cost_two_bits_a_base(tmp_path):
    letters = np.random.default_rng(6).choice(list("ACGT"), 600)
    (tmp_path / "g.fa").write_text(">a\n" + "".join(letters) + "\n")
    store = build_store([tmp_path / "g.fa"], tmp_path / "store", split="halves")
    kmer = TOKENIZERS["kmer"](k=2, overlap=True)
    value, bases = measure_words(
        store, kmer, Speller(kmer), "objective.name=masked", "objective.mask_ratio=0.3"
    )
    assert bases > 20
    assert value == pytest.approx(2.0, abs=1e-6)
