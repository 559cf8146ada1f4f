"""The causal convolution on a GPU: its CUDA and Triton kernels against the float64 reference."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.causal_conv1d import BACKENDS, cases, causal_conv1d, causal_conv1d_step
from dnassm.kernels.causal_conv1d.arguments import Conv
from dnassm.kernels.causal_conv1d.cases import Case, Tolerance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Results = dict[str, Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FAST = ["cuda", "triton"]
SHAPES = {
    **cases.CASES,
    **{f"length {n}": Case(length=n, channels=64) for n in (15, 16, 17, 33, 63, 127, 4095)},
    **{f"{c} channels": Case(channels=c, length=100) for c in (2, 4, 8, 12, 96, 520)},
    **{f"width {k}": Case(width=k, channels=32, length=90) for k in (1, 2, 3, 4, 5, 6, 8, 9, 32)},
    "batch": Case(batch=70, length=50, channels=40),
    "packed, long": Case.of_sequences(1000, 1, 2, 3, 500, 8, 16, 777, channels=64),
    "packed, reverse, long": Case.of_sequences(1000, 1, 2, 500, 8, 777, channels=64, reverse=True),
    "packed, width 8": Case.of_sequences(100, 3, 2, 70, channels=16, width=8),
}


def run(
    inputs: Results, backend: str, weights: list[Tensor] | None = None, **options: Any
) -> tuple[Results, list[Tensor]]:
    """Values and gradients by name; the loss goes through y and through the final state."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    results = causal_conv1d(**leaves, return_state=True, backend=backend, **options)
    generator = torch.Generator().manual_seed(99)
    if weights is None:
        weights = [torch.randn(r.shape, generator=generator).to(r) for r in results]
    assert all(result.dtype == inputs["x"].dtype for result in results)
    torch.autograd.backward(results, [w.to(r) for w, r in zip(weights, results, strict=True)])
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"y": results[0].detach(), "state": results[1].detach(), **gradients}, weights


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        if expected.numel() == 0:
            continue
        error = got[name].double().cpu() - expected.double().cpu()
        rms = error.square().mean().sqrt() / expected.square().mean().sqrt()
        worst = error.abs().max() / expected.abs().max()
        assert rms <= tolerance.rms, f"{name}: rms {rms:.2g} > {tolerance.rms} ({tolerance.why})"
        assert worst <= tolerance.worst, f"{name}: worst {worst:.2g} > {tolerance.worst}"


def assert_same(got: Results, want: Results) -> None:
    for name, expected in want.items():
        assert torch.equal(got[name], expected), name


def skip_unless_able(backend: str, inputs: Results) -> None:
    call = Conv(inputs["x"], inputs["weight"], None, None, None, silu=True, reverse=False)
    reason = BACKENDS.all()[backend].supports(call)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def on_gpu(case: Case, dtype: torch.dtype) -> tuple[Results, dict[str, Any]]:
    """Tensors, strided if the case is (`to` makes them dense), and options."""
    inputs = case.inputs(dtype, device="cuda")
    if case.strided:
        for name, tensor in inputs.items():
            shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
            wide = torch.full(shape, torch.nan, dtype=tensor.dtype, device="cuda")
            inputs[name] = wide[..., 1::2].copy_(tensor)
    return inputs, case.options("cuda")


BRIEF = [
    "length 65",
    "33 channels",
    "64 channels",
    "reverse, strided",
    "wider than long",
    "packed",
    "packed, reverse, long",
]
# Every pair of a dtype and an activation is compiled anew: all of them for some shapes only.
VALUES = [
    *itertools.product(["cuda"], SHAPES, [torch.float32, torch.bfloat16], [True]),
    *itertools.product(["cuda"], BRIEF, [torch.float16], [True]),
    *itertools.product(["cuda"], BRIEF, [torch.bfloat16], [False]),
    *itertools.product(["triton"], BRIEF, [torch.bfloat16], [True]),
    *itertools.product(["triton"], ["length 65", "packed, reverse"], [torch.float32], [False]),
]


