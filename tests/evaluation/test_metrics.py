import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from dnassm.errors import LabelError
from dnassm.metrics import (
    auroc,
    classification_metrics,
    confusion_matrix,
    pr_curve,
    roc_curve,
)


def noisy(n, classes, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(classes), rng.integers(classes, size=n - classes))
    scores = rng.normal(size=(n, classes))
    scores[np.arange(n), labels] += 1
    return labels, scores.round(1) if ties else scores


def brute_auroc(truth, score):
    pairs = [(p > q) + (p == q) / 2 for p in score[truth == 1] for q in score[truth == 0]]
    return float(np.mean(pairs))


@pytest.mark.parametrize("ties", [False, True])
def test_two_class_metrics_equal_scikit_learn_and_all_pairs(ties):
    labels, scores = noisy(300, 2, ties=ties)
    result = classification_metrics(labels, scores, resamples=20)
    margin, guess = scores[:, 1] - scores[:, 0], scores.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(labels, guess),
        "macro_f1": sk.f1_score(labels, guess, average="macro"),
        "mcc": sk.matthews_corrcoef(labels, guess),
        "auroc": brute_auroc(labels, margin),
        "auprc": sk.average_precision_score(labels, margin),
    }
    assert {name: metric.value for name, metric in result.items()} == pytest.approx(expected)


def test_with_several_classes_the_areas_are_the_mean_of_one_against_the_rest():
    labels, scores = noisy(400, 4)
    result = classification_metrics(labels, scores, resamples=20)
    each = [brute_auroc((labels == c).astype(int), scores[:, c]) for c in range(4)]
    assert result["auroc"].value == pytest.approx(np.mean(each))
    assert result["auprc"].value == pytest.approx(
        sk.average_precision_score(np.eye(4)[labels], scores, average="macro")
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.booleans())
def test_every_resample_of_the_bootstrap_is_the_metric_of_the_drawn_sequences(seed, classes, ties):
    from dnassm import metrics

    labels, scores = noisy(40, classes, seed, ties)
    strata = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    (weights,) = metrics._resample_weights(strata, 40, 5, np.random.default_rng(seed))
    truth, ranked = (labels == 1).astype(int), scores[:, 1]
    areas = metrics._Ranking(truth, ranked).areas(weights)
    for drawn, area, precision in zip(weights.astype(int), *areas, strict=True):
        again = np.repeat(np.arange(40), drawn)
        assert np.array_equal(np.bincount(labels[again]), np.bincount(labels))
        assert area == pytest.approx(sk.roc_auc_score(truth[again], ranked[again]))
        assert precision == pytest.approx(sk.average_precision_score(truth[again], ranked[again]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_a_confusion_matrix_gives_the_same_numbers_as_the_sequences(seed, classes):
    from dnassm import metrics

    rng = np.random.default_rng(seed)
    labels, guess = rng.integers(classes, size=(2, 30))
    matrix = confusion_matrix(labels, guess, classes=classes)
    assert np.array_equal(matrix, sk.confusion_matrix(labels, guess, labels=range(classes)))
    stack = matrix[None].astype(float)
    expected = [
        sk.accuracy_score(labels, guess),
        sk.f1_score(labels, guess, average="macro", zero_division=0),
        sk.matthews_corrcoef(labels, guess),
    ]
    found = [metrics._accuracy_of(stack), metrics._macro_f1_of(stack), metrics._mcc_of(stack)]
    assert np.concatenate(found) == pytest.approx(np.array(expected))


def test_an_interval_covers_the_true_value_about_95_times_of_100():
    truth = 0.7602  # of two unit normals one apart: Phi(1 / sqrt(2))
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        labels = np.repeat([0, 1], 150)
        metric = auroc(labels, rng.normal(size=300) + labels, resamples=300, seed=seed)
        covered += metric.low <= truth <= metric.high
    assert covered >= 88


def test_the_same_seed_gives_the_same_interval():
    labels, scores = noisy(100, 3)
    one, two, other = (
        classification_metrics(labels, scores, resamples=50, seed=s) for s in (3, 3, 4)
    )
    assert one == two
    assert one != other
    assert one["auroc"].value == other["auroc"].value


def test_twenty_thousand_sequences_take_seconds():
    labels, scores = noisy(20_000, 2)
    start = time.process_time()
    classification_metrics(labels, scores)
    assert time.process_time() - start < 10


def test_one_class_in_the_test_set_leaves_the_areas_undefined_and_says_why():
    result = classification_metrics(np.zeros(5, int), np.ones((5, 2)), resamples=10)
    for name in ("mcc", "auroc", "auprc"):
        assert result[name].value is None
        assert "class 0" in result[name].reason
        assert "undefined" in str(result[name])
    assert result["accuracy"].value is not None
    json.dumps([metric.to_json() for metric in result.values()], allow_nan=False)
    assert roc_curve([1, 1], [0.1, 0.2]) is None
    assert pr_curve([0, 0], [0.1, 0.2]) is None
    assert auroc([1, 1], [0.1, 0.2]).value is None


def test_a_class_that_the_test_set_lacks_is_left_out_of_the_mean():
    labels, scores = noisy(100, 2)
    three = np.column_stack([scores, np.full(100, -9.0)])
    result = classification_metrics(labels, three, resamples=10)
    each = [brute_auroc((labels == c).astype(int), scores[:, c]) for c in range(2)]
    assert result["auroc"].value == pytest.approx(np.mean(each))


def test_curves_run_from_corner_to_corner_and_hold_plain_numbers():
    labels, scores = noisy(200, 2)
    roc, pr = roc_curve(labels, scores[:, 1]), pr_curve(labels, scores[:, 1])
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert sk.auc(roc.x, roc.y) == pytest.approx(brute_auroc(labels, scores[:, 1]))
    assert (pr.x[0], pr.x[-1], pr.y[-1]) == (1, 0, 1)
    json.dumps([roc.to_json(), pr.to_json()])


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        ([], np.zeros((0, 2)), "empty"),
        ([0, 1], np.zeros((3, 2)), "2 labels but 3 rows"),
        ([0, 2], np.zeros((2, 2)), "0 to 1, got 2"),
        ([0, -1], np.zeros((2, 2)), "got -1"),
        ([0.5, 1.0], np.zeros((2, 2)), "class index"),
        ([0, 1], np.array([[0, 1], [np.nan, 0]]), "row 1 is not finite"),
        ([0, 1], np.zeros(2), "C >= 2"),
    ],
)
def test_labels_and_scores_that_do_not_fit_are_refused(labels, scores, said):
    with pytest.raises(LabelError, match=said):
        classification_metrics(labels, scores)
