"""The fused loss on a GPU: Triton and portable against the float64 reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.linear_cross_entropy import BACKENDS, cases, linear_cross_entropy
from dnassm.kernels.linear_cross_entropy.arguments import Loss
from dnassm.kernels.linear_cross_entropy.cases import Case, Tolerance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Results = dict[str, Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {
    **cases.CASES,
    "256 channels": Case(leading=(2, 5000), width=256, bias=True, reduction="sum"),
    "1024 channels": Case(leading=(3000,), width=1024, vocabulary=16, reduction="sum"),
    **{
        f"vocabulary {v}": Case(leading=(1000,), width=128, vocabulary=v, reduction="sum")
        for v in (31, 32, 33, 64, 65, 128, 129, 1024)
    },
    "vocabulary 4096": Case(
        leading=(9000,), width=64, vocabulary=4096, bias=True, smoothing=0.1, reduction="sum"
    ),
    "more tiles than programs": Case(leading=(100_000,), width=40, weighted=True, reduction="sum"),
}


def run(
    inputs: Results, case: Case, backend: str = "auto", given: Tensor | None = None
) -> tuple[Results, Tensor]:
    """Loss, count and gradients by name, of a loss that gets the gradient `given`."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    options = {**case.options("cuda"), "backend": backend}
    loss, count = linear_cross_entropy(**leaves, **options)
    if given is None:
        generator = torch.Generator().manual_seed(99)
        given = torch.randn(loss.shape, generator=generator).cuda()
    loss.backward(given.to(loss.dtype))
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"loss": loss.detach(), "count": count.detach(), **gradients}, given


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
        for name in ("hidden", "weight"):
            tensor = inputs[name]
            shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
            wide = torch.full(shape, torch.nan, dtype=tensor.dtype, device="cuda")
            inputs[name] = wide[..., 1::2].copy_(tensor)
    return inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("backend", ["triton", "portable"])
def test_values_and_every_gradient_are_those_of_the_reference(backend, name, dtype):
    case = SHAPES[name]
    inputs = on_gpu(case, dtype)
    if backend == "triton" and case.vocabulary > 128:
        pytest.skip("the portable backend serves a vocabulary of that size")
    got, given = run(inputs, case, backend)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, case, "reference", given)
    assert_near(got, want, cases.TOLERANCES[dtype])


def test_auto_is_triton_up_to_its_vocabulary():
    def chosen(vocabulary: int) -> str:
        x, weight = torch.empty(2, 8, device="cuda"), torch.empty(vocabulary, 8, device="cuda")
        call = Loss(x, weight, None, torch.zeros(2, dtype=torch.int64).cuda(), -100, 0.0)
        return BACKENDS.choose("auto", call).__name__.rpartition(".")[2]

    assert [chosen(128), chosen(129)] == ["triton", "portable"]


