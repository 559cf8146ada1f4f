"""Every backend of the causal convolution is held to the float64 reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.errors import BackendError, ShapeError
from dnassm.kernels.causal_conv1d import BACKENDS, cases, causal_conv1d, causal_conv1d_step
from dnassm.kernels.causal_conv1d.cases import Case, Tolerance

NAMES = list(BACKENDS.all())
FAST = [name for name in NAMES if name != "reference"]
DTYPES = list(cases.TOLERANCES)

Results = dict[str, Tensor]


def run(
    inputs: dict[str, Tensor],
    backend: str,
    weights: list[Tensor] | None = None,
    *,
    silu: bool = True,
) -> tuple[Results, list[Tensor]]:
    """Values and gradients by name; the loss goes through y and through the final state."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    results = causal_conv1d(**leaves, silu=silu, backend=backend)
    generator = torch.Generator().manual_seed(99)
    weights = weights or [torch.randn(r.shape, generator=generator).to(r.dtype) for r in results]
    torch.autograd.backward(results, [w.to(r.dtype) for w, r in zip(weights, results, strict=True)])
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"y": results[0].detach(), "state": results[1].detach(), **gradients}, weights


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        if expected.numel() == 0:
            continue
        error = got[name].double() - expected
        rms = error.square().mean().sqrt()
        assert rms <= tolerance.rms * expected.square().mean().sqrt(), f"{name}: {tolerance.why}"
        assert error.abs().max() <= tolerance.worst * expected.abs().max(), name


@pytest.mark.parametrize("silu", [False, True], ids=["linear", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.CASES.values(), ids=cases.CASES)
@pytest.mark.parametrize("backend", FAST)
def test_values_and_every_gradient_are_those_of_the_reference(backend, case, dtype, silu):
    if dtype != torch.float32 and case.length > 1000:
        pytest.skip("the longest length is for float32")
    inputs = case.inputs(dtype)
    got, weights = run(inputs, backend, silu=silu)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, "reference", [w.double() for w in weights], silu=silu)
    assert_near(got, want, cases.TOLERANCES[dtype])


@pytest.mark.parametrize("backend", NAMES)
def test_it_is_the_convolution_of_torch_behind_the_state(backend):
    inputs = Case(length=20).inputs(torch.float64)
    y, state = causal_conv1d(**inputs, backend=backend)
    behind = torch.cat([inputs["initial_state"], inputs["x"]], dim=1).transpose(1, 2)
    want = F.conv1d(behind, inputs["weight"][:, None], inputs["bias"], groups=6).transpose(1, 2)
    torch.testing.assert_close(y, want)
    assert torch.equal(state, inputs["x"][:, -3:])


@pytest.mark.parametrize("backend", NAMES)
def test_no_state_is_a_state_of_zeros(backend):
    inputs = Case().inputs(torch.float64)
    inputs["initial_state"] = torch.zeros_like(inputs["initial_state"])
    want, _ = causal_conv1d(**inputs, backend=backend)
    del inputs["initial_state"]
    assert torch.equal(causal_conv1d(**inputs, backend=backend)[0], want)


