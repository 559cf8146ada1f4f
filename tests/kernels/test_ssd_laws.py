"""What holds for every backend of the SSD, whatever it is made of."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dnassm.kernels.ssd import BACKENDS, cases, op, ssd, ssd_step
from dnassm.kernels.ssd.arguments import Gradients, Ssd
from dnassm.kernels.ssd.cases import Case, Results, Tolerance, outcome, truth

NAMES = list(BACKENDS.all())
FAST = [name for name in NAMES if name != "reference"]
ALONG_TIME = ("x", "dt", "B", "C", "z")
SHARED = ("A", "D", "dt_bias")


def arguments(inputs: dict[str, Tensor], backend: str, **options: Any) -> list[Any]:
    """As the operator takes them; skips what the backend cannot run."""
    low, high = options.get("dt_limit", (0.0, math.inf))
    given = [inputs.get(name) for name in Gradients._fields]
    given += [options.get("cu_seqlens"), options.get("dt_softplus", True), low, high]
    given += [options.get("reverse", False), options.get("chunk")]
    reason = BACKENDS.all()[backend].supports(Ssd(*given))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return [*given, backend]


def precision(backend: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float64 where the backend computes in it, else in float32."""
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    given = [exact.get(name) for name in Gradients._fields]
    if BACKENDS.all()[backend].supports(Ssd(*given, None, True, 0.0, math.inf, False, None)):
        arguments(inputs, backend)
        return inputs
    return exact


def assert_near(got: Results, want: Results, dtype: torch.dtype) -> None:
    assert not cases.faults(got, want, cases.TOLERANCES[dtype])


# Packed sequences and direction

EDGES = {
    "one sequence": [0, 200],
    "of every kind of length": [0, 1, 3, 4, 67, 130, 131, 200],
    "of like lengths": [0, 5, 12, 16, 50, 113, 145, 200],
    "single positions": list(range(12)),
}


def packed_inputs(edges: list[int], *, groups: int = 2) -> dict[str, Tensor]:
    case = Case(batch=1, length=edges[-1], heads=4, groups=groups)
    states = dataclasses.replace(case, batch=len(edges) - 1, length=1).inputs(torch.float32, seed=1)
    return case.inputs(torch.float32) | {"initial_state": states["initial_state"]}


def apart(
    inputs: dict[str, Tensor], edges: list[int], weights: list[Tensor], **options: Any
) -> Results:
    """Each sequence by a call of its own; gradients of what they share are added."""
    found: list[Results] = []
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        part = {n: t[:, start:end] if n in ALONG_TIME else t for n, t in inputs.items()}
        if "initial_state" in inputs:
            part["initial_state"] = inputs["initial_state"][row : row + 1]
        weight = [weights[0][:, start:end], weights[1][row : row + 1]]
        found.append(truth(part, weight, **options))
    together = {}
    for name in found[0]:
        of_each = [results[name] for results in found]
        if name[1:] in SHARED:
            together[name] = torch.stack(of_each).sum(0)
        else:
            time = name == "y" or name[1:] in ALONG_TIME
            together[name] = torch.cat(of_each, 1 if time else 0)
    return together


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "in reverse"])
@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("backend", NAMES)
def test_packed_sequences_are_those_sequences_apart(backend, edges, reverse):
    inputs = precision(backend, packed_inputs(edges))
    options = {"cu_seqlens": torch.tensor(edges), "reverse": reverse}
    got, weights = outcome(inputs, backend=backend, chunk=16, **options)
    want = apart(inputs, edges, weights, reverse=reverse)
    assert_near(got, want, inputs["x"].dtype)


@pytest.mark.parametrize("backend", NAMES)
def test_packed_sequences_may_start_from_nothing(backend):
    edges = [0, 5, 40]
    inputs = precision(backend, packed_inputs(edges))
    del inputs["initial_state"]
    got, weights = outcome(inputs, backend=backend, cu_seqlens=torch.tensor(edges).int())
    assert_near(got, apart(inputs, edges, weights), inputs["x"].dtype)


@pytest.mark.parametrize("backend", NAMES)
def test_a_nan_in_a_packed_sequence_stays_in_it(backend):
    edges = [0, 30, 64, 100]
    inputs = precision(backend, packed_inputs(edges))
    options = {"cu_seqlens": torch.tensor(edges), "backend": backend, "return_state": True}
    clean, _ = ssd(**inputs, **options)
    inputs["x"][0, 40] = torch.nan
    y, state = ssd(**inputs, **options)
    assert torch.equal(y[:, :30], clean[:, :30])
    assert torch.equal(y[:, 64:], clean[:, 64:])
    assert y[:, 40:64].isnan().all()
    assert state.isnan().flatten(1).all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("length", [1, 2, 65, 200])
