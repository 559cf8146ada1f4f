"""Every backend of the causal convolution is held to the float64 reference.

Here run the backends that can: on a CPU its own and the portable one, and Triton's in its
interpreter where TRITON_INTERPRET is set (test_conv_triton.py does that). test_conv_cuda_source.py
has the CUDA source without a GPU, test_gpu_conv.py all of it on one.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dnassm.errors import BackendError, ShapeError
from dnassm.kernels.causal_conv1d import (
    BACKENDS,
    cases,
    causal_conv1d,
    causal_conv1d_step,
    op,
    portable,
)
from dnassm.kernels.causal_conv1d.arguments import Conv
from dnassm.kernels.causal_conv1d.cases import Case, Tolerance


def able(dtype: torch.dtype) -> list[str]:
    """Backends that take CPU tensors of this dtype."""
    call = Conv(
        **Case(bare=True).inputs(dtype),
        **dict.fromkeys(("bias", "initial_state", "cu_seqlens")),
        silu=True,
        reverse=False,
    )
    return [name for name, module in BACKENDS.all().items() if module.supports(call) is None]


NAMES = able(torch.float32)
FAST = [name for name in NAMES if name != "reference"]
DOUBLE = able(torch.float64)
DTYPES = list(cases.TOLERANCES)

Results = dict[str, Tensor]


def run(
    inputs: dict[str, Tensor],
    backend: str,
    weights: list[Tensor] | None = None,
    *,
    silu: bool = True,
    **options: Any,
) -> tuple[Results, list[Tensor]]:
    """Values and gradients by name; the loss goes through y and through the final state."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    results = causal_conv1d(**leaves, silu=silu, return_state=True, backend=backend, **options)
    generator = torch.Generator().manual_seed(99)
    weights = weights or [torch.randn(r.shape, generator=generator).to(r.dtype) for r in results]
    assert all(result.dtype == inputs["x"].dtype for result in results)
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


def assert_same(got: Results, want: Results) -> None:
    for name, expected in want.items():
        assert torch.equal(got[name], expected), name


@pytest.mark.parametrize("silu", [False, True], ids=["linear", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.CASES.values(), ids=cases.CASES)
@pytest.mark.parametrize("backend", FAST)
def test_values_and_every_gradient_are_those_of_the_reference(backend, case, dtype, silu):
    if backend not in able(dtype):
        pytest.skip(f"{backend} does not compute in {dtype}")
    if dtype != torch.float32 and case.length > 1000:
        pytest.skip("the longest length is for float32")
    inputs, options = case.inputs(dtype), case.options()
    got, weights = run(inputs, backend, silu=silu, **options)
    assert {name: got[f"d{name}"].dtype for name in inputs} == {
        name: tensor.dtype for name, tensor in inputs.items()
    }
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, "reference", [w.double() for w in weights], silu=silu, **options)
    assert_near(got, want, cases.TOLERANCES[dtype])


def call_of(case: Case, dtype: torch.dtype) -> Conv:
    """What a backend is given for a case."""
    inputs, options = case.inputs(dtype), case.options()
    edges = options.pop("cu_seqlens")
    absent = {"bias": None, "initial_state": None}
    return Conv(
        **{**absent, **inputs},
        cu_seqlens=None if edges is None else edges.int(),
        silu=True,
        **options,
    )


@pytest.mark.parametrize("case", cases.CASES.values(), ids=cases.CASES)
@pytest.mark.parametrize("backend", NAMES)
def test_results_are_written_where_they_are_wanted(backend, case):
    if case.length > 1000:
        pytest.skip("short ones show it")
    call = call_of(case, torch.float32)
    chosen = BACKENDS.choose(backend, call)
    dy, dfinal = torch.randn(call.x.shape), torch.randn(call.state_shape)
    for run in (chosen.forward, lambda call: chosen.backward(call, dy, dfinal)):
        want, *others = run(call)
        around = torch.full((*call.x.shape[:2], 3 * call.x.shape[2]), torch.nan)
        before, into, behind = around.chunk(3, dim=2)
        got, *beside = run(dataclasses.replace(call, into=into))
        assert got is into
        torch.testing.assert_close([got, *beside], [want, *others], rtol=0, atol=0)
        assert before.isnan().all()
        assert behind.isnan().all()


