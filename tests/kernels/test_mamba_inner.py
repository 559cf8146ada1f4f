"""The Mamba block as one function: the composition of the public operators is its truth."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnassm.errors import BackendError, ShapeError
from dnassm.kernels.laws import Probe, errors, laws
from dnassm.kernels.mamba_inner import Walk, checks, mamba_inner, op
from dnassm.kernels.mamba_inner.arguments import STATES, TENSORS
from dnassm.kernels.mamba_inner.cases import BOTH, CASES, ROUNDING, Case, Inputs, furthest, outcome

# Fused and composed are one


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", CASES)
def test_values_and_every_gradient_are_those_of_the_composition(name, dtype):
    case = CASES[name]
    inputs = case.inputs(dtype)
    want, weights = outcome(inputs, fused=False, **case.options)
    got, _ = outcome(inputs, weights, **case.options)
    assert furthest(got, want)[0] <= ROUNDING[dtype], furthest(got, want)
    assert {n: t.dtype for n, t in got.items()} == {n: t.dtype for n, t in want.items()}
    for value in ("y", "conv 0", "ssm 0"):
        assert torch.equal(got[value], want[value]), f"{value}: not the same bits"


@pytest.mark.parametrize("backend", ["reference", "portable", "cpu"])
def test_every_backend_serves_both_operators(backend):
    inputs = CASES["both directions"].inputs(torch.float32)
    try:
        want, weights = outcome(inputs, fused=False, backend=backend)
    except BackendError as error:
        pytest.skip(str(error))
    got, _ = outcome(inputs, weights, backend=backend)
    assert furthest(got, want)[0] <= ROUNDING[torch.float32], furthest(got, want)


def test_gradients_are_those_of_finite_differences():
    inputs = Case(batch=1, length=5, width=2, inner=3, states=2, rank=1, reverse=BOTH).inputs(
        torch.float64
    )
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.named().items()}

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(inputs.replaced(dict(zip(leaves, tensors, strict=True))).run(keep=()))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)


# States, sequences, directions


@pytest.mark.parametrize("border", [1, 2, 20, 36])
def test_two_calls_through_the_states_are_one_call(border):
    inputs = CASES["plain"].inputs(torch.float64)
    whole, (dy, *dstates) = outcome(inputs)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.named().items()}
    given = inputs.replaced(leaves)
    left, *state = given.replaced({"x": given.x[:, :border]}).run()
    later = {"x": given.x[:, border:], "conv_state 0": state[0], "ssm_state 0": state[1]}
    right, *end = given.replaced(later).run()
    torch.autograd.backward([torch.cat([left, right], 1), *end], [dy, *dstates])
    got = {"y": torch.cat([left, right], 1), "conv 0": end[0], "ssm 0": end[1]}
    got |= {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    assert furthest(got, whole)[0] <= 1e-12, furthest(got, whole)


@pytest.mark.parametrize("reverse", [(False,), (True,), BOTH], ids=str)
def test_packed_sequences_are_those_sequences_apart(reverse):
    edges = (0, 1, 20, 37)
    inputs = Case(batch=1, packed=edges, reverse=reverse).inputs(torch.float64)
    packed = inputs.run(cu_seqlens=torch.tensor(edges))
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        named = inputs.named()
        states = {n: t[row : row + 1] for n, t in named.items() if "_state" in n}
        alone = inputs.replaced({"x": inputs.x[:, start:end], **states}).run()
        torch.testing.assert_close(packed[0][:, start:end], alone[0], rtol=1e-12, atol=1e-12)
        for of_all, found in zip(packed[1:], alone[1:], strict=True):
            torch.testing.assert_close(of_all[row : row + 1], found, rtol=1e-12, atol=1e-12)


def test_reverse_is_the_flip_of_the_flipped():
    onwards = CASES["plain"].inputs(torch.float64)
    reverse = dataclasses.replace(onwards, walks=(onwards.walks[0]._replace(reverse=True),))
    y, *states = reverse.replaced({"x": onwards.x.flip(1)}).run()
    want, *ends = onwards.run()
    torch.testing.assert_close(y.flip(1), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states, ends, rtol=1e-12, atol=1e-12)


def test_both_directions_are_the_sum_of_one_each():
    inputs = CASES["both directions"].inputs(torch.float64)
    alone = [dataclasses.replace(inputs, walks=(walk,)).run() for walk in inputs.walks]
    y, *states = inputs.run()
    torch.testing.assert_close(y, alone[0][0] + alone[1][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states, [*alone[0][1:], *alone[1][1:]], rtol=1e-12, atol=1e-12)


def test_a_row_alone_is_the_row_in_its_batch():
    inputs = Case(batch=3).inputs(torch.float64)
    rows = {n: t[1:2] for n, t in inputs.named().items() if n == "x" or "_state" in n}
    for of_all, found in zip(inputs.run(), inputs.replaced(rows).run(), strict=True):
        torch.testing.assert_close(of_all[1:2], found, rtol=1e-12, atol=1e-12)


def test_every_run_has_the_same_bits():
    inputs = CASES["both directions"].inputs(torch.float32)
    first, weights = outcome(inputs)
    again, _ = outcome(inputs, weights)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []


# What is kept


# Torch


OPERATOR = {
    "plain": {},
    "bare": {},
    "both directions": {},
    "packed": {"cu_seqlens": torch.tensor([0, 1, 20, 37], dtype=torch.int32)},
}


@pytest.mark.parametrize("keep", ["", f"{STATES} xz x_dbl scan"], ids=["nothing", "all"])
@pytest.mark.parametrize("name", OPERATOR)
def test_torch_finds_no_fault_with_the_operator(name, keep):
    case = CASES[name]
    inputs = case.inputs(torch.float64)
    inputs = inputs.replaced({n: t.requires_grad_() for n, t in inputs.named().items()})
    flat = [getattr(walk, name) for walk in inputs.walks for name in TENSORS]
    edges = OPERATOR[name].get("cu_seqlens")
    first = (inputs.x, inputs.in_weight, inputs.out_weight, flat, list(case.reverse), edges)
    torch.library.opcheck(op.inner, (*first, False, keep, "portable"))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    inputs = CASES["both directions"].inputs(torch.float64)
    want, weights = outcome(inputs)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.named().items()}

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(inputs.replaced(dict(zip(leaves, tensors, strict=True))).run())

    results = checkpoint(call, *leaves.values(), use_reentrant=reentrant)
    torch.autograd.backward(results, weights)
    assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


class _Layer(nn.Module):
    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.learned = nn.ParameterList(t.detach().clone() for t in self._named().values())

    def _named(self) -> dict[str, Tensor]:
        named = self.inputs.named().items()
        return {n: t for n, t in named if n != "x" and "_state" not in n}

    def forward(self, x: Tensor) -> Tensor:
        named = dict(zip(self._named(), self.learned, strict=True))
        return self.inputs.replaced({"x": x, **named}).run()[0]


def test_a_layer_under_ddp_has_the_gradients_of_the_layer(gradients_under_ddp):
    inputs = CASES["both directions"].inputs(torch.float32)
    alone = _Layer(inputs)
    alone(inputs.x).square().sum().backward()
    got = gradients_under_ddp(_Layer(inputs), inputs.x)
    for gradient, parameter in zip(got, alone.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize("name", ["plain", "both directions"])
def test_autocast_casts_what_it_casts_in_the_composition(name):
    inputs = CASES[name].inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, weights = outcome(inputs, fused=False)
        got, _ = outcome(inputs, weights)
    assert got["y"].dtype == torch.bfloat16
    assert torch.equal(got["y"], want["y"])
    assert furthest(got, want)[0] <= ROUNDING[torch.bfloat16], furthest(got, want)
    assert {n: t.dtype for n, t in got.items()} == {n: t.dtype for n, t in want.items()}
    assert got["din_weight"].dtype == torch.float32


def test_only_what_is_asked_for_gets_a_gradient():
    inputs = CASES["both directions"].inputs(torch.float64)
    want, weights = outcome(inputs)
    x = inputs.x.detach().clone().requires_grad_()
    results = inputs.replaced({"x": x}).run()
    (found,) = torch.autograd.grad(results, [x], weights)
    assert torch.equal(found, want["dx"])


@pytest.mark.parametrize("result", range(5))
def test_the_loss_may_go_through_one_result_alone(result):
    inputs = CASES["both directions"].inputs(torch.float64)
    found = []
    for whole in (True, False):
        x = inputs.x.detach().clone().requires_grad_()
        results = inputs.replaced({"x": x}).run(fused=whole)
        found.append(torch.autograd.grad(results[result].square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


def test_gradients_of_the_results_may_have_any_strides():
    inputs = CASES["plain"].inputs(torch.float64)
    dy = torch.randn(8, 2, 1, dtype=torch.float64).permute(1, 2, 0).expand(2, 37, 8)
    ones = [torch.ones((), dtype=torch.float64).expand(r.shape) for r in inputs.run()[1:]]
    want, _ = outcome(inputs, [t.contiguous() for t in (dy, *ones)])
    x = inputs.x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(inputs.replaced({"x": x}).run(), x, [dy, *ones])
    torch.testing.assert_close(found, want["dx"], rtol=1e-12, atol=1e-12)


def test_an_input_of_any_strides_is_taken():
    inputs = CASES["both directions"].inputs(torch.float64)
    want, weights = outcome(inputs)
    turned = inputs.x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    results = inputs.replaced({"x": turned}).run()
    (dx,) = torch.autograd.grad(results, turned, weights)
    torch.testing.assert_close(results[0], want["y"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dx, want["dx"], rtol=1e-12, atol=1e-12)


def test_inputs_are_not_changed():
    inputs = CASES["both directions"].inputs(torch.float64)
    before = {name: tensor.clone() for name, tensor in inputs.named().items()}
    outcome(inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in inputs.named().items())


def test_a_second_derivative_is_refused():
    inputs = CASES["plain"].inputs(torch.float64)
    x = inputs.x.requires_grad_()
    (dx,) = torch.autograd.grad(inputs.run()[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"mamba_inner: a second derivative .* fused=False"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_laws_of_every_op_hold(dtype):
    probe = Probe(checks.SUBJECT, dtype, 64, 32, torch.device("cpu"))
    for law in laws(probe):
        found, bound = errors(*law.compare(probe)), law.bound(probe)
        beyond = {name: error for name, error in found.items() if not error.within(bound.of(name))}
        assert not beyond, law.name


# What is said of a bad argument


def spoiled(name: str, tensor: Tensor) -> Inputs:
    return CASES["plain"].inputs(torch.float32).replaced({name: tensor})


BAD = {
    "x must be .B, L, M.": ("x", torch.zeros(2, 0, 8)),
    r"in_weight must be \(32, 8\)": ("in_weight", torch.zeros(32, 9)),
    "in_weight must be torch.float32 like x, got torch.float64": (
        "in_weight",
        torch.zeros(32, 8, dtype=torch.float64),
    ),
    r"conv_weight must be \(16, any\)": ("conv_weight 0", torch.zeros(15, 4)),
    r"x_weight must be \(11, 16\)": ("x_weight 0", torch.zeros(12, 16)),
    r"dt_weight must be \(16, any\)": ("dt_weight 0", torch.zeros(3)),
    "A must be float32 or float64": ("A 0", torch.zeros(16, 4, dtype=torch.bfloat16)),
    r"D must be \(16\)": ("D 0", torch.zeros(17)),
    "dt_bias must be floating point": ("dt_bias 0", torch.zeros(16, dtype=torch.int64)),
    r"conv_state must be \(2, 3, 16\)": ("conv_state 0", torch.zeros(1, 3, 16)),
    r"ssm_state must be \(2, 16, 4\)": ("ssm_state 0", torch.zeros(2, 16, 5)),
    "initial_state must be finite": ("ssm_state 0", torch.full((2, 16, 4), torch.nan)),
    "conv_state is on meta, x on cpu": ("conv_state 0", torch.zeros(2, 3, 16, device="meta")),
}


@pytest.mark.parametrize(("message", "spoil"), BAD.items(), ids=BAD)
def test_a_bad_argument_is_named(message, spoil):
    with pytest.raises(ShapeError, match=f"mamba_inner: .*{message}"):
        spoiled(*spoil).run()


@pytest.mark.parametrize(
    ("message", "edges"),
    {
        r"\(S\+1,\) with S > 0": torch.tensor([0]),
        "rise from 0 to L = 37": torch.tensor([0, 38]),
        "int32 or int64": torch.tensor([0.0, 37.0]),
        "is on meta": torch.tensor([0, 37], device="meta"),
        "B must be 1": None,
    }.items(),
)
def test_bad_edges_of_sequences_are_named(message, edges):
    batch = 2 if edges is None else 1
    inputs = Case(batch=batch, bare=True).inputs(torch.float32)
    with pytest.raises(ShapeError, match=f"mamba_inner: cu_seqlens .*{message}"):
        inputs.run(cu_seqlens=torch.tensor([0, 37]) if edges is None else edges)


def test_an_option_that_does_not_exist_is_named_with_those_that_do():
    inputs = Case().inputs(torch.float32)
    with pytest.raises(ShapeError, match="keep has no 'dt'; have xz, u, x_dbl, scan, y"):
        inputs.run(keep=("dt",))
    with pytest.raises(ShapeError, match="at least one walk"):
        mamba_inner(inputs.x, inputs.in_weight, inputs.out_weight)


def test_a_walk_lists_its_tensors_in_the_order_of_the_operator():
    assert (*TENSORS, "reverse") == Walk._fields
