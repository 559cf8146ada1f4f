"""Probe: logistic regression on standardised, frozen embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from dnassm.console import Progress
from dnassm.data.tokenizer import Tokenizer
from dnassm.embedding import Embedder, EmbedOptions, from_sequences
from dnassm.finetuning.classifier import Classifier, head_probabilities
from dnassm.finetuning.examples import Examples
from dnassm.finetuning.folds import stratified_folds
from dnassm.finetuning.learner import Fitted, History
from dnassm.finetuning.options import FinetuneOptions
from dnassm.heads import PooledHead
from dnassm.model import DNAModel
from dnassm.pooling import POOLS

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_POOL_SETS: tuple[tuple[str, ...], ...] = (("mean",), ("mean", "max"), ("mean", "last", "max"))
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FIRST_PENALTY = 1e-2  # the poolings are compared at this one, then the penalties at the best
_INNER_FOLDS = 3


class ProbeLearner:
    """Chooses poolings and penalty by log loss on dev data, then learns from the training set.

    Every sequence goes through the model once, however many folds there are: the model is frozen,
    so its vectors hold nothing of the labels. Mean and scale are those of the training set.
    """

    def __init__(
        self,
        name: str,
        model: DNAModel,
        tokenizer: Tokenizer,
        classes: tuple[str, ...],
        options: FinetuneOptions,
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.classes = classes
        self.options = options
        self._row_of: dict[str, int] = {}
        self._vectors = np.empty((0, len(POOLS) * model.config.d_model), dtype=np.float32)

    def fit(self, train: Examples, dev: Examples | None, *, label: str = "") -> Fitted:
        """See Learner."""
        features = self._features(train.sequences, label)
        splits = list(self._splits(features, train, dev, label))
        history: History = []

        def loss(pools: tuple[str, ...], penalty: float) -> float:
            losses = [self._loss(pools, penalty, *split) for split in splits]
            history.append({"pools": "+".join(pools), "C": penalty, "loss": float(np.mean(losses))})
            return float(np.mean(losses))

        pools, penalty = _POOL_SETS[0], _FIRST_PENALTY
        if splits:
            pools = min(_POOL_SETS, key=lambda names: loss(names, _FIRST_PENALTY))
            penalty = min(_PENALTIES, key=lambda value: loss(pools, value))
        head = self._head(pools, penalty, features, train.label_array())
        classifier = Classifier(self.model, self.tokenizer, head, self.options.batch_size)

        def predict_proba(sequences: Sequence[str]) -> npt.NDArray[np.float64]:
            return head_probabilities(head, self._pick(self._features(sequences, label), pools))

        return Fitted(predict_proba, classifier, history)

    def _splits(
        self, features: Floats, train: Examples, dev: Examples | None, label: str
    ) -> Iterator[tuple[Floats, Ints, Floats, Ints]]:
        """Yield (features, labels, held-out features, held-out labels) to choose settings on.

        Folds that leave a class without a sequence to learn from are of no use; all may be such.
        """
        labels = train.label_array()
        if dev is not None:
            yield features, labels, self._features(dev.sequences, label), dev.label_array()
            return
        seed = self.options.seed
        folds = min(_INNER_FOLDS, len(train))
        for held in stratified_folds(train.sequences, train.labels, folds, seed=seed):
            kept = np.setdiff1d(np.arange(len(labels)), held)
            if len(np.unique(labels[kept])) == len(self.classes):
                yield features[kept], labels[kept], features[held], labels[held]

    def _loss(
        self,
        pools: tuple[str, ...],
        penalty: float,
        features: Floats,
        labels: Ints,
        held_features: Floats,
        held_labels: Ints,
    ) -> float:
        head = self._head(pools, penalty, features, labels)
        probabilities = head_probabilities(head, self._pick(held_features, pools))
        return float(log_loss(held_labels, probabilities, labels=range(len(self.classes))))

    def _head(
        self, pools: tuple[str, ...], penalty: float, features: Floats, labels: Ints
    ) -> PooledHead:
        """Fit; the scaling goes into the weights: W (x - m) / s + b = (W / s) x + (b - W m / s)."""
        chosen = self._pick(features, pools).astype(np.float64)
        mean, scale = chosen.mean(0), chosen.std(0)
        scale[scale < 1e-6 * max(float(scale.max()), 1e-30)] = 1.0
        regression = LogisticRegression(C=penalty, max_iter=1000, tol=1e-3)
        with warnings.catch_warnings():
            # A penalty too weak to converge is one more candidate; the held-out loss judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit((chosen - mean) / scale, labels)
        weight, bias = regression.coef_ / scale, regression.intercept_
        bias = bias - weight @ mean
        if len(self.classes) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.vstack([np.zeros_like(weight), weight]), np.array([0.0, bias[0]])
        return PooledHead.from_affine(
            torch.from_numpy(weight),
            torch.from_numpy(bias),
            classes=self.classes,
            pools=pools,
            strand=self.options.strand,
        )

    def _pick(self, features: Floats, pools: tuple[str, ...]) -> Floats:
        """Columns of the chosen poolings out of the vectors with all of them."""
        width = self.model.config.d_model
        starts = [POOLS.index(name) * width for name in pools]
        return np.concatenate([features[:, start : start + width] for start in starts], axis=1)

    def _features(self, sequences: Sequence[str], label: str) -> Floats:
        """Vectors with all poolings; a sequence is embedded the first time that it is asked for."""
        new = [s for s in dict.fromkeys(sequences) if s not in self._row_of]
        if new:
            self._row_of.update({s: len(self._row_of) + i for i, s in enumerate(new)})
            self._vectors = np.concatenate([self._vectors, self._embed(new, label)])
        return self._vectors[[self._row_of[s] for s in sequences]]

    def _embed(self, sequences: list[str], label: str) -> Floats:
        inputs = from_sequences(sequences)
        options = EmbedOptions(
            pool="+".join(POOLS),
            strand=self.options.strand,
            batch_size=self.options.batch_size,
        )
        total = sum(inputs.lengths) * (2 if options.strand == "both" else 1)
        embedder = Embedder(self.model, self.tokenizer, options)
        with Progress(total, "bases", " ".join(["embed", label]).strip()) as progress:
            return embedder.pooled(inputs.lengths, inputs.fetch, report=progress.update)
