"""Classification metrics over a whole test set, each with a stratified bootstrap interval.

Every number is computed once over all sequences: the mean of per-batch metrics is not the metric of
the set. Point values come from scikit-learn. The bootstrap draws, within each true class, as many
sequences with replacement as the class has, so every resample keeps the class sizes; it works on
counts (a resample of a confusion matrix row is one multinomial draw, a resample of ranked scores is
a vector of weights), which makes 1000 resamples of 20,000 sequences a matter of a second or two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from dnassm.errors import LabelError

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_WEIGHTS_PER_CHUNK = 4_000_000  # 32 MB of float64 at a time, whatever the size of the test set
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One number about a test set, with its 95 % bootstrap interval.

    Attributes:
        name: ``accuracy``, ``macro_f1``, ``mcc``, ``auroc`` or ``auprc``.
        value: over the whole test set; None where it is not defined, then `reason` says why.
        low: lower end of the interval, None without a value.
        high: upper end of the interval, None without a value.
        reason: why there is no value; empty when there is one.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} undefined ({self.reason})"
        return f"{self.name} {self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """Points of a ROC or precision-recall curve, one per distinct threshold, as tuples of floats.

    Attributes:
        x: false positive rate (ROC) or recall (precision-recall).
        y: true positive rate (ROC) or precision (precision-recall).
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def to_json(self) -> dict[str, list[float]]:
        """Return ``{"x": [...], "y": [...]}``."""
        return {"x": list(self.x), "y": list(self.y)}


