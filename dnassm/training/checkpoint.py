"""Checkpoints: safetensors and JSON in a folder of their own, whole or absent, never a pickle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dnassm.artifact import read_json, staged_folder
from dnassm.errors import ArtifactError

_WEIGHTS, _OPTIMIZER, _PROGRESS = "model.safetensors", "optimizer.safetensors", "progress.json"


@dataclasses.dataclass
class Progress:
    """Where a run stands. Batches, masks and dropout follow from `step`: it is the whole state."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens read, over all devices."""
    seconds: float = 0.0
    """Time spent in steps, over all sessions of the run."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    keep: int,
) -> Path:
    """Write ``folder/step-N`` atomically, then drop all but the newest `keep`."""
    target = folder / f"step-{progress.step:08d}"
    with staged_folder(target, force=True) as staging:
        save_file(_contiguous(model.state_dict()), staging / _WEIGHTS)
        save_file(_contiguous(_moments(model, optimizer)), staging / _OPTIMIZER)
        (staging / _PROGRESS).write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _PROGRESS).is_file())


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore model and optimiser in place; returns where the run stood.

    Raises:
        ArtifactError: a file is missing or broken, or is of another model.
    """
    try:
        model.load_state_dict(load_file(path / _WEIGHTS))
        moments = load_file(path / _OPTIMIZER)
    except (SafetensorError, RuntimeError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(
            f"{path}: cannot resume: {reason}; delete it to use the one before"
        ) from error
    for name, parameter in model.named_parameters():
        state = {key: moments[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
        optimizer.state[parameter] = {
            key: value.to(parameter.device) if key != "step" else value
            for key, value in state.items()
        }
    return Progress(**read_json(path / _PROGRESS))


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by parameter name: positions in a group may change, names do not."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _contiguous(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
