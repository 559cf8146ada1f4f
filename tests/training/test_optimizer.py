"""Which parameters decay, how the learning rate goes, how a gradient is cut."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.fabric import Fabric

from dnassm.config import ModelConfig, RunConfig, TrainingConfig
from dnassm.data.batch import Batch
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.model import DNAModel
from dnassm.training.learner import Learner
from dnassm.training.optimizer import build_optimizer, learning_rate


@pytest.mark.parametrize("letter", ["m", "s"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_of_linear_maps_are_decayed(letter, tied):
    model = DNAModel(ModelConfig(d_model=16, pattern=letter, tie_embeddings=tied))
    optimizer = build_optimizer(model, TrainingConfig(weight_decay=0.3))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, free = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | free == set(names.values())
    assert not decayed & free
    assert any(name.endswith("out_proj.weight") for name in decayed)
    assert ("head.weight" in decayed) is not tied
    assert {"embedding.weight", "norm.weight"} <= free
    for name in decayed:
        assert not name.endswith(("bias", "A_log", ".D", "norm.weight")), f"{name} is decayed"
    assert all(model.get_parameter(name).dim() >= 2 for name in decayed)


def test_the_rate_rises_linearly_then_falls_to_its_last_value():
    config = TrainingConfig(max_steps=100, lr=1.0, lr_final=0.1, warmup=0.2)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 20), "the first step must move the weights"
    assert rates[19] == 1.0
    assert rates[20] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    middle = 20 + (99 - 20) / 2
    assert (rates[math.floor(middle)] + rates[math.ceil(middle)]) / 2 == pytest.approx(
        0.55, abs=1e-3
    )


@pytest.mark.parametrize(
    "settings",
    [{"max_steps": 1}, {"max_steps": 2, "warmup": 1.0}, {"max_steps": 7, "warmup": 0.0}],
)
def test_short_runs_have_rates_between_nothing_and_the_peak(settings):
    config = TrainingConfig(lr=0.5, **settings)
    rates = [learning_rate(step, config) for step in range(config.max_steps)]
    assert all(0 < rate <= 0.5 for rate in rates)


def learner(**training) -> Learner:
    config = RunConfig(
        model=ModelConfig(d_model=16, pattern="m"), training=TrainingConfig(**training)
    )
    made = Learner(Fabric(accelerator="cpu", devices=1), config, TOKENIZERS["single"]())
    made.wrap()
    return made


def test_the_gradient_is_cut_to_its_norm(monkeypatch):
    made = learner(clip=1e-3)
    norms = []

    def note(*args, **kwargs):
        grads = [p.grad.flatten() for p in made.model.parameters() if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))

    monkeypatch.setattr(made._wrapped_optimizer, "step", note)
    made.step(Batch(torch.randint(4, (2, 32))), number=0, rate=1e-3)
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_a_gradient_that_is_not_finite_makes_the_loss_nan_and_raises_nothing():
    made = learner()
    with torch.no_grad():
        made.model.norm.weight[0] = math.inf
    assert math.isnan(made.step(Batch(torch.randint(4, (2, 32))), number=0, rate=1e-3))


def test_a_step_is_a_function_of_its_number_alone():
    def weights(disturb: int) -> list[torch.Tensor]:
        made = learner(seed=3)
        torch.manual_seed(disturb)
        torch.rand(disturb)
        made.step(Batch(torch.arange(64).reshape(2, 32) % 4), number=5, rate=1e-2)
        return [parameter.detach() for parameter in made.model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True))
