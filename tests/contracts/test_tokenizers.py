"""Laws over every registered tokenizer."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data import alphabet
from dnassm.data.tokenizer import TOKENIZERS, Tokenizer
from dnassm.errors import ArtifactError, FormatError, UnknownNameError

NAMES = TOKENIZERS.names()
dna = st.text("ACGT", max_size=200)
wild = st.text("ACGTNURYSWKMBDHVacgtnuryswkmbdhv", max_size=200)
unknown_letters = st.characters(blacklist_characters="ACGTNURYSWKMBDHVacgtnuryswkmbdhv")


@pytest.fixture(params=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def whole(tokenizer: Tokenizer, sequence: str) -> str:
    """Cut to a whole number of tokens."""
    return sequence[: len(sequence) - len(sequence) % tokenizer.bases_per_token]


def reverse_complement(sequence: str) -> str:
    codes = alphabet.encode_ascii(sequence.encode())
    return alphabet.decode(alphabet.reverse_complement(codes))


def test_the_single_base_tokenizer_is_registered():
    assert "single" in NAMES


@pytest.mark.parametrize("name", NAMES)
@given(sequence=dna)
def test_decoding_what_was_encoded_gives_the_sequence_back(name, sequence):
    tokenizer = TOKENIZERS[name]()
    sequence = whole(tokenizer, sequence)
    assert tokenizer.decode(tokenizer.encode(sequence)) == sequence


@pytest.mark.parametrize("name", NAMES)
@given(sequence=wild)
def test_tokens_are_int64_ids_of_the_vocabulary_one_per_token_of_bases(name, sequence):
    tokenizer = TOKENIZERS[name]()
    sequence = whole(tokenizer, sequence)
    tokens = tokenizer.encode(sequence)
    assert tokens.dtype == np.int64
    assert tokens.shape == (len(sequence) // tokenizer.bases_per_token,)
    assert ((tokens >= 0) & (tokens < tokenizer.vocab_size)).all()


@pytest.mark.parametrize("name", NAMES)
@given(sequence=wild)
def test_letters_and_store_codes_give_the_same_tokens_whatever_their_case(name, sequence):
    tokenizer = TOKENIZERS[name]()
    sequence = whole(tokenizer, sequence)
    tokens = tokenizer.encode(sequence)
    codes = alphabet.encode_ascii(sequence.encode())
    np.testing.assert_array_equal(tokenizer.encode_codes(codes), tokens)
    np.testing.assert_array_equal(tokenizer.encode(sequence.upper()), tokens)
    np.testing.assert_array_equal(tokenizer.encode(sequence.lower()), tokens)


@pytest.mark.parametrize("name", NAMES)
@given(sequence=wild)
def test_complementing_the_reversed_tokens_reads_the_other_strand(name, sequence):
    tokenizer = TOKENIZERS[name]()
    if tokenizer.complement is None:
        return
    sequence = whole(tokenizer, sequence)
    other = tokenizer.encode(reverse_complement(sequence))
    np.testing.assert_array_equal(tokenizer.complement[tokenizer.encode(sequence)][::-1], other)


def test_the_complement_is_an_involution_over_the_whole_vocabulary(tokenizer):
    if tokenizer.complement is None:
        pytest.skip("this vocabulary has no complement")
    ids = np.arange(tokenizer.vocab_size)
    np.testing.assert_array_equal(tokenizer.complement[tokenizer.complement], ids)
    assert sorted(tokenizer.complement) == list(ids)


@pytest.mark.parametrize("name", NAMES)
@given(start=dna, letter=unknown_letters, end=dna)
def test_an_unknown_letter_is_refused_by_name_and_position(name, start, letter, end):
    tokenizer = TOKENIZERS[name]()
    with pytest.raises(FormatError) as caught:
        tokenizer.encode(start + letter + end)
    assert repr(letter) in str(caught.value)
    assert f"position {len(start)} " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padding_reads_as_the_padding_token_and_a_batch_keeps_its_shape(tokenizer):
    length = 4 * tokenizer.bases_per_token
    codes = np.full((3, length), alphabet.PAD, dtype=np.uint8)
    np.testing.assert_array_equal(tokenizer.encode_codes(codes), np.full((3, 4), tokenizer.pad_id))


def test_special_tokens_are_apart_from_bases_and_never_targets(tokenizer):
    special = [tokenizer.pad_id, tokenizer.mask_id, tokenizer.bos_id]
    assert len(set(special)) == 3
    assert set(special) <= set(tokenizer.ignore_ids)
    assert not set(tokenizer.bases.values()) & set(tokenizer.ignore_ids)
    assert len(set(tokenizer.vocab)) == tokenizer.vocab_size
    for letter, token in tokenizer.bases.items():
        assert tokenizer.vocab[token] == letter


def test_a_token_outside_of_the_vocabulary_is_refused(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(FormatError, match=f"got {wrong} at position 1"):
            tokenizer.decode([0, wrong])


def test_json_a_file_a_folder_and_pickle_give_the_same_tokenizer_back(tokenizer, tmp_path):
    value = json.loads(json.dumps(tokenizer.to_json()))
    tokenizer.save(tmp_path / "tokenizer.json")
    for again in (
        Tokenizer.from_json(value),
        Tokenizer.load(tmp_path / "tokenizer.json"),
        Tokenizer.load(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert type(again) is type(tokenizer)
        assert again.to_json() == tokenizer.to_json()
        np.testing.assert_array_equal(
            again.encode("ACGTACGTNNNN"), tokenizer.encode("ACGTACGTNNNN")
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "this is not a tokenizer"),
        ({"version": 2}, "version 1, got 2; update dnassm"),
        ({"settings": None}, "damaged"),
        ({"settings": {"colour": 1}}, "refuses its settings"),
        ({"vocab": ["T", "G", "C", "A"]}, "its ids would mean other bases"),
    ],
)
def test_a_changed_tokenizer_file_is_refused_with_its_name(tokenizer, change, message, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer.to_json() | change))
    with pytest.raises(ArtifactError, match=message) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


def test_a_misspelt_tokenizer_is_answered_with_the_nearest_name(tokenizer):
    name = tokenizer.name + "x"
    with pytest.raises(UnknownNameError, match=f"Did you mean '{tokenizer.name}'"):
        Tokenizer.from_json(tokenizer.to_json() | {"name": name})


def test_a_missing_tokenizer_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"missing\.json does not exist"):
        Tokenizer.load(tmp_path / "missing.json")


def test_single_bases_are_the_ids_that_every_saved_model_was_trained_on():
    single = TOKENIZERS["single"]()
    assert single.vocab == ("A", "C", "G", "T", "N", "[MASK]", "[PAD]", "[BOS]")
    assert (single.mask_id, single.pad_id, single.bos_id) == (5, 6, 7)
    assert single.encode("acgtNuRYKv").tolist() == [0, 1, 2, 3, 4, 3, 4, 4, 4, 4]
    assert single.decode(single.encode("acguRN")) == "ACGTNN"
    assert single.decode([0, 5, 6, 7]) == "A[MASK][PAD][BOS]"
