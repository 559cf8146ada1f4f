"""The Mamba-2 block on a GPU: its kernels, its pieces and its memory."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dnassm.kernels.mamba2_inner import arguments
from dnassm.kernels.mamba2_inner.cases import Case, furthest, outcome, run
from dnassm.kernels.ssd.arguments import Gradients, Into, Ssd
from dnassm.kernels.ssd.cases import Case as SsdCase
from dnassm.kernels.ssd.op import BACKENDS as SSD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WIDE = Case(length=500, width=64, heads=4, head_dim=32, states=32)
CASES = {
    "plain": WIDE,
    "bare": dataclasses.replace(WIDE, bare=True),
    "reverse": dataclasses.replace(WIDE, reverse=True),
    "packed": dataclasses.replace(WIDE, batch=1, packed=(0, 1, 300, 500)),
    "packed, reverse": dataclasses.replace(WIDE, batch=1, packed=(0, 7, 499, 500), reverse=True),
    "two groups": dataclasses.replace(WIDE, groups=2, skip_per_channel=True),
    "limits": dataclasses.replace(WIDE, limit=(0.05, 0.3)),
    "as the paper's": dataclasses.replace(WIDE, heads=2, head_dim=64, states=128),
    "one position": dataclasses.replace(WIDE, length=1),
    "narrow": Case(length=33),
}
# Against float64 of the same numbers: products of some hundred rounded ones, several in a row.
ROUNDING = {torch.float32: 3e-4, torch.bfloat16: 5e-2}


@pytest.fixture(autouse=True)
def _products_in_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, object]]:
    options = case.options
    if "cu_seqlens" in options:
        options["cu_seqlens"] = options["cu_seqlens"].cuda()
    return case.inputs(dtype, device="cuda"), options


def truth(inputs: dict[str, Tensor], weights: list[Tensor], case: Case) -> dict[str, Tensor]:
    """The composition in float64 on the CPU, of the same numbers."""
    exact = {n: t.double().cpu() for n, t in inputs.items()}
    return outcome(exact, [w.cpu() for w in weights], fused=False, **case.options)[0]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", CASES)
def test_values_and_every_gradient_are_those_of_the_composition(name, dtype):
    case = CASES[name]
    inputs, options = on_gpu(case, dtype)
    want, weights = outcome(inputs, fused=False, **options)
    got, _ = outcome(inputs, weights, **options)
    # Rows of another length may get another product of cuBLAS: sums in another order.
    error = (got["y"] - want["y"]).float().norm() / want["y"].float().norm()
    assert error <= ROUNDING[dtype] / 10
    assert furthest(got, want)[0] <= ROUNDING[dtype], furthest(got, want)
    exact = truth(inputs, weights, case)
    for each in exact:  # no further than the composition, where that has its roundings too
        mine, theirs = (furthest({each: f[each]}, {each: exact[each]})[0] for f in (got, want))
        assert mine <= max(ROUNDING[dtype], 1.5 * theirs), (each, mine, theirs)


@pytest.mark.parametrize("keep", [(), ("scan",), tuple(arguments.KEEP)], ids=" ".join)
@pytest.mark.parametrize("name", ["plain", "reverse", "two groups"])
def test_where_rows_are_cut_changes_nothing(name, keep, monkeypatch):
    case = dataclasses.replace(CASES[name], length=4097)
    inputs, options = on_gpu(case, torch.float32)
    want, weights = outcome(inputs, fused=False, **options)
    monkeypatch.setitem(arguments.PIECE_BYTES, "cuda", 4097 * case.inner * 4 // 3)
    got, _ = outcome(inputs, weights, keep=keep, **options)
    assert furthest(got, want)[0] <= ROUNDING[torch.float32], furthest(got, want)


@pytest.mark.parametrize("backend", ["triton", "portable"])
def test_every_backend_serves_all_operators(backend):
    inputs, options = on_gpu(CASES["two groups"], torch.float32)
    want, weights = outcome(inputs, fused=False, backend="portable", **options)
    got, _ = outcome(inputs, weights, backend=backend, **options)
    assert furthest(got, want)[0] <= ROUNDING[torch.float32], furthest(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("over", [False, True], ids=["beside dy", "over dy"])
@pytest.mark.parametrize("name", ["wide", "wide heads", "strided"])
def test_the_gradients_of_ssd_are_written_where_they_are_wanted(name, over, dtype):
    sizes = {"wide": (64, 128), "wide heads": (130, 16), "strided": (24, 20)}
    width, states = sizes[name]
    case = SsdCase(length=300, heads=4, width=width, groups=2, states=states, gated=False)
    inputs = case.inputs(dtype, device="cuda")
    given = {field: inputs.get(field) for field in Gradients._fields}
    call = Ssd(**given, cu_seqlens=None, dt_softplus=True, dt_min=0.0, dt_max=math.inf,
               reverse=False, chunk=None)  # fmt: skip
    chosen = SSD.choose("triton", call)
    y, final, marks = chosen.forward(call)
    want = chosen.backward(call, marks, y, final)
    widths = [4 * width, 2 * states, 2 * states, 4, 3 if name == "strided" else 4]
    room = torch.full((2, 300, sum(widths)), torch.nan, device="cuda", dtype=dtype)
    x, B, C, dt, beside = room.split(widths, dim=2)
    into = Into(x.view(call.x.shape), B.view(call.B.shape), C.view(call.C.shape), dt)
    dy = into.x.copy_(y) if over else y
    got = chosen.backward(call, marks, dy, final, into)
    for field in ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state"):
        assert torch.equal(getattr(got, field), getattr(want, field)), field
    assert all(getattr(got, field) is place for field, place in into._asdict().items())
    assert beside.isnan().all()


def test_every_run_has_the_same_bits():
    inputs, options = on_gpu(CASES["two groups"], torch.bfloat16)
    first, weights = outcome(inputs, **options)
    for _ in range(3):
        again, _ = outcome(inputs, weights, **options)
        assert [name for name in first if not torch.equal(first[name], again[name])] == []


def test_autocast_casts_what_it_casts_in_the_composition():
    inputs, options = on_gpu(CASES["two groups"], torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        want, weights = outcome(inputs, fused=False, **options)
        got, _ = outcome(inputs, weights, **options)
    assert got["y"].dtype == torch.bfloat16
    assert torch.equal(got["y"], want["y"])
    assert furthest(got, want)[0] <= ROUNDING[torch.bfloat16], furthest(got, want)
    assert got["din_weight"].dtype == torch.float32


def peak_beyond(call: object) -> int:
    """Bytes at the worst moment of a call beyond what there was before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - base


