"""What the test set of a task has in common with what was learnt from."""

from __future__ import annotations

from collections.abc import Sequence

from dnassm.data.leakage import Leakage, leakage_of_folds, leakage_of_sequences
from dnassm.finetuning.examples import Task
from dnassm.finetuning.folds import Indices


def leakage_of_task(task: Task, folds: Sequence[Indices] | None) -> Leakage:
    """Compare test and dev with training, or each fold of a cross-validation with the others.

    Args:
        task: what was learnt.
        folds: indices of each fold, None with a test set.
    """
    if folds is not None:
        return leakage_of_folds(task.train.sequences, folds)
    parts = {"train": task.train, "valid": task.dev, "test": task.test}
    return leakage_of_sequences({name: p.sequences for name, p in parts.items() if p is not None})
