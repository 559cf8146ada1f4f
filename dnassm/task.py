"""The contract of a pretraining objective: tokens in, inputs and targets out."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.config import ObjectiveConfig
from dnassm.data.batch import Batch
from dnassm.data.tokenizer import Tokenizer
from dnassm.registry import Registry

IGNORED = -100
"""Target of a position that does not count: N, padding, or nothing to predict."""


class Examples(NamedTuple):
    """What a model is shown and asked; each (B, L) like the tokens that it was made of."""

    inputs: Tensor
    """int64 tokens."""
    targets: Tensor
    """int64 tokens, IGNORED where nothing counts."""
    weights: Tensor | None = None
    """float32 weight of each target; all the same when None."""


class Objective(abc.ABC):
    """What a model learns to predict.

    The loss is the cross entropy at targets that are not IGNORED, see `token_loss`.
    """

    source: ClassVar[str]
    needs_causal: ClassVar[bool]
    """True when a model that sees the future would cheat."""
    reads_both_sides: ClassVar[bool]
    """True when a causal model would be blind to half of what it may read."""

    def __init__(self, config: ObjectiveConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer

    @abc.abstractmethod
    def prepare(self, batch: Batch, generator: torch.Generator) -> Examples:
        """What to show and ask of the tokens (B, L) of a batch.

        A target brings the weight of its token. No sequence of a packed batch is asked for what
        another one shows.
        """

    def prepare_held_out(self, batch: Batch, generator: torch.Generator) -> Examples:
        """As `prepare`, for a measurement: no target may be seen in the inputs."""
        return self.prepare(batch, generator)

    def _countable(self, targets: Tensor) -> Tensor:
        """Targets with unknown bases, padding and special tokens ignored."""
        unknown = torch.tensor(self.tokenizer.ignore_ids, device=targets.device)
        return targets.masked_fill(torch.isin(targets, unknown), IGNORED)


def token_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of the cross entropy in nats over targets that are not IGNORED.

    sum(w nats) / sum(w): to halve every weight changes nothing. 0 when nothing weighs anything.

    Args:
        logits: (B, L, V).
        targets: (B, L).
        weights: (B, L); all 1 when None.
    """
    flat, asked = logits.flatten(0, 1).float(), targets.flatten()
    if weights is None:
        total = F.cross_entropy(flat, asked, ignore_index=IGNORED, reduction="sum")
        return total / (asked != IGNORED).sum().clamp(min=1)
    weighed = weights.flatten().where(asked != IGNORED, 0.0)
    nats = F.cross_entropy(flat, asked, ignore_index=IGNORED, reduction="none")
    total, weight = (weighed * nats).sum(), weighed.sum()
    return total / weight.where(weight > 0, 1.0)


TASKS: Registry[type[Objective]] = Registry("objective", "dnassm.tasks")