def classification_metrics(
    labels: ArrayLike, scores: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Metric]:
    """Compute accuracy, macro F1, MCC, AUROC and AUPRC of class scores over a whole test set.

    Args:
        labels: (n,) true class as an index ``0 .. C-1``.
        scores: (n, C) one score per class, higher is more likely (probabilities or logits); the
            predicted class is the highest. With C = 2 AUROC and AUPRC rank by
            ``score[1] - score[0]`` and class 1 is the positive one; with C > 2 they are the
            unweighted mean of one class against the rest, over the classes in the test set.
        resamples: number of bootstrap resamples, at least 1.
        seed: of the bootstrap.

    Returns:
        The five metrics by name. AUPRC is the average precision. Macro F1 averages over the classes
        that occur in labels or predictions.

    Raises:
        LabelError: the set is empty, shapes do not fit, a score is not finite, a label is no
            class index.
    """
    labels_n, scores_nc = _checked(labels, scores)
    if resamples < 1:
        raise LabelError(f"resamples: expected at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    predicted = np.argmax(scores_nc, axis=1)
    result = _threshold_metrics(labels_n, predicted, scores_nc.shape[1], resamples, rng)
    result.update(_ranking_metrics(labels_n, scores_nc, resamples, rng))
    return result


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, *, classes: int) -> _Ints:
    """Count test sequences by (true class, predicted class): shape (C, C), rows are the truth.

    Raises:
        LabelError: the arrays differ in length, or hold something else than ``0 .. classes-1``.
    """
    truth, guess = (
        _class_indices("labels", labels, classes),
        _class_indices("predicted", predicted, classes),
    )
    if len(truth) != len(guess):
        raise LabelError(f"confusion matrix: {len(truth)} labels but {len(guess)} predictions")
    counts = np.bincount(truth * classes + guess, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> Curve | None:
    """False positive rate against true positive rate; None with one class only.

    Args:
        labels: (n,) true class, 1 = positive, 0 = negative.
        scores: (n,) higher means more likely positive.
    """
    truth, ranked = _binary(labels, scores)
    if len(np.unique(truth)) < 2:
        return None
    x, y, _ = sk.roc_curve(truth, ranked)
    return Curve(tuple(x.tolist()), tuple(y.tolist()))


def pr_curve(labels: ArrayLike, scores: ArrayLike) -> Curve | None:
    """Recall against precision; None when no sequence is positive. Arguments as `roc_curve`."""
    truth, ranked = _binary(labels, scores)
    if not truth.any():
        return None
    precision, recall, _ = sk.precision_recall_curve(truth, ranked)
    return Curve(tuple(recall.tolist()), tuple(precision.tolist()))


def auroc(labels: ArrayLike, scores: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Metric:
    """Probability that a positive scores above a negative (ties count half), with its interval.

    Arguments as `roc_curve`; for scores that come without classes, for example of variants.
    """
    truth, ranked = _binary(labels, scores)
    reason = _one_class_reason(truth, 2)
    if reason:
        return Metric("auroc", None, None, None, reason)
    draws, _ = _bootstrap_areas(truth, [(truth, ranked)], resamples, np.random.default_rng(seed))
    return _metric("auroc", float(sk.roc_auc_score(truth, ranked)), draws)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[_Ints, _Floats]:
    scores_nc = np.asarray(scores, dtype=np.float64)
    if scores_nc.ndim != 2 or scores_nc.shape[1] < 2:
        raise LabelError(
            f"scores: expected (n, C), one column for each of C >= 2 classes, got {scores_nc.shape}"
        )
    labels_n = _class_indices("labels", labels, scores_nc.shape[1])
    if len(labels_n) != len(scores_nc):
        raise LabelError(f"metrics: {len(labels_n)} labels but {len(scores_nc)} rows of scores")
    if len(labels_n) == 0:
        raise LabelError("metrics: the test set is empty; check the split column")
    bad = np.flatnonzero(~np.isfinite(scores_nc).all(axis=1))
    if len(bad):
        raise LabelError(
            f"scores: row {bad[0]} is not finite ({len(bad)} such rows); did training diverge?"
        )
    return labels_n, scores_nc


def _class_indices(name: str, values: ArrayLike, classes: int) -> _Ints:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
        raise LabelError(
            f"{name}: expected one class index per sequence, got {array.dtype} {array.shape}"
        )
    bad = array[(array < 0) | (array >= classes)] if array.size else array
    if len(bad):
        raise LabelError(f"{name}: expected class indices 0 to {classes - 1}, got {bad[0]}")
    return array.astype(np.int64)


def _binary(labels: ArrayLike, scores: ArrayLike) -> tuple[_Ints, _Floats]:
    truth = _class_indices("labels", labels, 2)
    ranked = np.asarray(scores, dtype=np.float64)
    if ranked.shape != truth.shape:
        raise LabelError(
            f"curve: expected one score per label, got {ranked.shape} for {truth.shape}"
        )
    if len(truth) == 0:
        raise LabelError("curve: the test set is empty; check the split column")
    if not np.isfinite(ranked).all():
        raise LabelError("curve: a score is not finite; did training diverge?")
    return truth, ranked


def _threshold_metrics(
    labels: _Ints, predicted: _Ints, classes: int, resamples: int, rng: np.random.Generator
) -> dict[str, Metric]:
    """Metrics that depend on the confusion matrix alone."""
    matrix = confusion_matrix(labels, predicted, classes=classes)
    draws = np.zeros((resamples, classes, classes))
    for row, counts in enumerate(matrix):
        if counts.sum():
            draws[:, row] = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    values = {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "macro_f1": float(sk.f1_score(labels, predicted, average="macro", zero_division=0)),
    }
    of_matrix: dict[str, Callable[[_Floats], _Floats]] = {
        "accuracy": _accuracy_of,
        "macro_f1": _macro_f1_of,
    }
    result = {name: _metric(name, value, of_matrix[name](draws)) for name, value in values.items()}
    present = np.flatnonzero(matrix.sum(axis=1))
    if len(present) < 2:
        result["mcc"] = Metric("mcc", None, None, None, _one_class_reason(labels, classes))
    else:
        result["mcc"] = _metric(
            "mcc", float(sk.matthews_corrcoef(labels, predicted)), _mcc_of(draws)
        )
    return result


def _accuracy_of(matrix_rcc: _Floats) -> _Floats:
    total: _Floats = matrix_rcc.sum(axis=(1, 2))
    hits: _Floats = np.trace(matrix_rcc, axis1=1, axis2=2)
    return hits / total


def _macro_f1_of(matrix_rcc: _Floats) -> _Floats:
    hits = np.diagonal(matrix_rcc, axis1=1, axis2=2)
    size = matrix_rcc.sum(axis=1) + matrix_rcc.sum(axis=2)
    f1 = np.divide(2 * hits, size, out=np.zeros_like(size), where=size > 0)
    mean: _Floats = f1.sum(axis=1) / (size > 0).sum(axis=1)
    return mean


def _mcc_of(matrix_rcc: _Floats) -> _Floats:
    """Gorodkin's R_K, of which Matthews' coefficient is the case of two classes; 0 where 0/0."""
    truth, guess = matrix_rcc.sum(axis=2), matrix_rcc.sum(axis=1)
    total = truth.sum(axis=1)
    hits = np.trace(matrix_rcc, axis1=1, axis2=2)
    above = hits * total - (truth * guess).sum(axis=1)
    below = np.sqrt((total**2 - (truth**2).sum(axis=1)) * (total**2 - (guess**2).sum(axis=1)))
    ratio: _Floats = np.divide(above, below, out=np.zeros_like(total), where=below > 0)
    return ratio


def _ranking_metrics(
    labels: _Ints, scores_nc: _Floats, resamples: int, rng: np.random.Generator
) -> dict[str, Metric]:
    classes = scores_nc.shape[1]
    reason = _one_class_reason(labels, classes)
    if reason:
        return {name: Metric(name, None, None, None, reason) for name in ("auroc", "auprc")}
    problems = _one_against_rest(labels, scores_nc)
    areas = _bootstrap_areas(labels, problems, resamples, rng)
    points = {"auroc": sk.roc_auc_score, "auprc": sk.average_precision_score}
    return {
        name: _metric(name, float(np.mean([point(*problem) for problem in problems])), draws)
        for (name, point), draws in zip(points.items(), areas, strict=True)
    }


def _one_against_rest(labels: _Ints, scores_nc: _Floats) -> list[tuple[_Ints, _Floats]]:
    if scores_nc.shape[1] == 2:
        return [(labels, scores_nc[:, 1] - scores_nc[:, 0])]
    return [((labels == c).astype(np.int64), scores_nc[:, c]) for c in np.unique(labels)]


def _one_class_reason(labels: _Ints, classes: int) -> str:
    present = np.unique(labels)
    if len(present) > 1:
        return ""
    return f"all {len(labels)} test sequences are of class {present[0]}, of {classes} classes"


def _bootstrap_areas(
    labels: _Ints,
    problems: Sequence[tuple[_Ints, _Floats]],
    resamples: int,
    rng: np.random.Generator,
) -> tuple[_Floats, _Floats]:
    """AUROC and AUPRC of each resample, mean over the binary problems: (resamples,) each."""
    rankings = [_Ranking(truth, ranked) for truth, ranked in problems]
    strata = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    auroc_draws, auprc_draws = [], []
    for weights_rn in _resample_weights(strata, len(labels), resamples, rng):
        areas = np.array([ranking.areas(weights_rn) for ranking in rankings])
        auroc_draws.append(areas[:, 0].mean(axis=0))
        auprc_draws.append(areas[:, 1].mean(axis=0))
    return np.concatenate(auroc_draws), np.concatenate(auprc_draws)


class _Ranking:
    """Sequences of one binary problem in the order of their scores, highest first."""

    def __init__(self, truth: _Ints, ranked: _Floats) -> None:
        self.order = np.argsort(-ranked, kind="stable")
        self.positive = (truth[self.order] == 1).astype(np.float64)
        # A threshold lies after the last sequence of each run of equal scores.
        self.ends = np.flatnonzero(np.append(np.diff(ranked[self.order]) != 0, [True]))

    def areas(self, weights_rn: _Floats) -> tuple[_Floats, _Floats]:
        """AUROC and AUPRC with each sequence counted `weights_rn` times: (R, n) -> two (R,)."""
        ordered = weights_rn[:, self.order]
        drawn = np.cumsum(ordered, axis=1)[:, self.ends]
        true = np.cumsum(ordered * self.positive, axis=1)[:, self.ends]
        return _auroc_of(true, drawn - true), _auprc_of(true, drawn)


def _resample_weights(
    groups: Sequence[_Ints], size: int, resamples: int, rng: np.random.Generator
) -> Iterator[_Floats]:
    """How often each sequence was drawn, (chunk, n) at a time; class sizes are kept."""
    chunk = max(1, _WEIGHTS_PER_CHUNK // size)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        weights = np.zeros((rows, size))
        for members in groups:
            picks = rng.integers(len(members), size=(rows, len(members)))
            flat = picks + np.arange(rows)[:, None] * len(members)
            counts = np.bincount(flat.ravel(), minlength=rows * len(members))
            weights[:, members] = counts.reshape(rows, len(members))
        yield weights


def _auroc_of(true_rt: _Floats, false_rt: _Floats) -> _Floats:
    """Area by trapezoids over the distinct thresholds, which counts ties half."""
    width = np.diff(false_rt, axis=1, prepend=0.0)
    height = true_rt - np.diff(true_rt, axis=1, prepend=0.0) / 2
    area: _Floats = np.einsum("rt,rt->r", width, height)
    return area / (true_rt[:, -1] * false_rt[:, -1])


def _auprc_of(true_rt: _Floats, drawn_rt: _Floats) -> _Floats:
    """Average precision: the precision at each threshold, weighted by the recall gained there."""
    precision = np.divide(true_rt, drawn_rt, out=np.zeros_like(drawn_rt), where=drawn_rt > 0)
    area: _Floats = np.einsum("rt,rt->r", np.diff(true_rt, axis=1, prepend=0.0), precision)
    return area / true_rt[:, -1]


def _metric(name: str, value: float, draws: _Floats) -> Metric:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Metric(name, value, float(low), float(high))
