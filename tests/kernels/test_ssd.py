"""Every backend of the SSD is held to the float64 reference, in values and gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dnassm.errors import BackendError, ShapeError
from dnassm.kernels.ssd import BACKENDS, cases, portable, ssd, ssd_step
from dnassm.kernels.ssd.arguments import Gradients, Ssd
from dnassm.kernels.ssd.cases import Case, Results, Tolerance, truth

NAMES = list(BACKENDS.all())
FAST = [name for name in NAMES if name != "reference"]
DTYPES = list(cases.TOLERANCES)
ALONG_TIME = ("x", "dt", "B", "C", "z")


def runnable(name: str, inputs: dict[str, Tensor]) -> str:
    given = {name: inputs.get(name) for name in Gradients._fields}
    call = Ssd(**given, cu_seqlens=None, dt_softplus=True, dt_min=0.0, dt_max=math.inf, reverse=False, chunk=None)  # fmt: skip  # noqa: E501
    reason = BACKENDS.all()[name].supports(call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


def run(
    inputs: dict[str, Tensor], backend: str, weights: list[Tensor] | None = None, **options
) -> tuple[Results, list[Tensor]]:
    runnable(backend, inputs)
    return cases.outcome(inputs, weights, backend=backend, **options)


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    assert not cases.faults(got, want, tolerance)


# Against the reference


def test_reference_and_portable_are_found():
    assert {"reference", "portable"} <= set(NAMES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.CASES.values(), ids=cases.CASES)
@pytest.mark.parametrize("backend", FAST)
def test_values_and_every_gradient_are_those_of_the_reference(backend, case, dtype):
    if dtype != torch.float32 and case.length > 300:
        pytest.skip("the longest lengths are for float32")
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
    y, state = ssd(**inputs, return_state=True, backend=runnable(backend, inputs))
    assert y.dtype == dtype
    assert state.dtype == inputs["A"].dtype


def test_the_reference_is_the_closed_form_for_a_constant_input():
    """h[L] = (1 - a^L) / (1 - a) d b x for constant a = exp(d A): an answer from outside."""
    steps, d, decay = 50, 0.3, -0.7
    one = torch.ones(1, steps, 1, 1, dtype=torch.float64)
    y, state = ssd(
        2 * one,
        d * one[..., 0],
        torch.full((1,), decay, dtype=torch.float64),
        3 * one,
        5 * one,
        dt_softplus=False,
        return_state=True,
        backend="reference",
    )
    a = torch.exp(torch.tensor(d * decay, dtype=torch.float64))
    powers = a ** torch.arange(1, steps + 1)
    h = (1 - powers) / (1 - a) * d * 3 * 2
    torch.testing.assert_close(y[0, :, 0, 0], 5 * h)
    torch.testing.assert_close(state[0, 0, 0, 0], h[-1])


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_reference_applies_bias_softplus_skip_and_gate_as_written(per_channel):
    case = Case(length=1, batch=1, skip_per_channel=per_channel)
    inputs = case.inputs(torch.float64)
    x, z, A = inputs["x"][0, 0], inputs["z"][0, 0], inputs["A"]
    d = torch.log(1 + torch.exp(inputs["dt"][0, 0] + inputs["dt_bias"]))
    h = torch.exp(d * A)[:, None, None] * inputs["initial_state"][0]
    h = h + d[:, None, None] * x[:, :, None] * inputs["B"][0, 0, 0]
    skip = inputs["D"] if per_channel else inputs["D"][:, None]
    want = (h @ inputs["C"][0, 0, 0] + skip * x) * z / (1 + torch.exp(-z))
    y, state = ssd(**inputs, return_state=True, backend="reference")
    torch.testing.assert_close(y[0, 0], want)
    torch.testing.assert_close(state[0], h)


def test_heads_of_one_channel_are_a_selective_scan():
    """A in every state the same: the other op of this library is an answer from outside."""
    from dnassm.kernels.selective_scan import selective_scan

    inputs = Case(heads=6, width=1, groups=2, states=5, length=30).inputs(torch.float64)
    y, state = ssd(**inputs, return_state=True, backend="reference")
    flat = {n: t.squeeze(3) if n in ("x", "z") else t for n, t in inputs.items()}
    flat["A"] = inputs["A"][:, None].expand(6, 5)
    flat["initial_state"] = inputs["initial_state"].squeeze(2)
    want, end = selective_scan(**flat, return_state=True, backend="reference")
    torch.testing.assert_close(y.squeeze(3), want)
    torch.testing.assert_close(state.squeeze(2), end)


# Laws of every backend


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("bare", [False, True], ids=["all arguments", "bare"])
def test_gradients_are_those_of_finite_differences(backend, bare):
    case = Case(length=7, heads=4, width=2, groups=2, states=3, bare=bare, skip_per_channel=True)
    inputs = case.inputs(torch.float64)
    names = list(inputs)
    runnable(backend, inputs)

    def op(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, tensors, strict=True))
        options = {"dt_softplus": not bare, "chunk": 3, "return_state": True}
        return ssd(**given, **options, backend=backend)

    leaves = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(op, leaves, fast_mode=True)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("backend", NAMES)
def test_steps_beyond_the_limit_are_the_limit_and_pass_no_gradient(backend, softplus):
    inputs = Case(length=40, heads=4, step=(1e-3, 1.0), gated=False).inputs(torch.float64)
    runnable(backend, inputs)
    raw = inputs["dt"] + inputs["dt_bias"]
    d = torch.nn.functional.softplus(raw) if softplus else raw
    low, high = (float(d[d > 0].quantile(q)) for q in (0.3, 0.7))
    options = {"dt_softplus": softplus, "dt_limit": (low, high)}
    got, weights = run(inputs, backend, **options)
    outside = (d < low) | (d > high)
    assert 0 < outside.sum() < outside.numel()
    assert (got["ddt"][outside] == 0).all()
    assert (got["ddt"][~outside] != 0).all()
    bare = {n: t for n, t in inputs.items() if n != "dt_bias"} | {"dt": d.clamp(low, high)}
    want = truth(bare, weights, dt_softplus=False)
    for name in ("y", "state", "dx", "dA", "dB"):
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cuts", [(1,), (64,), (50, 51, 180)], ids=str)
@pytest.mark.parametrize("backend", NAMES)
def test_a_chain_of_calls_through_states_is_one_call(backend, cuts):
    inputs = Case(length=200, heads=4, groups=2).inputs(torch.float64)
    whole, weights = run(inputs, backend)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    state, outputs = leaves["initial_state"], []
    for start, end in itertools.pairwise([0, *cuts, 200]):
        part = {n: t[:, start:end] if n in ALONG_TIME else t for n, t in leaves.items()}
        y, state = ssd(**{**part, "initial_state": state}, return_state=True, backend=backend)
        outputs.append(y)
    results = (torch.cat(outputs, 1), state)
    torch.autograd.backward(results, weights)
    chained = {"y": results[0].detach(), "state": state.detach()}
    chained |= {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    assert_near(chained, whole, cases.TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", NAMES)
def test_a_step_is_the_op_at_length_one(backend):
    inputs = Case(length=5).inputs(torch.float64)
    runnable(backend, inputs)
    whole, end = ssd(**inputs, return_state=True, backend=backend)
    state = inputs["initial_state"]
    shared = {n: inputs[n] for n in ("A", "D", "dt_bias")}
    for t in range(5):
        before = state.clone()
        now = {n: inputs[n][:, t] for n in ALONG_TIME}
        y, after = ssd_step(**now, **shared, state=state)
        assert torch.equal(state, before)
        torch.testing.assert_close(y, whole[:, t])
        state = after
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 63, 64, 65, 1000])
@pytest.mark.parametrize("backend", FAST)
def test_no_chunk_size_changes_the_result(backend, chunk):
    inputs = Case(length=100, heads=4, groups=2).inputs(torch.float64)
    got, weights = run(inputs, backend, chunk=chunk)
    assert_near(got, truth(inputs, weights), cases.TOLERANCES[torch.float64])


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("numbers", [1, 1500, 1 << 20])
def test_no_size_of_the_slabs_changes_the_result(monkeypatch, numbers, packed):
    monkeypatch.setitem(portable._SLAB, "cpu", numbers)
    edges = torch.tensor([0, 1, 30, 100])
    case = Case(batch=1 if packed else 3, length=100, heads=4, groups=2)
    inputs = case.inputs(torch.float64)
    options = {}
    if packed:
        options["cu_seqlens"] = edges
        inputs["initial_state"] = inputs["initial_state"].repeat(3, 1, 1, 1)
    got, weights = run(inputs, "portable", chunk=16, **options)
    assert_near(got, truth(inputs, weights, **options), cases.TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", NAMES)
def test_a_nan_in_one_row_stays_in_its_row_and_behind_its_chunk(backend):
    inputs = Case(batch=3, length=150).inputs(torch.float32)
    runnable(backend, inputs)
    clean, _ = ssd(**inputs, return_state=True, backend=backend)
    inputs["x"][1, 100] = torch.nan
    y, state = ssd(**inputs, return_state=True, backend=backend)
    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert torch.equal(y[1, :64], clean[1, :64])
    assert y[1, 100:].isnan().all()
    assert state[1].isnan().all()


@pytest.mark.parametrize("backend", NAMES)
def test_inputs_are_not_changed(backend):
    inputs = Case(length=130).inputs(torch.float32)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    versions = {name: tensor._version for name, tensor in inputs.items()}
    run(inputs, backend)
    assert {name: tensor._version for name, tensor in inputs.items()} == versions
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "z", "D", "initial_state"])
@pytest.mark.parametrize("backend", NAMES)
def test_an_input_changed_before_the_backward_is_noticed_or_does_not_matter(backend, name):
    inputs = Case(length=40).inputs(torch.float64)
    want, weights = run(inputs, backend)
    leaves = {n: tensor.clone().requires_grad_() for n, tensor in inputs.items()}
    results = ssd(**leaves, return_state=True, backend=backend)
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
    y, state = ssd(**leaves, return_state=True, backend=backend)
    state.detach().zero_()
    y.backward(weights[0])
    assert torch.isfinite(leaves["A"].grad).all()
    torch.testing.assert_close(y.detach(), want["y"])


@pytest.mark.parametrize("backend", FAST)
def test_autocast_does_not_lower_the_precision_inside(backend):
    inputs = Case(length=200, width=8, states=16).inputs(torch.float32)
    plain, weights = run(inputs, runnable(backend, inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = run(inputs, backend, weights)
    assert all(torch.equal(mixed[name], plain[name]) for name in plain)


def test_a_second_derivative_is_refused():
    inputs = Case(length=5).inputs(torch.float64)
    inputs["x"].requires_grad_()
    y, _ = ssd(**inputs, return_state=True, backend="portable")
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


# Memory


def peak_bytes(case: Case) -> int:
    """Most bytes alive at one moment of forward and backward, inputs not counted."""
    leaves = {n: t.requires_grad_() for n, t in case.inputs(torch.float32).items()}
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profiler:
        y, state = ssd(**leaves, return_state=True, backend="portable")
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


def test_memory_is_that_of_results_and_gradients_and_a_fixed_slab(monkeypatch):
    monkeypatch.setitem(portable._SLAB, "cpu", 1 << 15)
    case = Case(batch=1, heads=2, width=16, states=16)
    lengths = (1024, 2048, 4096)
    peaks = [peak_bytes(Case(**{**vars(case), "length": length})) for length in lengths]
    # y, dy, dx, dz, dB and dC together as large as x, ddt; the slabs' starts.
    per_position = (peaks[2] - peaks[1]) / 2048
    assert per_position <= 1.1 * (peaks[1] - peaks[0]) / 1024
    assert per_position / (4 * 2 * 16) <= 6


# Bad input

GOOD = Case(batch=2, length=3, heads=4, width=2, groups=2, states=5, skip_per_channel=True)

BAD = {
    "x": ["x must be .B, L, H, P.", lambda t: t[0]],
    "x without positions": ["x must be .B, L, H, P.*0", lambda t: t[:, :0]],
    "x without rows": ["x must be .B, L, H, P.*0", lambda t: t[:0]],
    "x without channels": ["x must be .B, L, H, P.*0", lambda t: t[..., :0]],
    "x of integers": ["x must be floating point, got torch.int64", lambda t: t.long()],
    "x elsewhere": ["dt is on cpu, x on meta", lambda t: t.to("meta")],
    "dt": [r"dt must be \(2, 3, 4\) like x without P, got \(2, 2, 4\)", lambda t: t[:, 1:]],
    "dt of integers": ["dt must be floating point", lambda t: t.int()],
    "A": [r"A must be .H,. = \(4,\), got \(3,\)", lambda t: t[1:]],
    "A of states": ["A must be .H,.", lambda t: t[:, None]],
    "A complex": ["A must be float32 or float64.*complex64", lambda t: t.to(torch.complex64)],
    "A of bf16": ["A must be float32 or float64.*bfloat16", lambda t: t.bfloat16()],
    "A elsewhere": ["A is on meta, x on cpu", lambda t: t.to("meta")],
    "B": [r"B must be \(B, L, G, N\) = \(2, 3, G, N\)", lambda t: t[:, 1:]],
    "B of three axes": ["B must be .B, L, G, N.", lambda t: t[:, :, 0]],
    "B without groups": ["B must be .B, L, G, N.", lambda t: t[:, :, :0]],
    "B without states": ["B must be .B, L, G, N.", lambda t: t[..., :0]],
    "B of three groups": [".*G a divisor of 4", lambda t: t[:, :, [0, 1, 1]]],
    "B of one group": ["B and C must share a shape", lambda t: t[:, :, :1]],
    "C": [r"C must be \(B, L, G, N\) = \(2, 3, G, N\)", lambda t: t[:, 1:]],
    "C of booleans": ["C must be floating point, got torch.bool", lambda t: t > 0],
    "D": [r"D must be \(4,\) or \(4, 2\), got \(3, 2\)", lambda t: t[1:]],
    "D of integers": ["D must be floating point", lambda t: t.long()],
    "z": [r"z must be \(2, 3, 4, 2\), got \(1, 3, 4, 2\)", lambda t: t[:1]],
    "z elsewhere": ["z is on meta, x on cpu", lambda t: t.to("meta")],
    "dt_bias": [r"dt_bias must be \(4,\)", lambda t: t[None]],
    "initial_state": [r"initial_state must be \(2, 4, 2, 5\)", lambda t: t.transpose(2, 3)],
    "initial_state of integers": ["initial_state must be floating", lambda t: t.long()],
}


@pytest.mark.parametrize(("message", "spoil"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named(request, message, spoil):
    name = request.node.callspec.id.split(" ")[0]
    inputs = GOOD.inputs(torch.float32)
    inputs[name] = spoil(inputs[name])
    with pytest.raises(ShapeError, match=f"^ssd: {message}"):
        ssd(**inputs)


def test_every_argument_has_a_bad_case():
    assert {name.split(" ")[0] for name in BAD} == set(GOOD.inputs(torch.float32))


@pytest.mark.parametrize("limit", [(-1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_a_limit_that_is_no_range_is_named(limit):
    with pytest.raises(ShapeError, match=r"^ssd: dt_limit must be .low, high."):
        ssd(**GOOD.inputs(torch.float32), dt_limit=limit)


def test_a_chunk_of_nothing_is_named():
    with pytest.raises(ShapeError, match=r"^ssd: chunk must be at least 1.*got 0"):
        ssd(**GOOD.inputs(torch.float32), chunk=0)


BAD_EDGES = {
    "a batch": ([0, 3], 2, "packs sequences on one row, so B must be 1, got x .2, 3, 2, 3"),
    "a number": (3, 1, r"must be \(S\+1,\) with S > 0, got \(\)"),
    "a table": ([[0, 3]], 1, r"must be \(S\+1,\) with S > 0, got \(1, 2\)"),
    "no sequence": ([0], 1, r"must be \(S\+1,\) with S > 0, got \(1,\)"),
    "not integers": ([0.0, 3.0], 1, "must be int32 or int64, got torch.float32"),
    "falling": ([0, 2, 1, 3], 1, r"must rise from 0 to L = 3.*got \[0, 2, 1, 3\]"),
}


@pytest.mark.parametrize(("edges", "batch", "message"), BAD_EDGES.values(), ids=BAD_EDGES)
def test_bad_edges_of_packed_sequences_are_named(edges, batch, message):
    inputs = Case(batch=batch, length=3, bare=True).inputs(torch.float32)
    with pytest.raises(ShapeError, match=f"^ssd: cu_seqlens {message}"):
        ssd(**inputs, cu_seqlens=torch.tensor(edges))


def test_edges_on_another_device_are_named():
    inputs = Case(batch=1, length=3, bare=True).inputs(torch.float32)
    with pytest.raises(ShapeError, match="cu_seqlens is on meta, x on cpu"):
        ssd(**inputs, cu_seqlens=torch.tensor([0, 3], device="meta"))


def test_the_initial_state_of_packed_sequences_has_a_row_for_each():
    inputs = Case(batch=1, length=3).inputs(torch.float32)
    with pytest.raises(ShapeError, match=r"initial_state must be \(2, 2, 3, 4\), got \(1, 2, 3"):
        ssd(**inputs, cu_seqlens=torch.tensor([0, 1, 3]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_initial_state_that_is_not_finite_is_counted(value):
    inputs = Case().inputs(torch.float32)
    inputs["initial_state"][1, 1, 2, 3] = value
    with pytest.raises(ShapeError, match=r"initial_state must be finite, got 1 values .* of 48"):
        ssd(**inputs)


def test_bad_arguments_of_a_step_are_named():
    x, dt, A, maps = torch.ones(2, 4, 3), torch.ones(2, 4), -torch.ones(4), torch.ones(2, 1, 5)
    state = torch.zeros(2, 4, 3, 5)
    for given, message in (
        ((x[0], dt, A, maps, maps, state), r"x must be \(B, H, P\)"),
        ((x, dt, A, maps[:1], maps, state), r"B must be \(B, G, N\) = \(2, G, N\)"),
        ((x, dt, A, maps, maps, state[:1]), r"state must be \(2, 4, 3, 5\), got \(1, 4, 3, 5\)"),
        ((x, dt.int(), A, maps, maps, state), "dt must be floating point"),
    ):
        with pytest.raises(ShapeError, match=f"^ssd_step: {message}"):
            ssd_step(*given)


def test_an_unknown_backend_is_named_with_those_that_exist():
    with pytest.raises(
        BackendError, match=r"no backend 'no-such'; have auto, .*portable, reference"
    ):
        ssd(**GOOD.inputs(torch.float32), backend="no-such")
