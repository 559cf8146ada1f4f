"""The vocabulary of HyenaDNA's published weights."""

from __future__ import annotations

from typing import Any, ClassVar

from dnassm.data.per_base import PerBaseTokenizer
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.errors import ConfigError

_CLS, _SEP, _BOS, _MASK, _PAD, _RESERVED, _UNK = range(7)
_N = 11


@TOKENIZERS.register("hyenadna")
class HyenaDNATokenizer(PerBaseTokenizer):
    """The ids of HyenaDNA: seven special tokens, then A C G T N as 7..11; IUPAC reads as [UNK].

    No special token is added around a sequence. Lower case reads as upper case; the published
    tokenizer reads it as [UNK], and was given upper case. The weights have more rows than these 12
    ids, because their vocabulary is padded to a multiple of 8.

    Args:
        n_as_pad: read N as [PAD], as the published pretraining did after tokenizing; the embedding
            of N (id 11) of those weights has never been trained.

    Raises:
        ConfigError: `n_as_pad` is no truth value.
    """

    name: ClassVar[str] = "hyenadna"
    source: ClassVar[str] = (
        "HazyResearch/hyena-dna: src/dataloaders/datasets/hg38_char_tokenizer.py, hg38_dataset.py"
    )
    vocab = (
        *("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]"),
        *("A", "C", "G", "T", "N"),
    )
    pad_id = _PAD
    mask_id = _MASK
    bos_id = _BOS
    ignore_ids = (_CLS, _SEP, _BOS, _MASK, _PAD, _RESERVED, _UNK, _N)
    iupac_id = _UNK

    def __init__(self, *, n_as_pad: bool = False) -> None:
        if not isinstance(n_as_pad, bool):
            raise ConfigError(f"n_as_pad: expected true or false, got {n_as_pad!r}")
        self.n_as_pad = n_as_pad
        self.n_id = _PAD if n_as_pad else _N
        super().__init__()

    def settings(self) -> dict[str, Any]:
        """How N is read."""
        return {"n_as_pad": self.n_as_pad}
