"""Byte pair encoding: words of different sizes, learnt from DNA."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import BASE, PAD, Codes, T
from dnassm.data.samplers.uniform import UniformSampler
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizer import TOKENIZERS, Tokenizer, Tokens
from dnassm.errors import ConfigError
from dnassm.extras import require

_LETTERS = "ACGT"
_FIRST = ("A", "C", "G", "T", "N", "[MASK]", "[PAD]", "[BOS]")
_N, _MASK, _PAD, _BOS = range(4, 8)
_PAD_LETTER = "."
_CHUNK_BASES = 256
_MOST_TOKENS = 1 << 16

_TO_LETTER = bytes(
    ord(_LETTERS[code & BASE] if code & BASE <= T else _PAD_LETTER if code & BASE == PAD else "N")
    for code in range(256)
)


@TOKENIZERS.register("bpe")
class BpeTokenizer(Tokenizer):
    """Byte pair encoding trained on DNA: frequent words are one token; needs the extra ``bpe``.

    As in DNABERT-2 (Zhou et al. 2023, arXiv:2306.15006; the method: Sennrich et al. 2016,
    arXiv:1508.07909). Ids 0..7 are those of the tokenizer ``single``, then one id per merge, in
    the order of training. N and IUPAC letters read as N and are a part of no word, so that a
    sequence of A C G T N can be read back; a padding code is one [PAD]. Soft mask is ignored.
    There is no complement: the words of the other strand are cut elsewhere. What `train_bpe`
    returns is saved as JSON, the list of its merges; reading it runs nothing of the file.

    Args:
        merges: in the order of training, each two tokens with a space between: ``"A C"``.

    Raises:
        ConfigError: there are no merges, or one is not of two tokens that exist by then.
        MissingExtraError: at the first use, when the library ``tokenizers`` is not installed.
    """

    name: ClassVar[str] = "bpe"
    pad_id = _PAD
    mask_id = _MASK
    bos_id = _BOS
    ignore_ids = (_N, _MASK, _PAD, _BOS)
    bases = MappingProxyType({letter: i for i, letter in enumerate(_LETTERS)})
    bases_per_token = bases_of_word = 1
    fixed_size: ClassVar[bool] = False
    complement = None

    def __init__(self, *, merges: Sequence[str] | None = None) -> None:
        if merges is None:
            raise ConfigError(
                "tokenizer bpe: expected merges, got none; train it with "
                "dnassm.data.tokenizers.bpe.train_bpe, save it, and load the file"
            )
        self._ids = {text: i for i, text in enumerate(_FIRST)}
        self._merges = [self._merge(merge) for merge in merges]
        self.vocab = tuple(self._ids)
        self._sizes = np.array([1 if t.startswith("[") else len(t) for t in self.vocab])
        self._engine: Any = None

    def __reduce__(self) -> tuple[Callable[[list[str]], BpeTokenizer], tuple[list[str]]]:
        return _of_merges, (self.settings()["merges"],)

    def encode_codes(self, codes: Codes) -> Tokens:
        """Encode store codes (..., L) to int64 tokens (..., at most L); see `fixed_size`."""
        self._check_codes(codes)
        rows = codes.reshape(int(np.prod(codes.shape[:-1])), codes.shape[-1])
        found = [self._encode(row) for row in rows]
        longest = max((len(ids) for ids in found), default=0)
        tokens = np.full((len(found), longest), _PAD, dtype=np.int64)
        for row, ids in zip(tokens, found, strict=True):
            row[: len(ids)] = ids
        return tokens.reshape(*codes.shape[:-1], longest)

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Write tokens (L,) as text; see `Tokenizer.decode`."""
        return "".join(map(self.vocab.__getitem__, self._checked(tokens)))

    def spans(self, tokens: Tokens, bases: int) -> Tokens:
        """Bases (T, 2) of each of the tokens (T,); see `Tokenizer.spans`."""
        stop = np.minimum(np.cumsum(self._sizes[tokens]), bases)
        return np.stack([np.concatenate([[0], stop[:-1]]), stop], axis=1)

    def settings(self) -> dict[str, Any]:
        """The merges."""
        return {"merges": [f"{left} {right}" for left, right in self._merges]}

    def _merge(self, merge: str) -> tuple[str, str]:
        left, _, right = str(merge).partition(" ")
        if not {left, right} <= self._ids.keys() or not set(left + right) <= set(_LETTERS):
            raise ConfigError(
                f"merges: expected two tokens that exist by then, as 'A C', got {merge!r}"
            )
        # Two merges may make one word: AA A and A AA.
        self._ids.setdefault(left + right, len(self._ids))
        return left, right

    def _encode(self, row: Codes) -> list[int]:
        text = row.tobytes().translate(_TO_LETTER).decode("ascii")
        if not text:
            return []
        if self._engine is None:
            library = require("tokenizers", "bpe", "the tokenizer bpe")
            words = {t: i for t, i in self._ids.items() if not t.startswith("[")}
            words[_PAD_LETTER] = _PAD
            self._engine = library.Tokenizer(library.models.BPE(words, self._merges))
        # One text at a time: batches start threads, which workers that fork later cannot have.
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids


