"""Packed rows on a CUDA device: each sequence by itself, and a run that trains on them."""

from __future__ import annotations

import itertools

import pytest
import torch

from dnassm.config import ModelConfig
from dnassm.model import DNAModel
from dnassm.task import IGNORED, token_loss
from dnassm.training.hardware import Hardware
from dnassm.training.pretrain import pretrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

EDGES = [0, 1, 4, 40, 41, 300, 1000]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pattern", ["m", "s", "ms"])
def test_packed_sequences_on_a_gpu_are_those_of_the_cpu_one_by_one(pattern, bidirectional) -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=32, pattern=pattern, bidirectional=bidirectional)
    model = DNAModel(config).double()
    tokens = torch.randint(0, 4, (1, EDGES[-1]))
    targets = tokens.masked_fill(torch.rand(tokens.shape) < 0.2, IGNORED)
    weights = torch.rand(tokens.shape)
    parts = [model(tokens[:, a:b])[0] for a, b in itertools.pairwise(EDGES)]
    expected = torch.cat(parts, dim=1)
    want = torch.autograd.grad(token_loss(expected, targets, weights), list(model.parameters()))

    there = model.float().cuda()
    edges = torch.tensor(EDGES, dtype=torch.int32).cuda()
    found, _ = there(tokens.cuda(), None, edges)
    loss = token_loss(found, targets.cuda(), weights.cuda())
    got = torch.autograd.grad(loss, list(there.parameters()))
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-3, atol=1e-4)
    for name, here, gradient in zip(dict(model.named_parameters()), want, got, strict=True):
        error = (gradient.double().cpu() - here).norm() / here.norm().clamp(min=1e-12)
        assert error < 1e-3, name


def test_a_run_on_packed_rows_learns_and_is_the_same_twice(store, tiny, tmp_path) -> None:
    config = tiny.override(["data.packing=true", "data.soft_masked_weight=0.1"])
    first, second = (
        pretrain(config, store, tmp_path / name, hardware=Hardware(devices=1)).digest
        for name in ("first", "second")
    )
    assert first == second