@pytest.mark.parametrize("backend", NAMES)
def test_reverse_is_the_op_on_the_flipped_sequence_flipped(backend, length):
    inputs = precision(backend, Case(length=length, heads=4, groups=2).inputs(torch.float32))
    got, weights = outcome(inputs, backend=backend, reverse=True)
    turned = {n: t.flip(1) if n in ALONG_TIME else t for n, t in inputs.items()}
    want = truth(turned, [weights[0].flip(1), weights[1]])
    want = {n: t.flip(1) if n == "y" or n[1:] in ALONG_TIME else t for n, t in want.items()}
    assert_near(got, want, inputs["x"].dtype)


# Rows and bits


def assert_same(backend: str, got: Results, want: Results) -> None:
    """The same bits; from torch's own matrix products, whose order of summing follows the batch,
    the same to a few roundings.
    """
    if backend == "portable":
        few = Tolerance(2e-6, 2e-6, "a few roundings")
        assert cases.faults(got, {n: t.double() for n, t in want.items()}, few) == []
    else:
        assert [n for n in want if not torch.equal(got[n], want[n])] == []


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "in reverse"])
@pytest.mark.parametrize("backend", FAST)
def test_a_row_alone_has_the_bits_of_the_row_in_its_batch(backend, reverse):
    inputs = Case(batch=5, length=150, heads=4, groups=2, states=16).inputs(torch.float32)
    arguments(inputs, backend)
    together, weights = outcome(inputs, backend=backend, reverse=reverse)
    alone = {n: t if n in SHARED else t[3:4] for n, t in inputs.items()}
    row, _ = outcome(alone, [weight[3:4] for weight in weights], backend=backend, reverse=reverse)
    per_row = {n: row[n] for n in row if n[1:] not in SHARED}
    assert set(per_row) == {"y", "state", "dx", "ddt", "dB", "dC", "dz", "dinitial_state"}
    assert_same(backend, per_row, {n: together[n][3:4] for n in per_row})


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("backend", FAST)
def test_every_run_has_the_same_bits(backend, packed):
    edges = [0, 100, 103, 300]
    inputs = packed_inputs(edges)
    options = {"cu_seqlens": torch.tensor(edges)} if packed else {}
    if not packed:
        inputs["initial_state"] = inputs["initial_state"][:1]
    arguments(inputs, backend)
    first, weights = outcome(inputs, backend=backend, **options)
    for _ in range(2):
        again, _ = outcome(inputs, weights, backend=backend, **options)
        assert all(torch.equal(again[name], first[name]) for name in first)


# Memory: what lies around the inputs is not read


def guarded(tensor: Tensor) -> Tensor:
    """The same values in the middle of a larger tensor of NaN, or of -1 for integers."""
    nothing = torch.nan if tensor.is_floating_point() else -1
    wide = torch.full([size + 2 for size in tensor.shape], nothing, dtype=tensor.dtype)
    middle = wide[tuple(slice(1, -1) for _ in tensor.shape)]
    middle.copy_(tensor)
    return middle


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "in reverse"])
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("length", [1, 33, 130])
@pytest.mark.parametrize("backend", FAST)
def test_nothing_around_the_inputs_is_read(backend, length, packed, reverse, dtype):
    case = Case(batch=1 if packed else 2, length=length, heads=4, groups=2, width=5, states=5)
    inputs = case.inputs(dtype)
    arguments(inputs, backend)
    options: dict[str, Any] = {"reverse": reverse}
    if packed:
        options["cu_seqlens"] = guarded(torch.tensor([0, length]))
    fenced = {name: guarded(tensor) for name, tensor in inputs.items()}
    got, weights = outcome(fenced, [], backend=backend, **options)
    plain, _ = outcome(inputs, weights, backend=backend, **options)
    assert all(tensor.isfinite().all() for tensor in got.values())
    if dtype == torch.float32:
        assert_same(backend, got, plain)


