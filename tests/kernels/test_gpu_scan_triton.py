"""The Triton scan on a GPU, held to the float64 reference in values and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dnassm.kernels.selective_scan import cases, selective_scan, triton
from dnassm.kernels.selective_scan.cases import Case, Tolerance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

Results = dict[str, Tensor]

SHAPES = {
    **{f"length {n}": Case(length=n, channels=33, states=16) for n in (1, 2, 31, 65, 129, 1000)},
    "length 4097": Case(batch=1, length=4097, channels=70, states=16),
    **{f"N {n}": Case(length=300, channels=40, states=n) for n in (1, 3, 17, 64, 100, 256)},
    "N 64, long": Case(batch=1, length=4097, channels=64, states=64),
    "N 256, long": Case(batch=1, length=4097, channels=32, states=256),
    "groups": Case(length=600, channels=96, groups=3, states=16),
    "a group per channel": Case(length=40, channels=6, groups=6, states=4),
    "wide": Case(batch=3, length=1100, channels=600, states=16),
    "bare": Case(length=150, channels=64, states=16, bare=True),
    "strided": Case(length=600, channels=64, states=16, groups=2, strided=True),
    "extreme": Case(length=1000, channels=64, states=16, step=(1e-4, 10.0), decay=(1e-3, 64.0)),
    "forgotten at once": Case(channels=64, states=16, step=(10.0, 10.0), decay=(64.0, 64.0)),
}
LENGTHS = [[4097], [1, 1, 2, 250, 6, 740], [3] * 200 + [400]]


def run(
    inputs: dict[str, Tensor], backend: str, *, weights: list[Tensor] | None = None, **how: Any
) -> tuple[Results, list[Tensor]]:
    """y, the final state and every gradient; the loss weighs each element of both."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    softplus = "dt_bias" in inputs
    y, state = selective_scan(
        **leaves, dt_softplus=softplus, return_state=True, backend=backend, **how
    )
    if weights is None:
        generator = torch.Generator().manual_seed(7)
        weights = [
            torch.randn(r.shape, generator=generator).to(r.device, r.dtype) for r in (y, state)
        ]
    torch.autograd.backward([y, state], [w.to(r) for w, r in zip(weights, (y, state), strict=True)])
    found = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"y": y.detach(), "state": state.detach(), **found}, weights


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        error = got[name].double() - expected
        assert got[name].shape == expected.shape, name
        rms = error.square().mean().sqrt() / (expected.square().mean().sqrt() + 1e-30)
        worst = error.abs().max() / (expected.abs().max() + 1e-30)
        assert rms <= tolerance.rms, f"{name}: rms {rms:.2g} > {tolerance.rms} ({tolerance.why})"
        assert worst <= tolerance.worst, f"{name}: worst {worst:.2g} > {tolerance.worst}"


def check(
    inputs: dict[str, Tensor], tolerance: Tolerance, *, judge: str = "reference", **how: Any
) -> None:
    got, weights = run(inputs, "triton", **how)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, judge, weights=weights, **how)
    assert_near(got, want, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_values_and_every_gradient_are_those_of_the_reference(case, dtype):
    check(case.inputs(dtype, device="cuda"), cases.TOLERANCES[dtype])


@pytest.mark.parametrize("name", cases.LONG)
def test_a_long_memory_is_kept(name):
    check(cases.LONG[name].inputs(torch.float32, device="cuda"), cases.LONG_MEMORY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_reverse_too(dtype):
    case = Case(length=1000, channels=64, states=16)
    check(case.inputs(dtype, device="cuda"), cases.TOLERANCES[dtype], reverse=True)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=["one", "a few", "many"])
@pytest.mark.parametrize("states", [16, 64])
def test_packed_sequences_too(states, lengths, reverse):
    case = Case(batch=1, length=sum(lengths), channels=64, groups=2, states=states)
    inputs = case.inputs(torch.float32, device="cuda")
    generator = torch.Generator().manual_seed(3)
    state = torch.randn((len(lengths), 64, states), generator=generator)
    inputs["initial_state"] = state.cuda()
    edges = torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32)
    check(inputs, cases.TOLERANCES[torch.float32], cu_seqlens=edges, reverse=reverse)


