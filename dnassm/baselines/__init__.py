"""What a model has to beat: the majority class, k-mer logistic regression, Markov models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray


class Baseline(Protocol):
    """A classifier of DNA sequences that knows nothing but the training set it is given."""

    @property
    def name(self) -> str:
        """What a table calls it, settings included."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels seen in training, sorted; column c of the probabilities is ``classes[c]``."""
        ...

    def fit(self, sequences: Sequence[str], labels: Sequence[str]) -> Self:
        """Learn from training sequences alone and return itself.

        Raises:
            LabelError: no sequence, or not one label per sequence.
        """
        ...

    def predict_proba(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        """Probability of each class for each sequence: (n, C), rows sum to 1.

        Raises:
            LabelError: asked before `fit`.
        """
        ...
