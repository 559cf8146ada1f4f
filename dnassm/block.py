"""One block of a model: x + dropout(mixer(norm(x))), the sum kept in float32."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from dnassm.config import MixerSpec, explain
from dnassm.errors import ConfigError
from dnassm.mixer import MIXERS, SequenceMixer


class Block(nn.Module):
    """Pre-norm residual block around one sequence mixer.

    The residual stream is float32 whatever the mixer computes in: rounding it to bf16 at every
    block costs accuracy that no later block can restore.
    """

    def __init__(self, d_model: int, mixer: SequenceMixer, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mixer = mixer
        self.dropout = dropout

    def forward(
        self, x: Tensor, state: Any = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """(B, L, D) -> (B, L, D), and the mixer's state; see `SequenceMixer.forward`."""
        y, state = self.mixer(self.norm(x), state, cu_seqlens)
        return x + F.dropout(y.to(x.dtype), self.dropout, self.training), state


def build_mixer(spec: MixerSpec, d_model: int) -> SequenceMixer:
    """Make the mixer that `spec` names.

    Raises:
        UnknownNameError: no such mixer.
        ConfigError: an option is unknown or out of range.
    """
    mixer = MIXERS[spec.name]
    options: type[BaseModel] = mixer.Config
    try:
        config = options.model_validate(spec.options)
    except ValidationError as error:
        problems = "; ".join(explain(options, problem) for problem in error.errors())
        raise ConfigError(f"mixer {spec.name}: {problems}") from error
    return mixer(d_model, config)
