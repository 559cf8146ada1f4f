"""Heads: what stands on the hidden states of a DNAModel and gives the numbers of a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dnassm.artifact import staged_file
from dnassm.errors import ArtifactError
from dnassm.pooling import check_pools, pool

HEAD_FILE = "head.safetensors"
_FORMAT = "dnassm-pooled-head-1"


class PooledHead(nn.Module):
    """logits = W dropout(pool(hidden)) + b: class scores of whole sequences.

    A probe (standardisation and logistic regression on frozen embeddings) is such a head as well,
    see `from_affine`, so both kinds of classifier are stored and applied in one way.

    Args:
        d_model: D, width of the hidden states.
        classes: name of each class, in the order of the logits.
        pools: poolings to put side by side, out of dnassm.pooling.POOLS.
        layer: which hidden states it stands on, as in DNAModel.hidden; None is the end.
        strand: "both" when the logits of both strands are to be averaged; the head only keeps it.
        dropout: share of pooled features set to zero in training.
    """

    def __init__(
        self,
        d_model: int,
        classes: Sequence[str],
        *,
        pools: Sequence[str] = ("mean",),
        layer: int | None = None,
        strand: Literal["plus", "both"] = "plus",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.pools = check_pools(pools)
        self.layer = layer
        self.strand: Literal["plus", "both"] = strand
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(d_model * len(self.pools), len(self.classes))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_BLD: Tensor, real_BL: Tensor) -> Tensor:
        """(B, L, D) hidden states and (B, L) which are no padding -> (B, C) logits."""
        return self.from_pooled(pool(hidden_BLD, real_BL, self.pools))

    def from_pooled(self, pooled_BF: Tensor) -> Tensor:
        """(B, F) pooled features, F = D * number of poolings -> (B, C) logits."""
        logits: Tensor = self.linear(self.dropout(pooled_BF))
        return logits

    @classmethod
    def from_affine(
        cls,
        weight: Tensor,
        bias: Tensor,
        *,
        classes: Sequence[str],
        pools: Sequence[str],
        layer: int | None = None,
        strand: Literal["plus", "both"] = "plus",
    ) -> PooledHead:
        """Head with the given weight (C, F) and bias (C,)."""
        width = weight.shape[1] // len(pools)
        head = cls(width, classes, pools=pools, layer=layer, strand=strand, dropout=0.0)
        with torch.no_grad():
            head.linear.weight.copy_(weight)
            head.linear.bias.copy_(bias)
        return head.eval()

    def save(self, folder: Path) -> None:
        """Write ``folder/head.safetensors``: weights, class names and poolings."""
        facts = {
            "format": _FORMAT,
            "classes": json.dumps(self.classes),
            "pools": json.dumps(self.pools),
            "layer": json.dumps(self.layer),
            "strand": self.strand,
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.linear.state_dict().items()}
        with staged_file(folder / HEAD_FILE) as staging:
            # save_file would write a file of its own first, which a kill leaves behind
            staging.write_bytes(save(tensors, metadata=facts))

    @classmethod
    def load(cls, folder: Path) -> PooledHead:
        """Read what `save` wrote; in evaluation mode.

        Raises:
            ArtifactError: the folder has no head, or the file is not one that this version reads.
        """
        path = folder / HEAD_FILE
        if not path.is_file():
            raise ArtifactError(
                f"{folder} has no {HEAD_FILE}: expected a run of `dnassm finetune`; make one first"
            )
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("weight", "bias")}
        except SafetensorError as error:
            raise ArtifactError(f"{path}: {error}; the file is broken, fine-tune again") from error
        if facts.get("format") != _FORMAT:
            raise ArtifactError(
                f"{path}: expected format {_FORMAT}, got {facts.get('format')}; update dnassm"
            )
        return cls.from_affine(
            tensors["weight"],
            tensors["bias"],
            classes=json.loads(facts["classes"]),
            pools=json.loads(facts["pools"]),
            layer=json.loads(facts["layer"]),
            strand="both" if facts["strand"] == "both" else "plus",
        )
