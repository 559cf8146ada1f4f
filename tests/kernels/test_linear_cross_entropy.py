"""Every backend of the loss is held to the float64 reference.

Here run the backends that can: on a CPU the portable one, and Triton's in its interpreter where
TRITON_INTERPRET is set (test_loss_triton.py does that). test_gpu_loss.py runs them on a GPU.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from dnassm.errors import BackendError, ConfigError, ShapeError
from dnassm.kernels.laws import Probe, errors, laws
from dnassm.kernels.linear_cross_entropy import (
    cases,
    checks,
    linear_cross_entropy,
    op,
    portable,
    triton,
)
from dnassm.kernels.linear_cross_entropy.arguments import Loss
from dnassm.kernels.linear_cross_entropy.cases import Case, Tolerance

BACKENDS = op.BACKENDS


def able(dtype: torch.dtype) -> list[str]:
    """Backends that take CPU tensors of this dtype."""
    x = torch.ones(2, 3, dtype=dtype)
    call = Loss(x, x, None, torch.zeros(2, dtype=torch.int64), -100, 0.0)
    return [name for name, module in BACKENDS.all().items() if module.supports(call) is None]


NAMES = able(torch.float32)
FAST = [name for name in NAMES if name != "reference"]
DOUBLE = able(torch.float64)
DTYPES = list(cases.TOLERANCES)

Results = dict[str, Tensor]


def run(
    inputs: Results, case: Case, backend: str, given: Tensor | None = None, **options: object
) -> tuple[Results, Tensor]:
    """Loss, count and gradients by name, of a loss that gets the gradient `given`."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    loss, count = linear_cross_entropy(
        **leaves, **{**case.options(), "backend": backend, **options}
    )
    if given is None:
        given = torch.randn(loss.shape, generator=torch.Generator().manual_seed(99))
    loss.backward(given.to(loss.dtype))
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"loss": loss.detach(), "count": count.detach(), **gradients}, given


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        error = got[name].double() - expected
        rms = error.square().mean().sqrt()
        assert rms <= tolerance.rms * expected.double().square().mean().sqrt(), (
            f"{name}: {tolerance.why}"
        )
        assert error.abs().max() <= tolerance.worst * expected.abs().max(), name


def assert_same(got: Results, want: Results) -> None:
    for name, expected in want.items():
        assert torch.equal(got[name], expected), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.CASES.values(), ids=cases.CASES)
@pytest.mark.parametrize("backend", FAST)
def test_values_and_every_gradient_are_those_of_the_reference(backend, case, dtype):
    if backend not in able(dtype):
        pytest.skip(f"{backend} does not compute in {dtype}")
    inputs = case.inputs(dtype)
    got, given = run(inputs, case, backend)
    assert got["loss"].dtype == torch.promote_types(dtype, torch.float32)
    assert {name: got[f"d{name}"].dtype for name in inputs} == {
        name: tensor.dtype for name, tensor in inputs.items()
    }
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, case, "reference", given)
    assert_near(got, want, cases.TOLERANCES[dtype])


@pytest.mark.parametrize(("numbers", "tokens"), [(1, 100), (20, 100), (1000, 3)])
def test_chunks_of_any_size_give_the_portable_result(monkeypatch, numbers, tokens):
    monkeypatch.setitem(portable._CHUNK, "cpu", numbers)
    monkeypatch.setitem(portable._TOKENS, "cpu", tokens)
    for name in ("bias", "weights, none", "smoothing", "three axes"):
        case = cases.CASES[name]
        inputs = case.inputs(torch.float64)
        got, given = run(inputs, case, "portable")
        want, _ = run(inputs, case, "reference", given)
        assert_near(got, want, cases.TOLERANCES[torch.float64])


@pytest.mark.skipif("triton" not in NAMES, reason="in Triton's interpreter")
@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("programs", [1, 4])
def test_programs_that_take_several_tiles_give_the_same(monkeypatch, programs, backend):
    monkeypatch.setattr(triton, "_PROGRAMS", programs)
    case = cases.CASES["many tokens"]
    inputs = case.inputs(torch.float32)
    got, given = run(inputs, case, backend)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, case, "reference", given)
    assert_near(got, want, cases.TOLERANCES[torch.float32])