def train_bpe(
    genome: GenomeStore | Sequence[Path],
    *,
    vocab_size: int = 4096,
    split: str = "train",
    bases: int = 2_000_000,
    seed: int = 0,
) -> BpeTokenizer:
    """Learn the merges from a sample of a genome; the same arguments give the same tokenizer.

    The sample is windows of 256 bases drawn uniformly from the split, half of them on the minus
    strand, cut where a base is unknown: a word is at most 256 bases. Ten seconds for the default.

    Args:
        genome: a store, or FASTA files, of which every base is then of the split "train".
        vocab_size: V, with the eight tokens that every such vocabulary begins with; fewer when the
            sample has no more pairs to merge.
        split: name of the split to learn from; held-out bases must not be.
        bases: how many bases to draw.
        seed: of the draws.

    Raises:
        ConfigError: a number is out of range.
        GenomeError: no such split, or nothing but unknown bases in it.
        MissingExtraError: the library ``tokenizers`` is not installed.
    """
    if not len(_FIRST) < vocab_size <= _MOST_TOKENS:
        raise ConfigError(
            f"vocab_size: expected {len(_FIRST) + 1} to {_MOST_TOKENS}, got {vocab_size}"
        )
    if bases < 1:
        raise ConfigError(f"bases: expected at least 1, got {bases}")
    if not isinstance(genome, GenomeStore):
        with tempfile.TemporaryDirectory(prefix="dnassm-bpe-") as folder:
            store = build_store(list(genome), Path(folder) / "store")
            return train_bpe(store, vocab_size=vocab_size, split=split, bases=bases, seed=seed)
    library = require("tokenizers", "bpe", "training the tokenizer bpe")
    engine = library.Tokenizer(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size - len(_FIRST) + len(_LETTERS),
        initial_alphabet=list(_LETTERS),
        special_tokens=[],
        show_progress=False,
    )
    engine.train_from_iterator(_sample(genome, split, bases, seed), trainer)
    merges = json.loads(engine.to_str())["model"]["merges"]
    return BpeTokenizer(merges=[f"{left} {right}" for left, right in merges])


def _sample(store: GenomeStore, split: str, bases: int, seed: int) -> Iterator[str]:
    """Stretches of A C G T."""
    longest = max(map(len, store.splits.get(split, ())), default=_CHUNK_BASES)
    length = max(1, min(_CHUNK_BASES, longest))
    sampler = UniformSampler(store, split=split, length=length, rc_probability=0.5)
    for index in range(-(-bases // length)):
        codes = store.fetch(sampler(seed, *divmod(index, len(sampler))))
        yield from filter(None, codes.tobytes().translate(_TO_LETTER).decode("ascii").split("N"))


def _of_merges(merges: list[str]) -> BpeTokenizer:
    return BpeTokenizer(merges=merges)
