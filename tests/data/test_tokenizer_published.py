"""The vocabularies of published weights, id for id."""

from __future__ import annotations

import pytest

from dnassm.data import alphabet
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.errors import ConfigError

PUBLISHED = {
    "[CLS]": 0,
    "[SEP]": 1,
    "[BOS]": 2,
    "[MASK]": 3,
    "[PAD]": 4,
    "[RESERVED]": 5,
    "[UNK]": 6,
    "A": 7,
    "C": 8,
    "G": 9,
    "T": 10,
    "N": 11,
}
"""hg38_char_tokenizer.py of HyenaDNA with the characters A C G T N; Caduceus has the same."""

both = pytest.mark.parametrize("name", ["hyenadna", "caduceus"])


@both
def test_every_id_is_the_published_one(name):
    tokenizer = TOKENIZERS[name]()
    assert {text: i for i, text in enumerate(tokenizer.vocab)} == PUBLISHED
    assert (tokenizer.bos_id, tokenizer.mask_id, tokenizer.pad_id) == (2, 3, 4)
    assert tokenizer.encode("ACGTNacgtnRU").tolist() == [7, 8, 9, 10, 11, 7, 8, 9, 10, 11, 6, 10]
    assert tokenizer.decode([7, 3, 10, 6, 11]) == "A[MASK]T[UNK]N"


@both
def test_the_complement_map_is_the_published_one(name):
    """``complement_map`` of the configuration of Caduceus's weights."""
    complement = TOKENIZERS[name]().complement
    assert complement.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11]


@both
def test_only_the_four_bases_are_targets_of_a_loss(name):
    tokenizer = TOKENIZERS[name]()
    assert set(range(12)) - set(tokenizer.ignore_ids) == {7, 8, 9, 10}


@both
def test_unknown_bases_read_as_padding_where_the_pretraining_did_so(name):
    tokenizer = TOKENIZERS[name](n_as_pad=True)
    assert tokenizer.encode("ANnRT").tolist() == [7, 4, 4, 6, 10]
    codes = alphabet.encode_ascii(b"NA")
    codes[0] = alphabet.PAD
    assert tokenizer.encode_codes(codes).tolist() == [4, 7]
    assert tokenizer.vocab == TOKENIZERS[name]().vocab


@both
def test_a_setting_that_is_no_truth_value_is_refused(name):
    with pytest.raises(ConfigError, match="n_as_pad: expected true or false, got 'yes'"):
        TOKENIZERS[name](n_as_pad="yes")
