"""Masked-token prediction: some bases are hidden and read back from both sides."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dnassm.data.batch import Batch
from dnassm.task import IGNORED, TASKS, Examples, Objective

_MASKED, _RANDOM = 0.8, 0.1  # the remaining tenth keeps its base


@TASKS.register("masked")
class MaskedToken(Objective):
    """Predicts a share of the bases: 80 % shown as [MASK], 10 % as a random base, 10 % as is."""

    source: ClassVar[str] = "Devlin et al. 2018, arXiv:1810.04805, section 3.1; 15 % as in Caduceus"
    needs_causal: ClassVar[bool] = False
    reads_both_sides: ClassVar[bool] = True

    def prepare(self, batch: Batch, generator: torch.Generator) -> Examples:
        """Hide some tokens and ask for them; see `Objective.prepare`."""
        tokens = batch.tokens
        chosen, targets = self._choose(tokens, generator)
        fate = torch.rand(tokens.shape, generator=generator).to(tokens.device)
        bases = torch.tensor(sorted(self.tokenizer.bases.values()))
        drawn = bases[torch.randint(len(bases), tokens.shape, generator=generator)]
        inputs = tokens.masked_fill(chosen & (fate < _MASKED), self.tokenizer.mask_id)
        randomised = chosen & (fate >= _MASKED) & (fate < _MASKED + _RANDOM)
        shown = torch.where(randomised, drawn.to(tokens.device), inputs)
        return Examples(shown, targets, batch.weights)

    def prepare_held_out(self, batch: Batch, generator: torch.Generator) -> Examples:
        """As `prepare`, with every predicted base shown as [MASK].

        The tenth that training shows as is would lower the bits per base: 1.91 on random sequence.
        """
        chosen, targets = self._choose(batch.tokens, generator)
        shown = batch.tokens.masked_fill(chosen, self.tokenizer.mask_id)
        return Examples(shown, targets, batch.weights)

    def _choose(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions (B, L) to predict, and targets (B, L) there."""
        chance = torch.rand(tokens.shape, generator=generator).to(tokens.device)
        targets = self._countable(tokens)
        chosen = (chance < self.config.mask_ratio) & (targets != IGNORED)
        return chosen, targets.masked_fill(~chosen, IGNORED)
