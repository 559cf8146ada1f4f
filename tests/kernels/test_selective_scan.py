"""Every backend of the selective scan is held to the float64 reference, in values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dnassm.errors import BackendError, ShapeError
from dnassm.kernels.selective_scan import (
    BACKENDS,
    cases,
    portable,
    selective_scan,
    selective_scan_step,
)
from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.selective_scan.cases import Case, Results, Tolerance, truth

NAMES = list(BACKENDS.all())
FAST = [name for name in NAMES if name != "reference"]
DTYPES = list(cases.TOLERANCES)


def run(
    inputs: dict[str, Tensor], backend: str, weights: list[Tensor] | None = None
) -> tuple[Results, list[Tensor]]:
    runnable(backend, inputs)
    return cases.outcome(inputs, weights, backend=backend)


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    assert not cases.faults(got, want, tolerance)


def arguments_of(inputs: dict[str, Tensor]) -> Scan:
    """As a backend is asked about them."""
    given = {"D": None, "z": None, "dt_bias": None, "initial_state": None, "cu_seqlens": None}
    return Scan(**given | inputs, dt_softplus=True, reverse=False, exact=False)


def runnable(name: str, inputs: dict[str, Tensor]) -> str:
    reason = BACKENDS.all()[name].supports(arguments_of(inputs))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


# Against the reference


def test_reference_and_portable_are_found():
    assert {"reference", "portable"} <= set(NAMES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.CASES.values(), ids=cases.CASES)
@pytest.mark.parametrize("backend", FAST)
def test_values_and_every_gradient_are_those_of_the_reference(backend, case, dtype):
    if dtype != torch.float32 and case.length > 1000:
        pytest.skip("the longest length is for float32")
    inputs = case.inputs(dtype)
    got, weights = run(inputs, runnable(backend, inputs))
    assert_near(got, truth(inputs, weights), cases.TOLERANCES[dtype])


@pytest.mark.parametrize("case", cases.LONG.values(), ids=cases.LONG)
@pytest.mark.parametrize("backend", FAST)
def test_memory_survives_thousands_of_steps_in_float32(backend, case):
    inputs = case.inputs(torch.float32)
    got, weights = run(inputs, runnable(backend, inputs))
    want = truth(inputs, weights)
    assert_near(got, want, cases.LONG_MEMORY)
    # The state before position 0 still weighs on the last one: forgetting it would be seen.
    assert want["dinitial_state"].abs().mean() > 0.3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", NAMES)
def test_y_has_the_dtype_of_x_and_the_state_that_of_a(backend, dtype):
    inputs = Case().inputs(dtype)
    y, state = selective_scan(**inputs, return_state=True, backend=runnable(backend, inputs))
    assert y.dtype == dtype
    assert state.dtype == inputs["A"].dtype


def test_the_reference_is_the_closed_form_for_a_constant_input():
    """h[L] = (1 - a^L) / (1 - a) d b x for constant a = exp(d A): an answer from outside."""
    steps, d, decay = 50, 0.3, -0.7
    one = torch.ones(1, steps, 1, dtype=torch.float64)
    maps = torch.ones(1, steps, 1, 1, dtype=torch.float64)
    A = torch.full((1, 1), decay, dtype=torch.float64)
    y, state = selective_scan(
        2 * one,
        d * one,
        A,
        3 * maps,
        5 * maps,
        dt_softplus=False,
        return_state=True,
        backend="reference",
    )
    a = torch.exp(torch.tensor(d * decay, dtype=torch.float64))
    powers = a ** torch.arange(1, steps + 1)
    h = (1 - powers) / (1 - a) * d * 3 * 2
    torch.testing.assert_close(y[0, :, 0], 5 * h)
    torch.testing.assert_close(state[0, 0, 0], h[-1])


def test_the_reference_applies_bias_softplus_skip_and_gate_as_written():
    inputs = Case(length=1, channels=2, states=1, batch=1).inputs(torch.float64)
    x, z, A = inputs["x"][0, 0], inputs["z"][0, 0], inputs["A"][:, 0]
    d = torch.log(1 + torch.exp(inputs["dt"][0, 0] + inputs["dt_bias"]))
    h = torch.exp(d * A) * inputs["initial_state"][0, :, 0] + d * inputs["B"][0, 0, 0, 0] * x
    want = (inputs["C"][0, 0, 0, 0] * h + inputs["D"] * x) * z / (1 + torch.exp(-z))
    y, state = selective_scan(**inputs, return_state=True, backend="reference")
    torch.testing.assert_close(y[0, 0], want)
    torch.testing.assert_close(state[0, :, 0], h)


# Laws of every backend


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("bare", [False, True], ids=["all arguments", "bare"])
def test_gradients_are_those_of_finite_differences(backend, bare):
    inputs = Case(length=7, channels=4, groups=2, states=3, bare=bare).inputs(torch.float64)
    names = list(inputs)
    runnable(backend, inputs)

    def op(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, tensors, strict=True))
        return selective_scan(**given, return_state=True, dt_softplus=not bare, backend=backend)

    leaves = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("cuts", [(1,), (64,), (50, 51, 180)], ids=str)
@pytest.mark.parametrize("backend", NAMES)
def test_a_chain_of_calls_through_states_is_one_call(backend, cuts):
    inputs = Case(length=200, groups=2).inputs(torch.float64)
    along_time = ("x", "dt", "B", "C", "z")
    whole, weights = run(inputs, backend)

    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    state, outputs = leaves["initial_state"], []
    edges = [0, *cuts, 200]
    for start, end in itertools.pairwise(edges):
        part = {n: t[:, start:end] if n in along_time else t for n, t in leaves.items()}
        y, state = selective_scan(
            **{**part, "initial_state": state}, return_state=True, backend=backend
        )
        outputs.append(y)
    results = (torch.cat(outputs, 1), state)
    torch.autograd.backward(results, weights)
    chained = {"y": results[0].detach(), "state": state.detach()}
    chained |= {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    assert_near(chained, whole, cases.TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", NAMES)
def test_a_step_is_a_scan_of_length_one(backend):
    inputs = Case(length=5).inputs(torch.float64)
    runnable(backend, inputs)
    whole, end = selective_scan(**inputs, return_state=True, backend=backend)
    state = inputs["initial_state"]
    for t in range(5):
        now = {n: inputs[n][:, t] for n in ("x", "dt", "B", "C", "z")}
        before = state.clone()
        y, after = selective_scan_step(
            now["x"],
            now["dt"],
            inputs["A"],
            now["B"],
            now["C"],
            state,
            D=inputs["D"],
            z=now["z"],
            dt_bias=inputs["dt_bias"],
        )
        assert torch.equal(state, before)
        torch.testing.assert_close(y, whole[:, t])
        state = after
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("backend", NAMES)
def test_a_nan_in_one_row_stays_in_its_row(backend):
    inputs = Case(batch=3, length=150).inputs(torch.float32)
    runnable(backend, inputs)
    clean, _ = selective_scan(**inputs, return_state=True, backend=backend)
    inputs["x"][1, 40] = torch.nan
    y, state = selective_scan(**inputs, return_state=True, backend=backend)
    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert torch.equal(y[1, :40], clean[1, :40])
    assert y[1, 40:].isnan().all()
    assert state[1].isnan().all()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("backend", NAMES)
def test_inputs_are_not_changed(backend, batch):
    inputs = Case(batch=batch, length=130).inputs(torch.float32)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    versions = {name: tensor._version for name, tensor in inputs.items()}
    run(inputs, backend)
    assert {name: tensor._version for name, tensor in inputs.items()} == versions
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "z", "D", "initial_state"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("backend", NAMES)
def test_an_input_changed_before_the_backward_is_noticed_or_does_not_matter(backend, batch, name):
    inputs = Case(batch=batch, length=70).inputs(torch.float64)
    want, weights = run(inputs, backend)
    leaves = {n: tensor.clone().requires_grad_() for n, tensor in inputs.items()}
    results = selective_scan(**leaves, return_state=True, backend=backend)
    with torch.no_grad():
        leaves[name].mul_(2)
    try:
        torch.autograd.backward(results, weights)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return
    got = {f"d{n}": leaf.grad for n, leaf in leaves.items()}
    assert_near(got, {n: want[n] for n in got}, cases.TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", FAST)
def test_a_state_may_be_changed_by_its_owner_after_the_call(backend):
    inputs = Case(length=130).inputs(torch.float64)
    want, weights = run(inputs, backend)
    leaves = {n: tensor.clone().requires_grad_() for n, tensor in inputs.items()}
    y, state = selective_scan(**leaves, return_state=True, backend=backend)
    state.detach().zero_()
    y.backward(weights[0])
    assert torch.isfinite(leaves["A"].grad).all()
    torch.testing.assert_close(y.detach(), want["y"])


@pytest.mark.parametrize("backend", FAST)
def test_autocast_does_not_lower_the_precision_inside(backend):
    inputs = Case(length=200, channels=16, states=16).inputs(torch.float32)
    plain, weights = run(inputs, runnable(backend, inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = run(inputs, backend, weights)
    assert all(torch.equal(mixed[name], plain[name]) for name in plain)


def test_a_second_derivative_is_refused_by_the_portable_path():
    inputs = Case(length=5).inputs(torch.float64)
    inputs["x"].requires_grad_()
    y, _ = selective_scan(**inputs, return_state=True, backend="portable")
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


# Layouts of the portable path


LAYOUTS = {
    # name: width, shortest segment, numbers of state in a part, chunk
    "one segment, long chunks": (1, 64, 1 << 20, 64),
    "one segment, chunks of 4": (1, 64, 1 << 20, 4),
    "many short segments": (1 << 30, 1, 1 << 30, 64),
    "segments of 3 steps in chunks of 4": (1 << 30, 3, 1 << 30, 4),
    "segments of 7 steps, a row at a time": (1 << 30, 7, 1, 64),
    "a group at a time": (1, 64, 12, 64),
    "two channels at a time": (1, 64, 8, 64),
}


@pytest.mark.parametrize("length", [1, 2, 5, 64, 101])
@pytest.mark.parametrize(("width", "shortest", "part", "chunk"), LAYOUTS.values(), ids=LAYOUTS)
def test_no_layout_changes_the_result(monkeypatch, width, shortest, part, chunk, length):
    monkeypatch.setitem(portable._WIDTH, "cpu", width)
    monkeypatch.setitem(portable._PART, "cpu", part)
    monkeypatch.setitem(portable._CHUNK, "cpu", chunk)
    monkeypatch.setattr(portable, "_SHORTEST_SEGMENT", shortest)
    inputs = Case(length=length, groups=2).inputs(torch.float64)
    got, weights = run(inputs, "portable")
    assert_near(got, truth(inputs, weights), cases.TOLERANCES[torch.float64])


@pytest.mark.parametrize("length", [1, 63, 64, 129, 4097, 1 << 20])
@pytest.mark.parametrize("state_size", [1, 4096, 1 << 17])
def test_a_layout_covers_the_length_and_wastes_little(length, state_size):
    layout = portable._layout(length, state_size, "cpu")
    padded = layout.segments * layout.steps
    assert length <= padded < length + layout.segments


def test_few_channels_are_cut_into_segments_and_many_are_not():
    assert portable._layout(4096, 256, "cpu").segments > 1
    assert portable._layout(4096, 4096, "cpu").segments == 1


def test_padding_leaves_the_state_untouched(monkeypatch):
    """Inputs that would change a state visibly if a padded position were counted."""
    monkeypatch.setattr(portable, "_SHORTEST_SEGMENT", 2)
    inputs = Case(length=5, step=(10.0, 10.0)).inputs(torch.float64)
    assert portable._layout(5, 24, "cpu") == (2, 3, 3)
    _, state = selective_scan(**inputs, return_state=True, backend="portable")
    _, want = selective_scan(**inputs, return_state=True, backend="reference")
    torch.testing.assert_close(state, want)


# Memory


def peak_bytes(case: Case) -> int:
    """Most bytes alive at one moment of forward and backward, inputs not counted."""
    leaves = {n: t.requires_grad_() for n, t in case.inputs(torch.float32).items()}
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profiler:
        y, state = selective_scan(**leaves, return_state=True, backend="portable")
        (y.sum() + state.sum()).backward()
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    alive = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        alive += size
        peak = max(peak, alive)
    return peak


MEMORY = {
    # A row's D, its N, and how many (B, L, D) tensors of float32 may be held at once, inputs not
    # counted: y, the steps, the gradient of y through the gate, gradients of x, dt and z; N / 64
    # marks; N / D for the gradient of each of B and C.
    "segments": (1, 32, 64, 12),
    "one segment": (16, 32, 64, 12),
    "many states": (1, 1024, 256, 12),
}


@pytest.mark.parametrize(("batch", "channels", "states", "most"), MEMORY.values(), ids=MEMORY)
def test_memory_is_linear_in_length_and_far_below_a_state_per_position(
    batch, channels, states, most
):
    unit = 512 if channels < 1024 else 64
    peaks = [
        peak_bytes(Case(batch=batch, length=unit * n, channels=channels, states=states))
        for n in (1, 2, 4)
    ]
    first, second = peaks[1] - peaks[0], (peaks[2] - peaks[1]) / 2
    assert second <= 1.1 * first
    assert second / (4 * batch * unit * channels) <= most


# Bad input

GOOD = Case(batch=2, length=3, channels=4, groups=2, states=5)


def more_states(A: Tensor) -> Tensor:
    return A[:, :1].expand(-1, 257)


BAD = {
    "x": ["x must be .B, L, D.", lambda t: t[0]],
    "x without positions": ["x must be .B, L, D.*0", lambda t: t[:, :0]],
    "x without rows": ["x must be .B, L, D.*0", lambda t: t[:0]],
    "x without channels": ["x must be .B, L, D.*0", lambda t: t[..., :0]],
    "x of integers": ["x must be floating point, got torch.int64", lambda t: t.long()],
    "x elsewhere": ["dt is on cpu, x on meta", lambda t: t.to("meta")],
    "dt": [r"dt must be \(2, 3, 4\) like x, got \(2, 2, 4\)", lambda t: t[:, 1:]],
    "dt of integers": ["dt must be floating point", lambda t: t.int()],
    "A": ["A must be .D, N. with D = 4", lambda t: t[1:]],
    "A without states": ["A must be .D, N. with D = 4 and N > 0", lambda t: t[:, :0]],
    "A complex": ["A must be float32 or float64.*complex64", lambda t: t.to(torch.complex64)],
    "A of bf16": ["A must be float32 or float64.*bfloat16", lambda t: t.bfloat16()],
    "A elsewhere": ["A is on meta, x on cpu", lambda t: t.to("meta")],
    "B": [r"B must be \(B, L, G, N\) = \(2, 3, G, 5\)", lambda t: t[..., 1:]],
    "B of three axes": ["B must be .B, L, G, N.", lambda t: t[:, :, 0]],
    "B without groups": ["B must be .B, L, G, N.", lambda t: t[:, :, :0]],
    "B of three groups": [".*G a divisor of 4", lambda t: t[:, :, [0, 1, 1]]],
    "B of one group": ["B and C must share a shape", lambda t: t[:, :, :1]],
    "C": [r"C must be \(B, L, G, N\) = \(2, 3, G, 5\)", lambda t: t[:, 1:]],
    "C of booleans": ["C must be floating point, got torch.bool", lambda t: t > 0],
    "D": [r"D must be \(4,\), got \(3,\)", lambda t: t[1:]],
    "D of integers": ["D must be floating point", lambda t: t.long()],
    "z": [r"z must be \(2, 3, 4\), got \(1, 3, 4\)", lambda t: t[:1]],
    "z elsewhere": ["z is on meta, x on cpu", lambda t: t.to("meta")],
    "dt_bias": [r"dt_bias must be \(4,\)", lambda t: t[None]],
    "initial_state": [r"initial_state must be \(2, 4, 5\)", lambda t: t.transpose(1, 2)],
    "A of too many states": ["N, the states of A, must be at most 256, got 257", more_states],
    "initial_state of integers": ["initial_state must be floating", lambda t: t.long()],
}


@pytest.mark.parametrize(("message", "spoil"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named(request, message, spoil):
    name = request.node.callspec.id.split(" ")[0]
    inputs = GOOD.inputs(torch.float32)
    inputs[name] = spoil(inputs[name])
    with pytest.raises(ShapeError, match=f"^selective_scan: {message}"):
        selective_scan(**inputs)


BAD_EDGES = {
    "a batch": ([0, 3], 2, "packs sequences on one row, so B must be 1, got x .2, 3, 4"),
    "a number": (3, 1, r"must be \(S\+1,\) with S > 0, got \(\)"),
    "a table": ([[0, 3]], 1, r"must be \(S\+1,\) with S > 0, got \(1, 2\)"),
    "no sequence": ([0], 1, r"must be \(S\+1,\) with S > 0, got \(1,\)"),
    "not integers": ([0.0, 3.0], 1, "must be int32 or int64, got torch.float32"),
}


@pytest.mark.parametrize(("edges", "batch", "message"), BAD_EDGES.values(), ids=BAD_EDGES)
def test_bad_edges_of_packed_sequences_are_named(edges, batch, message):
    inputs = Case(batch=batch, length=3, channels=4, bare=True).inputs(torch.float32)
    with pytest.raises(ShapeError, match=f"^selective_scan: cu_seqlens {message}"):
        selective_scan(**inputs, cu_seqlens=torch.tensor(edges))


def test_edges_on_another_device_are_named():
    inputs = Case(batch=1, length=3, bare=True).inputs(torch.float32)
    with pytest.raises(ShapeError, match="cu_seqlens is on meta, x on cpu"):
        selective_scan(**inputs, cu_seqlens=torch.tensor([0, 3], device="meta"))


def test_the_initial_state_of_packed_sequences_has_a_row_for_each():
    inputs = Case(batch=1, length=3).inputs(torch.float32)
    with pytest.raises(ShapeError, match=r"initial_state must be \(2, 6, 4\), got \(1, 6, 4\)"):
        selective_scan(**inputs, cu_seqlens=torch.tensor([0, 1, 3]))


def test_bad_arguments_of_a_step_are_named():
    x, A, maps = torch.ones(2, 4), -torch.ones(4, 3), torch.ones(2, 1, 3)
    state = torch.zeros(2, 4, 3)
    for given, message in (
        ((x[0], x[0], A, maps, maps, state), r"x must be \(B, D\)"),
        ((x, x, A, maps[:1], maps, state), r"B must be \(B, G, N\) = \(2, G, 3\)"),
        ((x, x, A, maps, maps, state[:1]), r"state must be \(2, 4, 3\), got \(1, 4, 3\)"),
        ((x, x.int(), A, maps, maps, state), "dt must be floating point"),
    ):
        with pytest.raises(ShapeError, match=f"^selective_scan_step: {message}"):
            selective_scan_step(*given)


def test_every_argument_has_a_bad_case():
    assert {name.split(" ")[0] for name in BAD} == set(GOOD.inputs(torch.float32))


def test_an_unknown_backend_is_named_with_those_that_exist():
    with pytest.raises(
        BackendError, match=r"no backend 'no-such'; have auto, .*portable, reference"
    ):
        selective_scan(**GOOD.inputs(torch.float32), backend="no-such")


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(portable, "supports", lambda tensors: "it is Sunday")
    with pytest.raises(BackendError, match="'portable' cannot run here: it is Sunday"):
        selective_scan(**GOOD.inputs(torch.float32), backend="portable")


def test_auto_takes_the_next_backend_when_the_preferred_one_cannot_run(monkeypatch):
    inputs = GOOD.inputs(torch.float64)
    want, _ = selective_scan(**inputs, return_state=True, backend="reference")
    for name in FAST:
        monkeypatch.setattr(BACKENDS.all()[name], "supports", lambda scan: "it is Sunday")
    assert torch.equal(selective_scan(**inputs), want)


def test_when_no_backend_can_run_every_reason_is_given(monkeypatch):
    for module in BACKENDS.all().values():
        monkeypatch.setattr(module, "supports", lambda tensors: "it is Sunday")
    with pytest.raises(BackendError, match=r"portable: it is Sunday; reference: it is Sunday"):
        selective_scan(**GOOD.inputs(torch.float32))