@pytest.mark.parametrize("backend", FAST)
def test_gradients_of_the_results_may_have_any_strides(backend):
    inputs = Case(length=70).inputs(torch.float32)
    arguments(inputs, backend)
    plain, weights = outcome(inputs, backend=backend)
    expanded = [torch.ones(1).expand(2, 70, 2, 3), weights[1].mT.contiguous().mT]
    got, _ = outcome(inputs, expanded, backend=backend)
    want, _ = outcome(inputs, [torch.ones(2, 70, 2, 3), weights[1]], backend=backend)
    assert_same(backend, got, want)
    fenced, _ = outcome(inputs, [guarded(weight) for weight in weights], backend=backend)
    assert_same(backend, fenced, plain)


@pytest.mark.parametrize("backend", FAST)
def test_strides_beyond_two_to_the_31_elements(backend):
    """Three positions of one row, more than 2^30 numbers apart: 32-bit offsets would wrap."""
    inputs = Case(batch=1, length=3).inputs(torch.bfloat16)
    arguments(inputs, backend)
    want, weights = outcome(inputs, backend=backend)
    stride = (1 << 30) + 64
    room = torch.empty(2 * stride + 64, dtype=torch.bfloat16)  # pages are touched where used only
    far = room.as_strided((1, 3, 2, 3), (0, stride, 3, 1))
    far.copy_(inputs["x"])
    got, _ = outcome({**inputs, "x": far}, weights, backend=backend)
    assert_same(backend, got, want)


# Length


def test_a_memory_of_a_hundred_thousand_positions_is_kept():
    """Against the product of all decays, written as the exponential of a sum in float64."""
    length, step = 100_001, 1e-5
    sizes = {"batch": 1, "length": length, "heads": 1, "width": 1, "states": 1, "bare": True}
    case = Case(**sizes, step=(step, step), decay=(1.0, 1.0))
    inputs = case.inputs(torch.float32) | {"initial_state": torch.ones(1, 1, 1, 1)}
    inputs["B"] = torch.zeros_like(inputs["B"])
    _, state = ssd(**inputs, dt_softplus=False, return_state=True, backend="portable")
    want = torch.exp(inputs["dt"].double().sum() * inputs["A"].double())
    assert 1e-3 < want < 0.9
    torch.testing.assert_close(state.double().flatten(), want, rtol=3e-4, atol=0)


# What torch is told


VARIANTS = {
    "all arguments": ({}, {}),
    "bare": ({"bare": True}, {"dt_softplus": False}),
    "in reverse, with a chunk": ({}, {"reverse": True, "chunk": 4}),
    "in bf16": ({}, {"dt_limit": (0.01, 1.0)}),
    "packed": ({"batch": 1}, {"cu_seqlens": torch.tensor([0, 9], dtype=torch.int32)}),
}


