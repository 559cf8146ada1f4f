"""Bits per base on held-out sequence, beside Markov models trained on the same split."""

from __future__ import annotations

import math
from typing import Any

import torch

from dnassm.config import RunConfig
from dnassm.data.samplers.tiled import TiledSampler
from dnassm.data.store import GenomeStore
from dnassm.data.tokenizer import Tokenizer
from dnassm.data.windows import WindowDataset, make_loader
from dnassm.model import DNAModel
from dnassm.task import IGNORED, TASKS, token_loss


def held_out_split(store: GenomeStore) -> str | None:
    """Name of the split to evaluate on: "valid", else "test", else None."""
    return next((name for name in ("valid", "test") if store.splits.get(name)), None)


@torch.inference_mode()
def bits_per_base(
    model: DNAModel,
    tokenizer: Tokenizer,
    config: RunConfig,
    store: GenomeStore,
    *,
    split: str,
    windows: int | None = None,
    batch_size: int = 16,
) -> tuple[float, int]:
    """Mean -log2 p(base) over the windows of a split that tile it without overlap.

    Every base counts that the objective predicts: with next-token, all but the first of each window.

    Args:
        model: in evaluation mode.
        tokenizer: the run's.
        config: the run's; gives window length and objective.
        store: the genome.
        split: name of the split.
        windows: look at this many, spread evenly, instead of all.
        batch_size: windows per forward.

    Returns:
        Bits per base, and the number of bases that counted.
    """
    length = min(config.data.length, max(len(interval) for interval in store.splits[split]))
    sampler = TiledSampler(store, split=split, length=length, keep_partial=True)
    dataset = WindowDataset(store, tokenizer, sampler, seed=0)
    objective = TASKS[config.objective.name](config.objective, tokenizer)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    chosen = None
    if windows is not None and windows < len(dataset):
        chosen = [i * len(dataset) // windows for i in range(windows)]
    batches: Any = make_loader(dataset, batch_size=batch_size)
    if chosen is not None:
        batches = (
            torch.stack([dataset[i] for i in chosen[first : first + batch_size]])
            for first in range(0, len(chosen), batch_size)
        )
    nats, count = 0.0, 0
    for tokens in batches:
        inputs, targets = objective.prepare(tokens.to(device), generator)
        counted = int((targets != IGNORED).sum())
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, _ = model(inputs)
        nats += float(token_loss(logits, targets)) * counted
        count += counted
    return nats / max(count, 1) / math.log(2), count
