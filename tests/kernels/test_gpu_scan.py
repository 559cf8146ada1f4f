"""The CUDA scan on a GPU, held to the float64 reference in values and every gradient."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from dnassm.kernels.selective_scan import cases, cuda, selective_scan
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.selective_scan.cases import Case, Tolerance
from dnassm.kernels.selective_scan.cuda import cut, shape, walk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Results = dict[str, Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

SHAPES = {
    **{f"length {n}": Case(length=n, channels=33, states=16) for n in (1, 2, 3, 31, 33, 63, 65)},
    "length 4095": Case(batch=1, length=4095, channels=64, states=16),
    "length 4097": Case(batch=1, length=4097, channels=70, states=16),
    **{
        f"N {n}": Case(length=200, channels=40, states=n) for n in (1, 3, 8, 9, 16, 17, 32, 64, 100)
    },
    "N 128": Case(length=300, channels=40, states=128),
    "groups": Case(length=130, channels=96, groups=3, states=16),
    "a group per channel": Case(length=40, channels=6, groups=6, states=4),
    "wide": Case(batch=3, length=500, channels=600, states=16),
    "bare": Case(length=150, channels=64, states=16, bare=True),
    "strided": Case(length=150, channels=64, states=16, groups=2, strided=True),
    "extreme": Case(length=1000, channels=64, states=16, step=(1e-4, 10.0), decay=(1e-3, 64.0)),
    "forgotten at once": Case(channels=64, states=16, step=(10.0, 10.0), decay=(64.0, 64.0)),
}


def run(
    inputs: dict[str, Tensor], backend: str, *, weights: tuple[Tensor, Tensor] | None = None, **how
) -> Results:
    """y, the final state and every gradient; the loss weighs each element of both."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    softplus = "dt_bias" in inputs
    y, state = selective_scan(
        **leaves, dt_softplus=softplus, return_state=True, backend=backend, **how
    )
    if weights is None:
        weights = weights_of(y, state)
    torch.autograd.backward([y, state], [w.to(r) for w, r in zip(weights, (y, state), strict=True)])
    found = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"y": y.detach(), "state": state.detach(), **found}


def weights_of(*results: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    return tuple(
        torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype).to(r.device)
        for r in results
    )


def truth(
    inputs: dict[str, Tensor], like: Results, *, backend: str = "reference", **how
) -> Results:
    """The reference on the same numbers, in float64."""
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    weights = tuple(w.double() for w in weights_of(like["y"], like["state"]))
    return run(exact, backend, weights=weights, **how)


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    for name, expected in want.items():
        error = got[name].double() - expected
        rms = error.square().mean().sqrt() / (expected.square().mean().sqrt() + 1e-30)
        worst = error.abs().max() / (expected.abs().max() + 1e-30)
        assert rms <= tolerance.rms, f"{name}: rms {rms:.2g} > {tolerance.rms} ({tolerance.why})"
        assert worst <= tolerance.worst, f"{name}: worst {worst:.2g} > {tolerance.worst}"


def assert_same(got: Results, want: Results) -> None:
    for name, expected in want.items():
        assert torch.equal(got[name], expected), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_values_and_every_gradient_are_those_of_the_reference(case, dtype):
    inputs = case.inputs(dtype, device="cuda")
    got = run(inputs, "cuda")
    assert_near(got, truth(inputs, got), cases.TOLERANCES[dtype])


