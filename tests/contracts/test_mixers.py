"""Laws over every registered mixer, and over each of them in both directions."""

from __future__ import annotations

import copy
import itertools
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import dnassm.mixers
from dnassm.errors import DnassmError, ShapeError
from dnassm.mixer import MIXERS, SequenceMixer
from dnassm.wrappers import Bidirectional

NAMES = MIXERS.names()
EXACT = [name for name in NAMES if MIXERS[name].streaming == "exact"]
CAUSAL = [name for name in NAMES if MIXERS[name].causal]
WRAPPED = [f"bidirectional {name}" for name in NAMES]
D_MODEL, LENGTH, BATCH = 8, 40, 2
# Float64, some tens of steps; a mixer that goes through an FFT loses a digit or two.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


def make(name: str, dtype: torch.dtype = torch.float64) -> SequenceMixer:
    """A mixer with its default options whose weights are nowhere at a special value."""
    torch.manual_seed(5)
    kind = MIXERS[name.removeprefix("bidirectional ")]
    mixer = kind(D_MODEL, kind.Config())
    if name.startswith("bidirectional "):
        mixer = Bidirectional(mixer, kind(D_MODEL, kind.Config()))
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return mixer.to(dtype)


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(BATCH, LENGTH, D_MODEL, generator=generator, dtype=torch.float64)


