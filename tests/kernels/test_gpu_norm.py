"""The norms on a GPU: the Triton kernels against the float64 reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dnassm.kernels.norm import BACKENDS, add_norm, cases, norm
from dnassm.kernels.norm.arguments import Into, Norm, Wanted
from dnassm.kernels.norm.cases import Case, Tolerance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Results = dict[str, Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {
    **cases.CASES,
    "256 channels": Case(shape=(2, 1500, 256), residual=True),
    "768 channels": Case(shape=(3, 700, 768), residual=True, kind="layer", bias=True),
    "512 channels, gate": Case(shape=(3, 700, 512), gate=True),
    "2048 channels, gate, groups": Case(shape=(90, 2048), gate=True, groups=8),
    "8192 channels": Case(shape=(70, 8192), residual=True),
    "8191 channels": Case(shape=(9, 8191), kind="layer", bias=True),
    "8192 channels, gate": Case(shape=(9, 8192), gate=True, kind="layer", bias=True),
    "8193 channels": Case(shape=(9, 8193), residual=True),  # the portable backend
    "more tiles than programs": Case(shape=(70000, 40), residual=True, bias=True),
}


def called(inputs: Results, case: Case, backend: str) -> tuple[Tensor, ...]:
    """Y, and the sum where there is a residual."""
    if case.residual:
        return add_norm(**inputs, **case.options(), backend=backend)
    return (norm(**inputs, **case.options(), backend=backend),)


def run(
    inputs: Results, case: Case, backend: str = "auto", weights: list[Tensor] | None = None
) -> tuple[Results, list[Tensor]]:
    """Values and gradients by name; the loss goes through y and through the sum."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    results = called(leaves, case, backend)
    generator = torch.Generator().manual_seed(99)
    weights = weights or [torch.randn(r.shape, generator=generator).to(r) for r in results]
    torch.autograd.backward(results, [w.to(r) for w, r in zip(weights, results, strict=True)])
    values = {name: r.detach() for name, r in zip(("y", "sum"), results, strict=False)}
    return values | {f"d{name}": leaf.grad for name, leaf in leaves.items()}, weights


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        error = got[name].double() - expected.double()
        rms = error.square().mean().sqrt() / (expected.double().square().mean().sqrt() + 1e-30)
        worst = error.abs().max() / (expected.abs().max() + 1e-30)
        assert rms <= tolerance.rms, f"{name}: rms {rms:.2g} > {tolerance.rms} ({tolerance.why})"
        assert worst <= tolerance.worst, f"{name}: worst {worst:.2g} > {tolerance.worst}"


def assert_same(got: Results, want: Results) -> None:
    for name, expected in want.items():
        assert torch.equal(got[name], expected), name


def on_gpu(case: Case, dtype: torch.dtype) -> Results:
    """Tensors, strided if the case is (`to` makes them dense)."""
    inputs = case.inputs(dtype, device="cuda")
    if case.strided:
        for name, tensor in inputs.items():
            shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
            wide = torch.full(shape, torch.nan, dtype=tensor.dtype, device="cuda")
            inputs[name] = wide[..., 1::2].copy_(tensor)
    return inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_every_gradient_are_those_of_the_reference(name, dtype):
    case = SHAPES[name]
    inputs = on_gpu(case, dtype)
    got, weights = run(inputs, case)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, case, "reference", [w.double() for w in weights])
    assert_near(got, want, cases.TOLERANCES[dtype])


def test_auto_is_triton_up_to_its_width():
    def chosen(channels: int) -> str:
        x = torch.empty(1, channels, device="cuda")
        call = Norm(x, x[0], None, None, None, False, 1e-5, 1, x.dtype)
        return BACKENDS.choose("auto", call).__name__.rpartition(".")[2]

    assert [chosen(8192), chosen(8193)] == ["triton", "portable"]


SLICES = [*itertools.product(DTYPES, [0, 1, 2, 8])]


@pytest.mark.parametrize(("dtype", "offset"), SLICES)
def test_a_slice_of_a_projection_is_taken_wherever_it_begins(dtype, offset):
    """Aligned or not, with NaN on both sides; what comes out is that of the contiguous input."""
    case = Case(shape=(2, 300, 64), gate=True)
    inputs = on_gpu(case, dtype)
    want, weights = run(inputs, case)
    wide = torch.full((2, 300, 160), torch.nan, dtype=dtype, device="cuda")
    view = wide[:, :, offset : offset + 64].copy_(inputs["x"])
    got, _ = run({**inputs, "x": view}, case, "auto", weights)
    assert_near(got, want, cases.TOLERANCES[dtype])


