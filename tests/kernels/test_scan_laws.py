"""What holds for every backend of the selective scan, whatever it is made of."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnassm.errors import ShapeError
from dnassm.kernels.selective_scan import (
    BACKENDS,
    cases,
    op,
    portable,
    selective_scan,
    selective_scan_step,
)
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.selective_scan.cases import Case, Results, Tolerance, outcome, truth

NAMES = list(BACKENDS.all())
FAST = [name for name in NAMES if name != "reference"]
ALONG_TIME = ("x", "dt", "B", "C", "z")
SHARED = ("A", "D", "dt_bias")
ORDER = [name for name in Scan.__dataclass_fields__ if name in Gradients._fields]


def arguments(inputs: dict[str, Tensor], backend: str, **options: Any) -> list[Any]:
    """As the operator takes them; skips what the backend cannot run."""
    edges = options.get("cu_seqlens")
    flags = (options.get("dt_softplus", True), options.get("reverse", False), False)
    given = [inputs.get(name) for name in ORDER]
    reason = BACKENDS.all()[backend].supports(Scan(*given, edges, *flags))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return [*given, edges, *flags, backend]


def precision(backend: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float64 where the backend computes in it, else in float32."""
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    given = [exact.get(name) for name in ORDER]
    scan = Scan(*given, None, dt_softplus=True, reverse=False, exact=False)
    if BACKENDS.all()[backend].supports(scan) is None:
        return exact
    arguments(inputs, backend)
    return inputs


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
    case = Case(batch=1, length=edges[-1], channels=6, groups=groups)
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
        plain = name.removeprefix("d") if name != "dt" else name
        if plain in SHARED or name == "ddt_bias":
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
    got, weights = outcome(inputs, backend=backend, **options)
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
    clean, _ = selective_scan(**inputs, **options)
    inputs["x"][0, 40] = torch.nan
    y, state = selective_scan(**inputs, **options)
    assert torch.equal(y[:, :40], clean[:, :40])
    assert torch.equal(y[:, 64:], clean[:, 64:])
    assert y[:, 40:64].isnan().all()
    assert state.isnan().flatten(1).all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("length", [1, 2, 65, 200])
@pytest.mark.parametrize("backend", NAMES)
def test_reverse_is_the_scan_of_the_flipped_sequence_flipped(backend, length):
    inputs = precision(backend, Case(length=length, groups=2).inputs(torch.float32))
    got, weights = outcome(inputs, backend=backend, reverse=True)
    turned = {n: t.flip(1) if n in ALONG_TIME else t for n, t in inputs.items()}
    want = truth(turned, [weights[0].flip(1), weights[1]])
    want = {n: t.flip(1) if n == "y" or n[1:] in ALONG_TIME else t for n, t in want.items()}
    assert_near(got, want, inputs["x"].dtype)


def test_buckets_of_packed_sequences_waste_less_than_half():
    edges = torch.tensor([0, 1, 4, 9, 300, 555, 1555]).int()
    inputs = packed_inputs(edges.tolist())
    scan = Scan(*[inputs.get(name) for name in ORDER], edges, True, False, False)
    for length, members in portable._lengths(scan):
        assert all(length < 2 * (edges[m + 1] - edges[m]) for m in members)


# Rows and bits


def assert_same(backend: str, got: Results, want: Results) -> None:
    """The same bits; from torch's own functions, which take the last few of a buffer by another
    exponential than the rest, the same to a few roundings.
    """
    if backend == "portable":
        few = Tolerance(2e-6, 2e-6, "a few roundings")
        assert cases.faults(got, {n: t.double() for n, t in want.items()}, few) == []
    else:
        assert [n for n in want if not torch.equal(got[n], want[n])] == []


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "in reverse"])
@pytest.mark.parametrize("case", ["few channels", "many"])
@pytest.mark.parametrize("backend", FAST)
def test_a_row_alone_has_the_bits_of_the_row_in_its_batch(backend, case, reverse):
    channels = {"few channels": 8, "many": 600}[case]
    inputs = Case(batch=5, length=150, channels=channels, groups=2, states=16).inputs(torch.float32)
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
@pytest.mark.parametrize("length", [1, 33, 65, 130])
@pytest.mark.parametrize("backend", FAST)
def test_nothing_around_the_inputs_is_read(backend, length, packed, reverse, dtype):
    case = Case(batch=1 if packed else 2, length=length, groups=2, channels=10, states=5)
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
    expanded = [torch.ones(1).expand(2, 70, 6), weights[1].mT.contiguous().mT]
    got, _ = outcome(inputs, expanded, backend=backend)
    want, _ = outcome(inputs, [torch.ones(2, 70, 6), weights[1]], backend=backend)
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
    far = room.as_strided((1, 3, 6), (0, stride, 1))
    far.copy_(inputs["x"])
    got, _ = outcome({**inputs, "x": far}, weights, backend=backend)
    assert_same(backend, got, want)


