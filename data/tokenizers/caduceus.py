"""The vocabulary of Caduceus's published weights."""

from __future__ import annotations

from typing import ClassVar

from dnassm.data.tokenizer import TOKENIZERS
from dnassm.data.tokenizers.hyenadna import HyenaDNATokenizer


@TOKENIZERS.register("caduceus")
class CaduceusTokenizer(HyenaDNATokenizer):
    """The ids of Caduceus, which are HyenaDNA's, with A-T as 7-10 and C-G as 8-9 complements.

    N (11) and every special token are their own complement, as in the ``complement_map`` of the
    weights, in which ids 12..15 are filling. The published tokenizer appends [SEP]; here nothing
    is added. Its pretraining read N as [PAD], see `HyenaDNATokenizer`.
    """

    name: ClassVar[str] = "caduceus"
    source: ClassVar[str] = (
        "kuleshov-group/caduceus-ph_seqlen-1k_d_model-118_n_layer-4_lr-8e-3 on the Hugging Face "
        "hub: tokenizer_config.json, complement_map of config.json"
    )
