"""Splits of labelled sequences that keep a sequence and its copies on one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dnassm.data.leakage_copies import strand_keys
from dnassm.errors import LabelError

Indices = npt.NDArray[np.int64]


def stratified_folds(
    sequences: Sequence[str], labels: Sequence[int], folds: int, *, seed: int
) -> list[Indices]:
    """Divide sequences into `folds` sets of alike size and alike class shares.

    Copies of a sequence, of either strand, always fall into one fold, whatever their labels. A
    class with at least two different sequences is in at least two folds, so that it can be learnt
    whichever fold is held out.

    Args:
        sequences: n sequences.
        labels: class index of each.
        folds: number of sets, at least 2.
        seed: shuffles.

    Returns:
        Sorted indices of each fold.

    Raises:
        LabelError: there are fewer different sequences than folds.
    """
    groups = _groups(sequences)
    if not 2 <= folds <= len(groups):
        raise LabelError(
            f"folds: expected 2 to {len(groups)}, the number of different sequences, got {folds}"
        )
    rng = np.random.default_rng(seed)
    order = [groups[i] for i in rng.permutation(len(groups))]
    order.sort(key=len, reverse=True)  # stable: big groups first, otherwise shuffled
    by_class = np.zeros((folds, max(labels) + 1), dtype=np.int64)
    chosen: list[list[int]] = [[] for _ in range(folds)]
    for group in order:
        label, _ = Counter(labels[i] for i in group).most_common(1)[0]
        fold = min(range(folds), key=lambda f: (by_class[f, label], by_class[f].sum(), f))
        chosen[fold].extend(group)
        for i in group:
            by_class[fold, labels[i]] += 1
    return [np.array(sorted(fold), dtype=np.int64) for fold in chosen]


def hold_out(
    sequences: Sequence[str], labels: Sequence[int], *, share: float, seed: int
) -> tuple[Indices, Indices]:
    """Divide into (kept, held out), stratified; copies of a sequence stay on one side.

    A class with a single different sequence is kept whole.

    Raises:
        LabelError: there are not two different sequences.
    """
    different = len(_groups(sequences))
    folds = min(max(round(1 / share), 2), different)
    held = stratified_folds(sequences, labels, folds, seed=seed)[0]
    inside = set(held.tolist())
    kept_classes = {label for i, label in enumerate(labels) if i not in inside}
    held = np.array([i for i in held if labels[i] in kept_classes], dtype=np.int64)
    kept = np.setdiff1d(np.arange(len(sequences)), held)
    return kept, held


def _groups(sequences: Sequence[str]) -> list[list[int]]:
    """Indices of equal sequences, of either strand, in the order of their first occurrence."""
    groups: dict[str, list[int]] = {}
    for i, (_, key) in enumerate(strand_keys(sequences)):
        groups.setdefault(key, []).append(i)
    return list(groups.values())
