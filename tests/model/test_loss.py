"""The loss of a model is `token_loss` of its logits, without the logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dnassm.config import ModelConfig
from dnassm.model import DNAModel
from dnassm.task import IGNORED, token_loss

TOKENS = torch.randint(4, (2, 12), generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.rand(2, 12, generator=torch.Generator().manual_seed(2))


def made(**options: object) -> DNAModel:
    torch.manual_seed(0)
    return DNAModel(ModelConfig(d_model=16, pattern="ms", **options))


def asked(share: float) -> Tensor:
    """Targets of which that share is ignored."""
    without = torch.rand(2, 12, generator=torch.Generator().manual_seed(3)) < share
    return TOKENS.roll(-1, 1).masked_fill(without, IGNORED)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "a head"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighed"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_it_is_the_loss_of_the_logits_with_its_gradients(tied, weights, share):
    model, targets = made(tie_embeddings=tied), asked(share)
    want = token_loss(model(TOKENS)[0], targets, weights)
    gradients = torch.autograd.grad(want, list(model.parameters()))
    got = model.loss(TOKENS, targets, weights)
    torch.testing.assert_close(got, want)
    got.backward()
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_packed_sequences_do_not_see_each_other():
    model, targets = made(), asked(0.2)
    edges = torch.tensor([0, 5, 12])
    got = model.loss(TOKENS[:1], targets[:1], None, edges)
    torch.testing.assert_close(got, token_loss(model(TOKENS[:1], None, edges)[0], targets[:1]))
    assert not torch.isclose(got, model.loss(TOKENS[:1], targets[:1]))


def test_under_autocast_it_stays_float32():
    model, targets = made(), asked(0.0)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.loss(TOKENS, targets)
        rounded = token_loss(model(TOKENS)[0], targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, rounded, rtol=1e-2, atol=0)
