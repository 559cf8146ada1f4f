"""k bases per token, side by side or overlapping."""

from __future__ import annotations

import functools
import itertools
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import BASE, PAD, Codes, T
from dnassm.data.tokenizer import TOKENIZERS, Tokenizer, Tokens
from dnassm.errors import ConfigError

MAX_K = 8
_SPECIAL = ("[MASK]", "[PAD]", "[BOS]")


@TOKENIZERS.register("kmer")
class KmerTokenizer(Tokenizer):
    """Words of `k` bases; L bases are ceil(L / k) tokens, or L tokens when they overlap.

    The last bases stay: where fewer than `k` are left, the token is the shorter word that they
    are, so that every sequence of A C G T can be read back. Side by side that is at most the last
    token, overlapping the last k - 1. A word in which a base is unknown (N, IUPAC) is unknown as a
    whole, and reads ``NNN`` with as many letters as it has bases. Padding after the bases is
    left out of a word; a word of nothing else is [PAD]. Soft mask is ignored.

    Ids: the 4^k words of k bases in the order of the alphabet (so that an id is the word as a
    number to base 4), the words of k - 1 bases, ..., of one base; the unknown words of k, ..., 1
    bases; [MASK], [PAD], [BOS]. With k = 1 these are the ids of the tokenizer ``single``.

    Side by side, the complement law holds for a whole number of words: from the other end of
    another length the words are cut elsewhere. Overlapping words have no complement table, because
    the words of the other strand begin k - 1 positions earlier; and neighbours share k - 1 bases,
    so that to predict the next token is to predict one base.

    Args:
        k: bases per word, 1 to 8.
        overlap: begin a word at every base.

    Raises:
        ConfigError: k is out of range, or `overlap` no truth value.
    """

    name: ClassVar[str] = "kmer"

    def __init__(self, *, k: int = 6, overlap: bool = False) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_K:
            raise ConfigError(f"k: expected a whole number from 1 to {MAX_K}, got {k!r}")
        if not isinstance(overlap, bool):
            raise ConfigError(f"overlap: expected true or false, got {overlap!r}")
        self.k = k
        self.overlapping = overlap
        self.bases_per_token = 1 if overlap else k
        self.bases_of_word = k
        self.vocab = _vocabulary(k)
        words = len(self.vocab) - len(_SPECIAL) - k
        self.mask_id, self.pad_id, self.bos_id = range(words + k, words + k + 3)
        self.ignore_ids = tuple(range(words, len(self.vocab)))
        self.bases = {letter: words - 4 + i for i, letter in enumerate("ACGT")}
        self.complement = None if overlap and k > 1 else _complement(k)
        # by the number of bases of a word: where its known words begin, and the unknown one
        self._first = np.array([0, *(words - _count(j) for j in range(1, k + 1))], dtype=np.int64)
        self._unknown = np.array([words + k - j for j in range(k + 1)], dtype=np.int64)

    def encode_codes(self, codes: Codes) -> Tokens:
        """Encode store codes (..., L) to int64 tokens (..., ceil(L / bases_per_token))."""
        self._check_codes(codes)
        words = self._words(codes & np.uint8(BASE))
        last = words[..., 0]
        for place in range(1, self.k):
            last = np.maximum(last, words[..., place])
        tokens = self._numbers(words)
        odd = np.nonzero(last > T)
        if odd[0].size:
            tokens[odd] = self._odd(words[odd])
        return tokens

    def _odd(self, words: Codes) -> Tokens:
        """Tokens (n,) of words (n, k) in which some base is unknown or padding."""
        known = words <= T
        size = np.count_nonzero(words != PAD, axis=-1)
        value = self._numbers(np.where(known, words, 0)) >> 2 * (self.k - size)
        value += self._first[size]
        # Bases that follow padding would be read as others: such a word is unknown, too.
        leading = np.logical_and.accumulate(known, axis=-1).sum(axis=-1)
        tokens: Tokens = np.where(leading == size, value, self._unknown[size])
        tokens[size == 0] = self.pad_id
        return tokens

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Write tokens (L,) as text, of overlapping words the first base; see `Tokenizer.decode`.

        Overlapping, an N reads as N, and so do the k - 1 bases before it.
        """
        texts = [self.vocab[token] for token in self._checked(tokens)]
        if self.overlapping:
            return "".join(text if text.startswith("[") else text[0] for text in texts)
        return "".join(texts)

    def told(self) -> Tokens:
        """(V,) bases that a token tells; overlapping, the shorter last words tell none."""
        sizes = np.arange(self.k, 0, -1)
        told = np.repeat(sizes, 4**sizes)
        if self.overlapping:
            told = (told == self.k).astype(np.int64)
        return np.concatenate([told, np.zeros(len(self.ignore_ids), dtype=np.int64)])

    def words(self) -> Tokens:
        """Ids of the words of k bases."""
        return np.arange(4**self.k)

    def settings(self) -> dict[str, Any]:
        """k, and whether words overlap."""
        return {"k": self.k, "overlap": self.overlapping}

    def _words(self, bases: Codes) -> Codes:
        """Bases (..., L) as words (..., L or ceil(L / k), k), filled with PAD at the end."""
        length = bases.shape[-1]
        missing = self.k - 1 if self.overlapping else -length % self.k
        if missing:
            tail = np.full((*bases.shape[:-1], missing), PAD, dtype=np.uint8)
            bases = np.concatenate([bases, tail], axis=-1)
        if not self.overlapping:
            return bases.reshape(*bases.shape[:-1], bases.shape[-1] // self.k, self.k)
        if not length:
            return np.zeros((*bases.shape[:-1], 0, self.k), dtype=np.uint8)
        return np.lib.stride_tricks.sliding_window_view(bases, self.k, axis=-1)

    def _numbers(self, words: Codes) -> Tokens:
        """Words (..., k) of A C G T as numbers to base 4; 16 bits hold eight bases."""
        value = words[..., 0].astype(np.uint16)
        for place in range(1, self.k):
            value <<= 2
            value |= words[..., place]
        return value.astype(np.int64)


def _count(k: int) -> int:
    """Words of 1 to k bases."""
    return sum(4**j for j in range(1, k + 1))


@functools.lru_cache(maxsize=MAX_K)
def _vocabulary(k: int) -> tuple[str, ...]:
    words = ("".join(w) for j in range(k, 0, -1) for w in itertools.product("ACGT", repeat=j))
    return (*words, *("N" * j for j in range(k, 0, -1)), *_SPECIAL)


@functools.lru_cache(maxsize=MAX_K)
def _complement(k: int) -> Tokens:
    pairs = str.maketrans("ACGT", "TGCA")
    vocabulary = _vocabulary(k)
    ids = {text: i for i, text in enumerate(vocabulary)}
    partner = (t if t.startswith("[") else t[::-1].translate(pairs) for t in vocabulary)
    table = np.array([ids[text] for text in partner], dtype=np.int64)
    table.flags.writeable = False
    return table
