"""One token per base."""

from __future__ import annotations

from typing import Any, ClassVar

from dnassm.data.per_base import PerBaseTokenizer
from dnassm.data.tokenizer import TOKENIZERS

_N, _MASK, _PAD, _BOS = range(4, 8)


@TOKENIZERS.register("single")
class SingleBaseTokenizer(PerBaseTokenizer):
    """A C G T N as ids 0..4, then [MASK], [PAD] and [BOS]; soft mask ignored, IUPAC read as N."""

    name: ClassVar[str] = "single"
    vocab = ("A", "C", "G", "T", "N", "[MASK]", "[PAD]", "[BOS]")
    pad_id = _PAD
    mask_id = _MASK
    bos_id = _BOS
    ignore_ids = (_N, _MASK, _PAD, _BOS)
    n_id = _N
    iupac_id = _N

    def settings(self) -> dict[str, Any]:
        """No setting: there is one single-base tokenizer."""
        return {}