def inside_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN right before and right behind them in memory."""
    around = torch.full((tensor.numel() + 512,), torch.nan, dtype=tensor.dtype, device="cuda")
    return around[256 : 256 + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("name", ["vocabulary 17", "width 65", "weights, none", "256 channels"])
def test_nothing_beside_a_tensor_is_read_or_written(name, monkeypatch):
    case = SHAPES[name]
    inputs = on_gpu(case, torch.bfloat16)
    want, given = run(inputs, case)
    made, empty = [], torch.empty

    def guarded(shape: tuple[int, ...], **kind: Any) -> Tensor:
        size = torch.Size(shape)
        around = empty((size.numel() + 512,), **kind).fill_(torch.nan)
        made.append((around, size.numel()))
        return around[256 : 256 + size.numel()].view(size)

    safe, gradient = {n: inside_nan(t) for n, t in inputs.items()}, inside_nan(given)
    monkeypatch.setattr(torch, "empty", guarded)
    got, _ = run(safe, case, "auto", gradient)
    monkeypatch.undo()
    assert_same(got, want)
    assert made
    for around, numel in made:
        assert around[:256].isnan().all()
        assert around[256 + numel :].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["256 channels", "more tiles than programs", "vocabulary 1024"])
def test_every_run_gives_the_same_bits(name, dtype):
    """A program adds its tiles up in memory: what one has stored the next must see."""
    case = SHAPES[name]
    inputs = on_gpu(case, dtype)
    first, given = run(inputs, case)
    for _ in range(5):
        assert_same(run(inputs, case, "auto", given)[0], first)


def test_a_token_alone_is_that_token_in_its_batch():
    case = dataclasses.replace(SHAPES["256 channels"], reduction="none", ignored=0.0)
    inputs, options = on_gpu(case, torch.bfloat16), case.options("cuda")
    whole, _ = linear_cross_entropy(**inputs, **options)
    one = {**inputs, "hidden": inputs["hidden"][1:2, 4000:4001]}
    options["targets"] = options["targets"][1:2, 4000:4001]
    alone, _ = linear_cross_entropy(**one, **options)
    assert torch.equal(alone, whole[1:2, 4000:4001])


def test_the_mean_over_many_tokens_keeps_its_gradient_in_float16():
    case = Case(leading=(1 << 20,), width=32, ignored=0.0)
    inputs = on_gpu(case, torch.float16)
    leaf = inputs["weight"].float().requires_grad_()
    loss, _ = linear_cross_entropy(inputs["hidden"], leaf, **case.options("cuda"))
    loss.backward()
    exact = inputs["weight"].double().requires_grad_()
    want, _ = linear_cross_entropy(inputs["hidden"].double(), exact, **case.options("cuda"))
    want.backward()
    error = (leaf.grad.double() - exact.grad).abs().max()
    assert error < 1e-3 * exact.grad.abs().max()


@pytest.mark.parametrize("name", ["no targets", "all but one"])
def test_where_nothing_counts_loss_and_gradients_are_zero(name):
    case = Case(leading=(4, 1000), width=64, bias=True)
    inputs = {n: t.requires_grad_() for n, t in on_gpu(case, torch.bfloat16).items()}
    targets = torch.full((4, 1000), -100, device="cuda")
    if name == "all but one":
        targets[2, 7] = 3
    loss, count = linear_cross_entropy(**inputs, targets=targets)
    loss.backward()
    assert int(count) == int(name != "no targets")
    assert bool(loss == 0) == (name == "no targets")
    assert inputs["hidden"].grad.any(-1).sum() == count
    assert bool(inputs["weight"].grad.any()) == (name != "no targets")


@pytest.mark.parametrize("vocabulary", [8, 4096])
def test_the_logits_of_all_tokens_are_never_stored(vocabulary):
    case = Case(leading=(1 << 18,), width=256, vocabulary=vocabulary, ignored=0.0)
    inputs = {n: t.requires_grad_() for n, t in on_gpu(case, torch.bfloat16).items()}
    options = case.options("cuda")
    run(inputs, case)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss, _ = linear_cross_entropy(**inputs, **options)
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    extra = torch.cuda.max_memory_allocated() - before - sum(g.nbytes for g in gradients)
    assert extra < (100 << 20 if vocabulary == 8 else 1 << 30)  # of 4 GiB in float32


def test_more_than_2_to_the_31_numbers():
    """The last tokens of hidden states whose offsets need 64 bits are those tokens alone."""
    tokens, width = (1 << 23) + 5, 264
    generator = torch.Generator(device="cuda").manual_seed(1)
    hidden = torch.zeros(tokens, width, device="cuda", dtype=torch.bfloat16)
    hidden[-50:] = torch.randn(50, width, generator=generator, device="cuda")
    weight = torch.randn(8, width, generator=generator, device="cuda", dtype=torch.bfloat16) / 16
    targets = torch.full((tokens,), -100, device="cuda")
    targets[-50:] = torch.arange(50, device="cuda") % 8

    def found(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        leaves = (hidden.detach().requires_grad_(), weight.detach().requires_grad_())
        losses, _ = linear_cross_entropy(*leaves, targets, reduction="none")
        return losses.detach(), *torch.autograd.grad(losses.sum(), leaves)

    losses, dhidden, dweight = found(hidden, targets)
    want = found(hidden[-50:], targets[-50:])
    assert torch.equal(losses[-50:], want[0])
    assert torch.equal(dhidden[-50:], want[1])
    assert not losses[:-50].any()
    assert not dhidden[:-50].any()
    torch.testing.assert_close(dweight, want[2], rtol=1e-2, atol=1e-2)


def test_a_bad_target_is_named_and_in_a_graph_it_is_nan():
    case = Case(leading=(3, 70), width=64, ignored=0.0, reduction="none")
    inputs, options = on_gpu(case, torch.float32), case.options("cuda")
    want, _ = linear_cross_entropy(**inputs, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses, _ = linear_cross_entropy(**inputs, **options)
    options["targets"][1, 65] = 8
    graph.replay()
    torch.cuda.synchronize()
    assert losses[1, 65].isnan()
    losses[1, 65] = want[1, 65]
    assert torch.equal(losses, want)
    with pytest.raises(ShapeError, match=r"targets must be 0..7.*got 8 at \[1, 65\]"):
        linear_cross_entropy(**inputs, **options)
