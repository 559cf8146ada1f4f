"""The contract of a pretraining objective: tokens in, inputs and targets out."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.config import ObjectiveConfig
from dnassm.data.tokenizer import Tokenizer
from dnassm.registry import Registry

IGNORED = -100
"""Target of a position that does not count: N, padding, or nothing to predict."""


class Objective(abc.ABC):
    """What a model learns to predict.

    The loss is the cross entropy at targets that are not IGNORED.
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
    def prepare(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) int64 to inputs (B, L) and targets (B, L), IGNORED where nothing counts."""

    def prepare_held_out(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As `prepare`, for a measurement: no target may be seen in the inputs."""
        return self.prepare(tokens, generator)

    def _countable(self, targets: Tensor) -> Tensor:
        """Targets with unknown bases, padding and special tokens ignored."""
        unknown = torch.tensor(self.tokenizer.ignore_ids, device=targets.device)
        return targets.masked_fill(torch.isin(targets, unknown), IGNORED)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats over targets that are not IGNORED; 0 when there is none.

    Args:
        logits: (B, L, V).
        targets: (B, L).
    """
    total = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (targets != IGNORED).sum().clamp(min=1)


TASKS: Registry[type[Objective]] = Registry("objective", "dnassm.tasks")
