"""Settings of fine-tuning, validated in one place."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from dnassm.errors import ConfigError

Mode = Literal["probe", "full"]
Strands = Literal["plus", "both"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How a classifier is made from a pretrained model.

    Attributes:
        mode: "probe" trains logistic regression on frozen embeddings, "full" every weight.
        scratch: also train the same model from random weights, to show what pretraining gave.
        folds: of the cross-validation where the data name no test part; None means 5.
        epochs: most passes over the training set (full).
        lr: peak learning rate of the backbone (full); the head, and a backbone with random weights,
            learn `head_lr_factor` times as fast.
        head_lr_factor: see `lr`.
        batch_size: sequences per step.
        patience: epochs without a better dev score after which training stops (full).
        strand: "both" trains on both strands and averages the logits of both; for tasks where the
            strand does not matter.
        seed: of weights, order of batches, strands, folds and bootstrap.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    mode: Mode = "probe"
    scratch: bool = False
    folds: int | None = None
    epochs: int = 10
    lr: float = 5e-4
    head_lr_factor: float = 4.0
    batch_size: int = 32
    patience: int = 3
    strand: Strands = "plus"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kinds in (("mode", Mode), ("strand", Strands)):
            value = getattr(self, name)
            if value not in get_args(kinds):
                expected = " or ".join(repr(kind) for kind in get_args(kinds))
                raise ConfigError(f"{name}: expected {expected}, got {value!r}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if self.folds is not None and self.folds < 2:
            raise ConfigError(f"folds: expected 2 or more, got {self.folds}")
        if min(self.lr, self.head_lr_factor) <= 0:
            raise ConfigError(f"lr: expected a rate above 0, got {self.lr}")
