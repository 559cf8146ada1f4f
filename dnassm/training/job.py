"""What one pretraining run is asked to do."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path

from dnassm.config import DataConfig, RunConfig, SamplerSpec, TokenizerSpec
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import GenomeStore
from dnassm.data.tokenizer import FILE_NAME, Tokenizer, build_tokenizer, is_saved
from dnassm.errors import ArtifactError, ConfigError


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
    def inputs(self) -> dict[str, str]:
        """Path of everything that the run reads -> its digest, the genome first.

        Raises:
            ArtifactError: a file cannot be read.
        """
        return {str(self.genome.path): self.genome.digest} | {
            str(path): _sha256(path) for path in _files(self.config.data)
        }

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.out / "checkpoints"

    @property
    def limit_s(self) -> float:
        """`minutes` in seconds, infinite without."""
        return math.inf if self.minutes is None else 60 * self.minutes


def make_job(config: RunConfig, genome: GenomeStore, out: Path, *, minutes: float | None) -> Job:
    """Resolve what the settings leave to the tokenizer, and the paths in them.

    Raises:
        ConfigError: `minutes` is not a positive number, or an option of the tokenizer is wrong.
        UnknownNameError: no such tokenizer or sampler.
        ArtifactError: the tokenizer's file is none.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"minutes: expected a number above 0, got {minutes}")
    data = _with_absolute_paths(config.data)
    tokenizer = build_tokenizer(data.tokenizer.name, data.tokenizer.options)
    model = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    config = config.model_copy(update={"model": model, "data": data})
    return Job(config=config, tokenizer=tokenizer, genome=genome, out=out, minutes=minutes)


def _with_absolute_paths(data: DataConfig) -> DataConfig:
    """The same files from any working directory: a run may be resumed in another one."""
    tokenizer, sampler = data.tokenizer, data.sampler
    if is_saved(tokenizer.name):
        tokenizer = TokenizerSpec(name=str(Path(tokenizer.name).resolve()))
    options = {
        key: str(Path(value).resolve()) if _is_file(sampler.name, key, value) else value
        for key, value in sampler.options.items()
    }
    sampler = SamplerSpec(name=sampler.name, options=options)
    return data.model_copy(update={"tokenizer": tokenizer, "sampler": sampler})


def _is_file(sampler: str, option: str, value: object) -> bool:
    return option in SAMPLERS[sampler].files and isinstance(value, str)


def _files(data: DataConfig) -> list[Path]:
    """Files that the settings name."""
    sampler = data.sampler
    found = [
        Path(value) for key, value in sampler.options.items() if _is_file(sampler.name, key, value)
    ]
    if is_saved(data.tokenizer.name):
        path = Path(data.tokenizer.name)
        found.append(path / FILE_NAME if path.is_dir() else path)
    return found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
