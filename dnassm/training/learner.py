"""Model, objective and optimiser together: what one step does to the weights."""

from __future__ import annotations

import math

import torch
from lightning.fabric import Fabric
from torch import Tensor

from dnassm.config import RunConfig
from dnassm.data.batch import Batch
from dnassm.data.sampler import splitmix64
from dnassm.data.tokenizer import Tokenizer
from dnassm.errors import ConfigError
from dnassm.model import DNAModel
from dnassm.task import TASKS, Objective
from dnassm.training.optimizer import build_optimizer


class Learner:
    """Takes optimiser steps; everything random in step k is a function of (seed, k).

    Raises:
        ConfigError: the objective and the model contradict each other.
    """

    def __init__(self, fabric: Fabric, config: RunConfig, tokenizer: Tokenizer) -> None:
        self.fabric, self.training = fabric, config.training
        self.objective: Objective = TASKS[config.objective.name](config.objective, tokenizer)
        torch.manual_seed(config.training.seed)
        self.model = DNAModel(config.model)
        if self.objective.needs_causal and not self.model.causal:
            raise ConfigError(
                "objective.name=next needs a causal model, got model.bidirectional=true; "
                "use objective.name=masked"
            )
        self.optimizer = build_optimizer(self.model, config.training)
        fabric.to_device(self.model)

    def wrap(self) -> None:
        """Hand model and optimiser to Fabric: precision, and gradients shared between devices."""
        self._wrapped, self._wrapped_optimizer = self.fabric.setup(self.model, self.optimizer)
        self._wrapped.mark_forward_method("loss")

    def step(self, batch: Batch, *, number: int, rate: float) -> Tensor:
        """Take step `number`, from 0, with learning rate `rate`.

        Args:
            batch: of this device.
            number: what seeds masks and dropout.
            rate: learning rate.

        Returns:
            The loss in nats, a scalar left on the device; NaN when the gradient was not finite.
        """
        fabric = self.fabric
        seed = splitmix64(self.training.seed, number) >> 1  # torch wants 63 bits
        torch.manual_seed(seed + fabric.global_rank)
        generator = torch.Generator().manual_seed(seed ^ fabric.global_rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        batch = batch.each(fabric.to_device)
        inputs, targets, weights = self.objective.prepare(batch, generator)
        loss: Tensor = self._wrapped.loss(inputs, targets, weights, batch.cu_seqlens)
        fabric.backward(loss)
        # Raising on a norm that is not finite would wait for the device in every step.
        norm = fabric.clip_gradients(
            self._wrapped,
            self._wrapped_optimizer,
            max_norm=self.training.clip,
            error_if_nonfinite=False,
        )
        self._wrapped_optimizer.step()
        self._wrapped_optimizer.zero_grad()
        loss = loss.detach()
        return loss if norm is None else loss.where(norm.isfinite(), math.nan)