@pytest.mark.parametrize("length", [65537, (1 << 20) + 3])
def test_a_million_positions_too(length):
    case = Case(batch=1, length=length, channels=64, states=16)
    inputs = case.inputs(torch.float32, device="cuda")
    # sqrt(2^20) = 16 times that of 4097 in the sums over time.
    check(inputs, Tolerance(4.8e-5, 1.6e-4, "eps 6e-8, times sqrt(L)"), judge="portable")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_run_gives_the_same_bits(dtype):
    inputs = Case(length=3000, channels=512, states=16).inputs(dtype, device="cuda")
    first, weights = run(inputs, "triton")
    for _ in range(3):
        again, _ = run(inputs, "triton", weights=weights)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_slabs_and_programs_that_take_several_items_change_no_bit(monkeypatch):
    inputs = Case(length=3000, channels=512, states=16).inputs(torch.bfloat16, device="cuda")
    first, weights = run(inputs, "triton")
    monkeypatch.setattr(triton, "_PARTIALS", 1 << 22)
    monkeypatch.setattr(triton, "_SCRATCH", 1 << 20)
    again, _ = run(inputs, "triton", weights=weights)
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_a_row_alone_is_bit_by_bit_the_row_in_its_batch():
    inputs = Case(batch=5, length=1500, channels=64, states=16).inputs(
        torch.bfloat16, device="cuda"
    )
    together, weights = run(inputs, "triton")
    along = ("x", "dt", "B", "C", "z", "initial_state")
    alone = {name: t[3:4] if name in along else t for name, t in inputs.items()}
    row, _ = run(alone, "triton", weights=[weight[3:4] for weight in weights])
    for name in ("y", "state", *(f"d{name}" for name in along)):
        assert torch.equal(row[name], together[name][3:4]), name


def test_nothing_near_a_tensor_is_read_or_written():
    """Inputs stand in buffers of NaN; what is around the results is not ours to guard."""
    inputs = Case(length=259, channels=33, states=17).inputs(torch.float32, device="cuda")
    want, weights = run(inputs, "triton")
    guarded = {}
    for name, tensor in inputs.items():
        guard = torch.full((tensor.numel() + 512,), torch.nan, device="cuda", dtype=tensor.dtype)
        guarded[name] = guard[256:-256].view(tensor.shape)
        guarded[name].copy_(tensor)
    got, _ = run(guarded, "triton", weights=weights)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_tensors_of_more_than_2_to_31_elements():
    if torch.cuda.get_device_properties(0).total_memory < 80 << 30:
        pytest.skip("needs 80 GiB of GPU memory")
    generator = torch.Generator("cuda").manual_seed(0)
    length, channels = 1 << 20, 1040

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    inputs = {
        "x": normal(2, length, channels),
        "dt": normal(2, length, channels),
        "A": -torch.rand((channels, 2), generator=generator, device="cuda"),
        "B": normal(2, length, 1, 2),
        "C": normal(2, length, 1, 2),
    }
    assert inputs["x"].numel() > 1 << 31
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    y = selective_scan(**inputs, backend="triton")
    y.backward(y.detach())
    last = {name: t.detach() if name == "A" else t.detach()[1:] for name, t in inputs.items()}
    last = {name: tensor.requires_grad_() for name, tensor in last.items()}
    row = selective_scan(**last, backend="triton")
    row.backward(row.detach())
    assert torch.equal(row, y[1:])
    for name in ("x", "dt", "B", "C"):
        assert torch.equal(last[name].grad, inputs[name].grad[1:]), name


def test_memory_beyond_inputs_outputs_and_gradients_is_bounded():
    length, channels = 1 << 18, 512
    inputs = Case(batch=1, length=length, channels=channels, states=16, bare=True).inputs(
        torch.bfloat16, device="cuda"
    )
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    run(inputs, "triton")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = selective_scan(**leaves, dt_softplus=False, backend="triton")
    y.backward(y.detach())
    peak = torch.cuda.max_memory_allocated() - before
    # y, dx, ddt, the marks (N 4 / 128 bytes each), and the two fixed workspaces.
    each = length * channels
    bound = each * (2 + 2 + 2 + 64 / 128) + triton._PARTIALS + triton._SCRATCH + (128 << 20)
    assert peak < bound
