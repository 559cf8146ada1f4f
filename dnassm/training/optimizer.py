"""AdamW with the parameter groups of the Mamba paper, and its learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from dnassm.config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; parameters marked ``no_weight_decay`` are not decayed.

    The modules mark them: norms, biases, A, D, dt and the embedding.

    Source: Gu and Dao 2023, arXiv:2312.00752, appendix E.2.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        (free if getattr(parameter, "no_weight_decay", False) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of step `step` (0-based): linear warm-up, then a cosine down to ``lr_final * lr``."""
    rising = max(1, round(config.warmup * config.max_steps))
    if step < rising:
        return config.lr * (step + 1) / rising
    share = (step - rising) / max(1, config.max_steps - 1 - rising)
    low = config.lr_final * config.lr
    return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
