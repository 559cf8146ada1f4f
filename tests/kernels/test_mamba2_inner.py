"""The Mamba-2 block as one function: the composition of the public operators is its truth."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnassm.errors import ShapeError
from dnassm.kernels.laws import Probe, errors, laws
from dnassm.kernels.mamba2_inner import arguments, checks, fused, mamba2_inner, op
from dnassm.kernels.mamba2_inner.arguments import KEEP, STATES, TENSORS
from dnassm.kernels.mamba2_inner.cases import Case, furthest, outcome, run
from dnassm.kernels.pieces import Cut
from dnassm.kernels.ssd.arguments import Gradients, Into, Ssd
from dnassm.kernels.ssd.cases import Case as SsdCase
from dnassm.kernels.ssd.op import BACKENDS as SSD

CASES = {
    "plain": Case(),
    "bare": Case(bare=True),
    "reverse": Case(reverse=True),
    "packed": Case(batch=1, packed=(0, 1, 20, 37)),
    "packed, reverse": Case(batch=1, packed=(0, 5, 36, 37), reverse=True),
    "two groups": Case(groups=2),
    "two groups, a skip per channel, reverse": Case(groups=2, skip_per_channel=True, reverse=True),
    "a group per head": Case(groups=4),
    "limits": Case(limit=(0.05, 0.3)),
    "a norm of another eps": Case(eps=0.3),
    "one head": Case(heads=1, head_dim=7),
    "heads of one channel": Case(heads=6, head_dim=1, states=1),
    "one position": Case(length=1),
    "one tap": Case(taps=1),
    "wide": Case(width=48, heads=6, head_dim=16, groups=3, states=16, length=70),
}
EVERY_KEEP = [
    names for count in range(len(KEEP) + 1) for names in itertools.combinations(KEEP, count)
]
ALL = tuple(KEEP)
# Sums over cut pieces have another order than autograd's.
ROUNDING = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2e-2}


def cut(monkeypatch: pytest.MonkeyPatch, case: Case, parts: int, size: int = 8) -> Case:
    """A case so long that its rows are cut in so many parts of 64 positions."""
    longer = dataclasses.replace(case, length=64 * parts - 3)
    row = longer.length * longer.inner * size
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", row // parts + 1)
    return longer


def count_pieces(case: Case, dtype: torch.dtype = torch.float64) -> int:
    return sum(key.name == "marks" for key in block_of(case, dtype).leaves())


def block_of(case: Case, dtype: torch.dtype) -> arguments.Block:
    inputs = case.inputs(dtype)
    tensors = (inputs.get(name) for name in TENSORS)
    return arguments.Block(
        *tensors, None, case.groups, 0.0, math.inf, 1e-5, case.reverse, ("scan",), "auto"
    )


# Fused and composed are one


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", CASES)
def test_values_and_every_gradient_are_those_of_the_composition(name, dtype):
    case = CASES[name]
    inputs = case.inputs(dtype)
    want, weights = outcome(inputs, fused=False, **case.options)
    got, _ = outcome(inputs, weights, **case.options)
    assert furthest(got, want)[0] <= ROUNDING[dtype], furthest(got, want)
    assert {n: t.dtype for n, t in got.items()} == {n: t.dtype for n, t in want.items()}
    assert {f"d{n}" for n in inputs} <= got.keys()
    for value in ("y", "conv", "ssm"):
        assert torch.equal(got[value], want[value]), f"{value}: not the same bits"


@pytest.mark.parametrize("keep", EVERY_KEEP, ids=" ".join)
@pytest.mark.parametrize("name", ["two groups", "packed"])
def test_what_is_kept_changes_nothing(name, keep):
    case = CASES[name]
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, fused=False, **case.options)
    got, _ = outcome(inputs, weights, keep=keep, **case.options)
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)


@pytest.mark.parametrize("keep", [(), ("projected", "scan"), ALL], ids=" ".join)
@pytest.mark.parametrize("name", ["plain", "bare", "reverse", "two groups", "one tap"])
def test_where_rows_are_cut_changes_nothing(name, keep, monkeypatch):
    case = cut(monkeypatch, CASES[name], 3)
    assert count_pieces(case) == 6
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, fused=False, **case.options)
    got, _ = outcome(inputs, weights, keep=keep, **case.options)
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)


def test_rows_that_do_not_fit_together_go_in_groups(monkeypatch):
    case = Case(batch=5, reverse=True)
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", 2 * case.length * case.inner * 8)
    assert count_pieces(case) == 3
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, fused=False, **case.options)
    got, _ = outcome(inputs, weights, **case.options)
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)


def test_bf16_pieces_lose_nothing_at_their_borders(monkeypatch):
    case = cut(monkeypatch, Case(), 3, size=2)
    assert count_pieces(case, torch.bfloat16) == 6
    inputs = case.inputs(torch.bfloat16)
    got, weights = outcome(inputs)
    exact, _ = outcome({n: t.double() for n, t in inputs.items()}, weights, fused=False)
    whole, _ = outcome(inputs, weights, fused=False)
    for name in exact:
        cut_off, as_one = (furthest({name: f[name]}, {name: exact[name]})[0] for f in (got, whole))
        assert cut_off <= 1.5 * as_one, (name, cut_off, as_one)


@pytest.mark.parametrize("backend", ["reference", "portable"])
def test_every_backend_serves_all_operators(backend):
    inputs = CASES["two groups"].inputs(torch.float32)
    want, weights = outcome(inputs, fused=False, groups=2, backend=backend)
    got, _ = outcome(inputs, weights, groups=2, backend=backend)
    assert furthest(got, want)[0] <= ROUNDING[torch.float32], furthest(got, want)


def test_gradients_are_those_of_finite_differences():
    case = Case(batch=1, length=4, width=2, heads=2, head_dim=2, states=2, groups=2)
    leaves = {n: t.requires_grad_() for n, t in case.inputs(torch.float64).items()}

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(dict(zip(leaves, tensors, strict=True)), keep=(), **case.options))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.05, 0.3)])
@pytest.mark.parametrize("packed", [None, (0, 1, 40)], ids=["rows", "packed"])
@pytest.mark.parametrize("over", [False, True], ids=["beside dy", "over dy"])
@pytest.mark.parametrize("backend", ["reference", "portable"])
def test_the_gradients_of_ssd_are_written_where_they_are_wanted(backend, over, packed, limit):
    case = SsdCase(batch=1, length=40, heads=4, groups=2, gated=not over)
    inputs = case.inputs(torch.float32)
    edges = None
    if packed is not None:
        edges = torch.tensor(packed, dtype=torch.int32)
        inputs["initial_state"] = torch.randn(2, 4, case.width, case.states)
    given = {name: inputs.get(name) for name in Gradients._fields}
    call = Ssd(**given, cu_seqlens=edges, dt_softplus=True, dt_min=limit[0], dt_max=limit[1],
               reverse=True, chunk=None)  # fmt: skip
    chosen = SSD.choose(backend, call)
    y, final, marks = chosen.forward(call)
    want = chosen.backward(call, marks, y, final)
    sizes = [4 * case.width, 2 * case.states, 2 * case.states, 4, 3]
    room = torch.full((1, 40, sum(sizes)), torch.nan)
    x, B, C, dt, beside = room.split(sizes, dim=2)
    into = Into(x.view(call.x.shape), B.view(call.B.shape), C.view(call.C.shape), dt)
    dy = into.x.copy_(y) if over else y
    got = chosen.backward(call, marks, dy, final, into)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert all(getattr(got, name) is place for name, place in into._asdict().items())
    assert beside.isnan().all()


# Pieces


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("budget", [1, 63, 100, 1000, 1001, 2500, 10**6])
def test_pieces_cover_every_position_once_and_fit(batch, budget):
    length, each = 200, 5
    found = Cut.of(batch, length, row=length * each, budget=budget, multiple=4)
    seen = torch.zeros(batch, length)
    for piece in found.pieces:
        piece.of(seen).add_(1)
        numbers = piece.of(seen).numel()
        assert numbers * each <= budget + 4 * each  # a part is rounded up to 4
    assert bool((seen == 1).all())
    assert found.order(reverse=True) == list(enumerate(found.pieces))[::-1]


# States, sequences, directions


@pytest.mark.parametrize("border", [1, 2, 20, 36])
def test_two_calls_through_the_states_are_one_call(border):
    inputs = CASES["two groups"].inputs(torch.float64)
    whole, (dy, *dstates) = outcome(inputs, groups=2)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.items()}
    left, *state = run({**leaves, "x": leaves["x"][:, :border]}, groups=2)
    later = {"x": leaves["x"][:, border:], "conv_state": state[0], "ssm_state": state[1]}
    right, *end = run({**leaves, **later}, groups=2)
    torch.autograd.backward([torch.cat([left, right], 1), *end], [dy, *dstates])
    got = {"y": torch.cat([left, right], 1), "conv": end[0], "ssm": end[1]}
    got |= {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    assert furthest(got, whole)[0] <= 1e-12, furthest(got, whole)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_are_those_sequences_apart(reverse):
    edges = (0, 1, 20, 37)
    inputs = Case(batch=1, packed=edges).inputs(torch.float64)
    packed = run(inputs, cu_seqlens=torch.tensor(edges), reverse=reverse)
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        states = {n: t[row : row + 1] for n, t in inputs.items() if n.endswith("_state")}
        alone = run({**inputs, "x": inputs["x"][:, start:end], **states}, reverse=reverse)
        torch.testing.assert_close(packed[0][:, start:end], alone[0], rtol=1e-12, atol=1e-12)
        for of_all, found in zip(packed[1:], alone[1:], strict=True):
            torch.testing.assert_close(of_all[row : row + 1], found, rtol=1e-12, atol=1e-12)


def test_reverse_is_the_flip_of_the_flipped():
    inputs = CASES["plain"].inputs(torch.float64)
    y, *states = run({**inputs, "x": inputs["x"].flip(1)}, reverse=True)
    want, *ends = run(inputs)
    torch.testing.assert_close(y.flip(1), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states, ends, rtol=1e-12, atol=1e-12)


def test_every_run_has_the_same_bits():
    inputs = CASES["plain"].inputs(torch.float32)
    first, weights = outcome(inputs)
    again, _ = outcome(inputs, weights)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []


# What is kept


LONG = Case(batch=1, length=256, width=32, heads=4, head_dim=16, states=8, bare=True)


@pytest.fixture
def numbers_kept(bytes_held):
    """Numbers per position beyond the arguments that are held for the backward."""
    leaves = {n: t.requires_grad_() for n, t in LONG.inputs(torch.float32).items()}

    def count(keep: tuple[str, ...], **options: object) -> float:
        beyond = bytes_held(leaves.values(), lambda: run(leaves, keep=keep, **options))
        return beyond / 4 / LONG.length

    return count


def test_the_backward_holds_what_is_kept_and_nothing_else(numbers_kept):
    inner, convolved = LONG.inner, LONG.inner + 2 * LONG.states
    assert numbers_kept(()) == 0
    projected = 160  # inner + convolved + heads = 148, up to the next 16
    assert numbers_kept(("projected",)) == projected
    assert numbers_kept(("convolved",)) == convolved
    assert numbers_kept(("scan",), backend="portable") == inner
    assert numbers_kept(("normed",)) == inner
    assert numbers_kept(ALL, backend="portable") == projected + 2 * inner + convolved
    everything = 3 * inner + 2 * convolved + LONG.heads
    assert numbers_kept((), fused=False, backend="portable") >= everything


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_kept_has_the_shapes_and_dtypes_that_compile_is_told(reverse, monkeypatch):
    case = cut(monkeypatch, Case(groups=2, reverse=reverse, bare=True), 3, size=2)
    block = dataclasses.replace(block_of(case, torch.bfloat16), keep=(STATES, *ALL))
    forward = fused.Forward(block)
    forward.run()
    made = [forward.kept[key] for key in block.leaves()]
    told = fused.empty_kept(block)
    assert len(told) == 2 * 3 * 5 + 2 * 2 * 2
    assert [(t.shape, t.dtype) for t in made] == [(t.shape, t.dtype) for t in told]
    borders = [t for key, t in zip(block.leaves(), made, strict=True) if key.name == "conv"]
    assert {t.dtype for t in borders} == {torch.float32}  # or its gradient would be rounded


def test_without_gradients_nothing_is_kept(monkeypatch):
    made = []
    operator = op.inner
    monkeypatch.setattr(op, "inner", lambda *given: made.append(given) or operator(*given))
    inputs = Case().inputs(torch.float32)
    run(inputs)
    with torch.no_grad():
        run({**inputs, "x": inputs["x"].requires_grad_()})
    assert {given[-2] for given in made} == {""}


# Torch


@pytest.mark.parametrize("keep", ["", " ".join((STATES, *ALL))], ids=["nothing", "all"])
@pytest.mark.parametrize("name", ["plain", "bare", "packed", "cut"])
def test_torch_finds_no_fault_with_the_operator(name, keep, monkeypatch):
    case = cut(monkeypatch, Case(batch=1), 2) if name == "cut" else CASES[name]
    inputs = {n: t.requires_grad_() for n, t in case.inputs(torch.float64).items()}
    edges = torch.tensor(case.packed, dtype=torch.int32) if case.packed else None
    tensors = (inputs.get(name) for name in TENSORS)
    options = (edges, 1, 0.0, math.inf, 1e-5, False, keep, "portable")
    torch.library.opcheck(op.inner, (*tensors, *options))


@pytest.mark.parametrize(("name", "dynamic"), [("cut", False), ("two groups", True)])
def test_a_compiled_block_has_no_break_and_the_same_results(name, dynamic, monkeypatch):
    torch.compiler.reset()
    case = cut(monkeypatch, Case(groups=2), 2) if name == "cut" else CASES[name]
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, groups=2)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(tensors: dict[str, Tensor]) -> list[Tensor]:
        y, *states = run(tensors, groups=2)
        return [y * 2, *states]

    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.items()}
    y, *states = compiled(leaves)
    torch.autograd.backward([y, *states], [weights[0] / 2, *weights[1:]])
    assert torch.equal(y, want["y"] * 2)
    assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    inputs = CASES["plain"].inputs(torch.float64)
    want, weights = outcome(inputs)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.items()}

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(dict(zip(leaves, tensors, strict=True))))

    results = checkpoint(call, *leaves.values(), use_reentrant=reentrant)
    torch.autograd.backward(results, weights)
    assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


class _Layer(nn.Module):
    def __init__(self, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.states = {n: t for n, t in inputs.items() if n.endswith("_state")}
        learned = {n: t.clone() for n, t in inputs.items() if n != "x" and n not in self.states}
        self.learned = nn.ParameterDict(learned)

    def forward(self, x: Tensor) -> Tensor:
        return run({"x": x, **self.learned, **self.states})[0]


def test_a_layer_under_ddp_has_the_gradients_of_the_layer(gradients_under_ddp):
    inputs = CASES["plain"].inputs(torch.float32)
    alone = _Layer(inputs)
    alone(inputs["x"]).square().sum().backward()
    got = gradients_under_ddp(_Layer(inputs), inputs["x"])
    for gradient, parameter in zip(got, alone.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize("name", ["plain", "two groups"])
def test_autocast_casts_what_it_casts_in_the_composition(name):
    case = CASES[name]
    inputs = case.inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, weights = outcome(inputs, fused=False, **case.options)
        got, _ = outcome(inputs, weights, **case.options)
    assert got["y"].dtype == torch.bfloat16
    assert torch.equal(got["y"], want["y"])
    assert furthest(got, want)[0] <= ROUNDING[torch.bfloat16], furthest(got, want)
    assert {n: t.dtype for n, t in got.items()} == {n: t.dtype for n, t in want.items()}
    assert got["din_weight"].dtype == torch.float32


def test_only_what_is_asked_for_gets_a_gradient():
    inputs = CASES["plain"].inputs(torch.float64)
    want, weights = outcome(inputs)
    x = inputs["x"].detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(run({**inputs, "x": x}), [x], weights)
    assert torch.equal(found, want["dx"])


@pytest.mark.parametrize("result", range(3))
def test_the_loss_may_go_through_one_result_alone(result):
    inputs = CASES["plain"].inputs(torch.float64)
    found = []
    for as_one in (True, False):
        x = inputs["x"].detach().clone().requires_grad_()
        results = run({**inputs, "x": x}, fused=as_one)
        found.append(torch.autograd.grad(results[result].square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


def test_gradients_of_the_results_may_have_any_strides():
    inputs = CASES["plain"].inputs(torch.float64)
    dy = torch.randn(8, 2, 1, dtype=torch.float64).permute(1, 2, 0).expand(2, 37, 8)
    ones = [torch.ones((), dtype=torch.float64).expand(r.shape) for r in run(inputs)[1:]]
    want, _ = outcome(inputs, [t.contiguous() for t in (dy, *ones)])
    x = inputs["x"].detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(run({**inputs, "x": x}), x, [dy, *ones])
    torch.testing.assert_close(found, want["dx"], rtol=1e-12, atol=1e-12)


def test_an_input_of_any_strides_is_taken():
    inputs = CASES["plain"].inputs(torch.float64)
    want, weights = outcome(inputs)
    turned = inputs["x"].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    results = run({**inputs, "x": turned})
    (dx,) = torch.autograd.grad(results, turned, weights)
    torch.testing.assert_close(results[0], want["y"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dx, want["dx"], rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused():
    inputs = CASES["plain"].inputs(torch.float64)
    x = inputs["x"].requires_grad_()
    (dx,) = torch.autograd.grad(run(inputs)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"mamba2_inner: a second derivative .* fused=False"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_laws_of_every_op_hold(dtype):
    probe = Probe(checks.SUBJECT, dtype, 64, 32, torch.device("cpu"))
    for law in laws(probe):
        found, bound = errors(*law.compare(probe)), law.bound(probe)
        beyond = {name: error for name, error in found.items() if not error.within(bound.of(name))}
        assert not beyond, law.name


# What is said of a bad argument


BAD = {
    "x must be .B, L, M.": ("x", torch.zeros(2, 0, 8)),
    r"in_weight must be \(38, 8\)": ("in_weight", torch.zeros(38, 9)),
    "in_weight must be torch.float32 like x, got torch.float64": (
        "in_weight",
        torch.zeros(38, 8, dtype=torch.float64),
    ),
    r"conv_weight must be \(any, any\)": ("conv_weight", torch.zeros(22)),
    r"conv_weight must be \(E \+ 2GN, K\) with E = 12": ("conv_weight", torch.zeros(12, 4)),
    "A must be float32 or float64": ("A", torch.zeros(4, dtype=torch.bfloat16)),
    r"A must be \(H,\) with H a divisor of E = 12, got \(5,\)": ("A", torch.zeros(5)),
    r"norm_weight must be \(12\)": ("norm_weight", torch.zeros(13)),
    r"out_weight must be \(any, any\)": ("out_weight", torch.zeros(12)),
    r"D must be \(4, 3\)": ("D", torch.zeros(4, 2)),
    "dt_bias must be floating point": ("dt_bias", torch.zeros(4, dtype=torch.int64)),
    r"conv_state must be \(2, 3, 22\)": ("conv_state", torch.zeros(1, 3, 22)),
    r"ssm_state must be \(2, 4, 3, 5\)": ("ssm_state", torch.zeros(2, 4, 3, 6)),
    "initial_state must be finite": ("ssm_state", torch.full((2, 4, 3, 5), torch.nan)),
    "conv_state is on meta, x on cpu": ("conv_state", torch.zeros(2, 3, 22, device="meta")),
}


@pytest.mark.parametrize(("message", "spoil"), BAD.items(), ids=BAD)
def test_a_bad_argument_is_named(message, spoil):
    name, tensor = spoil
    with pytest.raises(ShapeError, match=f"mamba2_inner: .*{message}"):
        mamba2_inner(**{**CASES["plain"].inputs(torch.float32), name: tensor})


@pytest.mark.parametrize(
    ("message", "edges"),
    {
        r"\(S\+1,\) with S > 0": torch.tensor([0]),
        "rise from 0 to L = 37": torch.tensor([0, 38]),
        "int32 or int64": torch.tensor([0.0, 37.0]),
        "is on meta": torch.tensor([0, 37], device="meta"),
        "B must be 1": None,
    }.items(),
)
def test_bad_edges_of_sequences_are_named(message, edges):
    batch = 2 if edges is None else 1
    inputs = Case(batch=batch, bare=True).inputs(torch.float32)
    with pytest.raises(ShapeError, match=f"mamba2_inner: cu_seqlens .*{message}"):
        mamba2_inner(**inputs, cu_seqlens=torch.tensor([0, 37]) if edges is None else edges)


@pytest.mark.parametrize(
    ("message", "options"),
    {
        "keep has no 'y'; have projected, convolved, scan, normed": {"keep": ("y",)},
        "groups must divide H = 4, got 3": {"groups": 3},
        "groups must divide H = 4, got 0": {"groups": 0},
        r"dt_limit must be .* got \(2.0, 1.0\)": {"dt_limit": (2.0, 1.0)},
        "eps must be 0 or more, got -1": {"eps": -1},
    }.items(),
)
def test_an_option_that_makes_no_sense_is_named(message, options):
    with pytest.raises(ShapeError, match=f"mamba2_inner: {message}"):
        mamba2_inner(**Case().inputs(torch.float32), **options)


def test_the_tensors_of_a_call_are_those_of_the_operator_in_its_order():
    fields = [field.name for field in dataclasses.fields(arguments.Block)]
    assert tuple(fields[: len(TENSORS)]) == TENSORS
    assert [a.name for a in op.inner._schema.arguments] == fields
