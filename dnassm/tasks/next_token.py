"""Next-token prediction: every position predicts the base after it."""

from __future__ import annotations

from typing import ClassVar

import torch

from dnassm.data.batch import Batch
from dnassm.task import IGNORED, TASKS, Examples, Objective


@TASKS.register("next")
class NextToken(Objective):
    """Target of position t is token t + 1; the last position of a sequence has none."""

    source: ClassVar[str] = "Nguyen et al. 2023, arXiv:2306.15794, section 3.2"
    needs_causal: ClassVar[bool] = True
    reads_both_sides: ClassVar[bool] = False

    def prepare(self, batch: Batch, generator: torch.Generator) -> Examples:
        """Show every token, ask for the one after it; see `Objective.prepare`."""
        tokens, cu_seqlens, weights = batch
        targets = torch.full_like(tokens, IGNORED)
        targets[:, :-1] = self._countable(tokens[:, 1:])
        if cu_seqlens is not None:
            targets[0, cu_seqlens[1:].long() - 1] = IGNORED
        return Examples(tokens, targets, None if weights is None else weights.roll(-1, dims=1))
