"""Checkpoints: safetensors and JSON in a folder of their own, whole or absent, never a pickle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dnassm.artifact import read_json, staged_folder
from dnassm.errors import ArtifactError

_WEIGHTS, _OPTIMIZER, _PROGRESS = "model.safetensors", "optimizer.safetensors", "progress.json"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclasses.dataclass
class Progress:
    """Where a run stands. Batches, masks and dropout follow from `step`: it is the whole state."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens read, over all devices."""
    seconds: float = 0.0
    """Time spent in training, over all sessions of the run; without evaluation and checkpoints."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """Of the steps since the last row of metrics.csv, so that the next row is whole."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    keep: int,
) -> Path:
    """Write ``folder/step-N`` atomically, then drop all but the newest `keep`.

    Raises:
        ArtifactError: it could not be written; the checkpoints before are untouched.
    """
    target = folder / f"step-{progress.step:08d}"
    with writing(target), staged_folder(target, force=True) as staging:
        save_file(_contiguous(model.state_dict()), staging / _WEIGHTS)
        save_file(_contiguous(_moments(model, optimizer)), staging / _OPTIMIZER)
        (staging / _PROGRESS).write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say what to do when `target` cannot be written, whatever the storage's reason.

    Raises:
        ArtifactError: in place of the storage's error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = error.__cause__ if isinstance(error, ArtifactError) else None
        reason = " ".join(str(cause or error).split())
        raise ArtifactError(
            f"{target}: cannot be written: {reason}. What was saved before is whole: free space, "
            "then go on with --resume"
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    found = {
        int(number): path
        for path in folder.glob("step-*")
        if (number := path.name.removeprefix("step-")).isdecimal() and (path / _PROGRESS).is_file()
    }
    return [found[number] for number in sorted(found)]


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore model and optimiser in place; returns where the run stood.

    Raises:
        ArtifactError: a file is missing or broken, or is of another model.
    """
    try:
        progress = _read_progress(path)
        model.load_state_dict(load_file(path / _WEIGHTS))
        moments = load_file(path / _OPTIMIZER)
        for name, parameter in model.named_parameters():
            optimizer.state[parameter] = _state(name, parameter, moments)
    except (SafetensorError, RuntimeError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        older = len(checkpoints(path.parent)) > 1
        what_now = (
            "to go on from the one before" if older else "to start the run from its beginning"
        )
        raise ArtifactError(
            f"{path}: cannot resume: {reason}; delete this folder {what_now}"
        ) from error
    return progress


def _read_progress(path: Path) -> Progress:
    values = read_json(path / _PROGRESS)
    try:
        progress = Progress(**values)
    except TypeError as error:
        raise ValueError(f"{_PROGRESS}: {error}") from error
    counts = (progress.step, progress.tokens)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{_PROGRESS}: expected step and tokens as whole numbers, got {counts}")
    numbers = [
        progress.seconds,
        *(progress.losses if isinstance(progress.losses, list) else [None]),
    ]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"{_PROGRESS}: expected seconds and losses as numbers")
    if path.name != f"step-{progress.step:08d}":
        raise ValueError(f"{_PROGRESS} is of step {progress.step}, not of this folder")
    return progress


def _state(
    name: str, parameter: nn.Parameter, moments: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """AdamW's state of one parameter, on its device; the step counter stays on the CPU."""
    missing = [key for key in _MOMENTS if f"{key}/{name}" not in moments]
    if missing:
        raise ValueError(f"{_OPTIMIZER} has no {', '.join(missing)} of {name}")
    average, square, step = (moments[f"{key}/{name}"] for key in _MOMENTS)
    if not average.shape == square.shape == parameter.shape:
        raise ValueError(
            f"{_OPTIMIZER}: {name} is {tuple(average.shape)} there, "
            f"{tuple(parameter.shape)} in the model"
        )
    device = parameter.device
    return {"exp_avg": average.to(device), "exp_avg_sq": square.to(device), "step": step}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by parameter name: positions in a group may change, names do not."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _contiguous(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