def loss_of(y: Tensor, state: Any) -> Tensor:
    """Sees every element of the output and of the state, each with its own weight."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in (y, *(state or ())):
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        weight = torch.randn(real.shape, generator=generator, dtype=torch.float64)
        total = total + (weight * real).sum()
    return total


def gradients(mixer: SequenceMixer, loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*inputs, *mixer.parameters()]))


# What a mixer is


def test_mamba_and_s4d_are_registered():
    assert {"mamba", "s4d"} <= set(NAMES)


def test_every_file_in_the_folder_is_a_mixer_under_test():
    files = {entry.name for entry in pkgutil.iter_modules(dnassm.mixers.__path__)}
    assert {MIXERS[name].__module__.rpartition(".")[2] for name in NAMES} == files


@pytest.mark.parametrize("name", NAMES)
def test_a_mixer_says_where_it_comes_from_and_what_it_can(name):
    mixer = MIXERS[name]
    assert "arXiv:" in mixer.source or "doi:" in mixer.source
    assert len(mixer.source.split(",")) >= 3, "paper and the equation, section or figure"
    assert isinstance(mixer.causal, bool)
    assert mixer.streaming in ("exact", "history", "none")
    assert mixer.__doc__
    assert not (mixer.streaming == "exact" and not mixer.causal), "a state cannot hold the future"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_checked_and_frozen(name):
    config = MIXERS[name].Config
    assert all(field.description for field in config.model_fields.values())
    assert config.model_config["frozen"]
    assert config.model_config["extra"] == "forbid"
    assert config.__doc__


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_a_mixer_can_be_built_without_memory(name):
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in make(name).named_parameters()}
    assert shapes == {n: tuple(p.shape) for n, p in make(name).named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(name):
    first, second = make(name).state_dict(), make(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


# Shapes and numbers


@pytest.mark.parametrize("name", NAMES + WRAPPED)
@pytest.mark.parametrize("length", [1, 2, 3, LENGTH])
def test_output_has_the_shape_and_dtype_of_the_input(name, length, x):
    y, _ = make(name)(x[:, :length])
    assert y.shape == x[:, :length].shape
    assert y.dtype == x.dtype
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_an_empty_sequence_is_refused_in_our_words(name, x):
    with pytest.raises(DnassmError, match=r"L > 0|none of them 0"):
        make(name)(x[:, :0])


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_float32_without_gradients_is_float64_to_its_precision(name, x):
    want, _ = make(name)(x)
    with torch.no_grad():
        y, _ = make(name, torch.float32)(x.float())
    assert y.dtype == torch.float32
    assert not y.requires_grad
    assert (y - want).square().mean().sqrt() < 1e-5 * want.square().mean().sqrt()


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_bf16_autocast_is_float32_to_bf16_precision(name, x):
    mixer = make(name, torch.float32)
    want, _ = mixer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = mixer(x.float())
    assert (y - want).square().mean().sqrt() < 0.03 * want.square().mean().sqrt()
    y.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_a_whole_model_in_bf16_runs(name, x):
    y, _ = make(name, torch.bfloat16)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_rows_of_a_batch_do_not_see_each_other(name, x):
    mixer = make(name)
    x.requires_grad_()
    y, _ = mixer(x)
    (gradient,) = torch.autograd.grad(loss_of(y[1:], None), x)
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0
    torch.testing.assert_close(mixer(x[1:])[0], y[1:], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_every_parameter_has_a_gradient(name, x):
    mixer = make(name)
    for parameter, gradient in zip(
        mixer.parameters(), gradients(mixer, loss_of(mixer(x)[0], None)), strict=True
    ):
        assert torch.isfinite(gradient).all()
        assert gradient.shape == parameter.shape
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_gradient_checkpointing_changes_nothing(name, x):
    mixer = make(name)
    x.requires_grad_()
    plain = gradients(mixer, loss_of(mixer(x)[0], None), x)
    y, _ = checkpoint(mixer, x, use_reentrant=False)
    again = gradients(mixer, loss_of(y, None), x)
    torch.testing.assert_close(again, plain, **TOLERANCE)


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_saved_and_loaded_weights_give_the_same_bits(name, x, tmp_path: Path):
    mixer = make(name)
    save_file({n: t.contiguous() for n, t in mixer.state_dict().items()}, tmp_path / "m")
    torch.manual_seed(123)
    kind = MIXERS[name.removeprefix("bidirectional ")]
    other = kind(D_MODEL, kind.Config())
    if name in WRAPPED:
        other = Bidirectional(other, kind(D_MODEL, kind.Config()))
    other.to(torch.float64).load_state_dict(load_file(tmp_path / "m"))
    assert torch.equal(other(x)[0], mixer(x)[0])
    assert torch.equal(copy.deepcopy(mixer)(x)[0], mixer(x)[0])


# Causality


@pytest.mark.parametrize("t", [0, 17, LENGTH - 1])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_mixer_does_not_see_the_future(name, t, x):
    x.requires_grad_()
    y, _ = make(name)(x)
    (gradient,) = torch.autograd.grad(loss_of(y[:, t], None), x)
    assert gradient[:, : t + 1].abs().amax(-1).min() > 1e-10, "it sees all of the past"
    assert (gradient[:, t + 1 :].abs() < 1e-12 * gradient.abs().max()).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CAUSAL)) + WRAPPED)
def test_a_mixer_that_is_not_causal_sees_both_sides(name, x):
    x.requires_grad_()
    y, _ = make(name)(x)
    (gradient,) = torch.autograd.grad(loss_of(y[:, 17], None), x)
    assert gradient.abs().amax(-1).min() > 1e-10


# States


@pytest.mark.parametrize("name", EXACT)
def test_a_state_is_a_named_tuple_of_tensors_with_the_batch_first(name, x):
    mixer = make(name)
    start = mixer.init_state(BATCH)
    _, end = mixer(x)
    assert type(end) is type(start)
    assert hasattr(start, "_fields")
    for before, after in zip(start, end, strict=True):
        assert before.shape[0] == BATCH
        assert (before.shape, before.dtype) == (after.shape, after.dtype)


@pytest.mark.parametrize("name", EXACT)
def test_a_state_has_one_size_however_long_the_past(name, x):
    mixer = make(name)
    for part in (x[:, :1], x):
        for tensor, start in zip(mixer(part)[1], mixer.init_state(BATCH), strict=True):
            assert tensor.shape == start.shape
            assert tensor.untyped_storage().nbytes() <= 2 * start.untyped_storage().nbytes()


@pytest.mark.parametrize("name", EXACT)
def test_no_state_is_the_first_state(name, x):
    mixer = make(name)
    torch.testing.assert_close(mixer(x, mixer.init_state(BATCH)), mixer(x), **TOLERANCE)


@pytest.mark.parametrize("name", EXACT)
def test_a_state_of_another_batch_is_refused(name, x):
    mixer = make(name)
    for batch in (1, 3):
        with pytest.raises(ShapeError, match="state must be"):
            mixer(x, mixer.init_state(batch))
        with pytest.raises(ShapeError, match="state must be"):
            mixer.step(x[:, 0], mixer.init_state(batch))
        with pytest.raises(ShapeError, match="state must be"):
            mixer.advance(x[:, 0], mixer.init_state(batch))


@pytest.mark.parametrize("cuts", [(1,), (16,), (36,), (39,), (1, 2, 3, 20), tuple(range(1, 40))])
@pytest.mark.parametrize("name", EXACT)
def test_carrying_the_state_over_cuts_changes_nothing(name, cuts, x):
    mixer = make(name)
    x.requires_grad_()
    whole, end = mixer(x)
    want = gradients(mixer, loss_of(whole, end), x)

    state, parts = None, []
    for start, stop in itertools.pairwise([0, *cuts, LENGTH]):
        y, state = mixer(x[:, start:stop], state)
        parts.append(y)
    joined = torch.cat(parts, dim=1)
    torch.testing.assert_close(joined, whole, **TOLERANCE)
    torch.testing.assert_close(tuple(state), tuple(end), **TOLERANCE)
    torch.testing.assert_close(gradients(mixer, loss_of(joined, state), x), want, **TOLERANCE)


@pytest.mark.parametrize("name", EXACT)
def test_steps_are_forward(name, x):
    mixer = make(name)
    x.requires_grad_()
    whole, end = mixer(x)
    want = gradients(mixer, loss_of(whole, end), x)
    state, outputs = mixer.init_state(BATCH), []
    for t in range(LENGTH):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    stepped = torch.stack(outputs, dim=1)
    torch.testing.assert_close(stepped, whole, **TOLERANCE)
    torch.testing.assert_close(tuple(state), tuple(end), **TOLERANCE)
    torch.testing.assert_close(gradients(mixer, loss_of(stepped, state), x), want, **TOLERANCE)


@pytest.mark.parametrize("name", EXACT)
def test_the_old_state_is_untouched(name, x):
    mixer = make(name)
    _, state = mixer(x)
    before = [tensor.clone() for tensor in state]
    mixer(x, state)
    mixer.step(x[:, 0], state)
    assert all(torch.equal(old, new) for old, new in zip(before, state, strict=True))


@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_advancing_is_stepping_with_a_state_that_is_used_up(name, x):
    mixer = make(name)
    mine, theirs = mixer.init_state(BATCH), mixer.init_state(BATCH)
    for t in range(LENGTH):
        got, mine = mixer.advance(x[:, t], mine)
        want, theirs = mixer.step(x[:, t], theirs)
        assert torch.equal(got, want)
    assert type(mine) is type(theirs)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_gradients_flow_into_and_out_of_every_part_of_a_state(name, x):
    mixer = make(name)
    x.requires_grad_()
    _, state = mixer(x)
    for part in state:
        (gradient,) = torch.autograd.grad(loss_of(part, None), x, retain_graph=True)
        assert gradient.abs().max() > 0
    leaves = type(state)(*(part.detach().requires_grad_() for part in state))
    for run in (lambda: mixer(x, leaves)[0], lambda: mixer.step(x[:, 0], leaves)[0]):
        for gradient in torch.autograd.grad(loss_of(run(), None), list(leaves)):
            assert gradient.abs().max() > 0


# Sequences packed end to end on one row


EDGES = [[0, LENGTH], [0, 1, 2, 5, 19, 39, LENGTH], [*range(LENGTH + 1)]]


def separately(
    mixer: SequenceMixer, row: Tensor, edges: list[int], states: Any = None
) -> tuple[Tensor, Any]:
    """Every sequence of the row by itself, the outputs and the states put together again."""
    outputs, ends = [], []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        before = states and type(states)(*(part[number : number + 1] for part in states))
        y, end = mixer(row[:, start:stop], before)
        outputs.append(y)
        ends.append(end)
    state = ends[0] and type(ends[0])(*map(torch.cat, zip(*ends, strict=True)))
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("edges", EDGES, ids=lambda edges: f"{len(edges) - 1} sequences")
@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_packed_sequences_are_the_same_sequences_one_by_one(name, edges, kind, x):
    mixer, row = make(name), x[:1].requires_grad_()
    want, end = separately(mixer, row, edges)
    y, state = mixer(row, None, torch.tensor(edges, dtype=kind))
    torch.testing.assert_close(y, want, **TOLERANCE)
    if name not in EXACT:  # a state that grows has no one shape to compare
        end = state = None
    else:
        assert all(part.shape[0] == len(edges) - 1 for part in state)
        torch.testing.assert_close(tuple(state), tuple(end), **TOLERANCE)
    torch.testing.assert_close(
        gradients(mixer, loss_of(y, state), row),
        gradients(mixer, loss_of(want, end), row),
        **TOLERANCE,
    )


@pytest.mark.parametrize("edges", EDGES, ids=lambda edges: f"{len(edges) - 1} sequences")
@pytest.mark.parametrize("name", EXACT)
def test_packed_sequences_go_on_from_their_own_states(name, edges, x):
    mixer, row = make(name), x[:1].requires_grad_()
    generator = torch.Generator().manual_seed(8)
    states = type(mixer.init_state(1))(
        *(
            torch.randn(part.shape, generator=generator, dtype=part.dtype).requires_grad_()
            for part in mixer.init_state(len(edges) - 1)
        )
    )
    want, end = separately(mixer, row, edges, states)
    y, state = mixer(row, states, torch.tensor(edges))
    torch.testing.assert_close(y, want, **TOLERANCE)
    torch.testing.assert_close(tuple(state), tuple(end), **TOLERANCE)
    torch.testing.assert_close(
        gradients(mixer, loss_of(y, state), row, *states),
        gradients(mixer, loss_of(want, end), row, *states),
        **TOLERANCE,
    )
    for batch in (len(edges), len(edges) + 1):
        with pytest.raises(ShapeError, match="state must be"):
            mixer(row, mixer.init_state(batch), torch.tensor(edges))


@pytest.mark.parametrize("name", EXACT)
def test_a_step_after_packed_sequences_is_a_step_of_each(name, x):
    mixer, edges = make(name), EDGES[1]
    _, state = mixer(x[:1], None, torch.tensor(edges))
    y, _ = mixer.step(x[1, : len(edges) - 1], state)
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        longer = torch.cat([x[:1, start:stop], x[1:, number : number + 1]], dim=1)
        torch.testing.assert_close(mixer(longer)[0][0, -1], y[number], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_a_packed_sequence_gets_no_gradient_from_another(name, x):
    row = x[:1].requires_grad_()
    y, _ = make(name)(row, None, torch.tensor(EDGES[1]))
    (gradient,) = torch.autograd.grad(loss_of(y[:, 5:19], None), row)
    assert gradient[:, :5].abs().max() == 0
    assert gradient[:, 19:].abs().max() == 0
    assert gradient[:, 5:19].abs().amax(-1).min() > 0


@pytest.mark.parametrize(
    "edges",
    [[0, 5], [1, LENGTH], [0, 9, 9, LENGTH], [0, 9, 5, LENGTH], [0], [[0, LENGTH]], [0.0, LENGTH]],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_edges_that_are_none_are_refused(name, edges, x):
    with pytest.raises(ShapeError, match="cu_seqlens must"):
        make(name)(x[:1], None, torch.tensor(edges))


@pytest.mark.parametrize("name", NAMES + WRAPPED)
def test_packing_takes_one_row(name, x):
    with pytest.raises(ShapeError, match="on one row"):
        make(name)(x, None, torch.tensor([0, LENGTH]))


# Both directions


@pytest.mark.parametrize("name", WRAPPED)
def test_a_bidirectional_mixer_takes_no_state_and_no_step(name, x):
    mixer = make(name)
    assert mixer.init_state(BATCH) is None
    assert mixer(x)[1] is None
    with pytest.raises(ShapeError, match="state must be None"):
        mixer(x, ())
    with pytest.raises(ShapeError, match="step by step"):
        mixer.step(x[:, 0], None)


@pytest.mark.parametrize("name", WRAPPED)
def test_both_directions_are_one_mixer_each_on_the_sequence_and_on_its_reverse(name, x):
    mixer = make(name)
    onward, backward = mixer.children()
    want = onward(x)[0] + backward(x.flip(1))[0].flip(1)
    assert torch.equal(mixer(x)[0], want)
    weights = [list(part.parameters()) for part in (onward, backward)]
    assert not {id(p) for p in weights[0]} & {id(p) for p in weights[1]}, "not shared"
