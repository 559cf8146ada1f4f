"""The k-mer tokenizer: which id a word has, and what becomes of the last bases."""

from __future__ import annotations

import numpy as np
import pytest

from dnassm.data import alphabet
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.errors import ConfigError, FormatError


def kmer(k: int, *, overlap: bool = False):
    return TOKENIZERS["kmer"](k=k, overlap=overlap)


def texts(tokenizer, sequence: str) -> list[str]:
    return [tokenizer.vocab[token] for token in tokenizer.encode(sequence)]


def expected_words(sequence: str, k: int, step: int) -> list[str]:
    """Slow and plain: cut, then see whether a base is unknown."""
    words = [sequence[i : i + k] for i in range(0, len(sequence), step)]
    return [word if set(word) <= set("ACGT") else "N" * len(word) for word in words]


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("overlap", [False, True])
def test_words_are_those_that_cutting_the_letters_gives(k, overlap):
    rng = np.random.default_rng(k)
    tokenizer = kmer(k, overlap=overlap)
    for length in range(3 * k + 2):
        sequence = "".join(rng.choice(list("ACGTNR"), length, p=[0.24] * 4 + [0.02] * 2))
        assert texts(tokenizer, sequence) == expected_words(sequence, k, 1 if overlap else k)


def test_the_id_of_a_whole_word_is_the_word_as_a_number_to_base_four():
    tokenizer = kmer(3)
    assert tokenizer.encode("AAA").tolist() == [0]
    assert tokenizer.encode("AACTTT").tolist() == [1, 63]
    assert tokenizer.encode("GAT").tolist() == [2 * 16 + 3]
    assert tokenizer.vocab_size == 64 + 16 + 4 + 3 + 3


def test_the_last_bases_are_a_shorter_word_and_are_read_back():
    tokenizer = kmer(6)
    assert texts(tokenizer, "ACGTACGTAC") == ["ACGTAC", "GTAC"]
    assert tokenizer.decode(tokenizer.encode("ACGTACGTAC")) == "ACGTACGTAC"
    assert texts(kmer(3, overlap=True), "ACGT") == ["ACG", "CGT", "GT", "T"]


def test_one_base_per_word_has_the_ids_of_single():
    assert kmer(1).vocab == TOKENIZERS["single"]().vocab
    sequence = "acgtNRYacgu"
    np.testing.assert_array_equal(kmer(1).encode(sequence), TOKENIZERS["single"]().encode(sequence))


def test_padding_before_bases_makes_the_word_unknown_and_after_them_shortens_it():
    tokenizer = kmer(3)
    codes = alphabet.encode_ascii(b"ACG")
    codes[0] = alphabet.PAD
    assert [tokenizer.vocab[t] for t in tokenizer.encode_codes(codes)] == ["NN"]
    codes = alphabet.encode_ascii(b"ACG")
    codes[2] = alphabet.PAD
    assert [tokenizer.vocab[t] for t in tokenizer.encode_codes(codes)] == ["AC"]


def test_the_complement_law_needs_a_whole_number_of_words_and_no_overlap():
    tokenizer = kmer(3)
    codes = alphabet.encode_ascii(b"ACGTT")
    other = tokenizer.encode_codes(alphabet.reverse_complement(codes))
    assert tokenizer.complement[tokenizer.encode_codes(codes)][::-1].tolist() != other.tolist()
    assert kmer(3, overlap=True).complement is None
    assert kmer(1, overlap=True).complement is not None


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 9}, {"k": 2.0}, {"k": True}, {"overlap": 1}])
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}: expected"):
        TOKENIZERS["kmer"](**settings)


def test_other_codes_than_bytes_are_refused():
    with pytest.raises(FormatError, match="tokenizer kmer: expected uint8 store codes, got int64"):
        kmer(3).encode_codes(np.zeros(3, dtype=np.int64))
