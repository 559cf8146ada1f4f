"""What one pretraining run is asked to do."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from dnassm.config import RunConfig
from dnassm.data.store import GenomeStore
from dnassm.data.tokenizer import TOKENIZERS, Tokenizer
from dnassm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A run before it starts: resolved settings, genome and place."""

    config: RunConfig
    tokenizer: Tokenizer
    genome: GenomeStore
    out: Path
    minutes: float | None = None
    """Training time after which the run ends; None leaves training.max_steps alone to say."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.out / "checkpoints"

    @property
    def limit_s(self) -> float:
        """`minutes` in seconds, infinite without."""
        return math.inf if self.minutes is None else 60 * self.minutes


def make_job(config: RunConfig, genome: GenomeStore, out: Path, *, minutes: float | None) -> Job:
    """Resolve what the settings leave to the tokenizer.

    Raises:
        ConfigError: `minutes` is not a positive number.
        UnknownNameError: no such tokenizer.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"minutes: expected a number above 0, got {minutes}")
    tokenizer = TOKENIZERS[config.data.tokenizer]()
    model = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    config = config.model_copy(update={"model": model})
    return Job(config=config, tokenizer=tokenizer, genome=genome, out=out, minutes=minutes)
