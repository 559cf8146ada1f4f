"""Tokenizer: bases to integer tokens and back."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dnassm.artifact import read_json, write_json
from dnassm.data.alphabet import Codes, encode_ascii
from dnassm.data.options import built
from dnassm.errors import ArtifactError, ConfigError, FormatError
from dnassm.registry import Registry

FORMAT = "dnassm-tokenizer"
VERSION = 1
FILE_NAME = "tokenizer.json"

Tokens = npt.NDArray[np.int64]


class Tokenizer(abc.ABC):
    """Maps store codes (L,) to tokens (ceil(L / bases_per_token),), and tokens back to letters.

    A tokenizer is fixed by its `name` and its `settings`: two of them with equal `to_json` give
    equal tokens. The laws in tests/contracts/test_tokenizers.py hold for every registered one.
    """

    name: ClassVar[str]
    vocab: tuple[str, ...]
    """Token id -> text; single letters for bases, names in brackets for the special tokens."""
    pad_id: int
    mask_id: int
    bos_id: int
    ignore_ids: tuple[int, ...]
    """Ids that are never a target of a loss: unknown bases and special tokens."""
    bases: Mapping[str, int]
    """Letter -> id of the tokens that are one base; empty when no token is."""
    bases_per_token: int
    """Bases from one token to the next; the last token of a sequence may hold fewer."""
    bases_of_word: int
    """Bases of every token but the last ones of a sequence; above `bases_per_token` they overlap.
    Of no meaning where tokens differ in size."""
    fixed_size: ClassVar[bool] = True
    """False when tokens differ in size: L bases are then at most L tokens, `bases_per_token` is 1,
    and the rows of a batch are padded at their right end to as many tokens as the longest has."""
    complement: Tokens | None
    """(V,) token id -> id of its complement, an involution; None when the vocabulary has none.
    Reversed and complemented, the tokens of whole tokens of bases are those of the other strand."""

    @property
    def vocab_size(self) -> int:
        """V, the number of token ids, special tokens included."""
        return len(self.vocab)

    def spans(self, tokens: Tokens, bases: int) -> Tokens:
        """Bases (T, 2) of each of the tokens (T,) of a sequence of `bases`, 0-based half-open.

        Padding behind the sequence spans nothing.
        """
        start = np.arange(tokens.size) * self.bases_per_token
        edges = np.stack([start, start + self.bases_of_word], axis=1)
        return np.minimum(edges, bases)

    def told(self) -> Tokens:
        """(V,) bases that a token tells beyond those of the token before it; 0 where unknown.

        Bits per base divides by them: overlapping words tell one base each.
        """
        told = np.array([len(text) for text in self.vocab], dtype=np.int64)
        told[list(self.ignore_ids)] = 0
        return told

    def words(self) -> Tokens:
        """Ids that may stand inside of a sequence of known bases."""
        return np.flatnonzero(self.told()).astype(np.int64)

    @property
    def overlap(self) -> int:
        """Tokens that hold a base: 1, but for words that overlap."""
        return -(-self.bases_of_word // self.bases_per_token)

    @abc.abstractmethod
    def encode_codes(self, codes: Codes) -> Tokens:
        """Encode store codes (..., L), as `GenomeStore.fetch` returns them, to int64 tokens."""

    @abc.abstractmethod
    def decode(self, tokens: npt.ArrayLike) -> str:
        """Write tokens (L,) as text: upper case, special tokens in brackets.

        Raises:
            FormatError: a token id lies outside of the vocabulary.
        """

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Arguments that build this tokenizer again: ``type(self)(**settings)``."""

    def _checked(self, tokens: npt.ArrayLike) -> list[int]:
        """Token ids as a list.

        Raises:
            FormatError: one lies outside of the vocabulary; names it and its 0-based position.
        """
        ids = np.asarray(tokens).ravel()
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if wrong.size:
            raise FormatError(
                f"tokenizer {self.name}: expected ids 0..{self.vocab_size - 1}, "
                f"got {ids[wrong[0]]} at position {wrong[0]}"
            )
        found: list[int] = ids.tolist()
        return found

    def _check_codes(self, codes: Codes) -> None:
        if codes.dtype != np.uint8:
            raise FormatError(
                f"tokenizer {self.name}: expected uint8 store codes, got {codes.dtype}"
            )

    def encode(self, sequence: str) -> Tokens:
        """Encode letters to int64 tokens (L,); case is ignored, U reads as T.

        Raises:
            FormatError: a letter is not an IUPAC nucleotide.
        """
        return self.encode_codes(encode_letters(sequence))

    def to_json(self) -> dict[str, Any]:
        """Describe this tokenizer as plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "settings": self.settings(),
            "vocab": list(self.vocab),
        }

    @staticmethod
    def from_json(value: Any, *, where: str = "tokenizer") -> Tokenizer:
        """Build the tokenizer that `to_json` described.

        Args:
            value: what `to_json` returned.
            where: file or place that the value comes from, for the error message.

        Raises:
            ArtifactError: not a tokenizer, of a newer version, or of another vocabulary.
            UnknownNameError: no tokenizer of that name is registered.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ArtifactError(
                f'{where}: expected JSON with "format": "{FORMAT}"; this is not a tokenizer'
            )
        version = value.get("version")
        if version != VERSION:
            raise ArtifactError(
                f"{where}: expected tokenizer version {VERSION}, got {version!r}; "
                "update dnassm, or write the tokenizer again with this one"
            )
        name, settings = value.get("name"), value.get("settings")
        if not isinstance(name, str) or not isinstance(settings, dict):
            raise ArtifactError(f'{where}: expected "name" and "settings"; the file is damaged')
        try:
            tokenizer = TOKENIZERS[name](**settings)
        except (TypeError, ConfigError) as error:
            raise ArtifactError(
                f"{where}: tokenizer {name!r} refuses its settings: {error}"
            ) from error
        if list(tokenizer.vocab) != value.get("vocab"):
            expected, got = list(tokenizer.vocab), value.get("vocab")
            raise ArtifactError(
                f"{where}: expected the vocabulary {_shortened(repr(expected))}, got "
                f"{_shortened(repr(got))}; its ids would mean other bases"
            )
        return tokenizer

    def save(self, path: Path | str) -> None:
        """Write this tokenizer to a JSON file, atomically."""
        write_json(Path(path), self.to_json())

    @staticmethod
    def load(path: Path | str) -> Tokenizer:
        """Read a tokenizer from its JSON file, or from a folder that holds ``tokenizer.json``.

        Raises:
            ArtifactError: the file is missing, broken, no tokenizer or of a newer version.
        """
        file = Path(path)
        if file.is_dir():
            file = file / FILE_NAME
        return Tokenizer.from_json(read_json(file), where=str(file))


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def encode_letters(sequence: str) -> Codes:
    """Store codes (L,) of letters, those that are not even ASCII refused in the same words.

    Raises:
        FormatError: a character is not an IUPAC nucleotide; names it and its 0-based position.
    """
    try:
        return encode_ascii(sequence.encode("ascii"))
    except UnicodeEncodeError as error:
        raise FormatError(
            f"expected DNA letters (A C G T U N and IUPAC), got {sequence[error.start]!r} at "
            f"position {error.start} of the sequence; remove it or write N"
        ) from error


def build_tokenizer(name: str, options: Mapping[str, Any]) -> Tokenizer:
    """Make the tokenizer that is called `name`, or read the saved one that `name` is the path of.

    Raises:
        UnknownNameError: neither a tokenizer nor a file or folder.
        ConfigError: an option is unknown or wrong, or given for a saved tokenizer.
        ArtifactError: the file is no tokenizer.
    """
    if not is_saved(name):
        return built(f"tokenizer {name}", TOKENIZERS[name], options)
    if options:
        raise ConfigError(
            f"tokenizer {name}: a saved tokenizer has its options in its file, got "
            f"{', '.join(options)}; leave them out"
        )
    return Tokenizer.load(name)


def is_saved(name: str) -> bool:
    """Whether `name` is the path of a saved tokenizer, and none that is registered."""
    return name not in TOKENIZERS and ("/" in name or name.endswith(".json") or Path(name).exists())


TOKENIZERS: Registry[type[Tokenizer]] = Registry("tokenizer", "dnassm.data.tokenizers")