@pytest.mark.parametrize(("case", "options"), VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", NAMES)
def test_torch_finds_no_fault_with_the_operator(request, backend, case, options):
    narrow = request.node.callspec.id.endswith("bf16")
    dtype = torch.bfloat16 if narrow else torch.float32
    inputs = Case(length=9, heads=4, groups=2, **case).inputs(dtype)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    torch.library.opcheck(op.apply, arguments(leaves, backend, **options))


@pytest.mark.parametrize("bare", [False, True], ids=["all arguments", "bare"])
def test_torch_finds_no_fault_with_the_step(bare):
    given = step_inputs(Case(length=1, bare=bare), 0)
    names = ("x", "dt", "A", "B", "C", "state", "D", "z", "dt_bias")
    leaves = [given[n].requires_grad_() if n in given else None for n in names]
    torch.library.opcheck(op.step, [*leaves, not bare, 0.0, math.inf])


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_compiled_model_has_no_break_and_the_same_results(backend, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        y, state = ssd(**inputs, return_state=True, chunk=8, backend=backend)
        return y * 2, state

    for length in (8, 13):
        inputs = Case(length=length).inputs(torch.float32)
        arguments(inputs, backend)
        leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        y, state = compiled(leaves)
        weights = cases.weights_of((y, state))
        torch.autograd.backward((y, state), weights)
        want, _ = outcome(inputs, [2 * weights[0], weights[1]], backend=backend, chunk=8)
        assert torch.equal(y, 2 * want["y"])
        assert torch.equal(state, want["state"])
        assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


def test_packed_sequences_compile():
    torch.compiler.reset()
    edges = [0, 3, 40]
    inputs = packed_inputs(edges)
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
    options = {"cu_seqlens": torch.tensor(edges), "backend": "portable"}
    assert torch.equal(compiled(**inputs, **options), ssd(**inputs, **options))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(backend, reentrant):
    inputs = Case(length=20).inputs(torch.float32)
    arguments(inputs, backend)
    want, weights = outcome(inputs, backend=backend)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(leaves, tensors, strict=True))
        return ssd(**given, return_state=True, backend=backend)

    results = checkpoint(call, *leaves.values(), use_reentrant=reentrant)
    torch.autograd.backward(results, weights)
    assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


@pytest.mark.parametrize("backend", NAMES)
def test_only_what_is_asked_for_gets_a_gradient(backend):
    inputs = Case(length=9).inputs(torch.float32)
    arguments(inputs, backend)
    want, weights = outcome(inputs, backend=backend)
    x = inputs["x"].requires_grad_()
    y = ssd(**inputs, backend=backend)
    (found,) = torch.autograd.grad(y, [x], weights[0])
    leaves, _ = outcome(inputs, [weights[0], torch.zeros_like(weights[1])], backend=backend)
    assert torch.equal(found, leaves["dx"])
    y, state = ssd(**inputs, return_state=True, backend=backend)
    (found,) = torch.autograd.grad(state, [x], weights[1])
    leaves, _ = outcome(inputs, [torch.zeros_like(y), weights[1]], backend=backend)
    assert torch.equal(found, leaves["dx"])
    assert want["dx"].shape == found.shape


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "in reverse"])
def test_gradients_of_packed_sequences_are_those_of_finite_differences(backend, reverse):
    edges = torch.tensor([0, 1, 4, 9])
    inputs = {
        name: t.double().requires_grad_() for name, t in packed_inputs(edges.tolist()).items()
    }

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        options = {"cu_seqlens": edges, "reverse": reverse, "return_state": True, "chunk": 2}
        return ssd(**dict(zip(inputs, tensors, strict=True)), **options, backend=backend)

    assert torch.autograd.gradcheck(call, list(inputs.values()), fast_mode=True)


# One step


def step_inputs(case: Case, position: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    inputs = case.inputs(dtype)
    given = {n: t[:, position] if n in ALONG_TIME else t for n, t in inputs.items()}
    state = given.pop("initial_state", None)
    empty = inputs["A"].new_zeros(case.batch, case.heads, case.width, case.states)
    return given | {"state": empty if state is None else state}


STEPS = {
    "all arguments": Case(length=1, heads=4, groups=2),
    "a skip per channel": Case(length=1, skip_per_channel=True),
    "bare": Case(length=1, bare=True),
}


@pytest.mark.parametrize("case", STEPS.values(), ids=STEPS)
def test_a_step_and_its_gradients_are_those_of_one_position(case):
    inputs = case.inputs(torch.float64)
    given = {n: t.requires_grad_() for n, t in step_inputs(case, 0).items()}
    inputs["initial_state"] = given["state"].detach()
    options = {"dt_limit": (0.003, 0.09)}
    want, weights = outcome(inputs, backend="reference", **options)
    y, state = ssd_step(**given, dt_softplus=not case.bare, **options)
    torch.autograd.backward((y, state), [weights[0][:, 0], weights[1]])
    got = {"y": y[:, None], "state": state, "dinitial_state": given.pop("state").grad}
    got |= {f"d{n}": t.grad[:, None] if n in ALONG_TIME else t.grad for n, t in given.items()}
    assert_near({n: t.detach() for n, t in got.items()}, want, torch.float64)


@pytest.mark.parametrize("dtype", list(cases.TOLERANCES), ids=str)
def test_steps_in_every_dtype_are_the_reference(dtype):
    case = Case(length=1, heads=4, width=16, states=16)
    given = step_inputs(case, 0, dtype)
    y, state = ssd_step(**given)
    exact = {n: t.double() for n, t in case.inputs(dtype).items()}
    want, end = ssd(**exact, return_state=True, backend="reference")
    assert (y.dtype, state.dtype) == (dtype, given["A"].dtype)
    faults = cases.faults(
        {"y": y, "state": state}, {"y": want[:, 0], "state": end}, cases.TOLERANCES[dtype]
    )
    assert faults == []


def test_a_compiled_step_is_the_step():
    torch.compiler.reset()
    given = step_inputs(Case(length=1), 0)
    compiled = torch.compile(ssd_step, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(**given), ssd_step(**given), strict=True):
        assert torch.equal(got, want)