# Length

LONG = Tolerance(3e-5, 3e-4, "eps 6e-8, times sqrt(L) = 1024, random signs")


def by_columns(inputs: dict[str, Tensor], columns: int) -> tuple[Tensor, Tensor]:
    """The scan in float64 without a loop over L: columns side by side, then carried on, in order.

    Not the code of any backend. G = 1, one row; length a multiple of `columns` after padding.
    """
    x, dt, B, C, z = (inputs[name][0] for name in ALONG_TIME)
    d = torch.log1p(torch.exp(dt + inputs["dt_bias"]))
    length = len(x)
    rest = -length % columns

    def cut(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, 0, 0, rest)).unflatten(0, (columns, -1)).unbind(1)

    steps = list(zip(cut(d), cut(d * x), cut(B[:, 0]), cut(C[:, 0]), strict=True))
    local = x.new_zeros(columns, *inputs["A"].shape)
    kept, sums = [], torch.zeros_like(steps[0][0])
    for d_t, du_t, B_t, C_t in steps:
        local = torch.exp(d_t[..., None] * inputs["A"]) * local + du_t[..., None] * B_t[:, None]
        sums = sums + d_t
        kept.append((local, sums, C_t))
    h, entering = inputs["initial_state"][0], []
    whole = torch.exp(sums[..., None] * inputs["A"])
    for column in range(columns):
        entering.append(h)
        h = whole[column] * h + local[column]
    start = torch.stack(entering)
    y = [
        ((s + torch.exp(e[..., None] * inputs["A"]) * start) * c[:, None]).sum(-1)
        for s, e, c in kept
    ]
    y = torch.stack(y, 1).flatten(0, 1)[:length] + inputs["D"] * x
    return (y * z * torch.sigmoid(z))[None], h[None]


def differentiated(inputs: dict[str, Tensor], columns: int, weights: list[Tensor]) -> Results:
    leaves = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    y, state = by_columns(leaves, columns)
    torch.autograd.backward((y, state), [weight.double() for weight in weights])
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"y": y.detach(), "state": state.detach(), **gradients}


def test_the_truth_by_columns_is_the_reference():
    inputs = Case(batch=1, length=130, channels=3).inputs(torch.float64)
    want, weights = outcome(inputs, backend="reference")
    assert_near(differentiated(inputs, 11, weights), want, torch.float64)


@functools.cache
def long_truth(case: Case) -> tuple[Results, list[Tensor]]:
    inputs = case.inputs(torch.float32)
    results = (inputs["x"], inputs["initial_state"])  # of the shapes of y and state
    weights = cases.weights_of(results)
    return differentiated(inputs, 1024, weights), weights


@pytest.mark.parametrize("length", [65537, (1 << 20) + 3])
@pytest.mark.parametrize("backend", FAST)
def test_a_million_positions_are_right(backend, length):
    case = Case(batch=1, length=length, channels=2, states=2)
    arguments(case.inputs(torch.float32), backend)
    want, weights = long_truth(case)
    got, _ = outcome(case.inputs(torch.float32), weights, backend=backend)
    assert cases.faults(got, want, LONG) == []


REMEMBERED = {
    # d A is 1e-9 to 1e-6, and exp(d A) in float32 a multiple of 6e-8: up to 3e-8 of what is
    # remembered is lost or won in a step, in random directions or, where d is constant, in one.
    "random small steps": ((1e-5, 1e-4), (1e-4, 1e-2), Tolerance(1e-2, 1e-2, "see above")),
    "the same small step": ((1e-4, 1e-4), (1e-3, 1e-3), Tolerance(3e-2, 3e-2, "3e-8 a step")),
}


@pytest.mark.parametrize(("step", "decay", "tolerance"), REMEMBERED.values(), ids=REMEMBERED)
@pytest.mark.parametrize("backend", FAST)
def test_what_was_at_the_start_is_there_after_a_million_positions(backend, step, decay, tolerance):
    case = Case(batch=1, length=1 << 20, channels=2, states=2, step=step, decay=decay)
    arguments(case.inputs(torch.float32), backend)
    want, weights = long_truth(case)
    assert want["dinitial_state"].abs().mean() > 0.3  # it weighs on the last position
    got, _ = outcome(case.inputs(torch.float32), weights, backend=backend)
    if backend == "portable":  # cuts so few channels into segments of 1024 steps
        tolerance = Tolerance(2e-4, 2e-4, "3e-8 a step, 1024 steps, then the exponential of a sum")
    assert cases.faults(got, want, tolerance) == []