def inside_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN right before and right behind them in memory."""
    around = torch.full((tensor.numel() + 512,), torch.nan, dtype=tensor.dtype, device="cuda")
    return around[256 : 256 + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("name", ["width 33", "768 channels", "gate, groups", "8191 channels"])
def test_nothing_beside_a_tensor_is_read_or_written(name, monkeypatch):
    case = SHAPES[name]
    inputs = on_gpu(case, torch.bfloat16)
    want, weights = run(inputs, case)
    made, empty = [], torch.empty

    def guarded(shape: tuple[int, ...], **kind: Any) -> Tensor:
        size = torch.Size(shape)
        around = empty((size.numel() + 512,), **kind).fill_(torch.nan)
        made.append((around, size.numel()))
        return around[256 : 256 + size.numel()].view(size)

    safe = {name: inside_nan(tensor) for name, tensor in inputs.items()}
    grads = [inside_nan(w) for w in weights]
    monkeypatch.setattr(torch, "empty", guarded)
    got, _ = run(safe, case, "auto", grads)
    monkeypatch.undo()
    assert_same(got, want)
    assert made
    for around, numel in made:
        assert around[:256].isnan().all()
        assert around[256 + numel :].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("over", [False, True], ids=["beside dy", "over dy"])
@pytest.mark.parametrize("width", [40, 512, 1536, 8191])
def test_gradients_are_written_where_they_are_wanted(width, over, dtype):
    case = Case(shape=(2, 700, width), gate=True)
    given = {"bias": None, "residual": None, **on_gpu(case, dtype)}
    call = Norm(**given, centred=False, eps=1e-5, groups=1, total_dtype=dtype)
    chosen, wanted = BACKENDS.choose("triton", call), Wanted(dtype, None)
    dy = torch.randn(case.shape, device="cuda").to(dtype)
    want = chosen.backward(call, dy, None, wanted)
    room = torch.full((2, 700, 3 * width + 16), torch.nan, device="cuda", dtype=dtype)
    dx, beside, dgate, behind = room.split([width, width, width, 16], dim=-1)
    dy = dx.copy_(dy) if over else dy
    got = chosen.backward(call, dy, None, wanted, Into(dx, dgate))
    assert got.x is dx
    assert got.gate is dgate
    # Strides that are no multiple of 16 give Triton another layout, and sums another order.
    torch.testing.assert_close(got, want, rtol=4 * torch.finfo(dtype).eps, atol=1e-4)
    assert beside.isnan().all()
    assert behind.isnan().all()


@pytest.mark.parametrize("name", ["256 channels", "512 channels, gate", "more tiles than programs"])
def test_every_run_gives_the_same_bits(name):
    case = SHAPES[name]
    inputs = on_gpu(case, torch.bfloat16)
    first, weights = run(inputs, case)
    for _ in range(3):
        assert_same(run(inputs, case, "auto", weights)[0], first)


@pytest.mark.parametrize("name", ["256 channels", "768 channels", "512 channels, gate"])
def test_a_row_alone_is_the_row_in_its_batch(name):
    case = SHAPES[name]
    inputs = on_gpu(case, torch.bfloat16)
    whole, weights = run(inputs, case)
    one = {n: t if t.dim() == 1 else t[1:2, 503:504] for n, t in inputs.items()}
    alone, _ = run(one, case, "auto", [w[1:2, 503:504] for w in weights])
    for name in ("y", "sum", "dx", "dresidual", "dgate"):
        if name in whole:
            assert torch.equal(alone[name], whole[name][1:2, 503:504]), name


def test_an_expanded_gradient_is_taken():
    inputs = on_gpu(Case(shape=(2, 100, 64)), torch.float32)
    x = inputs["x"].requires_grad_()
    y = norm(**inputs)
    (want,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    (got,) = torch.autograd.grad(y.sum(), x)
    # Strides of 0 give Triton another layout, and sums over a row another order.
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["residual", "gate"])
def test_more_than_2_to_the_31_numbers(kind):
    """The last rows of a tensor whose offsets need 64 bits are those rows alone."""
    rows, channels = (1 << 23) + 5, 264
    x = torch.zeros(rows, channels, device="cuda", dtype=torch.bfloat16)
    generator = torch.Generator(device="cuda").manual_seed(1)
    x[-50:] = torch.randn(50, channels, generator=generator, device="cuda")
    weight = torch.randn(channels, generator=generator, device="cuda")
    other = torch.ones_like(x)

    def normed(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        if kind == "residual":
            y, _ = add_norm(leaf, other, weight)
        else:
            y = norm(leaf, weight, gate=other)
        (dx,) = torch.autograd.grad(y, leaf, y.detach())
        return y.detach(), dx

    want_y, want_dx = normed(x[-50:], other[-50:])
    y, dx = normed(x, other)
    assert torch.equal(y[-50:], want_y)
    assert torch.equal(dx[-50:], want_dx)
    if kind == "gate":
        assert not y[:-50].any()
        assert not dx[:-50].any()


def test_rows_so_far_apart_that_offsets_need_64_bits():
    apart, rows = 1 << 18, (1 << 14) + 7
    wide = torch.zeros(apart * rows, dtype=torch.bfloat16, device="cuda")
    x = wide.view(rows, apart)[:, apart - 64 :]
    x.copy_(torch.randn(x.shape, device="cuda"))
    inputs = {"x": x, "weight": torch.randn(64, device="cuda")}
    case = Case()
    got, weights = run(inputs, case)
    want, _ = run({**inputs, "x": x.contiguous()}, case, "auto", weights)
    assert_same(got, want)


def test_it_is_captured_in_a_cuda_graph():
    inputs = on_gpu(SHAPES["256 channels"], torch.bfloat16)
    want, _ = add_norm(**inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = add_norm(**inputs)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, want)
