"""SSD on a GPU: the Triton kernels held to float64 in values and every gradient."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dnassm.kernels.ssd import BACKENDS, cases, op, ssd, triton
from dnassm.kernels.ssd.arguments import Gradients
from dnassm.kernels.ssd.cases import Case, Results, Tolerance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

WIDE = Case(heads=8, width=64, states=128, gated=False)
SHAPES = {
    **{
        f"length {n}": Case(length=n, heads=8, width=32, states=64)
        for n in (1, 2, 31, 63, 64, 65, 129, 1000)
    },
    "length 4097": Case(batch=1, length=4097, heads=8, width=64, states=128),
    "no gate": Case(length=1500, heads=8, width=64, states=128, gated=False),
    "skip per channel": Case(length=300, heads=8, width=64, states=64, skip_per_channel=True),
    **{f"N {n}": Case(length=300, heads=8, width=16, states=n) for n in (1, 17, 64, 256, 512)},
    **{f"P {p}": Case(length=300, heads=8, width=p, states=32) for p in (1, 17, 100, 256)},
    "groups": Case(length=600, heads=24, groups=3, width=32, states=64),
    "a group per head": Case(length=100, heads=8, groups=8, width=16, states=16),
    "bare": Case(length=150, heads=16, width=16, states=16, bare=True),
    "strided": Case(length=600, heads=16, width=32, states=32, groups=2, strided=True),
    "extreme": Case(
        length=1000, heads=16, width=32, states=64, step=(1e-4, 10.0), decay=(1e-3, 64.0)
    ),
    "forgotten at once": Case(heads=8, width=16, states=16, step=(10.0, 10.0), decay=(64.0, 64.0)),
}
LENGTHS = {"one": [4097], "a few": [1, 1, 2, 250, 6, 740], "many": [3] * 200 + [400]}
ALONG = ("x", "dt", "B", "C", "z")
PER_HEAD = {"dA", "ddt_bias"}


def check(
    inputs: dict[str, Tensor], tolerance: Tolerance, *, judge: str = "portable", **how: Any
) -> None:
    """Against `judge` in float64 on the same device; portable is itself held to the reference."""
    got, weights = cases.outcome(inputs, backend="triton", **how)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = cases.outcome(exact, [w.double() for w in weights], backend=judge, **how)
    assert cases.faults(*(_without(found, PER_HEAD) for found in (got, want)), tolerance) == []
    # One number per head, 8 of them: the rms of so few is no average (3.7e-3 was seen in bf16).
    wider = dataclasses.replace(tolerance, rms=1.5 * tolerance.rms)
    assert cases.faults(*(_only(found, PER_HEAD) for found in (got, want)), wider) == []


def _only(found: Results, names: set[str]) -> Results:
    return {name: tensor for name, tensor in found.items() if name in names}


def _without(found: Results, names: set[str]) -> Results:
    return _only(found, found.keys() - names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_values_and_every_gradient_are_those_of_float64(case, dtype):
    if dtype == torch.float16 and case.length < 1000:
        pytest.skip("float16 takes the way of float32: the longer cases are enough")
    check(case.inputs(dtype, device="cuda"), cases.TOLERANCES[dtype])


def test_values_and_gradients_are_those_of_the_reference():
    case = Case(length=200, heads=4, groups=2, width=16, states=16)
    check(case.inputs(torch.float32, device="cuda"), cases.TOLERANCES[torch.float32], judge="reference")  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("chunk", [1, 16, 20, 32, 64, 1000])
def test_no_chunk_size_changes_more_than_roundings(chunk):
    inputs = Case(length=500, heads=8, width=64, states=128).inputs(torch.bfloat16, device="cuda")
    check(inputs, cases.TOLERANCES[torch.bfloat16], chunk=chunk)


@pytest.mark.parametrize("name", cases.LONG)
def test_a_long_memory_is_kept(name):
    check(cases.LONG[name].inputs(torch.float32, device="cuda"), cases.LONG_MEMORY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_reverse_and_within_limits_too(dtype):
    inputs = Case(length=1000, heads=8, width=64, states=64).inputs(dtype, device="cuda")
    check(inputs, cases.TOLERANCES[dtype], reverse=True, dt_limit=(0.003, 0.05))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_sequences_too(dtype, lengths, reverse):
    case = Case(batch=1, length=sum(lengths), heads=16, groups=2, width=16, states=32)
    inputs = case.inputs(dtype, device="cuda")
    generator = torch.Generator().manual_seed(3)
    state = torch.randn((len(lengths), 16, 16, 32), generator=generator)
    inputs["initial_state"] = state.cuda()
    edges = torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32)
    check(inputs, cases.TOLERANCES[dtype], cu_seqlens=edges, reverse=reverse)


def test_a_million_positions_too():
    case = Case(batch=1, length=(1 << 20) + 3, heads=8, width=16, states=16)
    inputs = case.inputs(torch.float32, device="cuda")
    # sqrt(2^20) = 16 times that of 4097 in the sums over time.
    check(inputs, Tolerance(8e-5, 1.6e-4, "eps 6e-8, times sqrt(L)"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_run_gives_the_same_bits(dtype):
    inputs = Case(length=3000, heads=8, width=64, states=128).inputs(dtype, device="cuda")
    first, weights = cases.outcome(inputs, backend="triton")
    for _ in range(3):
        again, _ = cases.outcome(inputs, weights, backend="triton")
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_slabs_change_no_bit_of_what_lies_along_time(monkeypatch):
    inputs = Case(length=5000, heads=8, width=64, states=128).inputs(torch.bfloat16, device="cuda")
    first, weights = cases.outcome(inputs, backend="triton")
    monkeypatch.setattr(triton, "_KEPT", 1 << 22)
    again, _ = cases.outcome(inputs, weights, backend="triton")
    along = [name for name in first if name not in ("dA", "dD", "ddt_bias")]
    assert all(torch.equal(again[name], first[name]) for name in along)


def test_a_row_alone_is_bit_by_bit_the_row_in_its_batch():
    case = Case(batch=5, length=1500, heads=8, width=64, states=64)
    inputs = case.inputs(torch.bfloat16, device="cuda")
    together, weights = cases.outcome(inputs, backend="triton")
    per_row = (*ALONG, "initial_state")
    alone = {name: t[3:4] if name in per_row else t for name, t in inputs.items()}
    row, _ = cases.outcome(alone, [weight[3:4] for weight in weights], backend="triton")
    for name in ("y", "state", *(f"d{name}" for name in per_row)):
        assert torch.equal(row[name], together[name][3:4]), name


def inside_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN right before and right behind them in memory."""
    around = torch.full((tensor.numel() + 512,), torch.nan, dtype=tensor.dtype, device="cuda")
    return around[256 : 256 + tensor.numel()].view(tensor.shape).copy_(tensor)