def test_memory_is_that_of_a_piece_beside_what_is_kept(monkeypatch):
    """At 2^18 positions, E 512 and 2^15 a piece, in tensors (1, L, E): what README, 2, counts."""
    case = Case(1, 1 << 18, 256, heads=8, head_dim=64, states=128, bare=True)
    leaves = {n: t.requires_grad_() for n, t in case.inputs(torch.bfloat16, device="cuda").items()}
    dy = torch.ones_like(leaves["x"])
    whole = dy.nbytes * 2
    monkeypatch.setitem(arguments.PIECE_BYTES, "cuda", whole // 8)
    how = {"keep": ("projected", "scan")}
    run(leaves, **how)[0].backward(dy)  # compiles, and makes room for the gradients
    beyond = peak_beyond(lambda: run(leaves, **how)[0].backward(dy))
    y_and_dx = whole
    projected, scanned, marks = whole * 1296 / 512, whole, whole / 2
    # SSD keeps states of chunks in its backward, as many as its slab has room for.
    states = min(1 << 29, 2 * (128 / 64) * whole / 8)
    assert beyond <= y_and_dx + projected + scanned + marks + 4.5 * whole / 8 + states + (96 << 20)


def test_the_composition_takes_more_memory(monkeypatch):
    case = Case(1, 1 << 17, 256, heads=8, head_dim=64, states=128, bare=True)
    leaves = {n: t.requires_grad_() for n, t in case.inputs(torch.bfloat16, device="cuda").items()}
    dy = torch.ones_like(leaves["x"])
    monkeypatch.setitem(arguments.PIECE_BYTES, "cuda", dy.nbytes // 2)
    found = []
    for how in ({"keep": ("projected", "scan")}, {"fused": False}):
        run(leaves, **how)[0].backward(dy)
        found.append(peak_beyond(lambda how=how: run(leaves, **how)[0].backward(dy)))
    assert found[0] < 0.85 * found[1], found
