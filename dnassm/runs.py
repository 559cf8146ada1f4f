"""A run folder: what pretraining leaves behind and every later command starts from."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from dnassm.config import RunConfig
from dnassm.data.tokenizer import Tokenizer
from dnassm.errors import ArtifactError
from dnassm.model import DNAModel, read_run_config


@dataclasses.dataclass(frozen=True)
class Run:
    """A loaded run folder."""

    path: Path
    model: DNAModel
    tokenizer: Tokenizer
    config: RunConfig
    digest: str
    """sha256 of model.safetensors."""


def load_run(folder: str | Path) -> Run:
    """Load model, tokenizer and config of a run folder; the model is in evaluation mode.

    Raises:
        ArtifactError: the folder is missing, not a run, unfinished or broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; expected a run made by `dnassm pretrain`")
    config = read_run_config(folder)
    model = DNAModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ArtifactError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model has "
            f"{model.config.vocab_size}; they are not of one run"
        )
    with (folder / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    return Run(folder, model, tokenizer, config, digest)
