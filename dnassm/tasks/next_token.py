"""Next-token prediction: every position predicts the base after it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dnassm.task import IGNORED, TASKS, Objective


@TASKS.register("next")
class NextToken(Objective):
    """Target of position t is token t + 1; the last position has none."""

    source: ClassVar[str] = "Nguyen et al. 2023, arXiv:2306.15794, section 3.2"
    needs_causal: ClassVar[bool] = True
    reads_both_sides: ClassVar[bool] = False

    def prepare(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) to inputs (B, L) and targets (B, L)."""
        targets = torch.full_like(tokens, IGNORED)
        targets[:, :-1] = self._countable(tokens[:, 1:])
        return tokens, targets
