"""State space models for DNA, from FASTA to report.

Names load when they are first used, so that ``import dnassm`` costs nothing:

>>> import dnassm
>>> dnassm.Interval("chr1", 100, 200)
Interval(contig='chr1', start=100, end=200, strand='+')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnassm.config import RunConfig
    from dnassm.data.interval import Interval
    from dnassm.data.store import GenomeStore
    from dnassm.data.tokenizer import Tokenizer
    from dnassm.embedding import embed
    from dnassm.finetuning import finetune
    from dnassm.model import DNAModel
    from dnassm.training.pretrain import pretrain

__version__ = "0.1.0"

_PUBLIC = {
    "GenomeStore": "dnassm.data.store",
    "Interval": "dnassm.data.interval",
    "Tokenizer": "dnassm.data.tokenizer",
    "DNAModel": "dnassm.model",
    "RunConfig": "dnassm.config",
    "pretrain": "dnassm.training.pretrain",
    "finetune": "dnassm.finetuning",
    "embed": "dnassm.embedding",
}

__all__ = [  # noqa: RUF022  in the order of the straight line
    "GenomeStore",
    "Interval",
    "Tokenizer",
    "DNAModel",
    "RunConfig",
    "pretrain",
    "finetune",
    "embed",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dnassm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