def test_nothing_beside_a_tensor_is_read_or_written(monkeypatch):
    case = Case(length=259, heads=3, width=17, states=33)
    inputs = case.inputs(torch.float32, device="cuda")
    want, weights = cases.outcome(inputs, backend="triton")
    made, empty = [], torch.empty

    def guarded(*size: Any, **kind: Any) -> Tensor:
        shape = torch.Size(size[0] if isinstance(size[0], tuple | torch.Size) else size)
        kind.pop("memory_format", None)
        around = empty(shape.numel() + 512, **kind)
        if around.is_floating_point():
            made.append((around.fill_(torch.nan), shape.numel()))
        return around[256 : 256 + shape.numel()].view(shape)

    monkeypatch.setattr(torch, "empty", guarded)
    safe = {name: inside_nan(tensor) for name, tensor in inputs.items()}
    got, _ = cases.outcome(safe, [inside_nan(w) for w in weights], backend="triton")
    monkeypatch.undo()
    assert made
    assert [name for name in want if not torch.equal(got[name], want[name])] == []
    for around, numel in made:
        assert around[:256].isnan().all()
        assert around[256 + numel :].isnan().all()


def test_offsets_within_a_tile_beyond_32_bits():
    """Positions 2^28 elements apart: a chunk of them spans 2^33."""
    inputs = Case(batch=1, length=40, heads=2, width=16, states=16).inputs(
        torch.bfloat16, device="cuda"
    )
    want, weights = cases.outcome(inputs, backend="triton")
    apart = (1 << 28) + 64
    room = torch.empty(39 * apart + 64, dtype=torch.bfloat16, device="cuda")
    far = room.as_strided((1, 40, 2, 16), (0, apart, 16, 1)).copy_(inputs["x"])
    got, _ = cases.outcome({**inputs, "x": far}, weights, backend="triton")
    assert all(torch.equal(got[name], want[name]) for name in want)


# Batch 4 of a million positions: x, y and their gradients have more than 2^31 elements each