@pytest.mark.parametrize(("backend", "name", "dtype", "silu"), VALUES)
def test_values_and_every_gradient_are_those_of_the_reference(backend, name, dtype, silu):
    case = SHAPES[name]
    inputs, options = on_gpu(case, dtype)
    skip_unless_able(backend, inputs)
    got, weights = run(inputs, backend, silu=silu, **options)
    exact = {name: tensor.cpu().double() for name, tensor in inputs.items()}
    truth = "reference" if case.length < 200 else "portable"
    if options["cu_seqlens"] is not None:
        options["cu_seqlens"] = options["cu_seqlens"].cpu()
    want, _ = run(exact, truth, [w.cpu().double() for w in weights], silu=silu, **options)
    assert_near(got, want, cases.TOLERANCES[dtype])


def test_auto_is_the_cuda_kernel():
    inputs, _ = on_gpu(Case(), torch.float32)
    skip_unless_able("cuda", inputs)
    call = Conv(inputs["x"], inputs["weight"], None, None, None, silu=True, reverse=False)
    assert BACKENDS.choose("auto", call).__name__.endswith(".cuda")


SLICES = [
    *itertools.product(["cuda"], DTYPES, [0, 1, 2, 4, 8]),
    *itertools.product(["triton"], [torch.bfloat16], [0, 1]),
]


@pytest.mark.parametrize(("backend", "dtype", "offset"), SLICES)
def test_a_slice_of_a_projection_is_taken_wherever_it_begins(backend, dtype, offset):
    """Aligned or not, with NaN on both sides; gradients come as of the contiguous input."""
    inputs, _ = on_gpu(Case(length=300, channels=64), dtype)
    skip_unless_able(backend, inputs)
    want, weights = run(inputs, backend, silu=True)
    wide = torch.full((2, 300, 160), torch.nan, dtype=dtype, device="cuda")
    view = wide[:, :, offset : offset + 64].copy_(inputs["x"])
    got, _ = run({**inputs, "x": view}, backend, weights, silu=True)
    for name in ("y", "state", "dx", "dinitial_state"):
        assert torch.equal(got[name], want[name]), name
    assert_near(got, want, cases.TOLERANCES[torch.float32])


