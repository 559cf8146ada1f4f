"""Full fine-tuning: every weight of the model and a head on the mean of its hidden states."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss, matthews_corrcoef
from torch import Tensor

from dnassm.console import Progress
from dnassm.data.alphabet import reverse_complement
from dnassm.data.tokenizer import Tokenizer
from dnassm.embedding import batches, from_sequences, pad_tokens
from dnassm.finetuning.classifier import Classifier
from dnassm.finetuning.examples import Examples
from dnassm.finetuning.folds import hold_out
from dnassm.finetuning.learner import Fitted, History
from dnassm.finetuning.options import FinetuneOptions
from dnassm.heads import PooledHead
from dnassm.model import DNAModel

_DEV_SHARE = 0.1  # of the training set, held out for early stopping when the data have no dev part
_WARMUP = 0.1  # of the sequences to be seen
_WEIGHT_DECAY = 0.01
_CLIP = 1.0
_SORTED_BATCHES = 16  # so many batches at a time are sorted by length: little padding, still mixed

Batch = tuple[Tensor, Tensor, Tensor]
"""Tokens (B, L), which of them are no padding (B, L), class indices (B,)."""


@dataclasses.dataclass
class FullLearner:
    """AdamW with warm-up and a cosine; the weights of the epoch that scored best on dev are kept.

    The dev score is the Matthews coefficient, ties broken by log loss. Everything random follows
    from `options.seed`; the random state of the caller is left alone.

    Attributes:
        name: in the result.
        model: where training starts; copied, never changed.
        tokenizer: of the model.
        classes: of the task.
        options: rates, epochs, batch, strands, seed.
        pretrained: False trains the same architecture from new random weights.
    """

    name: str
    model: DNAModel
    tokenizer: Tokenizer
    classes: tuple[str, ...]
    options: FinetuneOptions
    pretrained: bool = True

    def __post_init__(self) -> None:
        if not self.pretrained:  # nothing to preserve: the backbone learns as fast as the head
            fast = self.options.lr * self.options.head_lr_factor
            self.options = dataclasses.replace(self.options, lr=fast, head_lr_factor=1.0)

    def fit(self, train: Examples, dev: Examples | None, *, label: str = "") -> Fitted:
        """See Learner."""
        if dev is None:
            seed = self.options.seed
            kept, held = hold_out(train.sequences, train.labels, share=_DEV_SHARE, seed=seed)
            # With next to no data nothing can be spared: then the training score has to do.
            dev = train.subset(held) if len(held) else train
            train = train.subset(kept)
        device = next(self.model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.options.seed)
            classifier = self._classifier(device)
            words = " ".join([self.name, label]).strip()
            with Progress(self.options.epochs * len(train), "sequences", words) as progress:
                history = self._train(classifier, train, dev, progress)
        return Fitted(classifier.predict_proba, classifier, history)

    def _classifier(self, device: torch.device) -> Classifier:
        config = self.model.config
        model = copy.deepcopy(self.model) if self.pretrained else DNAModel(config).to(device)
        head = PooledHead(config.d_model, self.classes, strand=self.options.strand).to(device)
        return Classifier(model.eval(), self.tokenizer, head.eval(), self.options.batch_size)

    def _train(
        self, classifier: Classifier, train: Examples, dev: Examples, progress: Progress
    ) -> History:
        stepper = _Stepper(classifier, self.options, total=self.options.epochs * len(train))
        rng = np.random.default_rng(self.options.seed)
        best, best_weights, since = (-math.inf, -math.inf), stepper.weights(), 0
        history: History = []
        for epoch in range(1, self.options.epochs + 1):
            losses = []
            for batch in _epoch(classifier, train, self.options, rng):
                losses.append(stepper.step(*batch))
                progress.update(stepper.seen, epoch=epoch, loss=losses[-1])
            loss, mcc = _score(classifier, dev)
            row = {"epoch": epoch, "lr": stepper.lr, "train_loss": float(np.mean(losses))}
            history.append({**row, "dev_loss": loss, "dev_mcc": mcc})
            since += 1
            if (mcc, -loss) > best:
                best, best_weights, since = (mcc, -loss), stepper.weights(), 0
            if since == self.options.patience:
                break
        stepper.restore(best_weights)
        return history


class _Stepper:
    """Model, head and optimiser; one call is one optimiser step."""

    def __init__(self, classifier: Classifier, options: FinetuneOptions, *, total: int) -> None:
        self.model, self.head = classifier.model, classifier.head
        self.total = total
        self.seen = 0
        head_lr = options.lr * options.head_lr_factor
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, options.lr) + _groups(self.head, head_lr)
        )

    @property
    def lr(self) -> float:
        """Learning rate of the backbone in the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, tokens_BL: Tensor, real_BL: Tensor, labels_B: Tensor) -> float:
        """Learn from one batch; returns its mean cross-entropy in nats."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * warmup_cosine(self.seen / self.total)
        self.model.train()
        self.head.train()
        loss = F.cross_entropy(self.head(self.model.hidden(tokens_BL)[0], real_BL), labels_B)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        self.optimizer.step()
        self.model.eval()
        self.head.eval()
        self.seen += len(labels_B)
        return float(loss.detach())

    def weights(self) -> list[dict[str, Tensor]]:
        """Copy of every weight."""
        return [copy.deepcopy(part.state_dict()) for part in (self.model, self.head)]

    def restore(self, weights: list[dict[str, Tensor]]) -> None:
        """Put back what `weights` returned."""
        for part, state in zip((self.model, self.head), weights, strict=True):
            part.load_state_dict(state)


def warmup_cosine(done: float) -> float:
    """Share of the peak rate after `done` in [0, 1] of the work: a line up, then a cosine to 0.

    >>> warmup_cosine(0.05), warmup_cosine(0.1), round(warmup_cosine(1.0), 6)
    (0.5, 1.0, 0.0)
    """
    if done < _WARMUP:
        return max(done / _WARMUP, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP)))


def _groups(part: torch.nn.Module, peak: float) -> list[dict[str, object]]:
    """Parameter groups with and without weight decay, as the modules mark their parameters."""
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in part.parameters():
        free = parameter.dim() < 2 or getattr(parameter, "no_weight_decay", False)
        (plain if free else decay).append(parameter)
    return [
        {"params": parameters, "weight_decay": rate, "lr": peak, "peak": peak}
        for parameters, rate in ((decay, _WEIGHT_DECAY), (plain, 0.0))
        if parameters
    ]


def _epoch(
    classifier: Classifier, train: Examples, options: FinetuneOptions, rng: np.random.Generator
) -> Iterator[Batch]:
    """Every training sequence once, in random batches of alike length; random strands if asked."""
    inputs = from_sequences(train.sequences)
    device = next(classifier.model.parameters()).device
    turned = rng.random(len(train)) < (0.5 if options.strand == "both" else 0.0)

    def read(i: int) -> npt.NDArray[np.int64]:
        codes = inputs.fetch(i)
        return classifier.tokenizer.encode_codes(reverse_complement(codes) if turned[i] else codes)

    for rows in _random_batches(
        inputs.lengths, options.batch_size, rng, mixed=classifier.model.causal
    ):
        tokens_BL, real_BL = pad_tokens([read(i) for i in rows], classifier.tokenizer.pad_id)
        labels_B = torch.tensor([train.labels[i] for i in rows])
        yield tokens_BL.to(device), real_BL.to(device), labels_B.to(device)


def _random_batches(
    lengths: list[int], batch_size: int, rng: np.random.Generator, *, mixed: bool
) -> list[list[int]]:
    order = rng.permutation(len(lengths))
    window = batch_size * _SORTED_BATCHES
    made = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        sizes = [lengths[i] for i in part]
        made += [part[rows].tolist() for rows in batches(sizes, batch_size, mixed=mixed)]
    return [made[i] for i in rng.permutation(len(made))]


def _score(classifier: Classifier, dev: Examples) -> tuple[float, float]:
    """Log loss in nats and Matthews coefficient over the whole dev set."""
    probabilities = classifier.predict_proba(dev.sequences)
    labels = dev.label_array()
    loss = log_loss(labels, probabilities, labels=range(len(classifier.classes)))
    both = len(np.unique(labels)) > 1  # with one class in a small dev set there is no coefficient
    mcc = matthews_corrcoef(labels, probabilities.argmax(1)) if both else 0.0
    return float(loss), float(mcc)
