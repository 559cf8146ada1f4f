"""The majority class: what accuracy is worth before anything was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dnassm.errors import LabelError


class MajorityClassifier:
    """Gives every sequence the class frequencies of the training set."""

    name = "majority class"

    def __init__(self) -> None:
        self._classes: tuple[str, ...] = ()
        self._frequencies: NDArray[np.float64] = np.zeros(0)

    @property
    def classes(self) -> tuple[str, ...]:
        """See Baseline."""
        return self._classes

    def fit(self, sequences: Sequence[str], labels: Sequence[str]) -> Self:
        """See Baseline."""
        check_training(sequences, labels)
        names, counts = np.unique(np.asarray(labels, dtype=str), return_counts=True)
        self._classes = tuple(names.tolist())
        self._frequencies = counts / counts.sum()
        return self

    def predict_proba(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        """See Baseline."""
        if not self._classes:
            raise LabelError(f"{self.name}: predict_proba before fit; call fit first")
        return np.tile(self._frequencies, (len(sequences), 1))


def check_training(sequences: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse a training set that is empty or has not one label per sequence.

    Raises:
        LabelError: see above.
    """
    if len(sequences) != len(labels):
        raise LabelError(f"training set: {len(sequences)} sequences but {len(labels)} labels")
    if not len(sequences):
        raise LabelError("training set: expected at least one sequence, got none")
