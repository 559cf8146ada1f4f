"""Byte pair encoding: trained from a genome, the same every time, and read back from JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dnassm.data.samplers.uniform import UniformSampler
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizer import TOKENIZERS, Tokenizer
from dnassm.data.tokenizers.bpe import BpeTokenizer, train_bpe
from dnassm.data.windows import WindowDataset, make_loader
from dnassm.errors import ArtifactError, ConfigError, GenomeError, MissingExtraError

pytest.importorskip("tokenizers")
MOTIF = "GATTACAGATC"


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory):
    """A motif that is frequent in the first half only, and N between."""
    rng = np.random.default_rng(4)
    random = "".join(rng.choice(list("ACGTacgt"), 4000))
    motifs = "".join(f"{MOTIF}{random[i : i + 9]}" for i in range(200))
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text(f">c\n{motifs}{'N' * 100}{random}\n>short\nACGTNACG\n")
    return path


@pytest.fixture(scope="module")
def store(fasta) -> GenomeStore:
    return build_store([fasta], fasta.parent / "store", split="halves")


@pytest.fixture(scope="module")
def trained(store) -> BpeTokenizer:
    return train_bpe(store, vocab_size=120, bases=20_000)


def test_frequent_words_become_tokens_and_the_vocabulary_has_its_size(trained):
    assert trained.vocab_size == 120
    assert trained.vocab[:8] == ("A", "C", "G", "T", "N", "[MASK]", "[PAD]", "[BOS]")
    assert any(MOTIF in word for word in trained.vocab)
    assert trained.encode(MOTIF * 3).size <= 6


def test_only_the_named_split_is_learnt_from(store):
    held_out = train_bpe(store, vocab_size=120, split="test", bases=20_000)
    assert not any(MOTIF in word for word in held_out.vocab)


IN_A_FRESH_PROCESS = """
import sys
from dnassm.data.store import GenomeStore
from dnassm.data.tokenizers.bpe import train_bpe

store = GenomeStore.open(sys.argv[1])
print(train_bpe(store, vocab_size=120, bases=20_000).settings()["merges"])
"""


def test_another_process_learns_the_same_merges(trained, store):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, str(store.path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == str(trained.settings()["merges"])


def test_a_fasta_file_teaches_what_its_store_teaches(fasta, tmp_path):
    store = build_store([fasta], tmp_path / "store")
    from_store = train_bpe(store, vocab_size=40, bases=5000)
    assert train_bpe([fasta], vocab_size=40, bases=5000).to_json() == from_store.to_json()
    assert train_bpe([fasta], vocab_size=40, bases=5000, seed=1).vocab_size == 40


def test_the_file_is_plain_json_that_gives_the_same_tokens(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    value = json.loads((tmp_path / "tokenizer.json").read_text())
    assert value["settings"]["merges"] == trained.settings()["merges"]
    sequence = MOTIF * 5 + "NNACGTTTGACRYA"
    np.testing.assert_array_equal(
        Tokenizer.load(tmp_path).encode(sequence), trained.encode(sequence)
    )


def test_unknown_bases_break_words_and_are_read_back(trained):
    broken = MOTIF[:5] + "N" + MOTIF[5:]
    tokens = trained.encode(broken)
    assert trained.decode(tokens) == broken
    assert (tokens == 4).sum() == 1
    assert all("N" not in word for word in trained.vocab[8:])


def test_merges_that_make_one_word_twice_share_its_id():
    tokenizer = BpeTokenizer(merges=["A A", "AA A", "A AA", "AAA C"])
    assert tokenizer.vocab[8:] == ("AA", "AAA", "AAAC")
    assert tokenizer.encode("AAANAAAC").tolist() == [9, 4, 10]
    assert tokenizer.decode(tokenizer.encode("AAAACAAC")) == "AAAACAAC"


@pytest.mark.parametrize("merge", ["A AC", "A", "A N", "A C G", "[PAD] A", "", "A [MASK]"])
def test_a_merge_of_anything_but_two_known_words_is_refused(merge, tmp_path):
    with pytest.raises(ConfigError, match="two tokens that exist by then"):
        BpeTokenizer(merges=["C G", merge])
    value = BpeTokenizer(merges=["C G"]).to_json() | {"settings": {"merges": [merge]}}
    with pytest.raises(ArtifactError, match="refuses its settings"):
        Tokenizer.from_json(value)


def test_an_untrained_tokenizer_says_how_to_train_it():
    with pytest.raises(ConfigError, match="train_bpe"):
        TOKENIZERS["bpe"]()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab_size": 8}, ConfigError, "vocab_size: expected 9 to 65536, got 8"),
        ({"bases": 0}, ConfigError, "bases: expected at least 1"),
        ({"split": "tset"}, GenomeError, "Did you mean 'test'"),
    ],
)
def test_a_wrong_argument_of_training_is_named(change, error, message, store):
    with pytest.raises(error, match=message):
        train_bpe(store, **change)


def test_workers_encode_the_same_batches(trained, store):
    sampler = UniformSampler(store, split="train", length=200)
    dataset = WindowDataset(store, trained, sampler, seed=5)
    alone, forked = (
        [
            batch.tokens.tolist()
            for batch in make_loader(dataset, batch_size=3, batches=4, workers=workers)
        ]
        for workers in (0, 2)
    )
    assert alone == forked


def test_without_the_library_the_extra_to_install_is_named(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for use in (lambda: BpeTokenizer(merges=["A C"]).encode("ACG"), lambda: train_bpe(store)):
        with pytest.raises(MissingExtraError, match=r"pip install 'dnassm\[bpe\]'"):
            use()
    assert BpeTokenizer(merges=["A C"]).decode([8, 2]) == "ACG"
