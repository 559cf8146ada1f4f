"""A model token by token: steps with a state that moves on, and the sampling of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dnassm.config import MixerSpec, ModelConfig
from dnassm.errors import ConfigError, ShapeError
from dnassm.generation import Stepper, generate
from dnassm.mixer import MIXERS
from dnassm.model import DNAModel

STEPPING = [name for name in MIXERS.names() if MIXERS[name].streaming == "exact"]
LENGTH = 12


def make(name: str = "mamba", **options: object) -> DNAModel:
    """Two blocks of one mixer, with weights that make tokens differ."""
    torch.manual_seed(3)
    config = ModelConfig(d_model=8, pattern="xx", letters={"x": MixerSpec(name=name)}, **options)
    model = DNAModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.embedding.weight.mul_(5)
    return model.eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(5, (2, LENGTH), generator=torch.Generator().manual_seed(4))


# Steps


@pytest.mark.parametrize("name", STEPPING)
@torch.no_grad()
def test_steps_are_those_of_the_model(name, tokens):
    model = make(name)
    stepper, state = Stepper(model, 2), model.init_state(2)
    for t in range(LENGTH):
        want, state = model.step(tokens[:, t], state)
        assert torch.equal(stepper.step(tokens[:, t]), want)
    for mine, theirs in zip(stepper.state, state, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("name", STEPPING)
@torch.no_grad()
def test_a_prompt_is_read_as_its_tokens_one_by_one(name, tokens, monkeypatch):
    model = make(name)
    want = model(tokens)[0][:, -1]
    stepped, whole = Stepper(model, 2), Stepper(model, 2)
    for t in range(LENGTH):
        last = stepped.step(tokens[:, t])
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(last, want, **close)
    torch.testing.assert_close(whole.read(tokens), want, **close)
    monkeypatch.setattr("dnassm.generation._PIECE", 5)
    torch.testing.assert_close(Stepper(model, 2).read(tokens), want, **close)


@torch.no_grad()
def test_the_state_goes_back_to_the_start_and_takes_another(tokens):
    stepper = Stepper(make(), 2)
    first = stepper.read(tokens)
    kept = [[tensor.clone() for tensor in part] for part in stepper.state]
    following = stepper.step(tokens[:, 0])
    stepper.reset()
    assert torch.equal(stepper.read(tokens), first)
    stepper.load(tuple(kept))
    assert torch.equal(stepper.step(tokens[:, 0]), following)


@pytest.mark.parametrize("name", STEPPING)
@torch.no_grad()
def test_constants_of_the_parameters_may_be_held_over_steps(name, tokens):
    model = make(name)
    _, state = model(tokens)
    want, _ = model.step(tokens[:, 0], state)
    mixers = [block.mixer for block in model.blocks]
    with mixers[0].frozen(), mixers[1].frozen():
        assert torch.equal(model.step(tokens[:, 0], state)[0], want)
        for name, parameter in mixers[0].named_parameters():
            if name.startswith("A_"):
                parameter.add_(1)
        held, _ = model.step(tokens[:, 0], state)
    assert torch.equal(held, want)
    assert not torch.equal(model.step(tokens[:, 0], state)[0], want)


@torch.no_grad()
def test_projections_in_bf16_are_the_model_under_autocast(tokens):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stepper = Stepper(model, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, _ = model.step(tokens[:, 0], model.init_state(2))
    got = stepper.step(tokens[:, 0])
    assert got.dtype == torch.float32
    assert torch.equal(got, want.float())
    assert stepper.model.head.weight.dtype == torch.bfloat16, "cast in every step"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Tokens


def chain(steps: Iterator[Tensor]) -> Tensor:
    """(B, steps)."""
    return torch.stack(list(steps), 1)


@torch.no_grad()
def test_the_likeliest_token_is_taken_at_temperature_0(tokens):
    model, found = make(), tokens
    for _ in range(5):
        found = torch.cat([found, model(found)[0][:, -1:].argmax(2)], 1)
    assert torch.equal(chain(generate(model, tokens, 5, temperature=0)), found[:, LENGTH:])
    assert torch.equal(chain(generate(model, tokens, 5, top_k=1)), found[:, LENGTH:])


def test_the_seed_decides_the_tokens(tokens):
    model = make()
    first = chain(generate(model, tokens, 40, seed=1))
    assert torch.equal(first, chain(generate(model, tokens, 40, seed=1)))
    assert not torch.equal(first, chain(generate(model, tokens, 40, seed=2)))
    assert torch.equal(first[:, :7], chain(generate(model, tokens, 7, seed=1)))
    assert first.dtype == torch.int64


@torch.no_grad()
def test_tokens_come_as_often_as_the_model_says(tokens):
    model, prompt = make(), tokens[:1].expand(4000, -1)
    (drawn,) = generate(model, prompt, 1, temperature=2.0, seed=5)
    share = torch.bincount(drawn, minlength=model.config.vocab_size) / 4000
    want = (model(tokens[:1])[0][0, -1] / 2).softmax(0)
    assert (share - want).abs().max() < 0.03
    (drawn,) = generate(model, prompt, 1, temperature=2.0, top_k=3, seed=5)
    best = want.topk(3).indices
    assert set(drawn.tolist()) == set(best.tolist())


def test_only_tokens_that_are_allowed_come(tokens):
    drawn = chain(generate(make(), tokens, 60, temperature=5.0, allowed=(1, 2)))
    assert set(drawn.flatten().tolist()) == {1, 2}


def test_tokens_come_one_position_at_a_time(tokens):
    stream = generate(make(), tokens, 10**9, seed=3)
    assert [tuple(found.shape) for found in itertools.islice(stream, 3)] == [(2,)] * 3


def test_a_stepper_goes_on_from_its_state(tokens):
    model = make()
    whole = chain(generate(model, tokens, 3, temperature=0))
    stepper = Stepper(model, 2)
    stepper.read(tokens[:, :5])
    assert torch.equal(chain(generate(stepper, tokens[:, 5:], 3, temperature=0)), whole)


# What cannot be


def test_a_model_that_sees_both_sides_cannot_step():
    with pytest.raises(ConfigError, match="Stepper: expected a causal model"):
        Stepper(make(bidirectional=True))


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "steps must be 0 or more, got -1": {"steps": -1},
        "temperature must be 0 or more": {"temperature": -1.0},
        "temperature must be 0 or more, got nan": {"temperature": float("nan")},
        "top_k must be 1..8, got 0": {"top_k": 0},
        "allowed must be token ids in 0..7": {"allowed": [8]},
    }.items(),
)
def test_an_option_out_of_range_is_named(message, options, tokens):
    with pytest.raises(ConfigError, match=f"generate: {message}"):
        generate(make(), tokens, **{"steps": 1, **options})


def test_shapes_and_devices_that_do_not_fit_are_named(tokens):
    stepper = Stepper(make(), 2)
    with pytest.raises(ShapeError, match=r"tokens must be \(2,\)"):
        stepper.step(tokens[0])
    with pytest.raises(ShapeError, match=r"a prompt must be \(2, L\) with L > 0, got \(2, 0\)"):
        stepper.read(tokens[:, :0])
    with pytest.raises(ShapeError, match=r"generate: prompt must be \(B, L\)"):
        generate(make(), tokens[0], 1)
    with pytest.raises(ShapeError, match="Stepper: state must be"):
        stepper.load(make().init_state(3))
    with pytest.raises(ConfigError, match="a graph needs a CUDA device, got cpu"):
        Stepper(make(), graph=True)
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        Stepper(make(), 0)
