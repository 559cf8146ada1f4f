"""Classifier: a model and a pooled head that give class probabilities of sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dnassm.data.tokenizer import Tokenizer
from dnassm.embedding import Embedder, EmbedOptions, from_sequences
from dnassm.heads import PooledHead
from dnassm.model import DNAModel
from dnassm.runs import load_run

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Class probabilities of sequences of any length.

    Attributes:
        model: backbone.
        tokenizer: of the backbone.
        head: pooled head; knows the classes, and whether to average over both strands.
        batch_size: sequences per forward pass.
    """

    model: DNAModel
    tokenizer: Tokenizer
    head: PooledHead
    batch_size: int = 32

    @property
    def classes(self) -> tuple[str, ...]:
        """Label of each column of the probabilities."""
        return self.head.classes

    def predict_proba(self, sequences: Sequence[str]) -> Floats:
        """Probability of each class for each sequence: (n, C) float64, rows sum to 1.

        Raises:
            FormatError: a sequence is empty or holds a letter that is no IUPAC nucleotide.
        """
        inputs = from_sequences(sequences)
        options = EmbedOptions(
            pool="+".join(self.head.pools),
            layer=self.head.layer,
            strand=self.head.strand,
            batch_size=self.batch_size,
        )
        features = Embedder(self.model, self.tokenizer, options).pooled(
            inputs.lengths, inputs.fetch
        )
        return head_probabilities(self.head, features)

    @classmethod
    def load(cls, folder: str | Path) -> Classifier:
        """Read a run of `dnassm finetune`.

        Raises:
            ArtifactError: the folder is no such run.
        """
        run = load_run(folder)
        head = PooledHead.load(Path(folder))
        return cls(run.model, run.tokenizer, head)


def head_probabilities(head: PooledHead, features: npt.NDArray[np.float32]) -> Floats:
    """Softmax in float64 of the head's logits for pooled features (n, F)."""
    device = head.linear.weight.device
    training = head.training
    with torch.inference_mode():
        logits = head.eval().from_pooled(torch.from_numpy(features).to(device))
        probabilities: Floats = logits.double().softmax(-1).cpu().numpy()
    head.train(training)
    return probabilities
