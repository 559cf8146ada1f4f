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
MERGES = ["A C", "G T", "AC GT", "A A", "T T", "AA A", "ACGT AC", "C G"]
SETTINGS = {
    "hyenadna": [{}, {"n_as_pad": True}],
    "kmer": [{}, {"k": 1}, {"k": 3}, {"k": 4, "overlap": True}, {"k": 8}],
    "bpe": [{"merges": MERGES}],
}
VARIANTS = [(name, settings) for name in NAMES for settings in SETTINGS.get(name, [{}])]
"""Every registered name with the settings that the laws are shown with; none unless named."""
TOKENIZERS["kmer"](k=8)  # its vocabulary is made once, here, not in the first example's time
dna = st.text("ACGT", max_size=200)
wild = st.text("ACGTNURYSWKMBDHVacgtnuryswkmbdhv", max_size=200)
unknown_letters = st.characters(blacklist_characters="ACGTNURYSWKMBDHVacgtnuryswkmbdhv")


def label(variant: object) -> str:
    return str(variant).replace(str(MERGES), "few")


def build(variant: tuple[str, dict]) -> Tokenizer:
    name, settings = variant
    if name == "bpe":
        pytest.importorskip("tokenizers")
    return TOKENIZERS[name](**settings)


every_tokenizer = pytest.mark.parametrize("variant", VARIANTS, ids=label)


@pytest.fixture(params=VARIANTS, ids=label)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return build(request.param)


def whole(tokenizer: Tokenizer, sequence: str) -> str:
    """Cut to a whole number of tokens."""
    return sequence[: len(sequence) - len(sequence) % tokenizer.bases_per_token]


def reverse_complement(sequence: str) -> str:
    codes = alphabet.encode_ascii(sequence.encode())
    return alphabet.decode(alphabet.reverse_complement(codes))


def test_the_documented_tokenizers_are_registered():
    assert {"single", "kmer", "bpe", "hyenadna", "caduceus"} <= set(NAMES)


@every_tokenizer
@given(sequence=dna)
def test_decoding_what_was_encoded_gives_the_sequence_back_to_its_last_base(variant, sequence):
    tokenizer = build(variant)
    assert tokenizer.decode(tokenizer.encode(sequence)) == sequence


@every_tokenizer
@given(sequence=wild)
def test_tokens_are_int64_ids_of_the_vocabulary_one_per_token_of_bases(variant, sequence):
    tokenizer = build(variant)
    tokens = tokenizer.encode(sequence)
    assert tokens.dtype == np.int64
    assert ((tokens >= 0) & (tokens < tokenizer.vocab_size)).all()
    most = -(-len(sequence) // tokenizer.bases_per_token)
    if tokenizer.fixed_size:
        assert tokens.shape == (most,)
    else:
        assert tokenizer.bases_per_token == 1
        assert tokens.ndim == 1
        assert tokens.size <= most


@every_tokenizer
@given(sequence=wild)
def test_codes_and_letters_in_either_case_give_the_same_tokens(variant, sequence):
    tokenizer = build(variant)
    tokens = tokenizer.encode(sequence)
    codes = alphabet.encode_ascii(sequence.encode())
    np.testing.assert_array_equal(tokenizer.encode_codes(codes), tokens)
    np.testing.assert_array_equal(tokenizer.encode(sequence.upper()), tokens)
    np.testing.assert_array_equal(tokenizer.encode(sequence.lower()), tokens)


@every_tokenizer
@given(sequences=st.lists(wild, min_size=1, max_size=4))
def test_a_row_of_a_padded_batch_reads_as_its_sequence_and_then_padding(variant, sequences):
    tokenizer = build(variant)
    longest = max(map(len, sequences))
    codes = np.full((len(sequences), longest), alphabet.PAD, dtype=np.uint8)
    for row, sequence in zip(codes, sequences, strict=True):
        row[: len(sequence)] = alphabet.encode_ascii(sequence.encode())
    batch = tokenizer.encode_codes(codes)
    if tokenizer.fixed_size:
        assert batch.shape == (len(sequences), -(-longest // tokenizer.bases_per_token))
    for row, sequence in zip(batch, sequences, strict=True):
        tokens = tokenizer.encode(sequence)
        np.testing.assert_array_equal(row[: tokens.size], tokens)
        assert (row[tokens.size :] == tokenizer.pad_id).all()


@every_tokenizer
@given(sequence=wild)
def test_a_token_with_an_unknown_base_is_never_a_target(variant, sequence):
    tokenizer = build(variant)
    known = "".join(letter if letter in "ACGT" else "N" for letter in sequence.upper())
    if tokenizer.bases_per_token == 1 and tokenizer.fixed_size:
        targets = ~np.isin(tokenizer.encode(known), tokenizer.ignore_ids)
        assert not (targets & np.array([letter == "N" for letter in known], dtype=bool)).any()
    for token in tokenizer.encode(known).tolist():
        if token not in tokenizer.ignore_ids:
            assert set(tokenizer.vocab[token]) <= set("ACGT")


@every_tokenizer
@given(sequence=wild)
def test_complementing_the_reversed_tokens_reads_the_other_strand(variant, sequence):
    tokenizer = build(variant)
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


@every_tokenizer
@given(sequence=wild)
def test_a_token_spans_the_bases_that_it_reads(variant, sequence):
    tokenizer = build(variant)
    tokens = tokenizer.encode(sequence)
    padded = np.concatenate([tokens, np.full(3, tokenizer.pad_id)])
    spans = tokenizer.spans(padded, len(sequence))
    assert spans.shape == (padded.size, 2)
    assert (spans[tokens.size :] == len(sequence)).all(), "padding spans nothing"
    covered = np.zeros(len(sequence), dtype=bool)
    for token, (start, stop) in zip(tokens, spans.tolist(), strict=False):
        assert start < stop
        covered[start:stop] = True
        if token not in tokenizer.ignore_ids:
            assert tokenizer.vocab[token] == sequence[start:stop].upper().replace("U", "T")
    assert covered.all()


@every_tokenizer
@given(sequence=dna)
def test_the_tokens_of_a_sequence_tell_every_base_once(variant, sequence):
    tokenizer = build(variant)
    tokens = tokenizer.encode(sequence)
    told = tokenizer.told()
    assert (told[list(tokenizer.ignore_ids)] == 0).all()
    overlap = tokenizer.bases_of_word - tokenizer.bases_per_token
    if tokens.size:  # the first of overlapping words tells all of its bases, the next one each
        assert told[tokens].sum() == max(0, len(sequence) - overlap)


@every_tokenizer
@given(start=dna, letter=unknown_letters, end=dna)
def test_an_unknown_letter_is_refused_by_name_and_position(variant, start, letter, end):
    tokenizer = build(variant)
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
            again.encode("ACGTACGTNNNNG"), tokenizer.encode("ACGTACGTNNNNG")
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