def many(batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    heads, width, states = 8, 66, 128
    return {
        "x": normal(batch, length, heads, width),
        "dt": normal(batch, length, heads) - 4,
        "A": -1 - 15 * torch.rand(heads, generator=generator, device="cuda"),
        "B": normal(batch, length, 1, states),
        "C": normal(batch, length, 1, states),
    }


def test_four_rows_of_a_million_positions_are_float64():
    """dy is there for one channel and the last row alone: its truth is that of one channel."""
    if torch.cuda.get_device_properties(0).total_memory < 100 << 30:
        pytest.skip("needs 100 GiB of GPU memory")
    inputs = many(4, 1 << 20)
    assert inputs["x"].numel() > 1 << 31
    head, channel = 7, 65
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    y, state = ssd(**leaves, return_state=True, backend="triton")
    dy = torch.zeros_like(y)
    weight = torch.randn(1 << 20, device="cuda").bfloat16()
    dy[3, :, head, channel] = weight
    y.backward(dy)
    del dy
    row, one = slice(3, 4), slice(head, head + 1)
    few: dict[str, Tensor] = {
        "x": inputs["x"].detach()[row, :, one, channel : channel + 1],
        "dt": inputs["dt"].detach()[row, :, one],
        "A": inputs["A"].detach()[one],
        "B": inputs["B"].detach()[row],
        "C": inputs["C"].detach()[row],
    }
    exact = {name: tensor.double().requires_grad_() for name, tensor in few.items()}
    want, end = ssd(**exact, return_state=True, backend="portable")
    want[0, :, 0, 0].backward(weight.double())
    got: Results = {
        "y": y.detach()[row, :, one, channel : channel + 1],
        "state": state.detach()[row, one, channel : channel + 1],
        "dx": leaves["x"].grad[row, :, one, channel : channel + 1],
        "ddt": leaves["dt"].grad[row, :, one],
        "dA": leaves["A"].grad[one],
        "dB": leaves["B"].grad[row],
        "dC": leaves["C"].grad[row],
    }
    truth = {"y": want.detach(), "state": end.detach()}
    truth |= {f"d{name}": tensor.grad for name, tensor in exact.items()}
    narrow = {"dA": got.pop("dA")}
    assert cases.faults(narrow, {"dA": truth.pop("dA")}, Tolerance(1e-2, 1e-2, "one number")) == []
    assert cases.faults(got, truth, cases.TOLERANCES[torch.bfloat16]) == []
    assert not leaves["x"].grad[:3].any()
    assert not leaves["B"].grad[:3].any()


@pytest.mark.parametrize(("head", "channel"), [(0, 0), (3, 40)])
def test_every_row_of_a_large_batch_is_the_row_alone(head, channel):
    if torch.cuda.get_device_properties(0).total_memory < 100 << 30:
        pytest.skip("needs 100 GiB of GPU memory")
    inputs = many(4, 1 << 20)
    with torch.no_grad():
        y = ssd(**inputs, backend="triton")
        for row in range(4):
            alone = {n: t if n == "A" else t[row : row + 1] for n, t in inputs.items()}
            found = ssd(**alone, backend="triton")
            assert torch.equal(found[0, :, head, channel], y[row, :, head, channel])


def test_memory_beyond_inputs_outputs_and_gradients_is_bounded():
    length = 1 << 18
    case = Case(batch=1, length=length, heads=8, width=64, states=128, gated=False)
    leaves = {n: t.requires_grad_() for n, t in case.inputs(torch.bfloat16, device="cuda").items()}
    cases.outcome(leaves, backend="triton")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = ssd(**leaves, backend="triton")
    y.backward(y.detach())
    peak = torch.cuda.max_memory_allocated() - before
    of_results = 2 * y.nbytes + 2 * leaves["B"].nbytes
    plan_marks = 2 * 4 * 8 * 64 * 128 * (length // (16 * 64))  # states and their gradients, float32
    assert peak < of_results + plan_marks + triton._KEPT + (128 << 20)


def test_auto_is_triton():
    inputs = WIDE.inputs(torch.bfloat16, device="cuda")
    want = ssd(**inputs, backend="triton")
    assert torch.equal(ssd(**inputs), want)
    assert next(iter(BACKENDS.all())) == "triton"


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_torch_finds_no_fault_with_the_operator(packed):
    inputs = Case(batch=1, length=70, heads=4, groups=2).inputs(torch.float32, device="cuda")
    leaves = [inputs[name].requires_grad_() for name in Gradients._fields]
    edges = torch.tensor([0, 70], dtype=torch.int32, device="cuda") if packed else None
    options = (edges, True, 0.0, math.inf, False, None, "triton")
    torch.library.opcheck(op.apply, [*leaves, *options])


def test_it_is_captured_in_a_cuda_graph():
    inputs = WIDE.inputs(torch.bfloat16, device="cuda")
    want = ssd(**inputs, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ssd(**inputs, backend="triton")
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, want)