# What it is, in other words


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("backend", DOUBLE)
def test_it_is_the_cross_entropy_of_torch(backend, smoothing, reduction):
    case = Case(leading=(40,), bias=True, smoothing=smoothing, reduction=reduction)
    inputs, options = case.inputs(torch.float64), case.options()
    loss, count = linear_cross_entropy(**inputs, **options, backend=backend)
    logits = F.linear(inputs["hidden"], inputs["weight"], inputs["bias"])
    torch.testing.assert_close(loss, F.cross_entropy(logits, **rename(options)))
    assert int(count) == int((options["targets"] != -100).sum())


def rename(options: dict[str, object]) -> dict[str, object]:
    """Arguments of torch's cross entropy."""
    return {"target" if name == "targets" else name: value for name, value in options.items()}


@pytest.mark.parametrize("backend", NAMES)
def test_a_head_that_knows_nothing_pays_log_v(backend):
    hidden, targets = torch.randn(3, 4), torch.tensor([0, 4, 2])
    loss, count = linear_cross_entropy(hidden, torch.zeros(5, 4), targets, backend=backend)
    assert float(loss) == pytest.approx(math.log(5), rel=1e-6)
    assert (int(count), count.dtype) == (3, torch.int64)


@pytest.mark.parametrize("backend", NAMES)
def test_a_vocabulary_of_one_costs_nothing(backend):
    case = Case(vocabulary=1, smoothing=0.1)
    got, _ = run(case.inputs(torch.float32), case, backend)
    assert float(got["loss"]) == pytest.approx(0, abs=1e-6)
    assert got["dhidden"].abs().max() < 1e-6


@pytest.mark.parametrize("backend", NAMES)
def test_the_weighted_mean_divides_by_the_weights_of_the_targets(backend):
    """Halving them changes nothing, and what is ignored weighs nothing, not even NaN."""
    case = Case(weighted=True)
    inputs, options = case.inputs(torch.float32), case.options()
    ignored = options["targets"] == -100
    assert ignored.any()
    assert not ignored.all()
    want, weight = linear_cross_entropy(**inputs, **options, backend=backend)
    inputs["weights"] = (inputs["weights"] / 2).masked_fill(ignored, torch.nan)
    got, half = linear_cross_entropy(**inputs, **options, backend=backend)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(half * 2, weight)
    del inputs["weights"]
    each, _ = linear_cross_entropy(**inputs, **{**options, "reduction": "none"}, backend=backend)
    weights = case.inputs(torch.float32)["weights"].where(~ignored, 0)
    torch.testing.assert_close(want, (each * weights).sum() / weights.sum())


@pytest.mark.parametrize("weighted", ["no targets", "weights of 0"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("backend", NAMES)
def test_where_nothing_counts_loss_and_gradients_are_zero(backend, reduction, weighted):
    case = Case(bias=True, weighted=True, reduction=reduction)
    inputs, options = case.inputs(torch.float32), case.options()
    if weighted == "no targets":
        options["targets"] = torch.full_like(options["targets"], -100)
    else:
        inputs["weights"] = torch.zeros_like(inputs["weights"])
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    loss, count = linear_cross_entropy(**leaves, **options, backend=backend)
    loss.sum().backward()
    assert not loss.any()
    assert float(count.detach()) == 0
    for name in ("hidden", "weight", "bias"):
        assert torch.equal(leaves[name].grad, torch.zeros_like(inputs[name])), name


@pytest.mark.parametrize("backend", NAMES)
def test_an_ignored_token_gets_no_gradient_and_gives_none(backend):
    case = Case(bias=True, reduction="sum")
    inputs, options = case.inputs(torch.float32), case.options()
    got, given = run(inputs, case, backend)
    ignored = options["targets"] == -100
    assert not got["dhidden"][ignored].any()
    assert got["dhidden"][~ignored].any(-1).all()
    inputs["hidden"][ignored] *= 100
    changed, _ = run(inputs, case, backend, given)
    for name in ("loss", "dhidden", "dweight", "dbias"):
        torch.testing.assert_close(changed[name], got[name])


@pytest.mark.parametrize("backend", NAMES)
def test_another_index_may_be_ignored_even_one_of_the_vocabulary(backend):
    inputs = Case(leading=(6,)).inputs(torch.float32)
    targets = torch.tensor([0, 3, 3, 7, 1, 3])
    loss, count = linear_cross_entropy(**inputs, targets=targets, ignore_index=3, backend=backend)
    others = targets.masked_fill(targets == 3, -100)
    want, _ = linear_cross_entropy(**inputs, targets=others, backend=backend)
    assert torch.equal(loss, want)
    assert int(count) == 3


@pytest.mark.parametrize("backend", NAMES)
def test_logits_beyond_the_range_of_exp_are_taken(backend):
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]])
    targets = torch.tensor([0, 0])
    if backend == "reference":
        pytest.skip("it is the definition, in numbers that do not overflow")
    losses, _ = linear_cross_entropy(hidden, weight, targets, reduction="none", backend=backend)
    torch.testing.assert_close(losses, torch.tensor([0.0, 2000.0]))
    losses.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.0], [-2.0]]))


