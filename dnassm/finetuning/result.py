"""What fine-tuning found: metrics, curves and predictions of every model on the same test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dnassm.data.leakage_copies import Duplicates
from dnassm.metrics import (
    Curve,
    Metric,
    classification_metrics,
    confusion_matrix,
    pr_curve,
    roc_curve,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CURVE_POINTS = 500
"""Most points of a stored curve; the metrics are computed before the thinning."""


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """One model on the whole test set.

    Attributes:
        name: "probe", "full", "k-mer logistic regression", ...
        metrics: by name, with bootstrap intervals.
        roc: false positive against true positive rate; None unless there are two classes.
        pr: recall against precision; None unless there are two classes.
        confusion: (C, C) counts, rows are the truth.
        seconds: training and prediction, all folds together.
        probabilities: (n, C) for every test sequence.
    """

    name: str
    metrics: dict[str, Metric]
    roc: Curve | None
    pr: Curve | None
    confusion: Ints
    seconds: float
    probabilities: Floats

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; metrics without a value keep null and their reason."""
        return {
            "name": self.name,
            "metrics": [metric.to_json() for metric in self.metrics.values()],
            "roc": _curve_json(self.roc, "fpr", "tpr"),
            "pr": _curve_json(self.pr, "recall", "precision"),
            "confusion": self.confusion.tolist(),
            "seconds": round(self.seconds, 3),
        }


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """Every model of one fine-tuning, the asked-for one first.

    Attributes:
        task: name of the data.
        classes: in the order of the columns; of two the second is the positive one.
        n_train: training sequences; with cross-validation every sequence.
        n_dev: sequences that settings were chosen on, 0 when the data name none.
        n_test: sequences behind the metrics; with cross-validation every sequence.
        duplicates: copies inside the whole data set.
        leaks: test sequences that are copies of training sequences; none with cross-validation,
            where copies stay in one fold.
        models: in the order of the table.
        folds: of the cross-validation, None with an official test set.
    """

    task: str
    classes: tuple[str, ...]
    n_train: int
    n_dev: int
    n_test: int
    duplicates: Duplicates
    leaks: Duplicates
    models: tuple[ModelResult, ...]
    folds: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the content of result.json."""
        return {
            "task": self.task,
            "classes": list(self.classes),
            "n_train": self.n_train,
            "n_dev": self.n_dev,
            "n_test": self.n_test,
            "duplicates": self.duplicates.to_json(),
            "leaks": self.leaks.to_json(),
            "models": [model.to_json() for model in self.models],
            "folds": self.folds,
        }

    def rows(self) -> list[tuple[Any, ...]]:
        """One row per model: name, then each metric as "value [low, high]"."""
        return [
            (model.name, *(cell(metric) for metric in model.metrics.values()))
            for model in self.models
        ]

    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `rows`."""
        return ("model", *self.models[0].metrics)


def judge(
    name: str, labels: Ints, probabilities: Floats, *, seconds: float, seed: int
) -> ModelResult:
    """Measure class probabilities (n, C) over the whole test set.

    Raises:
        LabelError: the test set is empty or a probability is not finite.
    """
    classes = probabilities.shape[1]
    metrics = classification_metrics(labels, probabilities, seed=seed)
    confusion = confusion_matrix(labels, probabilities.argmax(1), classes=classes)
    binary = classes == 2
    return ModelResult(
        name=name,
        metrics=metrics,
        roc=roc_curve(labels, probabilities[:, 1]) if binary else None,
        pr=pr_curve(labels, probabilities[:, 1]) if binary else None,
        confusion=confusion,
        seconds=seconds,
        probabilities=probabilities,
    )


def cell(metric: Metric) -> str:
    """One metric as text: ``0.931 [0.912, 0.948]``, or ``-`` when it is not defined."""
    if metric.value is None:
        return "-"
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def thin(values: Sequence[float], points: int = CURVE_POINTS) -> list[float]:
    """At most `points` of the values, evenly spaced, first and last kept.

    >>> thin([0.0, 0.1, 0.2, 0.3, 1.0], 3)
    [0.0, 0.2, 1.0]
    """
    if len(values) <= points:
        return list(values)
    chosen = np.linspace(0, len(values) - 1, points).round().astype(int)
    return [values[i] for i in chosen]


def _curve_json(curve: Curve | None, x: str, y: str) -> dict[str, list[float]] | None:
    return None if curve is None else {x: thin(curve.x), y: thin(curve.y)}
