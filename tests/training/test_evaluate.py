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