def inside_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN right before and right behind them in memory."""
    around = torch.full((tensor.numel() + 512,), torch.nan, dtype=tensor.dtype, device="cuda")
    return around[256 : 256 + tensor.numel()].view(tensor.shape).copy_(tensor)


GUARDED = ["length 65", "33 channels", "64 channels", "packed", "packed, reverse", "length 4097"]


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("backend", FAST)
def test_nothing_beside_a_tensor_is_read_or_written(backend, name, monkeypatch):
    inputs, options = on_gpu(SHAPES[name], torch.bfloat16)
    skip_unless_able(backend, inputs)
    want, weights = run(inputs, backend, **options)
    made, empty = [], torch.empty

    def guarded(*size: Any, **kind: Any) -> Tensor:
        shape = torch.Size(size[0] if isinstance(size[0], tuple | torch.Size) else size)
        around = empty(shape.numel() + 512, **kind).fill_(torch.nan)
        made.append((around, shape.numel()))
        return around[256 : 256 + shape.numel()].view(shape)

    monkeypatch.setattr(torch, "empty", guarded)
    safe = {name: inside_nan(tensor) for name, tensor in inputs.items()}
    assert_same(run(safe, backend, [inside_nan(w) for w in weights], **options)[0], want)
    monkeypatch.undo()
    assert made
    for around, numel in made:
        assert around[:256].isnan().all()
        assert around[256 + numel :].isnan().all()


@pytest.mark.parametrize("name", ["64 channels", "packed, long", "reverse", "width 3", "batch"])
@pytest.mark.parametrize("backend", FAST)
def test_every_run_gives_the_same_bits(backend, name):
    inputs, options = on_gpu(SHAPES[name], torch.bfloat16)
    skip_unless_able(backend, inputs)
    first, weights = run(inputs, backend, silu=True, **options)
    for _ in range(3):
        assert_same(run(inputs, backend, weights, silu=True, **options)[0], first)


@pytest.mark.parametrize("backend", FAST)
def test_a_row_alone_is_the_row_in_its_batch(backend):
    inputs, _ = on_gpu(Case(batch=9, length=3000, channels=64), torch.bfloat16)
    skip_unless_able(backend, inputs)
    whole, (dy, dstate) = run(inputs, backend, silu=True)
    row = {n: t[4:5] if n in ("x", "initial_state") else t for n, t in inputs.items()}
    alone, _ = run(row, backend, [dy[4:5], dstate[4:5]], silu=True)
    for name in ("y", "state", "dx", "dinitial_state"):
        assert torch.equal(alone[name], whole[name][4:5]), name


@pytest.mark.parametrize("reverse", [False, True], ids=["onwards", "reverse"])
def test_packed_sequences_are_sequences_apart_bit_for_bit(reverse):
    backend = "cuda"
    case = dataclasses.replace(SHAPES["packed, long"], reverse=reverse)
    inputs, options = on_gpu(case, torch.bfloat16)
    skip_unless_able(backend, inputs)
    packed, (dy, dstate) = run(inputs, backend, silu=True, **options)
    edges = [0, *itertools.accumulate(case.packed)]
    for s, (begin, end) in enumerate(itertools.pairwise(edges)):
        state = inputs["initial_state"][s : s + 1]
        alone = {**inputs, "x": inputs["x"][:, begin:end], "initial_state": state}
        weights = [dy[:, begin:end], dstate[s : s + 1]]
        found, _ = run(alone, backend, weights, silu=True, reverse=reverse)
        assert torch.equal(packed["y"][:, begin:end], found["y"])
        assert torch.equal(packed["dx"][:, begin:end], found["dx"])
        assert torch.equal(packed["state"][s : s + 1], found["state"])
        assert torch.equal(packed["dinitial_state"][s : s + 1], found["dinitial_state"])


def test_reverse_is_the_flip_of_what_the_flip_gives_bit_for_bit():
    backend = "cuda"
    inputs, _ = on_gpu(Case(length=1001, channels=64), torch.bfloat16)
    skip_unless_able(backend, inputs)
    got, (dy, dstate) = run(inputs, backend, silu=True, reverse=True)
    flipped = {**inputs, "x": inputs["x"].flip(1)}
    want, _ = run(flipped, backend, [dy.flip(1), dstate], silu=True)
    assert_same(got, {**want, "y": want["y"].flip(1), "dx": want["dx"].flip(1)})


@pytest.mark.parametrize("cut", [1, 2, 500, 998])
@pytest.mark.parametrize("backend", FAST)
def test_two_calls_through_the_state_are_one_call(backend, cut):
    inputs, _ = on_gpu(Case(length=1000, channels=64), torch.float32)
    skip_unless_able(backend, inputs)
    whole, weights = run(inputs, backend, silu=True)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    x, how = leaves["x"], {"silu": True, "return_state": True, "backend": backend}
    left, state = causal_conv1d(**{**leaves, "x": x[:, :cut]}, **how)
    right, end = causal_conv1d(**{**leaves, "x": x[:, cut:], "initial_state": state}, **how)
    y = torch.cat([left, right], 1)
    torch.autograd.backward((y, end), weights)
    assert torch.equal(y, whole["y"])
    assert torch.equal(end, whole["state"])
    got = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    want = {name: tensor for name, tensor in whole.items() if name in got}
    assert_near(got, want, cases.TOLERANCES[torch.float32])


def test_steps_are_the_convolution():
    inputs, _ = on_gpu(Case(length=20, channels=64), torch.bfloat16)
    want, end = causal_conv1d(**inputs, silu=True, return_state=True)
    state = inputs["initial_state"]
    for t in range(20):
        x = inputs["x"][:, t]
        y, state = causal_conv1d_step(x, inputs["weight"], inputs["bias"], state, silu=True)
        assert torch.equal(y, want[:, t])
    assert torch.equal(state, end)


@pytest.mark.parametrize("backend", FAST)
def test_an_expanded_gradient_is_taken(backend):
    inputs, _ = on_gpu(Case(channels=64), torch.float32)
    skip_unless_able(backend, inputs)
    x = inputs["x"].requires_grad_()
    y = causal_conv1d(**inputs, backend=backend)
    (want,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, want)


@pytest.mark.parametrize("backend", FAST)
def test_offsets_beyond_32_bits(backend):
    """Rows so far apart that the last ones lie beyond 2^32 numbers; dense ones cannot be tried."""
    apart, length = 1 << 18, (1 << 14) + 7
    wide = torch.zeros(apart * length, dtype=torch.bfloat16, device="cuda")
    x = wide.view(1, length, apart)[:, :, apart - 64 :]
    generator = torch.Generator(device="cuda").manual_seed(1)
    x.copy_(torch.randn(x.shape, generator=generator, device="cuda"))
    weight = torch.randn(64, 4, generator=generator, device="cuda")
    skip_unless_able(backend, {"x": x, "weight": weight})
    inputs = {"x": x, "weight": weight}
    for reverse in (False, True):
        got, weights = run(inputs, backend, silu=True, reverse=reverse)
        dense = {**inputs, "x": x.contiguous()}
        want, _ = run(dense, backend, weights, silu=True, reverse=reverse)
        assert torch.equal(got["y"], want["y"])
        assert torch.equal(got["dx"], want["dx"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["onwards", "reverse"])
@pytest.mark.parametrize("backend", FAST)
def test_results_are_written_where_they_are_wanted(backend, reverse, dtype):
    inputs, _ = on_gpu(Case(length=4095, channels=64), dtype)
    skip_unless_able(backend, inputs)
    call = Conv(**inputs, cu_seqlens=None, silu=True, reverse=reverse)
    chosen = BACKENDS.choose(backend, call)
    dy, dfinal = torch.ones_like(call.x), call.x.new_zeros(call.state_shape)
    for found in (chosen.forward, lambda call: chosen.backward(call, dy, dfinal)):
        around = torch.full((*call.x.shape[:2], 3 * 64), torch.nan, dtype=dtype, device="cuda")
        before, into, behind = around.chunk(3, dim=2)
        got = found(dataclasses.replace(call, into=into))
        assert got[0] is into
        assert torch.equal(got[0], found(call)[0])
        assert before.isnan().all()
        assert behind.isnan().all()


def test_an_output_of_more_than_2_to_the_31_numbers():
    length, channels = (1 << 23) + 5, 264
    x = torch.randn(1, length, channels, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(channels, 4, device="cuda")
    skip_unless_able("cuda", {"x": x, "weight": weight})
    leaf = x.requires_grad_()
    y = causal_conv1d(leaf, weight, silu=True, backend="cuda")
    dy = torch.zeros_like(y)
    dy[:, -50:] = 1
    (dx,) = torch.autograd.grad(y, leaf, dy)
    tail = x.detach()[:, -103:].requires_grad_()
    want = causal_conv1d(tail, weight, silu=True, backend="portable")
    torch.testing.assert_close(y[:, -100:], want[:, -100:], rtol=2e-2, atol=2e-2)
    (expected,) = torch.autograd.grad(want, tail, dy[:, -103:])
    torch.testing.assert_close(dx[:, -53:], expected[:, -53:], rtol=2e-2, atol=2e-2)
    assert not dx[:, :-53].any()


def test_it_is_captured_in_a_cuda_graph():
    inputs, _ = on_gpu(Case(length=100, channels=64), torch.bfloat16)
    skip_unless_able("cuda", inputs)
    want = causal_conv1d(**inputs, silu=True, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = causal_conv1d(**inputs, silu=True, backend="cuda")
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, want)


def test_bad_edges_are_named_on_a_gpu():
    x, weight = torch.ones(1, 3, 4, device="cuda"), torch.ones(4, 4, device="cuda")
    with pytest.raises(ShapeError, match="cu_seqlens must rise from 0 to L = 3"):
        causal_conv1d(x, weight, cu_seqlens=torch.tensor([0, 4], device="cuda"))
