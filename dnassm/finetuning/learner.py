"""Learner: anything that learns from labelled sequences and then gives class probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dnassm.baselines import Baseline
from dnassm.finetuning.classifier import Classifier
from dnassm.finetuning.examples import Examples

History = list[dict[str, float | int | str]]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a learner has learnt.

    Attributes:
        predict_proba: sequences -> (n, C) probabilities, columns in the order of the classes.
        classifier: to be stored; None for a baseline.
        history: rows of metrics.csv.
    """

    predict_proba: Callable[[Sequence[str]], npt.NDArray[np.float64]]
    classifier: Classifier | None = None
    history: History = dataclasses.field(default_factory=list)


class Learner(Protocol):
    """One row of the result: a way to learn the task."""

    name: str

    def fit(self, train: Examples, dev: Examples | None, *, label: str = "") -> Fitted:
        """Learn from `train`; settings are chosen on `dev`, or inside `train` when there is none.

        Args:
            train: every class occurs in it.
            dev: may be None.
            label: what a progress bar calls this fit, for example ``"fold 2/5"``.
        """
        ...


@dataclasses.dataclass
class BaselineLearner:
    """A baseline as a learner; it sees the training set only.

    Attributes:
        name: in the result.
        make: gives a fresh, unfitted baseline.
        classes: of the task.
    """

    name: str
    make: Callable[[], Baseline]
    classes: tuple[str, ...]

    def fit(self, train: Examples, dev: Examples | None, *, label: str = "") -> Fitted:
        """See Learner."""
        del dev, label
        labels = [self.classes[index] for index in train.labels]
        return Fitted(self.make().fit(train.sequences, labels).predict_proba)