@pytest.mark.parametrize("backend", FAST)
def test_the_mean_over_many_tokens_keeps_its_gradient_in_float16(backend):
    """1 / tokens times p - 1 would be rounded to nothing before the sum over tokens."""
    case = Case(leading=(500,), ignored=0.0)
    inputs = case.inputs(torch.float16)
    inputs["weight"] = inputs["weight"].float()
    got, given = run(inputs, case, backend, torch.tensor(1e-4))
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, case, "reference", given)
    assert_near(
        {"dweight": got["dweight"]}, {"dweight": want["dweight"]}, cases.TOLERANCES[torch.float16]
    )


FINITE = ["bias", "weights", "weights, none", "smoothing", "three axes"]


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("backend", DOUBLE)
def test_gradients_are_those_of_finite_differences(backend, name):
    case = dataclasses.replace(cases.CASES[name], width=5)
    inputs, options = case.inputs(torch.float64), case.options()

    def loss(*tensors: Tensor) -> Tensor:
        named = dict(zip(inputs, tensors, strict=True))
        return linear_cross_entropy(**named, **options, backend=backend)[0]

    assert torch.autograd.gradcheck(loss, [t.detach().requires_grad_() for t in inputs.values()])


def test_a_second_derivative_is_refused():
    hidden = torch.ones(1, 3, requires_grad=True)
    loss, _ = linear_cross_entropy(hidden, torch.ones(2, 3), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative was asked for"):
        gradient.sum().backward()


# Rows, bits, memory


@pytest.mark.parametrize("backend", NAMES)
def test_a_token_alone_is_that_token_in_its_batch(backend):
    case = Case(leading=(3, 100), reduction="none", bias=True, ignored=0.0)
    inputs, options = case.inputs(torch.float32), case.options()
    whole, given = run(inputs, case, backend)
    one = {**inputs, "hidden": inputs["hidden"][1:2, 55:56]}
    targets = options["targets"][1:2, 55:56]
    alone, _ = run(one, case, backend, given[1:2, 55:56], targets=targets)
    for name in ("loss", "dhidden"):
        row = whole[name][1:2, 55:56]
        if backend == "triton" and name == "loss":
            assert torch.equal(alone[name], row)
        # Products of torch sum in another order for one token, and the largest gradient differs.
        torch.testing.assert_close(alone[name], row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["many tokens", "weights", "smoothing"])
@pytest.mark.parametrize("backend", NAMES)
def test_every_run_gives_the_same_bits(backend, name):
    case = cases.CASES[name]
    inputs = case.inputs(torch.float32)
    first, given = run(inputs, case, backend)
    assert_same(run(inputs, case, backend, given)[0], first)


def inside_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN right before and right behind them in memory."""
    around = torch.full((tensor.numel() + 512,), torch.nan, dtype=tensor.dtype)
    return around[256 : 256 + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("name", ["vocabulary 17", "width 65", "weights, none"])
@pytest.mark.parametrize("backend", NAMES)
def test_nothing_beside_a_tensor_is_read_or_written(backend, name, monkeypatch):
    case = cases.CASES[name]
    inputs = case.inputs(torch.float32)
    want, given = run(inputs, case, backend)
    made, empty = [], torch.empty

    def guarded(shape: tuple[int, ...], **kind: object) -> Tensor:
        size = torch.Size(shape)
        around = empty((size.numel() + 512,), **kind).fill_(torch.nan)
        made.append((around, size.numel()))
        return around[256 : 256 + size.numel()].view(size)

    safe = {name: inside_nan(tensor) for name, tensor in inputs.items()}
    monkeypatch.setattr(torch, "empty", guarded)
    got, _ = run(safe, case, backend, inside_nan(given))
    monkeypatch.undo()
    assert_same(got, want)
    assert made or backend == "reference"
    for around, numel in made:
        assert around[:256].isnan().all()
        assert around[256 + numel :].isnan().all()


class Largest(TorchDispatchMode):
    """Sees the largest tensor that any operator gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.numbers = max(self.numbers, result.untyped_storage().nbytes() // 4)
        return results


def test_the_logits_of_all_tokens_are_never_stored(monkeypatch):
    monkeypatch.setitem(portable._CHUNK, "cpu", 1 << 10)
    case = Case(leading=(4000,), width=4, vocabulary=100)
    inputs = case.inputs(torch.float32)
    with Largest() as seen:
        run(inputs, case, "portable")
    assert inputs["hidden"].numel() <= seen.numbers < 2 * inputs["hidden"].numel()


def test_inputs_are_not_changed():
    case = Case(bias=True, weighted=True)
    inputs = case.inputs(torch.float32)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    run(inputs, case, "auto")
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@pytest.mark.parametrize("backend", NAMES)
def test_a_weight_of_another_precision_is_taken(backend):
    case = Case(bias=True)
    inputs = case.inputs(torch.float16)
    want, given = run(inputs, case, backend)
    got, _ = run({**inputs, "weight": inputs["weight"].float()}, case, backend, given)
    assert got["dweight"].dtype == torch.float32
    assert torch.equal(got["loss"], want["loss"])


# As an operator of torch


@pytest.mark.parametrize("name", ["bias", "strided", "three axes", "smoothing"])
def test_the_operators_keep_what_torch_asks_of_them(name):
    case = cases.CASES[name]
    inputs = {n: t.requires_grad_() for n, t in case.inputs(torch.float32).items()}
    hidden, weight, bias = (inputs.get(n) for n in ("hidden", "weight", "bias"))
    options = (case.options()["targets"], -100, case.smoothing, "auto")
    torch.library.opcheck(op.losses, (hidden, weight, bias, *options, True))
    plain = [None if t is None else t.detach() for t in (hidden, weight, bias)]
    _, lse = op.losses(*plain, *options, True)
    torch.library.opcheck(op.losses_backward, (*plain, *options, lse, torch.randn(lse.shape)))


@pytest.mark.parametrize("name", ["bias", "weights"])
def test_it_is_compiled_without_a_graph_break(name):
    case = cases.CASES[name]
    inputs, options = case.inputs(torch.float32), case.options()
    want, given = run(inputs, case, "auto")

    def loss(leaves: Results) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(**leaves, **options)

    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    found, count = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaves)
    found.backward(given)
    got = {f"d{n}": leaf.grad for n, leaf in leaves.items()}
    assert_same({"loss": found, "count": count, **got}, want)


def test_a_checkpointed_call_gives_the_same_gradients():
    case = Case(bias=True)
    inputs, options = case.inputs(torch.float32), case.options()
    want, given = run(inputs, case, "auto")
    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    loss, _ = checkpoint(lambda: linear_cross_entropy(**leaves, **options), use_reentrant=False)
    loss.backward(given)
    assert_same(
        {f"d{n}": leaf.grad for n, leaf in leaves.items()},
        {n: t for n, t in want.items() if n.startswith("d")},
    )


def test_autocast_changes_nothing():
    case = Case(bias=True)
    inputs = case.inputs(torch.float32)
    want, given = run(inputs, case, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = run(inputs, case, "auto", given)
    assert_same(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_doctor_checks_of_it_holds(dtype):
    probe = Probe(checks.SUBJECT, dtype, 64, 32, torch.device("cpu"))
    for law in laws(probe):
        bound = law.bound(probe)
        for name, error in errors(*law.compare(probe)).items():
            assert error.within(bound.of(name)), f"{law.name}: {name} {error}"


# Bad input


GOOD = {
    "hidden": torch.ones(2, 3, 4),
    "weight": torch.ones(5, 4),
    "targets": torch.zeros(2, 3, dtype=torch.int64),
    "bias": torch.ones(5),
    "weights": torch.ones(2, 3),
}
BAD = {
    "hidden": [r"hidden must be \(..., D\), none of them 0", lambda t: t[:, :0]],
    "hidden of integers": ["hidden must be floating point, got torch.int64", lambda t: t.long()],
    "weight": [r"weight must be \(V, D\) = \(V, 4\), got \(5, 3\)", lambda t: t[:, 1:]],
    "weight without entries": [r"weight must be \(V, D\)", lambda t: t[:0]],
    "weight elsewhere": ["weight is on meta, hidden on cpu", lambda t: t.to("meta")],
    "targets": [r"targets must be \(2, 3\), got \(2, 2\)", lambda t: t[:, 1:]],
    "targets of 32 bits": ["targets must be int64, got torch.int32", lambda t: t.int()],
    "targets elsewhere": ["targets is on meta", lambda t: t.to("meta")],
    "targets beyond V": [
        r"targets must be 0..4 or ignore_index -100, got 5 at \[1, 2\] \(1 such of 6\)",
        lambda t: t.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(5)),
    ],
    "targets below 0": [r"targets must be 0..4.*got -1 at \[0, 0\] \(6 such", lambda t: t - 1],
    "bias": [r"bias must be \(5,\), got \(4,\)", lambda t: t[1:]],
    "bias of integers": ["bias must be floating point", lambda t: t.long()],
    "weights": [r"weights must be \(2, 3\), got \(1, 3\)", lambda t: t[1:]],
    "weights of integers": ["weights must be floating point", lambda t: t.long()],
}


@pytest.mark.parametrize(("message", "spoil"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named(request, message, spoil):
    name = request.node.callspec.id.split(" ")[0]
    with pytest.raises(ShapeError, match=f"^linear_cross_entropy: {message}"):
        linear_cross_entropy(**{**GOOD, name: spoil(GOOD[name])})


def test_every_argument_has_a_bad_case():
    assert {name.split(" ")[0] for name in BAD} == set(GOOD)


def test_a_bad_option_is_named():
    with pytest.raises(ConfigError, match=r"label_smoothing must be in \[0, 1\], got 1.5"):
        linear_cross_entropy(**GOOD, label_smoothing=1.5)
    with pytest.raises(ConfigError, match='reduction must be "mean", "sum" or "none", got \'max\''):
        linear_cross_entropy(**GOOD, reduction="max")


@pytest.mark.parametrize("backend", FAST)
def test_a_bad_target_that_nobody_looked_at_has_a_loss_of_nan(monkeypatch, backend):
    monkeypatch.setattr(op, "_check_targets", lambda _: None)
    hidden, targets = torch.ones(4, 3, requires_grad=True), torch.tensor([0, 5, -100, -7])
    losses, _ = linear_cross_entropy(
        hidden, torch.ones(5, 3), targets, reduction="none", check=False, backend=backend
    )
    assert losses.isnan().tolist() == [False, True, False, True]
    losses.sum().backward()


def test_an_unknown_backend_is_named_with_those_that_exist():
    with pytest.raises(BackendError, match="no backend 'no-such'; have auto, triton, portable, re"):
        linear_cross_entropy(**GOOD, backend="no-such")
