"""Laws over every registered objective."""

from __future__ import annotations

import pytest
import torch

from dnassm.config import ObjectiveConfig
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.task import IGNORED, TASKS

SINGLE = TOKENIZERS["single"]()
BASES = torch.tensor(sorted(SINGLE.bases.values()))
UNKNOWN = torch.tensor(SINGLE.ignore_ids)


def objective(name, **settings):
    return TASKS[name](ObjectiveConfig(name=name, **settings), SINGLE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(*shape: int) -> torch.Tensor:
    """Bases with one in eight position N or padding."""
    drawn = BASES[torch.randint(len(BASES), shape, generator=generator(1))]
    other = UNKNOWN[torch.randint(len(UNKNOWN), shape, generator=generator(2))]
    return torch.where(torch.rand(shape, generator=generator(3)) < 0.125, other, drawn)


@pytest.fixture(params=TASKS.names())
def task(request):
    return objective(request.param)


@pytest.fixture(params=["prepare", "prepare_held_out"])
def prepare(request, task):
    return getattr(task, request.param)


def test_next_and_masked_are_registered():
    assert {"next", "masked"} <= set(TASKS.names())


def test_an_objective_keeps_shape_type_and_its_argument(prepare):
    given = tokens(4, 64)
    before = given.clone()
    inputs, targets = prepare(given, generator())
    assert inputs.shape == targets.shape == given.shape
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(given, before)


def test_an_objective_is_a_pure_function_of_its_generator(prepare):
    first, again = (prepare(tokens(4, 64), generator(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_unknown_bases_and_padding_are_never_targets(prepare):
    _, targets = prepare(tokens(8, 256), generator())
    counted = targets[targets != IGNORED]
    assert counted.numel() > 0
    assert torch.isin(counted, BASES).all()
    _, nothing = prepare(torch.full((2, 64), SINGLE.pad_id), generator())
    assert (nothing == IGNORED).all()