# What torch is told


VARIANTS = {
    "all arguments": ({}, {}),
    "bare": ({"bare": True}, {"dt_softplus": False}),
    "in reverse": ({}, {"reverse": True}),
    "in bf16": ({}, {}),
    "packed": ({"batch": 1}, {"cu_seqlens": torch.tensor([0, 9], dtype=torch.int32)}),
}


@pytest.mark.parametrize(("case", "options"), VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", NAMES)
def test_torch_finds_no_fault_with_the_operator(request, backend, case, options):
    narrow = request.node.callspec.id.endswith("bf16")
    dtype = torch.bfloat16 if narrow else torch.float32
    inputs = Case(length=9, channels=4, groups=2, **case).inputs(dtype)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    torch.library.opcheck(op.scan, arguments(leaves, backend, **options))


@pytest.mark.parametrize("bare", [False, True], ids=["all arguments", "bare"])
def test_torch_finds_no_fault_with_the_step(bare):
    given = step_inputs(Case(length=1, bare=bare), 0)
    names = ("x", "dt", "A", "B", "C", "state", "D", "z", "dt_bias")
    leaves = [given[n].requires_grad_() if n in given else None for n in names]
    torch.library.opcheck(op.step, [*leaves, not bare])


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_compiled_model_has_no_break_and_the_same_results(backend, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        y, state = selective_scan(**inputs, return_state=True, backend=backend)
        return y * 2, state

    for length in (8, 13):
        inputs = Case(length=length).inputs(torch.float32)
        arguments(inputs, backend)
        leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        y, state = compiled(leaves)
        weights = cases.weights_of((y, state))
        torch.autograd.backward((y, state), weights)
        want, _ = outcome(inputs, [2 * weights[0], weights[1]], backend=backend)
        assert torch.equal(y, 2 * want["y"])
        assert torch.equal(state, want["state"])
        assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


def test_packed_sequences_compile():
    torch.compiler.reset()
    edges = [0, 3, 40]
    inputs = packed_inputs(edges)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    options = {"cu_seqlens": torch.tensor(edges), "backend": "portable"}
    assert torch.equal(compiled(**inputs, **options), selective_scan(**inputs, **options))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(backend, reentrant):
    inputs = Case(length=20).inputs(torch.float32)
    arguments(inputs, backend)
    want, weights = outcome(inputs, backend=backend)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(leaves, tensors, strict=True))
        return selective_scan(**given, return_state=True, backend=backend)

    results = checkpoint(call, *leaves.values(), use_reentrant=reentrant)
    torch.autograd.backward(results, weights)
    assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


class _Layer(nn.Module):
    def __init__(self, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.A, self.D = nn.Parameter(inputs["A"]), nn.Parameter(inputs["D"])

    def forward(self, along: dict[str, Tensor]) -> Tensor:
        return selective_scan(**along, A=self.A, D=self.D)


def test_a_layer_under_ddp_has_the_gradients_of_the_layer(gradients_under_ddp):
    inputs = Case(length=20).inputs(torch.float32)
    along = {name: tensor for name, tensor in inputs.items() if name not in ("A", "D")}
    alone = _Layer(inputs)
    alone(along).square().sum().backward()
    got = gradients_under_ddp(_Layer(inputs), along)
    for gradient, parameter in zip(got, alone.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize("backend", NAMES)
def test_only_what_is_asked_for_gets_a_gradient(backend):
    inputs = Case(length=9).inputs(torch.float32)
    arguments(inputs, backend)
    want, weights = outcome(inputs, backend=backend)
    x = inputs["x"].requires_grad_()
    y = selective_scan(**inputs, backend=backend)
    (found,) = torch.autograd.grad(y, [x], weights[0])
    leaves, _ = outcome(inputs, [weights[0], torch.zeros_like(weights[1])], backend=backend)
    assert torch.equal(found, leaves["dx"])
    y, state = selective_scan(**inputs, return_state=True, backend=backend)
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
        options = {"cu_seqlens": edges, "reverse": reverse, "return_state": True}
        return selective_scan(**dict(zip(inputs, tensors, strict=True)), **options, backend=backend)

    assert torch.autograd.gradcheck(call, list(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "portable", "portable, in segments"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "in reverse"])
def test_gradients_of_a_complex_scan_are_those_of_finite_differences(monkeypatch, backend, reverse):
    if backend.endswith("segments"):
        backend = "portable"
        monkeypatch.setattr(portable, "_SHORTEST_SEGMENT", 2)
    inputs = Case(length=7, channels=4, groups=2, states=3).inputs(torch.float64)
    for name in ("A", "B", "C", "initial_state"):
        other = Case(length=7, channels=4, groups=2, states=3).inputs(torch.float64, seed=1)
        inputs[name] = torch.complex(inputs[name], other[name])
    leaves = [inputs[name].requires_grad_() for name in ORDER]

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return op.scan(*tensors, None, True, reverse, False, backend)[:2]

    assert torch.autograd.gradcheck(call, leaves)


# One step


def step_inputs(case: Case, position: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    inputs = case.inputs(dtype)
    given = {n: t[:, position] if n in ALONG_TIME else t for n, t in inputs.items()}
    state = given.pop("initial_state", None)
    empty = inputs["A"].new_zeros(case.batch, *inputs["A"].shape)
    return given | {"state": empty if state is None else state}


@pytest.mark.parametrize("case", [Case(groups=2), Case(bare=True)], ids=["all arguments", "bare"])
def test_a_step_and_its_gradients_are_those_of_one_position(case):
    case = dataclasses.replace(case, length=1)
    softplus = not case.bare
    inputs = case.inputs(torch.float64)
    given = {n: t.requires_grad_() for n, t in step_inputs(case, 0).items()}
    inputs["initial_state"] = given["state"].detach()
    want, weights = outcome(inputs, backend="reference")
    y, state = selective_scan_step(**given, dt_softplus=softplus)
    torch.autograd.backward((y, state), [weights[0][:, 0], weights[1]])
    got = {"y": y[:, None], "state": state, "dinitial_state": given.pop("state").grad}
    got |= {f"d{n}": t.grad[:, None] if n in ALONG_TIME else t.grad for n, t in given.items()}
    assert_near({n: t.detach() for n, t in got.items()}, want, torch.float64)


@pytest.mark.parametrize("dtype", list(cases.TOLERANCES), ids=str)
def test_steps_in_every_dtype_are_the_reference(dtype):
    case = Case(length=1, channels=64, states=16)
    given = step_inputs(case, 0, dtype)
    y, state = selective_scan_step(**given)
    exact = {n: t.double() for n, t in case.inputs(dtype).items()}
    want, end = selective_scan(**exact, return_state=True, backend="reference")
    assert (y.dtype, state.dtype) == (dtype, given["A"].dtype)
    faults = cases.faults(
        {"y": y, "state": state}, {"y": want[:, 0], "state": end}, cases.TOLERANCES[dtype]
    )
    assert faults == []


def test_a_compiled_step_is_the_step():
    torch.compiler.reset()
    given = step_inputs(Case(length=1), 0)
    compiled = torch.compile(selective_scan_step, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(**given), selective_scan_step(**given), strict=True):
        assert torch.equal(got, want)


# Values that shapes do not show


@pytest.mark.parametrize(
    ("edges", "message"),
    {
        "not from 0": ([1, 9], r"rise from 0 to L = 9.*got \[1, 9\]"),
        "not to the end": ([0, 8], r"L = 9.*got \[0, 8\]"),
        "past the end": ([0, 10], r"got \[0, 10\]"),
        "an empty sequence": ([0, 4, 4, 9], r"at least one position long, got \[0, 4, 4, 9\]"),
        "falling": ([0, 6, 3, 9], r"got \[0, 6, 3, 9\]"),
        "many": ([0, *[5] * 40, 9], r"got \[0, 5, 5, 5, 5, 5, ..., 5, 5, 9\]"),
    }.values(),
)
def test_edges_that_do_not_rise_are_shown(edges, message):
    inputs = Case(batch=1, length=9, bare=True).inputs(torch.float32)
    with pytest.raises(ShapeError, match=f"selective_scan: cu_seqlens must .*{message}"):
        selective_scan(**inputs, cu_seqlens=torch.tensor(edges))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_initial_state_that_is_not_finite_is_counted(value):
    inputs = Case().inputs(torch.float32)
    inputs["initial_state"][1, 2, 3] = value
    with pytest.raises(ShapeError, match=r"initial_state must be finite, got 1 values .* of 48"):
        selective_scan(**inputs)
