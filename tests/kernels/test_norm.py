"""Every backend of the norms is held to the float64 reference.

Here run the backends that can: on a CPU the portable one, and Triton's in its interpreter where
TRITON_INTERPRET is set (test_norm_triton.py does that). test_gpu_norm.py runs them on a GPU.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dnassm.errors import BackendError, ConfigError, ShapeError
from dnassm.kernels.laws import Probe, errors, laws
from dnassm.kernels.norm import add_norm, cases, checks, norm, op, portable, triton
from dnassm.kernels.norm.arguments import Into, Norm, Wanted
from dnassm.kernels.norm.cases import Case, Tolerance

BACKENDS = op.BACKENDS


def able(dtype: torch.dtype) -> list[str]:
    """Backends that take CPU tensors of this dtype."""
    x = torch.ones(2, 3, dtype=dtype)
    call = Norm(x, x[0], None, None, None, False, 1e-5, 1, dtype)
    return [name for name, module in BACKENDS.all().items() if module.supports(call) is None]


NAMES = able(torch.float32)
FAST = [name for name in NAMES if name != "reference"]
DOUBLE = able(torch.float64)
DTYPES = list(cases.TOLERANCES)

Results = dict[str, Tensor]


def called(inputs: Results, case: Case, backend: str) -> tuple[Tensor, ...]:
    """Y, and the sum where there is a residual."""
    if case.residual:
        return add_norm(**inputs, **case.options(), backend=backend)
    return (norm(**inputs, **case.options(), backend=backend),)


def run(
    inputs: Results, case: Case, backend: str, weights: list[Tensor] | None = None
) -> tuple[Results, list[Tensor]]:
    """Values and gradients by name; the loss goes through y and through the sum."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    results = called(leaves, case, backend)
    generator = torch.Generator().manual_seed(99)
    weights = weights or [torch.randn(r.shape, generator=generator).to(r.dtype) for r in results]
    torch.autograd.backward(results, [w.to(r.dtype) for w, r in zip(weights, results, strict=True)])
    values = {name: r.detach() for name, r in zip(("y", "sum"), results, strict=False)}
    return values | {f"d{name}": leaf.grad for name, leaf in leaves.items()}, weights


def assert_near(got: Results, want: Results, tolerance: Tolerance) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        error = got[name].double() - expected
        rms = error.square().mean().sqrt()
        assert rms <= tolerance.rms * expected.square().mean().sqrt(), f"{name}: {tolerance.why}"
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
    got, weights = run(inputs, case, backend)
    assert got["y"].dtype == dtype
    assert {name: got[f"d{name}"].dtype for name in inputs} == {
        name: tensor.dtype for name, tensor in inputs.items()
    }
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, case, "reference", [w.double() for w in weights])
    assert_near(got, want, cases.TOLERANCES[dtype])


@pytest.mark.parametrize("numbers", [1, 50, 1000])
def test_chunks_of_any_size_give_the_portable_result(monkeypatch, numbers):
    monkeypatch.setitem(portable._CHUNK, "cpu", numbers)
    for name in ("layer, bias", "residual", "gate, groups", "four axes"):
        case = cases.CASES[name]
        inputs = case.inputs(torch.float64)
        got, weights = run(inputs, case, "portable")
        want, _ = run(inputs, case, "reference", weights)
        assert_near(got, want, cases.TOLERANCES[torch.float64])


# What it is, in other words


@pytest.mark.parametrize("backend", DOUBLE)
def test_it_is_the_norm_of_torch_of_the_sum(backend):
    inputs = Case(bias=True, residual=True).inputs(torch.float64)
    x, residual, weight, bias = (inputs[n] for n in ("x", "residual", "weight", "bias"))
    total = x + residual
    y, s = add_norm(x, residual, weight, eps=1e-3, backend=backend)
    assert torch.equal(s, total)
    torch.testing.assert_close(y, F.rms_norm(total, (24,), weight, 1e-3))
    y, _ = add_norm(x, residual, weight, bias, kind="layer", eps=1e-3, backend=backend)
    torch.testing.assert_close(y, F.layer_norm(total, (24,), weight, bias, 1e-3))


