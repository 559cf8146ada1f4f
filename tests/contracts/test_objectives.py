"""Laws over every registered objective."""

from __future__ import annotations

import pytest
import torch

from dnassm.config import ObjectiveConfig
from dnassm.data.batch import Batch
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
    inputs, targets, weights = prepare(Batch(given), generator())
    assert inputs.shape == targets.shape == given.shape
    assert inputs.dtype == targets.dtype == torch.int64
    assert weights is None
    assert torch.equal(given, before)


def test_an_objective_is_a_pure_function_of_its_generator(prepare):
    first, again = (prepare(Batch(tokens(4, 64)), generator(5)) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)


def test_unknown_bases_and_padding_are_never_targets(prepare):
    targets = prepare(Batch(tokens(8, 256)), generator()).targets
    counted = targets[targets != IGNORED]
    assert counted.numel() > 0
    assert torch.isin(counted, BASES).all()
    nothing = prepare(Batch(torch.full((2, 64), SINGLE.pad_id)), generator()).targets
    assert (nothing == IGNORED).all()


def test_a_target_brings_the_weight_of_its_token(prepare):
    given = tokens(8, 256)
    by_token = torch.rand(SINGLE.vocab_size, generator=generator(4))
    examples = prepare(Batch(given, weights=by_token[given]), generator())
    counted = examples.targets != IGNORED
    assert torch.equal(examples.weights[counted], by_token[examples.targets[counted]])


def test_no_target_lies_in_another_sequence_than_its_position(prepare):
    """Each sequence is of one base, so that a target from across an edge is another base."""
    edges = torch.tensor([0, 1, 2, 40, 41, 90, 128], dtype=torch.int32)
    owner = torch.bucketize(torch.arange(128), edges[1:], right=True)
    given = BASES[owner % len(BASES)][None]
    for seed in range(20):
        targets = prepare(Batch(given, edges), generator(seed)).targets
        counted = targets != IGNORED
        assert torch.equal(targets[counted], given[counted])