@pytest.mark.parametrize("backend", NAMES)
def test_gradients_are_those_of_finite_differences(backend):
    inputs = Case(length=6, channels=3).inputs(torch.float64)
    names = list(inputs)

    def op(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return causal_conv1d(**dict(zip(names, tensors, strict=True)), silu=True, backend=backend)

    assert torch.autograd.gradcheck(op, [inputs[name].requires_grad_() for name in names])


@pytest.mark.parametrize("cut", [1, 2, 3, 40, 64])
@pytest.mark.parametrize("backend", NAMES)
def test_two_calls_through_the_state_are_one_call(backend, cut):
    inputs = Case().inputs(torch.float64)
    whole, weights = run(inputs, backend)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    x = leaves["x"]
    left, state = causal_conv1d(**{**leaves, "x": x[:, :cut]}, silu=True, backend=backend)
    rest = {**leaves, "x": x[:, cut:], "initial_state": state}
    right, end = causal_conv1d(**rest, silu=True, backend=backend)
    torch.autograd.backward((torch.cat([left, right], 1), end), weights)
    chained = {"y": torch.cat([left, right], 1).detach(), "state": end.detach()}
    chained |= {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    assert_near(chained, whole, cases.TOLERANCES[torch.float64])


def test_steps_are_the_convolution():
    inputs = Case(length=9).inputs(torch.float64)
    want, end = causal_conv1d(**inputs, silu=True)
    state = inputs["initial_state"]
    for t in range(9):
        before = state.clone()
        y, after = causal_conv1d_step(
            inputs["x"][:, t], inputs["weight"], inputs["bias"], state, silu=True
        )
        assert torch.equal(state, before)
        torch.testing.assert_close(y, want[:, t])
        state = after
    assert torch.equal(state, end)


@pytest.mark.parametrize("backend", NAMES)
def test_a_row_alone_is_the_row_in_its_batch_and_every_run_gives_the_same_bits(backend):
    inputs = Case(batch=4, length=200).inputs(torch.float32)
    y, state = causal_conv1d(**inputs, backend=backend)
    again, _ = causal_conv1d(**inputs, backend=backend)
    assert torch.equal(y, again)
    row = {n: t[2:3] if n in ("x", "initial_state") else t for n, t in inputs.items()}
    alone, alone_state = causal_conv1d(**row, backend=backend)
    assert torch.equal(alone, y[2:3])
    assert torch.equal(alone_state, state[2:3])


@pytest.mark.parametrize("backend", NAMES)
def test_a_state_does_not_keep_its_input_alive(backend):
    """Streaming a genome keeps a state per layer and window: K-1 positions, not the window."""
    inputs = Case(length=1000).inputs(torch.float32)
    _, state = causal_conv1d(**inputs, backend=backend)
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


@pytest.mark.parametrize("backend", NAMES)
def test_inputs_are_not_changed(backend):
    inputs = Case().inputs(torch.float32)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    run(inputs, backend)
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


GOOD = Case(batch=2, length=3, channels=4)
BAD = {
    "x": ["x must be .B, L, D.", lambda t: t[0]],
    "x without positions": ["x must be .B, L, D.*0", lambda t: t[:, :0]],
    "x without rows": ["x must be .B, L, D.*0", lambda t: t[:0]],
    "x of integers": ["x must be floating point, got torch.int64", lambda t: t.long()],
    "weight": [r"weight must be \(D, K\) = \(4, K\), got \(3, 4\)", lambda t: t[1:]],
    "weight without taps": [r"weight must be \(D, K\)", lambda t: t[:, :0]],
    "weight as of torch": [r"weight must be \(D, K\)", lambda t: t[:, None]],
    "weight elsewhere": ["weight is on meta, x on cpu", lambda t: t.to("meta")],
    "bias": [r"bias must be \(4,\), got \(2,\)", lambda t: t[2:]],
    "bias of integers": ["bias must be floating point", lambda t: t.long()],
    "bias elsewhere": ["bias is on meta, x on cpu", lambda t: t.to("meta")],
    "initial_state": [r"initial_state must be \(2, 3, 4\)", lambda t: t[:, 1:]],
    "initial_state elsewhere": ["initial_state is on meta", lambda t: t.to("meta")],
}


@pytest.mark.parametrize(("message", "spoil"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named(request, message, spoil):
    name = request.node.callspec.id.split(" ")[0]
    inputs = GOOD.inputs(torch.float32)
    inputs[name] = spoil(inputs[name])
    with pytest.raises(ShapeError, match=f"^causal_conv1d: {message}"):
        causal_conv1d(**inputs)


def test_every_argument_has_a_bad_case():
    assert {name.split(" ")[0] for name in BAD} == set(GOOD.inputs(torch.float32))


def test_an_unknown_backend_is_named_with_those_that_exist():
    with pytest.raises(BackendError, match=r"no backend 'no-such'; have auto, portable, reference"):
        causal_conv1d(**GOOD.inputs(torch.float32), backend="no-such")