@pytest.mark.parametrize("backend", DOUBLE)
def test_the_gated_norm_is_that_of_mamba_2(backend):
    """norm(x silu(z)), each group by its own root mean square."""
    inputs = Case(gate=True).inputs(torch.float64)
    x, z, weight = (inputs[n] for n in ("x", "gate", "weight"))
    y = norm(x, weight, gate=z, groups=4, backend=backend)
    v = (x * F.silu(z)).view(2, 5, 4, 6)
    want = v / torch.sqrt(v.square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(y, want.view(2, 5, 24) * weight)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_the_sum_is_kept_in_the_dtype_asked_for_and_y_is_its_norm(backend, kept):
    case = Case(residual=True, wide=False)
    inputs = case.inputs(torch.bfloat16)
    x, residual, weight = (inputs[n] for n in ("x", "residual", "weight"))
    y, s = add_norm(x, residual, weight, residual_dtype=kept, backend=backend)
    assert (y.dtype, s.dtype) == (torch.bfloat16, kept)
    if kept == torch.float32:
        assert torch.equal(s, x.float() + residual.float())
    if kept == torch.bfloat16:
        assert torch.equal(y, norm(s, weight, backend=backend))


@pytest.mark.parametrize("backend", NAMES)
def test_a_float32_stream_keeps_what_bf16_loses(backend):
    x = torch.full((1, 8), 2**-10, dtype=torch.bfloat16)
    stream = torch.ones(1, 8)
    for _ in range(64):
        _, stream = add_norm(x, stream, torch.ones(8), backend=backend)
    assert torch.equal(stream, torch.full((1, 8), 1 + 2**-4))


@pytest.mark.parametrize("backend", NAMES)
def test_the_gradient_of_a_float32_stream_is_not_rounded_as_that_of_x_is(backend):
    case = Case(residual=True)
    inputs = case.inputs(torch.bfloat16)
    got, weights = run(inputs, case, backend)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want, _ = run(exact, case, "reference", [w.double() for w in weights])
    names = ("sum", "dresidual", "dweight")
    few = [{name: results[name] for name in names} for results in (got, want)]
    assert_near(*few, cases.TOLERANCES[torch.float32])


@pytest.mark.skipif("triton" not in NAMES, reason="in Triton's interpreter")
@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("programs", [1, 4])
def test_programs_that_take_several_tiles_give_the_same(monkeypatch, programs, backend):
    monkeypatch.setattr(triton, "_PROGRAMS", programs)
    monkeypatch.setattr(triton, "_TILES", 1)
    for name in ("residual, many rows", "gate, many rows"):
        case = cases.CASES[name]
        inputs = case.inputs(torch.float32)
        got, weights = run(inputs, case, backend)
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        want, _ = run(exact, case, "reference", [w.double() for w in weights])
        assert_near(got, want, cases.TOLERANCES[torch.float32])


FINITE = [
    "layer, bias",
    "residual, layer, bias",
    "gate, groups",
    "gate, layer, bias",
    "four axes",
]


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("backend", DOUBLE)
def test_gradients_are_those_of_finite_differences(backend, name):
    case = cases.CASES[name]
    inputs = case.inputs(torch.float64)
    for key, tensor in inputs.items():
        inputs[key] = (tensor if tensor.dim() == 1 else tensor[:1, :2]).detach().requires_grad_()

    def normed(*tensors: Tensor) -> tuple[Tensor, ...]:
        return called(dict(zip(inputs, tensors, strict=True)), case, backend)

    assert torch.autograd.gradcheck(normed, list(inputs.values()))


def test_a_second_derivative_is_refused():
    x = torch.ones(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x, torch.ones(3)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative was asked for"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_row_of_zeros_is_normed_to_zeros_with_finite_gradients(backend, kind):
    case = Case(kind=kind, residual=True)
    inputs = case.inputs(torch.float32)
    inputs["x"].zero_()
    inputs["residual"].zero_()
    got, _ = run(inputs, case, backend)
    assert not got["y"].any()
    assert all(tensor.isfinite().all() for tensor in got.values())


@pytest.mark.parametrize("backend", NAMES)
def test_a_mean_far_from_zero_costs_no_digits(backend):
    inputs = Case(shape=(4, 100), kind="layer").inputs(torch.float32)
    moved = inputs["x"] + 4096
    want = norm(moved.double(), inputs["weight"].double(), kind="layer", backend="reference")
    got = norm(moved, inputs["weight"], kind="layer", backend=backend)
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


# Rows, bits, memory


@pytest.mark.parametrize("name", ["residual, many rows", "gate, many rows", "layer, bias"])
@pytest.mark.parametrize("backend", NAMES)
def test_a_row_alone_is_the_row_in_its_batch(backend, name):
    case = cases.CASES[name]
    inputs = case.inputs(torch.float32)
    whole, weights = run(inputs, case, backend)
    one = {n: t if t.dim() == 1 else t[1:2, 3:4] for n, t in inputs.items()}
    alone, _ = run(one, case, backend, [w[1:2, 3:4] for w in weights])
    for name in ("y", "sum", "dx", "dresidual", "dgate"):
        if name in whole:
            row = whole[name][1:2, 3:4]
            if backend == "portable" and case.gate:
                # torch takes the exp of the last few numbers of a tensor by other code.
                torch.testing.assert_close(alone[name], row, rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(alone[name], row), name


@pytest.mark.parametrize("name", ["residual, many rows", "gate, groups", "many rows"])
@pytest.mark.parametrize("backend", NAMES)
def test_every_run_gives_the_same_bits(backend, name):
    case = cases.CASES[name]
    inputs = case.inputs(torch.float32)
    first, weights = run(inputs, case, backend)
    assert_same(run(inputs, case, backend, weights)[0], first)


def inside_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN right before and right behind them in memory."""
    around = torch.full((tensor.numel() + 512,), torch.nan, dtype=tensor.dtype)
    return around[256 : 256 + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("name", ["width 33", "residual", "gate, groups", "layer, bias"])
@pytest.mark.parametrize("backend", NAMES)
def test_nothing_beside_a_tensor_is_read_or_written(backend, name, monkeypatch):
    case = cases.CASES[name]
    inputs = case.inputs(torch.float32)
    want, weights = run(inputs, case, backend)
    made, empty = [], torch.empty

    def guarded(shape: tuple[int, ...], **kind: object) -> Tensor:
        size = torch.Size(shape)
        around = empty((size.numel() + 512,), **kind).fill_(torch.nan)
        made.append((around, size.numel()))
        return around[256 : 256 + size.numel()].view(size)

    safe = {name: inside_nan(tensor) for name, tensor in inputs.items()}
    monkeypatch.setattr(torch, "empty", guarded)
    got, _ = run(safe, case, backend, [inside_nan(w) for w in weights])
    monkeypatch.undo()
    assert_same(got, want)
    assert made or backend == "reference"
    for around, numel in made:
        assert around[:256].isnan().all()
        assert around[256 + numel :].isnan().all()


@pytest.mark.parametrize("over", [False, True], ids=["beside dy", "over dy"])
@pytest.mark.parametrize("name", ["gate, groups", "gate, many rows", "gate, layer, bias"])
@pytest.mark.parametrize("backend", NAMES)
def test_gradients_are_written_where_they_are_wanted(backend, name, over):
    case = cases.CASES[name]
    given = {"bias": None, "residual": None, **case.inputs(torch.float32)}
    kind = {"centred": case.kind == "layer", "eps": case.eps, "groups": case.groups}
    call = Norm(**given, **kind, total_dtype=torch.float32)
    chosen, wanted = BACKENDS.choose(backend, call), Wanted(torch.float32, None)
    dy, width = torch.randn(case.shape), case.shape[-1]
    want = chosen.backward(call, dy, None, wanted)
    room = torch.full((*case.shape[:-1], 3 * width + 5), torch.nan)
    dx, beside, dgate, behind = room.split([width, width, width, 5], dim=-1)
    dy = dx.copy_(dy) if over else dy
    got = chosen.backward(call, dy, None, wanted, Into(dx, dgate))
    assert got.x is dx
    assert got.gate is dgate
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert beside.isnan().all()
    assert behind.isnan().all()


@pytest.mark.parametrize("backend", NAMES)
def test_rows_with_any_strides_are_taken_as_they_are(backend):
    """Channels first in memory, a slice of a projection, a stream that all rows share."""
    case = Case(shape=(2, 6, 10), residual=True)
    inputs = case.inputs(torch.float32)
    inputs["residual"] = inputs["residual"][:1].expand(2, 6, 10)
    want, weights = run(inputs, case, backend)
    turned = {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in inputs.items()}
    assert_same(run(turned, case, backend, weights)[0], want)


@pytest.mark.parametrize("backend", NAMES)
def test_an_expanded_gradient_is_taken(backend):
    inputs = Case(bias=True).inputs(torch.float32)
    x = inputs["x"].requires_grad_()
    y = norm(**inputs, backend=backend)
    (want,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, want)


@pytest.mark.parametrize("backend", NAMES)
def test_only_y_or_only_the_sum_may_be_used(backend):
    inputs = Case(residual=True).inputs(torch.float32)
    x = inputs["x"].requires_grad_()
    y, total = add_norm(**inputs, backend=backend)
    (of_total,) = torch.autograd.grad(total.sum(), x, retain_graph=True)
    assert torch.equal(of_total, torch.ones_like(x))
    (of_y,) = torch.autograd.grad(y.sum(), x)
    assert of_y.abs().min() > 0


@pytest.mark.parametrize("backend", NAMES)
def test_the_two_gradients_of_a_sum_may_be_changed_apart(backend):
    """They are one tensor in the operator; adding to one of them must not change the other."""
    inputs = {n: t.requires_grad_() for n, t in Case(residual=True).inputs(torch.float32).items()}
    y, _ = add_norm(**inputs, backend=backend)
    y.sum().backward()
    want = inputs["residual"].grad.clone()
    inputs["x"].grad.zero_()
    assert torch.equal(inputs["residual"].grad, want)


@pytest.mark.parametrize("backend", NAMES)
def test_with_a_residual_only_the_sum_is_kept_for_the_backward(backend):
    inputs = {n: t.requires_grad_() for n, t in Case(residual=True).inputs(torch.bfloat16).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        _, total = add_norm(**inputs, backend=backend)
    assert sum(t.numel() for t in kept if t.dim() == 3) == total.numel()


def test_inputs_are_not_changed():
    case = Case(gate=True, bias=True)
    inputs = case.inputs(torch.float32)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    run(inputs, case, "auto")
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


# As an operator of torch


def arguments(case: Case) -> tuple[object, ...]:
    inputs = {n: t.requires_grad_() for n, t in case.inputs(torch.float32).items()}
    tensors = [inputs.get(n) for n in ("x", "weight", "bias", "residual", "gate")]
    kept = torch.float32
    return (*tensors, case.kind == "layer", 1e-5, case.groups, kept, "auto")


@pytest.mark.parametrize("name", ["layer, bias", "residual", "gate, groups", "strided, gate"])
def test_the_operators_keep_what_torch_asks_of_them(name):
    case = cases.CASES[name]
    given = arguments(case)
    torch.library.opcheck(op.norm, given)
    plain = [t.detach() if isinstance(t, Tensor) else t for t in given]
    x, weight, bias, residual, gate, *options = plain
    dtotal = None if residual is None else torch.randn(x.shape)
    more = (torch.bfloat16, torch.float32, torch.randn(x.shape), dtotal)
    torch.library.opcheck(op.norm_backward, (x, weight, bias, gate, *options, *more))


@pytest.mark.parametrize("name", ["residual, layer, bias", "gate, groups"])
def test_it_is_compiled_without_a_graph_break(name):
    case = cases.CASES[name]
    inputs = case.inputs(torch.float32)
    want, weights = run(inputs, case, "auto")

    def normed(leaves: Results) -> tuple[Tensor, ...]:
        return tuple(result * 1 for result in called(leaves, case, "auto"))

    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    results = torch.compile(normed, fullgraph=True, backend="aot_eager")(leaves)
    torch.autograd.backward(results, weights)
    got = {"y": results[0].detach()} | {f"d{n}": leaf.grad for n, leaf in leaves.items()}
    assert_same(got, {n: t for n, t in want.items() if n != "sum"})


def test_a_checkpointed_call_gives_the_same_gradients():
    case = Case(residual=True)
    inputs = case.inputs(torch.float32)
    want, weights = run(inputs, case, "auto")
    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    results = checkpoint(lambda: add_norm(**leaves), use_reentrant=False)
    torch.autograd.backward(results, weights)
    assert_same(
        {f"d{n}": leaf.grad for n, leaf in leaves.items()},
        {n: t for n, t in want.items() if n.startswith("d")},
    )


def test_autocast_changes_nothing():
    case = Case(gate=True)
    inputs = case.inputs(torch.float32)
    want, weights = run(inputs, case, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = run(inputs, case, "auto", weights)
    assert_same(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_doctor_checks_of_it_holds(dtype):
    probe = Probe(checks.SUBJECT, dtype, 64, 32, torch.device("cpu"))
    for law in laws(probe):
        bound = law.bound(probe)
        for name, error in errors(*law.compare(probe)).items():
            assert error.within(bound.of(name)), f"{law.name}: {name} {error}"


# Bad input


GOOD = {"x": torch.ones(2, 3, 4), "weight": torch.ones(4), "bias": torch.ones(4)}
BAD = {
    "x": [r"x must be \(..., D\), none of them 0", lambda t: t[:, :0]],
    "x of no axis": [r"x must be \(..., D\)", lambda t: t[0, 0, 0]],
    "x of integers": ["x must be floating point, got torch.int64", lambda t: t.long()],
    "weight": [r"weight must be \(4,\), got \(3,\)", lambda t: t[1:]],
    "weight elsewhere": ["weight is on meta, x on cpu", lambda t: t.to("meta")],
    "bias": [r"bias must be \(4,\), got \(1, 4\)", lambda t: t[None]],
    "bias of integers": ["bias must be floating point", lambda t: t.long()],
    "gate": [r"gate must be \(2, 3, 4\), got \(2, 4\)", lambda t: t[:, 0]],
    "gate elsewhere": ["gate is on meta", lambda t: t.to("meta")],
    "residual": [r"residual must be \(2, 3, 4\), got \(1, 3, 4\)", lambda t: t[:1]],
    "residual of integers": ["residual must be floating point", lambda t: t.long()],
}


@pytest.mark.parametrize(("message", "spoil"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named(request, message, spoil):
    name = request.node.callspec.id.split(" ")[0]
    call = add_norm if name == "residual" else norm
    given = {**GOOD, name: spoil(GOOD.get(name, GOOD["x"]))}
    with pytest.raises(ShapeError, match=f"^{call.__name__}: {message}"):
        call(**given)


def test_a_bad_option_is_named():
    with pytest.raises(ConfigError, match='norm: kind must be "rms" or "layer", got \'batch\''):
        norm(**GOOD, kind="batch")
    with pytest.raises(ConfigError, match="norm: eps must be 0 or more, got -1"):
        norm(**GOOD, eps=-1)
    with pytest.raises(ConfigError, match="norm: groups must divide D = 4, got 3"):
        norm(**GOOD, groups=3)
    with pytest.raises(ConfigError, match="norm: groups must divide D = 4, got 0"):
        norm(**GOOD, groups=0)
    with pytest.raises(ConfigError, match="residual_dtype must be floating point"):
        add_norm(**GOOD, residual=GOOD["x"], residual_dtype=torch.int8)


def test_an_unknown_backend_is_named_with_those_that_exist():
    with pytest.raises(BackendError, match="no backend 'no-such'; have auto, triton, portable, re"):
        norm(**GOOD, backend="no-such")