@pytest.fixture(params=[4, 2, 1])
def held(request, monkeypatch):
    """Channels of a thread, in the forward and (4 or 2) in `chunk_ends`, not as the model says."""

    def only(layouts, held):
        found = tuple(one._replace(shortest=1) for one in layouts if one.channels == held)
        return found or layouts[:1]

    def narrowed(problem, layouts, pre_pass, whole):
        ends = only(pre_pass.layouts, max(2, request.param))
        return cut.cut(
            problem, only(layouts, request.param), pre_pass._replace(layouts=ends), whole
        )

    def narrowed_ends(problem, pre_pass, chunk):
        ends = only(pre_pass.layouts, max(2, request.param))
        return cut.cut_ends(problem, pre_pass._replace(layouts=ends), chunk)

    monkeypatch.setattr(walk, "cut", narrowed)
    monkeypatch.setattr(walk, "cut_ends", narrowed_ends)
    return request.param


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_any_number_of_channels_per_thread_gives_what_the_reference_gives(case, held):
    inputs = case.inputs(torch.bfloat16, device="cuda")
    got = run(inputs, "cuda")
    assert_near(got, truth(inputs, got), cases.TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_channels_per_thread_finds_the_same_chunks(held, dtype):
    """Chunks begin between marks, and channels do not fill the last warp."""
    inputs = Case(batch=1, length=20_011, channels=90, states=16).inputs(dtype, device="cuda")
    got = run(inputs, "cuda")
    assert_near(got, truth(inputs, got, backend="portable"), cases.TOLERANCES[dtype])


def cut_end_to_end(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The backward's rows in chunks of so many steps, not as the model says."""

    def fixed(problem, layouts, pre_pass, whole):
        found = cut.cut(problem, layouts, pre_pass, whole)
        if problem.joined == 1:
            return found
        return found._replace(steps=steps, chunks=-(-problem.steps // steps))

    monkeypatch.setattr(walk, "cut", fixed)


@pytest.mark.parametrize("steps", [128, 384, 640, 1024, 1664, 2048, 5120])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_chunk_of_the_backward_may_hold_parts_of_several_rows(steps, groups, monkeypatch):
    """Of five rows of 1000 steps, laid out as 1024, in two blocks of channels for each group."""
    case = Case(batch=5, length=1000, channels=300 * groups, groups=groups, states=16)
    inputs = case.inputs(torch.float32, device="cuda")
    cut_end_to_end(monkeypatch, steps)
    got = run(inputs, "cuda")
    assert_near(got, truth(inputs, got), cases.TOLERANCES[torch.float32])


def test_blocks_of_channels_more_than_the_device_holds_take_turns(monkeypatch):
    """Rows of 10 steps, laid out as 16, in chunks of 32: the last one ends beyond the last row."""
    inputs = Case(batch=3, length=10, channels=36_000, states=16).inputs(
        torch.bfloat16, device="cuda"
    )
    cut_end_to_end(monkeypatch, 32)
    got = run(inputs, "cuda")
    assert_near(got, truth(inputs, got), cases.TOLERANCES[torch.bfloat16])


@pytest.fixture(params=[(0, 128), (2, 128), (2, 64), (2, 16)], ids=str)
def filled(request, monkeypatch):
    """Early states of a tile in shared memory or none, marks so many steps apart."""
    early, span = request.param
    monkeypatch.setattr(shape, "_EARLY", early)
    monkeypatch.setattr(shape, "_SHORT_SPANS", (span,))
    shape._shape_of.cache_clear()
    yield request.param
    shape._shape_of.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("states", [3, 8, 16, 32, 128])
def test_what_waits_in_shared_memory_changes_nothing(dtype, states, filled):
    inputs = Case(length=700, channels=300, states=states).inputs(dtype, device="cuda")
    got = run(inputs, "cuda")
    assert_near(got, truth(inputs, got), cases.TOLERANCES[dtype])


def packed_inputs(dtype: torch.dtype, edges: list[int], channels: int = 70) -> dict[str, Tensor]:
    case = Case(batch=1, length=edges[-1], channels=channels, states=16)
    inputs = case.inputs(dtype, device="cuda")
    state = torch.randn(len(edges) - 1, channels, 16, generator=torch.Generator().manual_seed(3))
    inputs["initial_state"] = state.cuda()
    return inputs


EDGES = {
    "short": [0, 1, 2, 9, 16, 24, 25, 90],
    "long": [0, 700, 701, 1500, 3000, 3001, 3008, 6000],
    "one": [0, 500],
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_sequences_are_those_of_the_reference(dtype, edges, reverse, held):
    inputs = packed_inputs(dtype, edges)
    how = {
        "cu_seqlens": torch.tensor(edges, dtype=torch.int32, device="cuda"),
        "reverse": reverse,
    }
    got = run(inputs, "cuda", **how)
    assert_near(got, truth(inputs, got, **how), cases.TOLERANCES[dtype])


@pytest.mark.parametrize("length", [65, 3000])
def test_reverse_is_that_of_the_reference(length):
    inputs = Case(length=length, channels=70, states=16).inputs(torch.float32, device="cuda")
    got = run(inputs, "cuda", reverse=True)
    assert_near(got, truth(inputs, got, reverse=True), cases.TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_run_gives_the_same_bits(dtype):
    inputs = Case(batch=1, length=20000, channels=512, states=16).inputs(dtype, device="cuda")
    first = run(inputs, "cuda")
    for _ in range(3):
        assert_same(run(inputs, "cuda"), first)


def test_a_row_alone_is_that_row_in_a_batch():
    inputs = Case(batch=3, length=5000, channels=64, states=16).inputs(torch.float32, device="cuda")
    own = ("A", "D", "dt_bias")
    alone = {name: t if name in own else t[1:2] for name, t in inputs.items()}
    y, state = selective_scan(**inputs, return_state=True, backend="cuda")
    y_alone, state_alone = selective_scan(**alone, return_state=True, backend="cuda")
    tolerance = cases.TOLERANCES[torch.float32]
    assert_near(
        {"y": y_alone, "state": state_alone},
        {"y": y[1:2].double(), "state": state[1:2].double()},
        tolerance,
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_a_backward_in_slabs_is_that_of_the_reference(monkeypatch, reverse):
    """Rows whose sums over channels do not fit the workspace are walked in slabs from the end."""
    monkeypatch.setattr(walk, "_WORKSPACE", 1 << 16)
    edges = [0, 700, 701, 1500, 3000]
    inputs = packed_inputs(torch.float32, edges)
    how = {"cu_seqlens": torch.tensor(edges, device="cuda"), "reverse": reverse}
    got = run(inputs, "cuda", **how)
    assert_near(got, truth(inputs, got, **how), cases.TOLERANCES[torch.float32])
    inputs = Case(length=3000, channels=70, states=16).inputs(torch.float32, device="cuda")
    got = run(inputs, "cuda", reverse=reverse)
    assert_near(got, truth(inputs, got, reverse=reverse), cases.TOLERANCES[torch.float32])


OVERWRITTEN = {
    "plain": {},
    "odd channels": {"channels": 33},
    "groups": {"groups": 2},
    "long": {"batch": 1, "length": 30_000},
    "N 100": {"states": 100},
    "no gate": {"without": ("z",)},
    "packed": {"batch": 1, "edges": [0, 1, 2, 9, 16, 700, 701, 1500]},
}


def backend_call(dtype: torch.dtype, reverse: bool, **how) -> Scan:
    """A call as a backend gets it, z the second half of a tensor."""
    edges, without = how.pop("edges", None), how.pop("without", ())
    sizes = {"batch": 2, "length": 1500, "channels": 96, "states": 16, **how}
    inputs = Case(**sizes).inputs(dtype, device="cuda")
    inputs["z"] = torch.cat([inputs["z"]] * 2, 2)[..., sizes["channels"] :]
    if edges is not None:
        inputs["initial_state"] = inputs["initial_state"].repeat(len(edges) - 1, 1, 1)
        edges = torch.tensor(edges, dtype=torch.int32, device="cuda")
    given = {n: None if n in without else inputs[n] for n in Gradients._fields}
    return Scan(**given, cu_seqlens=edges, dt_softplus=True, reverse=reverse, exact=False)


@pytest.mark.parametrize("slabs", [False, True], ids=["whole", "in slabs"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("how", OVERWRITTEN.values(), ids=OVERWRITTEN)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_backward_over_its_inputs_and_with_the_output_has_the_same_bits(
    dtype, how, reverse, slabs, monkeypatch
):
    if slabs:
        monkeypatch.setattr(walk, "_WORKSPACE", 1 << 19)
    call = backend_call(dtype, reverse, **how)
    y, state, marks = cuda.forward(call)
    dy, dstate = weights_of(y, state)
    plain = named(cuda.backward(call, marks, dy, dstate))
    want = named(*cuda.backward_and_output(call, marks, dy, dstate))
    assert_near(want, {**plain, "y": y}, cases.TOLERANCES[dtype])
    y_into, dz_into = torch.full_like(y.repeat(1, 1, 2), torch.nan).chunk(2, dim=2)
    if call.z is None:
        y_into = dz_into = None
    room = dataclasses.replace(call, dz_into=dz_into, y_into=y_into)
    got = named(*cuda.backward_and_output(room, marks, dy, dstate))
    assert_same(got, want)
    for name, place in (("z", dz_into), ("y", y_into)):
        assert place is None or got[name].data_ptr() == place.data_ptr()
    before, over = dy.clone(), dataclasses.replace(call, overwrite=("dt", "dy"), dz_into=call.z)
    got = named(*cuda.backward_and_output(over, marks, dy, dstate))
    assert_same(got, want)
    for gradient, source in (("x", dy), ("dt", call.dt), ("z", call.z)):
        assert source is None or got[gradient].data_ptr() == source.data_ptr()
    assert not torch.equal(dy, before)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("how", OVERWRITTEN.values(), ids=OVERWRITTEN)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_forward_over_its_steps_has_the_same_bits(dtype, how, reverse):
    call = backend_call(dtype, reverse, **how)
    want = dict(zip(("y", "state", "marks"), cuda.forward(call), strict=True))
    over = dataclasses.replace(call, overwrite=("dt",))
    got = dict(zip(("y", "state", "marks"), cuda.forward(over), strict=True))
    assert_same(got, want)
    assert got["y"].data_ptr() == call.dt.data_ptr()


def named(gradients: Gradients, y: Tensor | None = None) -> Results:
    found = {**gradients._asdict(), "y": y}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("length", [65537, (1 << 20) + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_million_steps_are_those_of_float64(dtype, length):
    case = Case(batch=1, length=length, channels=64, states=16)
    inputs = case.inputs(dtype, device="cuda")
    got = run(inputs, "cuda")
    assert_near(got, truth(inputs, got, backend="portable"), cases.TOLERANCES[dtype])


@pytest.mark.parametrize("exact", [False, True])
def test_memory_survives_a_million_steps(exact):
    """d A of about 3e-7: the state at the start still weighs a third at the end."""
    case = Case(
        batch=1, length=1 << 20, channels=64, states=4, step=(1e-4, 3e-4), decay=(1e-3, 2e-3)
    )
    inputs = case.inputs(torch.float32, device="cuda")
    got = run(inputs, "cuda", exact=exact)
    want = truth(inputs, got, backend="portable")
    assert want["dinitial_state"].abs().mean() > 0.2
    assert_near(got, want, cases.LONG_MEMORY)


def test_leaving_out_what_decayed_below_2_to_the_minus_40_is_within_its_bound():
    inputs = Case(batch=1, length=100_000, channels=512, states=16).inputs(
        torch.float32, device="cuda"
    )
    short, exact = (run(inputs, "cuda", exact=exact) for exact in (False, True))
    for name in exact:
        error = (short[name] - exact[name]).abs().max() / exact[name].abs().max()
        assert error < 1e-6, (
            name
        )  # 2^-40 of a sum of at most 2^18 terms, and float32's own rounding


# Smallest and largest step: tiles by series of 3, 5 and 7 terms, without, and all of these.
STEPS = [(1e-4, 1e-3), (3e-4, 5e-3), (1e-3, 1e-2), (0.02, 0.1), (1e-4, 3.0)]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("edges", [None, [0, 9000, 9008, 40_000, 40_001, 65_536]], ids=str)
def test_tiles_added_by_tensor_cores_are_those_added_step_by_step(edges, step, held):
    """A chunk hands on sums by tf32 products of series; `exact` adds every step by itself."""
    case = Case(batch=1, length=65_536, channels=512, states=16, step=step)
    inputs = case.inputs(torch.float32, device="cuda")
    options = {}
    if edges:
        options = {"cu_seqlens": torch.tensor(edges, dtype=torch.int32, device="cuda")}
        inputs["initial_state"] = inputs["initial_state"].repeat(len(edges) - 1, 1, 1)
    series, exact = (run(inputs, "cuda", exact=exact, **options) for exact in (False, True))
    for name in exact:
        error = (series[name] - exact[name]).norm() / exact[name].norm()
        assert error < 1e-6, name  # the series are right to 1.2e-7, products in two parts to 5e-7


@pytest.mark.parametrize("size", [1e3, 1e5, 1e7])
def test_a_channel_that_forgets_at_once_does_no_harm_to_slow_ones(size, held):
    """Powers of its steps times its rate overflow in the series that the others are added by."""
    case = Case(batch=1, length=16_384, channels=512, states=16, step=(1e-4, 1e-3))
    inputs = case.inputs(torch.float32, device="cuda")
    inputs["dt"][..., 5] = size
    inputs["A"][5] = -64.0
    series, exact = (run(inputs, "cuda", exact=exact) for exact in (False, True))
    for name in exact:
        error = (series[name] - exact[name]).norm() / exact[name].norm()
        assert error < 1e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_beyond_the_buffers_is_read_or_written(dtype, held):
    case = Case(batch=2, length=77, channels=40, states=16)
    inputs = case.inputs(dtype, device="cuda")
    guarded = {name: _inside_nan(tensor) for name, tensor in inputs.items()}
    assert_same(run(guarded, "cuda"), run(inputs, "cuda"))


def _inside_nan(tensor: Tensor) -> Tensor:
    """The same values in the middle of NaN, before and after in memory."""
    flat = torch.full((tensor.numel() + 8192,), torch.nan, dtype=tensor.dtype, device=tensor.device)
    flat[4096:-4096] = tensor.flatten()
    return flat[4096:-4096].view(tensor.shape)


def test_tensors_beyond_two_to_the_31_elements_are_addressed_right():
    """The last rows of a 4 x 2^20 x 544 batch equal the same rows alone."""
    batch, length, channels = 4, 1 << 20, 544
    generator = torch.Generator(device="cuda").manual_seed(0)
    normal = functools.partial(
        torch.randn, generator=generator, device="cuda", dtype=torch.bfloat16
    )
    x = normal(batch, length, channels)
    dt = normal(batch, length, channels) - 4
    maps = normal(batch, length, 1, 8)
    A = -torch.arange(1.0, 5.0, device="cuda").repeat(channels, 1)
    B, C = maps[..., :4], maps[..., 4:]
    assert x.numel() > 1 << 31
    tail = 4096
    with torch.no_grad():
        _, middle = selective_scan(
            x[3:, :-tail],
            dt[3:, :-tail],
            A,
            B[3:, :-tail],
            C[3:, :-tail],
            return_state=True,
            backend="cuda",
        )
        y = selective_scan(x, dt, A, B, C, backend="cuda")[3, -tail:].clone()
        alone = selective_scan(
            x[3:, -tail:].double(),
            dt[3:, -tail:].double(),
            A.double(),
            B[3:, -tail:].double(),
            C[3:, -tail:].double(),
            initial_state=middle.double(),
            backend="portable",
        )
    error = (y.double() - alone[0]).norm() / alone.norm()
    assert error < cases.TOLERANCES[torch.bfloat16].rms


def test_bf16_is_as_near_as_two_roundings_allow():
    """mamba_ssm's own errors on such input are 1.7e-3 (2.4e-3 for dz): not worse than that."""
    case = dataclasses.replace(SHAPES["length 4095"], batch=2, states=16)
    inputs = case.inputs(torch.bfloat16, device="cuda")
    got = run(inputs, "cuda")
    want = truth(inputs, got)
    for name in ("y", "dx", "ddt", "dB", "dC"):
        error = (got[name].double() - want[name]).norm() / want[name].norm()
        assert error < 1.8e-3, f"{name}: {error:.2e}"
    for name in ("dA", "dD", "ddt_bias"):
        error = (got[name].double() - want[name]).norm() / want[name].norm()
        assert error < 1e-5, f"{name}: {error:.2e}"
