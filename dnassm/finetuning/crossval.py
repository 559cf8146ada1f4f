"""Probabilities for a whole test set: an official one, or every sequence by cross-validation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dnassm.data.leakage_copies import strand_keys
from dnassm.errors import ConfigError, LabelError
from dnassm.finetuning.examples import Task
from dnassm.finetuning.folds import Indices, stratified_folds
from dnassm.finetuning.learner import Fitted, Learner

DEFAULT_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What a learner says of every test sequence.

    Attributes:
        probabilities: (n_test, C).
        seconds: of training and prediction, without the last fit after cross-validation.
        fitted: what is stored: learnt from the training set, or after cross-validation from all.
    """

    probabilities: npt.NDArray[np.float64]
    seconds: float
    fitted: Fitted


def folds_of(task: Task, folds: int | None, *, seed: int) -> list[Indices] | None:
    """Held-out indices of each fold; None for a task with a test set.

    Raises:
        ConfigError: folds for a task with a test set.
        LabelError: too few sequences for the folds, or a class with a single different sequence.
    """
    if task.test is not None:
        if folds is not None:
            raise ConfigError(
                f"{task.name} has a test set; --folds is for data without one, leave it away"
            )
        return None
    different: dict[int, set[str]] = {}
    for (_, key), label in zip(strand_keys(task.train.sequences), task.train.labels, strict=True):
        different.setdefault(label, set()).add(key)
    for label, keys in different.items():
        if len(keys) < 2:
            raise LabelError(
                f"{task.name}: class {task.classes[label]!r} has one sequence (copies and reverse "
                "complements not counted); cross-validation needs at least 2 per class"
            )
    return stratified_folds(
        task.train.sequences, task.train.labels, folds or DEFAULT_FOLDS, seed=seed
    )


def predict_test(
    learner: Learner, task: Task, folds: Sequence[Indices] | None, *, store: bool
) -> Predicted:
    """Let `learner` learn the task and predict its whole test set.

    Args:
        learner: what to test.
        task: with a test set, or with every sequence in `train`.
        folds: of `folds_of`.
        store: whether a fit on everything is wanted after cross-validation.
    """
    began = time.monotonic()
    if task.test is not None:
        fitted = learner.fit(task.train, task.dev)
        probabilities = fitted.predict_proba(task.test.sequences)
        return Predicted(probabilities, time.monotonic() - began, fitted)
    held_out = list(folds or ())
    everything = np.arange(len(task.train))
    probabilities = np.empty((len(everything), len(task.classes)))
    for number, held in enumerate(held_out, start=1):
        kept = task.train.subset(np.setdiff1d(everything, held))
        fitted = learner.fit(kept, None, label=f"fold {number}/{len(held_out)}")
        probabilities[held] = fitted.predict_proba(task.train.subset(held).sequences)
    seconds = time.monotonic() - began
    if store:
        fitted = learner.fit(task.train, None, label="all")
    return Predicted(probabilities, seconds, fitted)