@pytest.mark.parametrize("numbers", [1, 24, 100])
def test_chunks_of_any_length_give_the_portable_result(monkeypatch, numbers):
    monkeypatch.setitem(portable._CHUNK, "cpu", numbers)
    for case in (Case(), Case(length=3, width=9), Case(reverse=True), cases.CASES["packed"]):
        inputs, options = case.inputs(torch.float64), case.options()
        got, weights = run(inputs, "portable", **options)
        want, _ = run(inputs, "reference", weights, **options)
        assert_near(got, want, cases.TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", DOUBLE)
def test_it_is_the_convolution_of_torch_behind_the_state(backend):
    inputs = Case(length=20).inputs(torch.float64)
    y, state = causal_conv1d(**inputs, return_state=True, backend=backend)
    behind = torch.cat([inputs["initial_state"], inputs["x"]], dim=1).transpose(1, 2)
    want = F.conv1d(behind, inputs["weight"][:, None], inputs["bias"], groups=6).transpose(1, 2)
    torch.testing.assert_close(y, want)
    assert torch.equal(state, inputs["x"][:, -3:])


@pytest.mark.parametrize("backend", NAMES)
def test_without_return_state_y_comes_alone(backend):
    inputs = Case().inputs(torch.float32)
    y, _ = causal_conv1d(**inputs, return_state=True, backend=backend)
    assert torch.equal(causal_conv1d(**inputs, backend=backend), y)


@pytest.mark.parametrize("backend", NAMES)
def test_no_state_is_a_state_of_zeros(backend):
    inputs = Case().inputs(torch.float32)
    inputs["initial_state"] = torch.zeros_like(inputs["initial_state"])
    want = causal_conv1d(**inputs, backend=backend)
    del inputs["initial_state"]
    assert torch.equal(causal_conv1d(**inputs, backend=backend), want)


FINITE = [
    Case(length=6, channels=3),
    Case(length=2, channels=2, width=5),
    Case.of_sequences(1, 4, 2, channels=2, reverse=True),
]


@pytest.mark.parametrize("case", FINITE, ids=["rows", "wider than long", "packed, reverse"])
@pytest.mark.parametrize("backend", DOUBLE)
def test_gradients_are_those_of_finite_differences(backend, case):
    inputs, options = case.inputs(torch.float64), case.options()
    names = list(inputs)

    def conv(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        arguments = dict(zip(names, tensors, strict=True))
        return causal_conv1d(**arguments, silu=True, return_state=True, backend=backend, **options)

    assert torch.autograd.gradcheck(conv, [inputs[name].requires_grad_() for name in names])


def test_a_second_derivative_is_refused():
    x, weight = torch.ones(1, 3, 2, requires_grad=True), torch.ones(2, 2)
    (gradient,) = torch.autograd.grad(causal_conv1d(x, weight).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative was asked for"):
        gradient.sum().backward()


@pytest.mark.parametrize("reverse", [False, True], ids=["onwards", "reverse"])
@pytest.mark.parametrize("cut", [1, 2, 3, 40, 64])
@pytest.mark.parametrize("backend", DOUBLE)
def test_two_calls_through_the_state_are_one_call(backend, cut, reverse):
    inputs = Case().inputs(torch.float64)
    whole, weights = run(inputs, backend, reverse=reverse)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    parts = [leaves["x"][:, :cut], leaves["x"][:, cut:]]
    state, results = leaves["initial_state"], []
    for part in reversed(parts) if reverse else parts:
        arguments = {**leaves, "x": part, "initial_state": state}
        y, state = causal_conv1d(
            **arguments, silu=True, reverse=reverse, return_state=True, backend=backend
        )
        results.append(y)
    y = torch.cat(results[::-1] if reverse else results, 1)
    torch.autograd.backward((y, state), weights)
    chained = {"y": y.detach(), "state": state.detach()}
    chained |= {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    assert_near(chained, whole, cases.TOLERANCES[torch.float64])


PACKED = ["packed", "packed, reverse", "packed, wider than long", "packed, bare"]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("backend", NAMES)
def test_packed_sequences_are_sequences_apart(backend, name):
    case = cases.CASES[name]
    inputs = case.inputs(torch.float32)
    packed, (dy, dstate) = run(inputs, backend, **case.options())
    edges = [0, *itertools.accumulate(case.packed)]
    dweight = torch.zeros_like(inputs["weight"])
    for s, (begin, end) in enumerate(itertools.pairwise(edges)):
        alone = {**inputs, "x": inputs["x"][:, begin:end]}
        if "initial_state" in inputs:
            alone["initial_state"] = inputs["initial_state"][s : s + 1]
        weights = [dy[:, begin:end], dstate[s : s + 1]]
        found, _ = run(alone, backend, weights, reverse=case.reverse)
        torch.testing.assert_close(packed["y"][:, begin:end], found["y"])
        torch.testing.assert_close(packed["dx"][:, begin:end], found["dx"])
        assert torch.equal(packed["state"][s : s + 1], found["state"])
        if "initial_state" in inputs:
            torch.testing.assert_close(packed["dinitial_state"][s : s + 1], found["dinitial_state"])
        dweight += found["dweight"]
    torch.testing.assert_close(packed["dweight"], dweight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", NAMES)
def test_what_one_sequence_holds_never_reaches_another(backend):
    case = Case.of_sequences(5, 4, 6)
    inputs = case.inputs(torch.float32)
    y = causal_conv1d(**inputs, backend=backend, **case.options())
    inputs["x"][:, 5:9] = torch.nan
    spoilt = causal_conv1d(**inputs, backend=backend, **case.options())
    assert torch.equal(spoilt[:, :5], y[:, :5])
    assert torch.equal(spoilt[:, 9:], y[:, 9:])


@pytest.mark.parametrize("backend", NAMES)
def test_reverse_is_the_flip_of_what_the_flip_gives(backend):
    inputs = Case().inputs(torch.float32)
    got, weights = run(inputs, backend, reverse=True)
    want, _ = run({**inputs, "x": inputs["x"].flip(1)}, backend, [weights[0].flip(1), weights[1]])
    want["y"], want["dx"] = want["y"].flip(1), want["dx"].flip(1)
    assert_near(got, {n: t.double() for n, t in want.items()}, cases.TOLERANCES[torch.float32])


def test_steps_are_the_convolution():
    inputs = Case(length=9).inputs(torch.float64)
    want, end = causal_conv1d(**inputs, silu=True, return_state=True)
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


def test_the_gradients_of_a_step_are_those_of_one_position():
    inputs = Case(length=1).inputs(torch.float64)
    want, weights = run(inputs, "reference")
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    results = causal_conv1d_step(
        leaves["x"][:, 0], leaves["weight"], leaves["bias"], leaves["initial_state"], silu=True
    )
    torch.autograd.backward(results, [weights[0][:, 0], weights[1]])
    got = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    got |= {"y": results[0].detach()[:, None], "state": results[1].detach()}
    assert_near({name: got[name] for name in want}, want, cases.TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", NAMES)
def test_a_row_alone_is_the_row_in_its_batch(backend):
    inputs = Case(batch=4, length=200).inputs(torch.float32)
    whole, (dy, dstate) = run(inputs, backend)
    row = {n: t[2:3] if n in ("x", "initial_state") else t for n, t in inputs.items()}
    alone, _ = run(row, backend, [dy[2:3], dstate[2:3]])
    for name in ("y", "state", "dx", "dinitial_state"):
        assert torch.equal(alone[name], whole[name][2:3]), name


@pytest.mark.parametrize("name", ["length 1000", "packed", "reverse"])
@pytest.mark.parametrize("backend", NAMES)
def test_every_run_gives_the_same_bits(backend, name):
    case = cases.CASES[name]
    inputs, options = case.inputs(torch.float32), case.options()
    first, weights = run(inputs, backend, **options)
    assert_same(run(inputs, backend, weights, **options)[0], first)


@pytest.mark.parametrize("backend", NAMES)
def test_an_expanded_gradient_is_taken(backend):
    inputs = Case().inputs(torch.float32)
    x = inputs["x"].requires_grad_()
    causal_conv1d(**inputs, backend=backend).sum().backward()
    want = x.grad.clone()
    x.grad = None
    y = causal_conv1d(**inputs, backend=backend)
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, want)


@pytest.mark.parametrize("backend", NAMES)
def test_only_y_or_only_the_state_may_be_used(backend):
    inputs = Case(length=5).inputs(torch.float32)
    x = inputs["x"].requires_grad_()
    y, state = causal_conv1d(**inputs, return_state=True, backend=backend)
    (of_state,) = torch.autograd.grad(state.sum(), x, retain_graph=True)
    assert torch.equal(of_state, torch.tensor([0.0, 0, 1, 1, 1])[:, None].expand(2, 5, 6))
    (of_y,) = torch.autograd.grad(y.sum(), x)
    assert of_y[:, 0].abs().min() > 0


@pytest.mark.parametrize("backend", NAMES)
def test_a_state_of_another_precision_is_taken(backend):
    inputs = Case().inputs(torch.bfloat16)
    want = causal_conv1d(**inputs, backend=backend)
    inputs["initial_state"] = inputs["initial_state"].float().requires_grad_()
    y, state = causal_conv1d(**inputs, return_state=True, backend=backend)
    assert torch.equal(y, want)
    assert state.dtype == torch.bfloat16
    y.float().sum().backward()
    assert inputs["initial_state"].grad.dtype == torch.float32


def inside_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN right before and right behind them in memory."""
    around = torch.full((tensor.numel() + 512,), torch.nan, dtype=tensor.dtype)
    view = around[256 : 256 + tensor.numel()].view(tensor.shape)
    return view.copy_(tensor)


@pytest.mark.parametrize("name", ["length 65", "33 channels", "packed", "packed, reverse"])
@pytest.mark.parametrize("backend", NAMES)
def test_nothing_beside_an_input_is_read(backend, name):
    case = cases.CASES[name]
    inputs, options = case.inputs(torch.float32), case.options()
    want, weights = run(inputs, backend, **options)
    guarded = {name: inside_nan(tensor) for name, tensor in inputs.items()}
    assert_same(run(guarded, backend, [inside_nan(w) for w in weights], **options)[0], want)


@pytest.mark.parametrize("backend", NAMES)
def test_a_state_does_not_keep_its_input_alive(backend):
    """Streaming a genome keeps a state per layer and window: K-1 positions, not the window."""
    inputs = Case(length=1000).inputs(torch.float32)
    _, state = causal_conv1d(**inputs, return_state=True, backend=backend)
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


@pytest.mark.parametrize("backend", NAMES)
def test_inputs_are_not_changed(backend):
    inputs = Case().inputs(torch.float32)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    run(inputs, backend)
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


# As an operator of torch


OPERATORS = ["length 3", "bare", "packed, reverse", "strided", "width 1"]


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operators_keep_what_torch_asks_of_them(name):
    case = cases.CASES[name]
    inputs = {n: t.requires_grad_() for n, t in case.inputs(torch.float32).items()}
    tensors = [inputs.get(n) for n in ("x", "weight", "bias", "initial_state")]
    edges = case.options()["cu_seqlens"]
    edges = None if edges is None else edges.int()
    arguments = (*tensors, edges, True, case.reverse, "auto")
    torch.library.opcheck(op.conv, arguments)
    if case.bare or case.packed:
        return
    plain = [None if t is None else t.detach() for t in tensors]
    dfinal = plain[3].clone()
    more = (torch.randn(inputs["x"].shape), dfinal)
    torch.library.opcheck(op.conv_backward, (*plain, *arguments[4:], *more))
    x, weight, bias, state = tensors
    torch.library.opcheck(op.step, (x[:, 0].detach().requires_grad_(), weight, bias, state, True))


@pytest.mark.parametrize("name", ["length 65", "packed"])
def test_it_is_compiled_without_a_graph_break(name):
    case = cases.CASES[name]
    inputs, options = case.inputs(torch.float32), case.options()
    want, (dy, dstate) = run(inputs, "auto", **options)

    def conv(**leaves: Tensor) -> tuple[Tensor, Tensor]:
        y, state = causal_conv1d(**leaves, silu=True, return_state=True, **options)
        return y * 1, state * 1

    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    results = torch.compile(conv, fullgraph=True, backend="aot_eager")(**leaves)
    torch.autograd.backward(results, (dy, dstate))
    assert torch.equal(results[0], want["y"])
    assert_same(
        {f"d{n}": leaf.grad for n, leaf in leaves.items()},
        {n: t for n, t in want.items() if n.startswith("d")},
    )


def test_a_checkpointed_call_gives_the_same_gradients():
    inputs = Case().inputs(torch.float32)
    want, (dy, _) = run(inputs, "auto", [torch.ones(2, 65, 6), torch.zeros(2, 3, 6)])
    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    y = checkpoint(lambda: causal_conv1d(**leaves, silu=True), use_reentrant=False)
    y.backward(dy)
    assert_same(
        {f"d{n}": leaf.grad for n, leaf in leaves.items()},
        {n: t for n, t in want.items() if n.startswith("d")},
    )


def test_autocast_changes_nothing():
    inputs = Case().inputs(torch.float32)
    want, weights = run(inputs, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = run(inputs, "auto", weights)
    assert_same(got, want)


# Bad input


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


BAD_EDGES = {
    "floating": ["must be int32 or int64, got torch.float32", torch.tensor([0.0, 3.0])],
    "of two axes": [r"must be \(S\+1,\) with S > 0, got \(1, 2\)", torch.tensor([[0, 3]])],
    "one number": [r"must be \(S\+1,\) with S > 0, got \(1,\)", torch.tensor([0])],
    "elsewhere": ["is on meta, x on cpu", torch.tensor([0, 3], device="meta")],
    "not from 0": [r"must rise from 0 to L = 3.*got \[1, 3\]", torch.tensor([1, 3])],
    "not to L": [r"must rise from 0 to L = 3.*got \[0, 2\]", torch.tensor([0, 2])],
    "beyond L": [r"must rise from 0 to L = 3.*got \[0, 4\]", torch.tensor([0, 4])],
    "an empty sequence": ["must rise.*at least one position long", torch.tensor([0, 2, 2, 3])],
    "falling": ["must rise from 0 to L = 3", torch.tensor([0, 2, 1, 3])],
}


@pytest.mark.parametrize(("message", "edges"), BAD_EDGES.values(), ids=BAD_EDGES)
def test_bad_edges_of_sequences_are_named(message, edges):
    x, weight = torch.ones(1, 3, 4), torch.ones(4, 4)
    with pytest.raises(ShapeError, match=f"^causal_conv1d: cu_seqlens {message}"):
        causal_conv1d(x, weight, cu_seqlens=edges)


def test_sequences_are_packed_on_one_row_only():
    with pytest.raises(ShapeError, match=r"x must be \(1, L, D\), got \(2, 3, 4\)"):
        causal_conv1d(torch.ones(2, 3, 4), torch.ones(4, 4), cu_seqlens=torch.tensor([0, 3]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_state_that_is_not_finite_is_named(value):
    inputs = GOOD.inputs(torch.float32)
    inputs["initial_state"][0, 1] = value
    with pytest.raises(ShapeError, match=r"initial_state must be finite, got 4 values.* of 24"):
        causal_conv1d(**inputs)


def test_a_bad_argument_of_a_step_is_named():
    good = [torch.ones(2, 4), torch.ones(4, 3), torch.ones(4), torch.ones(2, 2, 4)]
    bad = [
        (0, torch.ones(2, 1, 4), r"x must be \(B, D\)"),
        (1, torch.ones(3, 4), r"weight must be \(D, K\) = \(4, K\)"),
        (2, torch.ones(3), r"bias must be \(4,\)"),
        (3, torch.ones(2, 3, 4), r"state must be \(2, 2, 4\)"),
        (3, torch.ones(2, 2, 4).long(), "state must be floating point"),
    ]
    for place, tensor, message in bad:
        arguments = [*good[:place], tensor, *good[place + 1 :]]
        with pytest.raises(ShapeError, match=f"^causal_conv1d_step: {message}"):
            causal_conv1d_step(*arguments)


def test_an_unknown_backend_is_named_with_those_that_exist():
    have = "auto, cuda, cpu, triton, portable, reference"
    with pytest.raises(BackendError, match=f"no backend 'no-such'; have {have}"):
        causal_conv1d(**GOOD.inputs(torch.float32), backend="no-such")


def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(BackendError, match="'cuda' cannot run here: needs a CUDA device, got cpu"):
        causal_conv1d(**GOOD.inputs(torch.float32), backend="cuda")
