"""The Mamba block as one function: the composition of the public operators is its truth."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import types

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnassm.errors import BackendError, ShapeError
from dnassm.kernels.laws import Probe, errors, laws
from dnassm.kernels.mamba_inner import Walk, arguments, calls, checks, fused, mamba_inner, op
from dnassm.kernels.mamba_inner.arguments import KEEP, STATES, TENSORS
from dnassm.kernels.mamba_inner.cases import Case, Inputs, furthest, outcome
from dnassm.kernels.mamba_inner.plan import Plan
from dnassm.kernels.selective_scan import portable

BOTH = (False, True)
CASES = {
    "plain": Case(),
    "bare": Case(bare=True),
    "reverse": Case(reverse=(True,)),
    "both directions": Case(reverse=BOTH),
    "both directions, bare": Case(reverse=BOTH, bare=True),
    "two onwards": Case(reverse=(False, False)),
    "packed": Case(batch=1, packed=(0, 1, 20, 37)),
    "packed, reverse": Case(batch=1, packed=(0, 5, 36, 37), reverse=(True,)),
    "packed, both directions": Case(batch=1, packed=(0, 2, 19, 37), reverse=BOTH),
    "one position": Case(length=1),
    "one tap": Case(taps=1),
    "wide": Case(width=48, inner=96, states=16, rank=3, length=70),
}
EVERY_KEEP = [
    names for count in range(len(KEEP) + 1) for names in itertools.combinations(KEEP, count)
]
# Dx and the products over cut pieces are sums in another order than autograd's.
ROUNDING = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2e-2}


def cut(monkeypatch: pytest.MonkeyPatch, case: Case, parts: int, size: int = 8) -> Case:
    """A case so long that its rows are cut in at least so many parts of 128 steps or more."""
    longer = dataclasses.replace(case, length=128 * parts - 3)
    row = longer.length * longer.inner * size
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", row // parts + 1)
    return longer


def count_pieces(case: Case, inputs: Inputs) -> int:
    block = arguments.Block(
        inputs.x, inputs.in_weight, inputs.out_weight, inputs.walks, None, False, (), "auto"
    )
    return len(block.cut.pieces)


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
    for value in ("y", "conv 0", "ssm 0"):
        assert torch.equal(got[value], want[value]), f"{value}: not the same bits"


@pytest.mark.parametrize("keep", EVERY_KEEP, ids=" ".join)
@pytest.mark.parametrize("name", ["plain", "both directions", "packed"])
def test_what_is_kept_changes_nothing(name, keep):
    case = CASES[name]
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, fused=False, **case.options)
    got, _ = outcome(inputs, weights, keep=keep, **case.options)
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)


@pytest.mark.parametrize("keep", [(), KEEP], ids=["nothing kept", "all kept"])
@pytest.mark.parametrize("name", ["plain", "bare", "reverse", "both directions", "one tap"])
def test_where_rows_are_cut_changes_nothing(name, keep, monkeypatch):
    case = cut(monkeypatch, CASES[name], 3)
    inputs = case.inputs(torch.float64)
    assert count_pieces(case, inputs) == 6
    want, weights = outcome(inputs, fused=False)
    got, _ = outcome(inputs, weights, keep=keep)
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)


@pytest.mark.parametrize("reverse", [(False,), (True,), BOTH], ids=str)
@pytest.mark.parametrize(("rows", "groups"), [(2, 3), (3, 2), (4, 2)])
def test_rows_that_do_not_fit_together_go_in_groups(rows, groups, reverse, monkeypatch):
    case = Case(batch=5, reverse=reverse)
    inputs = case.inputs(torch.float64)
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", rows * case.length * case.inner * 8)
    assert count_pieces(case, inputs) == groups
    want, weights = outcome(inputs, fused=False)
    got, _ = outcome(inputs, weights)
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)


def test_bf16_pieces_lose_nothing_at_their_borders(monkeypatch):
    case = cut(monkeypatch, Case(), 3, size=2)
    inputs = case.inputs(torch.bfloat16)
    assert count_pieces(case, inputs) == 6
    got, weights = outcome(inputs)
    wide = inputs.replaced({name: t.double() for name, t in inputs.named().items()})
    want, _ = outcome(wide, weights, fused=False)
    assert furthest(got, want)[0] <= ROUNDING[torch.bfloat16], furthest(got, want)


@pytest.mark.parametrize("backend", ["reference", "portable", "cpu"])
def test_every_backend_serves_both_operators(backend):
    inputs = CASES["both directions"].inputs(torch.float32)
    try:
        want, weights = outcome(inputs, fused=False, backend=backend)
    except BackendError as error:
        pytest.skip(str(error))
    got, _ = outcome(inputs, weights, backend=backend)
    assert furthest(got, want)[0] <= ROUNDING[torch.float32], furthest(got, want)


@pytest.fixture
def thrifty(monkeypatch):
    """The portable scan as `cuda` is: its backward gives y again, and both write where they may.

    Returns what each backward was allowed to write over.
    """
    forward, backward, allowed = portable.forward, portable.backward, []

    def over_dt(scan):
        y, *others = forward(scan)
        return (scan.dt.copy_(y) if "dt" in scan.overwrite else y, *others)

    def over_inputs(scan, marks, dy, dfinal):
        allowed.append((*scan.overwrite, *(["dz"] if scan.dz_into is not None else [])))
        found = backward(scan, marks, dy, dfinal)
        pairs = {"dt": (scan.dt, found.dt), "dy": (dy, found.x)}
        over = {
            name: source.copy_(gradient) if name in scan.overwrite else gradient
            for name, (source, gradient) in pairs.items()
        }
        dz = found.z if scan.dz_into is None else scan.dz_into.copy_(found.z)
        return found._replace(dt=over["dt"], z=dz, x=over["dy"])

    def and_output(scan, marks, dy, dfinal):
        y, _, _ = forward(scan)
        found = over_inputs(scan, marks, dy, dfinal)
        return found, y if scan.y_into is None else scan.y_into.copy_(y)

    monkeypatch.setattr(portable, "forward", over_dt)
    monkeypatch.setattr(portable, "backward", over_inputs)
    monkeypatch.setattr(portable, "backward_and_output", and_output, raising=False)
    return allowed


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "keep", [(), ("scan",), ("xz", "scan"), ("scan", "y"), ("u",), KEEP], ids=" ".join
)
@pytest.mark.parametrize("name", ["plain", "reverse", "both directions", "packed"])
def test_a_scan_that_writes_over_its_inputs_changes_nothing(
    name, keep, parts, thrifty, monkeypatch
):
    case = CASES[name] if parts == 1 or CASES[name].packed else cut(monkeypatch, CASES[name], parts)
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, fused=False, backend="reference", **case.options)
    got, _ = outcome(inputs, weights, keep=keep, backend="portable", **case.options)
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)
    last = ("dt", "dy", "dz")
    assert set(thrifty) == ({("dt",), last} if len(case.reverse) == 2 else {last})
    kept = {name: t.clone() for name, t in inputs.named().items()}
    outcome(inputs, weights, keep=keep, backend="portable", **case.options)
    assert all(torch.equal(t, kept[name]) for name, t in inputs.named().items())


MARKED = 32
"""Steps between two marks of `sharing`."""


@pytest.fixture
def sharing(thrifty, monkeypatch):
    """The same with marks that parts of a row share, and y written over dt.

    Its backward knows of the state before a part what the marks say. Returns the lengths of calls.
    """
    forward, backward, lengths = portable.forward, portable.backward, []

    def states(scan, state):
        found, length = [], scan.x.shape[1]
        for begin in range(0, length, MARKED):
            found.append(state)
            end = min(begin + MARKED, length)
            steps = slice(length - end, length - begin) if scan.reverse else slice(begin, end)
            part = {name: getattr(scan, name)[:, steps] for name in ("x", "dt", "B", "C", "z")}
            part |= {"initial_state": state, "overwrite": ()}
            state = forward(dataclasses.replace(scan, **part))[1]
        return torch.stack(found, 1)

    def marked(scan):
        lengths.append(scan.x.shape[1])
        given = scan.initial_state
        y, last, _ = forward(dataclasses.replace(scan, overwrite=()))
        marks = states(scan, scan.A.new_zeros(scan.state_shape) if given is None else given)
        return scan.dt.copy_(y) if "dt" in scan.overwrite else y, last, marks

    def and_output(scan, marks, dy, dfinal):
        lengths.append(scan.x.shape[1])
        torch.testing.assert_close(states(scan, marks[:, 0]), marks)
        if scan.initial_state is not None:
            scan = dataclasses.replace(scan, initial_state=marks[:, 0])
        y, _, none = forward(dataclasses.replace(scan, overwrite=()))
        return backward(scan, none, dy, dfinal), y

    def from_marks(scan, marks, dy, dfinal):
        return and_output(scan, marks, dy, dfinal)[0]

    def shape(scan):
        return (len(scan.x), -(-scan.x.shape[1] // MARKED), *scan.A.shape)

    backend = types.SimpleNamespace(
        forward=marked,
        backward=from_marks,
        backward_and_output=and_output,
        marks_shape=shape,
        mark_steps=lambda length, marks: MARKED,
    )
    monkeypatch.setattr(calls, "SCAN", types.SimpleNamespace(choose=lambda name, scan: backend))
    return lengths


LONG = 4 * 128
SHARED = {  # positions of a piece of the forward and of the backward, and how many calls they make
    "whole": (2 * LONG, LONG // 2, {LONG: 1, LONG // 2: 4}),
    "a row": (LONG, 128, {LONG: 2, 128: 8}),
    "halves": (LONG // 2, 128, {LONG // 2: 4, 128: 8}),
    "rows": (2 * LONG, LONG, {LONG: 3}),
}


@pytest.mark.parametrize("cut", SHARED)
@pytest.mark.parametrize("keep", [("scan",), ("u", "scan"), ("scan", "y"), KEEP], ids=" ".join)
@pytest.mark.parametrize("name", ["plain", "reverse", "both directions", "bare"])
def test_a_forward_in_longer_pieces_than_the_backward_changes_nothing(
    name, keep, cut, sharing, monkeypatch
):
    case = dataclasses.replace(CASES[name], length=LONG)
    forward, backward, each = SHARED[cut]
    position = case.inner * 8
    monkeypatch.setitem(arguments.FORWARD_BYTES, "cpu", forward * position)
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", backward * position)
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, fused=False, backend="reference")
    got, _ = outcome(inputs, weights, keep=keep, backend="portable")
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)
    walks = len(case.reverse)
    assert collections.Counter(sharing) == {n: walks * count for n, count in each.items()}


@pytest.mark.parametrize("keep", [(), ("scan",)], ids=["nothing kept", "scan"])
@pytest.mark.parametrize("reverse", [False, True], ids=["onwards", "reverse"])
@pytest.mark.parametrize("length", [2048, 2000])
def test_a_row_in_parts_of_unlike_length_is_the_row(length, reverse, keep, sharing, monkeypatch):
    case = Case(batch=1, length=length, reverse=(reverse,))
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", 700 * case.inner * 8)
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, fused=False, backend="portable")
    got, _ = outcome(inputs, weights, keep=keep, backend="portable")
    assert furthest(got, want)[0] <= 10 * ROUNDING[torch.float64], furthest(got, want)
    whole = keep and not (reverse and length % 128)
    assert set(sharing) == {640, length - 1280, *([length] if whole else [])}


@pytest.mark.parametrize("case", [Case(length=300, reverse=BOTH), Case(length=256, taps=130)])
def test_a_forward_is_cut_as_the_backward_where_marks_or_inputs_lie_in_two_pieces(
    case, sharing, monkeypatch
):
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", 128 * case.inner * 8)
    inputs = case.inputs(torch.float64)
    want, weights = outcome(inputs, fused=False, backend="portable")
    got, _ = outcome(inputs, weights, keep=("scan",), backend="portable")
    assert furthest(got, want)[0] <= ROUNDING[torch.float64], furthest(got, want)
    assert max(sharing) == 128


@pytest.mark.parametrize("name", ["plain", "both directions"])
def test_what_a_longer_forward_keeps_is_told_from_shapes_alone(name, sharing, monkeypatch):
    case = dataclasses.replace(CASES[name], length=LONG)
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", 128 * case.inner * 8)
    inputs = case.inputs(torch.float64)
    kept = (STATES, *KEEP)
    block = arguments.Block(
        inputs.x, inputs.in_weight, inputs.out_weight, inputs.walks, None, False, kept, "portable"
    )
    forward = fused.Forward(block)
    forward.run()
    told = Plan(block).empty_kept()
    assert len(Plan(block).pieces.pieces) < len(Plan(block).parts.pieces)
    assert [t.shape for t in told] == [t.shape for t in forward.kept]
    assert [t.dtype for t in told] == [t.dtype for t in forward.kept]
    assert all(t.is_contiguous() for t in forward.kept)


def test_a_graph_that_is_kept_can_be_walked_twice(thrifty):
    inputs = CASES["both directions"].inputs(torch.float64)
    x = inputs.x.clone().requires_grad_()
    y = inputs.replaced({"x": x}).run(backend="portable", keep=KEEP)[0]
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_gradients_are_those_of_finite_differences():
    inputs = Case(batch=1, length=5, width=2, inner=3, states=2, rank=1, reverse=BOTH).inputs(
        torch.float64
    )
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.named().items()}

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(inputs.replaced(dict(zip(leaves, tensors, strict=True))).run(keep=()))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)


# States, sequences, directions


@pytest.mark.parametrize("border", [1, 2, 20, 36])
def test_two_calls_through_the_states_are_one_call(border):
    inputs = CASES["plain"].inputs(torch.float64)
    whole, (dy, *dstates) = outcome(inputs)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.named().items()}
    given = inputs.replaced(leaves)
    left, *state = given.replaced({"x": given.x[:, :border]}).run()
    later = {"x": given.x[:, border:], "conv_state 0": state[0], "ssm_state 0": state[1]}
    right, *end = given.replaced(later).run()
    torch.autograd.backward([torch.cat([left, right], 1), *end], [dy, *dstates])
    got = {"y": torch.cat([left, right], 1), "conv 0": end[0], "ssm 0": end[1]}
    got |= {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    assert furthest(got, whole)[0] <= 1e-12, furthest(got, whole)


@pytest.mark.parametrize("reverse", [(False,), (True,), BOTH], ids=str)
def test_packed_sequences_are_those_sequences_apart(reverse):
    edges = (0, 1, 20, 37)
    inputs = Case(batch=1, packed=edges, reverse=reverse).inputs(torch.float64)
    packed = inputs.run(cu_seqlens=torch.tensor(edges))
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        named = inputs.named()
        states = {n: t[row : row + 1] for n, t in named.items() if "_state" in n}
        alone = inputs.replaced({"x": inputs.x[:, start:end], **states}).run()
        torch.testing.assert_close(packed[0][:, start:end], alone[0], rtol=1e-12, atol=1e-12)
        for of_all, found in zip(packed[1:], alone[1:], strict=True):
            torch.testing.assert_close(of_all[row : row + 1], found, rtol=1e-12, atol=1e-12)


def test_reverse_is_the_flip_of_the_flipped():
    onwards = CASES["plain"].inputs(torch.float64)
    reverse = dataclasses.replace(onwards, walks=(onwards.walks[0]._replace(reverse=True),))
    y, *states = reverse.replaced({"x": onwards.x.flip(1)}).run()
    want, *ends = onwards.run()
    torch.testing.assert_close(y.flip(1), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states, ends, rtol=1e-12, atol=1e-12)


def test_both_directions_are_the_sum_of_one_each():
    inputs = CASES["both directions"].inputs(torch.float64)
    alone = [dataclasses.replace(inputs, walks=(walk,)).run() for walk in inputs.walks]
    y, *states = inputs.run()
    torch.testing.assert_close(y, alone[0][0] + alone[1][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states, [*alone[0][1:], *alone[1][1:]], rtol=1e-12, atol=1e-12)


def test_a_row_alone_is_the_row_in_its_batch():
    inputs = Case(batch=3).inputs(torch.float64)
    rows = {n: t[1:2] for n, t in inputs.named().items() if n == "x" or "_state" in n}
    for of_all, found in zip(inputs.run(), inputs.replaced(rows).run(), strict=True):
        torch.testing.assert_close(of_all[1:2], found, rtol=1e-12, atol=1e-12)


def test_every_run_has_the_same_bits():
    inputs = CASES["both directions"].inputs(torch.float32)
    first, weights = outcome(inputs)
    again, _ = outcome(inputs, weights)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []


# What is kept


def saved(call: object) -> dict[int, Tensor]:
    """Storages that the backward holds, by address."""
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return found


def bytes_kept(keep: tuple[str, ...], **options: object) -> int:
    """Bytes beyond the arguments that are held for the backward."""
    case = Case(batch=1, length=256, width=32, inner=64, states=4, rank=2)
    inputs = case.inputs(torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.named().items()}
    given = {tensor.untyped_storage().data_ptr() for tensor in leaves.values()}
    held = saved(lambda: inputs.replaced(leaves).run(keep=keep, **options))
    return sum(t.untyped_storage().nbytes() for at, t in held.items() if at not in given)


def test_the_backward_holds_what_is_kept_and_nothing_else():
    inner = 256 * 64 * 4
    assert bytes_kept(()) == 0
    assert bytes_kept(("xz",)) == 2 * inner
    assert bytes_kept(("u",)) == inner
    assert bytes_kept(("x_dbl",)) == 256 * (2 + 2 * 4) * 4
    assert inner < bytes_kept(("scan",), backend="cpu") <= 1.5 * inner + 4096
    assert bytes_kept((), fused=False) > 4 * inner


def test_the_output_of_a_scan_that_gives_it_again_is_not_kept(thrifty):
    inner = 256 * 64 * 4
    assert bytes_kept(("scan",), backend="portable") <= 0.5 * inner
    assert inner < bytes_kept(("scan", "y"), backend="portable") <= 1.5 * inner


def test_what_is_kept_follows_the_size_of_the_call():
    def keep(batch: int, length: int, width: int) -> tuple[str, ...]:
        x = torch.empty(batch, length, width, dtype=torch.bfloat16, device="meta")
        return arguments.default_keep(x, 2 * width)

    assert keep(1, 1 << 17, 256) == ("xz", "u", "y", "x_dbl", "scan")
    assert keep(8, 1 << 13, 768) == ("xz", "x_dbl", "scan")
    assert keep(1, 1 << 20, 256) == ("x_dbl", "scan")


@pytest.mark.parametrize(
    ("shape", "pieces"),
    [
        ((1, 1 << 17, 256), 1),
        ((8, 1 << 13, 768), 2),
        ((1, 1 << 20, 256), 2),
        ((1, 1 << 22, 256), 8),
    ],
    ids=str,
)
def test_pieces_follow_the_size_of_the_call(shape, pieces):
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    out = torch.empty(shape[2], 2 * shape[2], dtype=torch.bfloat16, device="meta")
    found = arguments.Block(x, out, out, (), None, False, (), "auto").cut.pieces
    assert len(found) == pieces
    sizes = {(p.row_end - p.row) * (p.end - p.begin) for p in found}
    assert sizes == {shape[0] * shape[1] // pieces}


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("reverse", [(False,), (True,), BOTH], ids=str)
def test_the_part_that_the_backward_comes_to_first_is_longer_by_a_share_of_dx(
    reverse, parts, length, monkeypatch
):
    monkeypatch.setitem(arguments.FORWARD_BYTES, "cuda", 2 << 30)
    monkeypatch.setitem(arguments.PIECE_BYTES, "cuda", (length * 1024 - 1) // parts + 1)
    monkeypatch.setattr(arguments, "WHOLE_BYTES", 2 << 30)
    x = torch.empty(1, length, 256, dtype=torch.bfloat16, device="meta")
    out = torch.empty(256, 512, dtype=torch.bfloat16, device="meta")
    walks = tuple(Walk(out, out, out, out, reverse=way) for way in reverse)
    cut = arguments.Block(x, out, out, walks, None, False, (), "auto").cut
    edges = [p.begin for p in cut.pieces] + [length]
    assert [p.end for p in cut.pieces] == edges[1:]
    sizes = [end - begin for begin, end in itertools.pairwise(edges)]
    assert len(sizes) == parts
    assert all(size % 128 == 0 for size in (sizes[1:] if reverse == (True,) else sizes[:-1]))
    first = sizes.pop(0 if reverse == (True,) else -1)
    longer = length // 12 if len(reverse) == 1 and parts > 1 else 0
    assert all(abs(first - size - longer) <= 128 * parts for size in sizes)


def test_without_gradients_nothing_is_kept(monkeypatch):
    made = []
    operator = op.inner
    monkeypatch.setattr(op, "inner", lambda *given: made.append(given) or operator(*given))
    inputs = Case().inputs(torch.float32)
    inputs.run()
    with torch.no_grad():
        inputs.replaced({"x": inputs.x.requires_grad_()}).run()
    assert {given[7] for given in made} == {""}


# Torch


OPERATOR = {
    "plain": {},
    "bare": {},
    "both directions": {},
    "packed": {"cu_seqlens": torch.tensor([0, 1, 20, 37], dtype=torch.int32)},
}


@pytest.mark.parametrize("keep", ["", f"{STATES} xz x_dbl scan"], ids=["nothing", "all"])
@pytest.mark.parametrize("name", OPERATOR)
def test_torch_finds_no_fault_with_the_operator(name, keep):
    case = CASES[name]
    inputs = case.inputs(torch.float64)
    inputs = inputs.replaced({n: t.requires_grad_() for n, t in inputs.named().items()})
    flat = [getattr(walk, name) for walk in inputs.walks for name in TENSORS]
    edges = OPERATOR[name].get("cu_seqlens")
    first = (inputs.x, inputs.in_weight, inputs.out_weight, flat, list(case.reverse), edges)
    torch.library.opcheck(op.inner, (*first, False, keep, "portable"))


def check_compiled(inputs: Inputs, *, dynamic: bool, **options: object) -> None:
    """Compiled without a break, the block has the same bits."""
    torch.compiler.reset()
    want, weights = outcome(inputs, **options)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(tensors: dict[str, Tensor]) -> list[Tensor]:
        y, *states = inputs.replaced(tensors).run(**options)
        return [y * 2, *states]

    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.named().items()}
    y, *states = compiled(leaves)
    torch.autograd.backward([y, *states], [weights[0] / 2, *weights[1:]])
    assert torch.equal(y, want["y"] * 2)
    assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", ["plain", "both directions", "cut"])
def test_a_compiled_block_has_no_break_and_the_same_results(name, dynamic, monkeypatch):
    case = cut(monkeypatch, Case(), 2) if name == "cut" else CASES[name]
    check_compiled(case.inputs(torch.float64), dynamic=dynamic)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_so_has_a_compiled_block_with_a_longer_forward(dynamic, sharing, monkeypatch):
    case = Case(batch=1, length=512)
    monkeypatch.setitem(arguments.PIECE_BYTES, "cpu", 256 * case.inner * 8)
    inputs = case.inputs(torch.float64)
    check_compiled(inputs, dynamic=dynamic, keep=("scan",), backend="portable")
    assert set(sharing) == {512, 256}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    inputs = CASES["both directions"].inputs(torch.float64)
    want, weights = outcome(inputs)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.named().items()}

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(inputs.replaced(dict(zip(leaves, tensors, strict=True))).run())

    results = checkpoint(call, *leaves.values(), use_reentrant=reentrant)
    torch.autograd.backward(results, weights)
    assert [n for n in leaves if not torch.equal(leaves[n].grad, want[f"d{n}"])] == []


class _Layer(nn.Module):
    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.learned = nn.ParameterList(t.detach().clone() for t in self._named().values())

    def _named(self) -> dict[str, Tensor]:
        named = self.inputs.named().items()
        return {n: t for n, t in named if n != "x" and "_state" not in n}

    def forward(self, x: Tensor) -> Tensor:
        named = dict(zip(self._named(), self.learned, strict=True))
        return self.inputs.replaced({"x": x, **named}).run()[0]


def test_a_layer_under_ddp_has_the_gradients_of_the_layer(gradients_under_ddp):
    inputs = CASES["both directions"].inputs(torch.float32)
    alone = _Layer(inputs)
    alone(inputs.x).square().sum().backward()
    got = gradients_under_ddp(_Layer(inputs), inputs.x)
    for gradient, parameter in zip(got, alone.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize("name", ["plain", "both directions"])
def test_autocast_casts_what_it_casts_in_the_composition(name):
    inputs = CASES[name].inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, weights = outcome(inputs, fused=False)
        got, _ = outcome(inputs, weights)
    assert got["y"].dtype == torch.bfloat16
    assert torch.equal(got["y"], want["y"])
    assert furthest(got, want)[0] <= ROUNDING[torch.bfloat16], furthest(got, want)
    assert {n: t.dtype for n, t in got.items()} == {n: t.dtype for n, t in want.items()}
    assert got["din_weight"].dtype == torch.float32


def test_only_what_is_asked_for_gets_a_gradient():
    inputs = CASES["both directions"].inputs(torch.float64)
    want, weights = outcome(inputs)
    x = inputs.x.detach().clone().requires_grad_()
    results = inputs.replaced({"x": x}).run()
    (found,) = torch.autograd.grad(results, [x], weights)
    assert torch.equal(found, want["dx"])


@pytest.mark.parametrize("result", range(5))
def test_the_loss_may_go_through_one_result_alone(result):
    inputs = CASES["both directions"].inputs(torch.float64)
    found = []
    for whole in (True, False):
        x = inputs.x.detach().clone().requires_grad_()
        results = inputs.replaced({"x": x}).run(fused=whole)
        found.append(torch.autograd.grad(results[result].square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


def test_gradients_of_the_results_may_have_any_strides():
    inputs = CASES["plain"].inputs(torch.float64)
    dy = torch.randn(8, 2, 1, dtype=torch.float64).permute(1, 2, 0).expand(2, 37, 8)
    ones = [torch.ones((), dtype=torch.float64).expand(r.shape) for r in inputs.run()[1:]]
    want, _ = outcome(inputs, [t.contiguous() for t in (dy, *ones)])
    x = inputs.x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(inputs.replaced({"x": x}).run(), x, [dy, *ones])
    torch.testing.assert_close(found, want["dx"], rtol=1e-12, atol=1e-12)


def test_an_input_of_any_strides_is_taken():
    inputs = CASES["both directions"].inputs(torch.float64)
    want, weights = outcome(inputs)
    turned = inputs.x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    results = inputs.replaced({"x": turned}).run()
    (dx,) = torch.autograd.grad(results, turned, weights)
    torch.testing.assert_close(results[0], want["y"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dx, want["dx"], rtol=1e-12, atol=1e-12)


def test_inputs_are_not_changed():
    inputs = CASES["both directions"].inputs(torch.float64)
    before = {name: tensor.clone() for name, tensor in inputs.named().items()}
    outcome(inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in inputs.named().items())


def test_a_second_derivative_is_refused():
    inputs = CASES["plain"].inputs(torch.float64)
    x = inputs.x.requires_grad_()
    (dx,) = torch.autograd.grad(inputs.run()[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"mamba_inner: a second derivative .* fused=False"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_laws_of_every_op_hold(dtype):
    probe = Probe(checks.SUBJECT, dtype, 64, 32, torch.device("cpu"))
    for law in laws(probe):
        found, bound = errors(*law.compare(probe)), law.bound(probe)
        beyond = {name: error for name, error in found.items() if not error.within(bound.of(name))}
        assert not beyond, law.name


# What is said of a bad argument


def spoiled(name: str, tensor: Tensor) -> Inputs:
    return CASES["plain"].inputs(torch.float32).replaced({name: tensor})


BAD = {
    "x must be .B, L, M.": ("x", torch.zeros(2, 0, 8)),
    r"in_weight must be \(32, 8\)": ("in_weight", torch.zeros(32, 9)),
    "in_weight must be torch.float32 like x, got torch.float64": (
        "in_weight",
        torch.zeros(32, 8, dtype=torch.float64),
    ),
    r"conv_weight must be \(16, any\)": ("conv_weight 0", torch.zeros(15, 4)),
    r"x_weight must be \(11, 16\)": ("x_weight 0", torch.zeros(12, 16)),
    r"dt_weight must be \(16, any\)": ("dt_weight 0", torch.zeros(3)),
    "A must be float32 or float64": ("A 0", torch.zeros(16, 4, dtype=torch.bfloat16)),
    r"D must be \(16\)": ("D 0", torch.zeros(17)),
    "dt_bias must be floating point": ("dt_bias 0", torch.zeros(16, dtype=torch.int64)),
    r"conv_state must be \(2, 3, 16\)": ("conv_state 0", torch.zeros(1, 3, 16)),
    r"ssm_state must be \(2, 16, 4\)": ("ssm_state 0", torch.zeros(2, 16, 5)),
    "initial_state must be finite": ("ssm_state 0", torch.full((2, 16, 4), torch.nan)),
    "conv_state is on meta, x on cpu": ("conv_state 0", torch.zeros(2, 3, 16, device="meta")),
}


@pytest.mark.parametrize(("message", "spoil"), BAD.items(), ids=BAD)
def test_a_bad_argument_is_named(message, spoil):
    with pytest.raises(ShapeError, match=f"mamba_inner: .*{message}"):
        spoiled(*spoil).run()


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
    with pytest.raises(ShapeError, match=f"mamba_inner: cu_seqlens .*{message}"):
        inputs.run(cu_seqlens=torch.tensor([0, 37]) if edges is None else edges)


def test_an_option_that_does_not_exist_is_named_with_those_that_do():
    inputs = Case().inputs(torch.float32)
    with pytest.raises(ShapeError, match="keep has no 'dt'; have xz, u, x_dbl, scan, y"):
        inputs.run(keep=("dt",))
    with pytest.raises(ShapeError, match="at least one walk"):
        mamba_inner(inputs.x, inputs.in_weight, inputs.out_weight)


def test_a_walk_lists_its_tensors_in_the_order_of_the_operator():
    assert (*TENSORS, "reverse") == Walk._fields
