"""The Mamba block in pieces: what is kept, written over and computed again changes no number."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import types

import pytest
import torch
from torch import Tensor

from dnassm.kernels.mamba_inner import Walk, arguments, calls, fused, op
from dnassm.kernels.mamba_inner.arguments import KEEP, STATES
from dnassm.kernels.mamba_inner.cases import BOTH, CASES, ROUNDING, Case, Inputs, furthest, outcome
from dnassm.kernels.mamba_inner.plan import Plan
from dnassm.kernels.selective_scan import portable

EVERY_KEEP = [
    names for count in range(len(KEEP) + 1) for names in itertools.combinations(KEEP, count)
]


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


# What is kept, and where rows are cut


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


# Scans that write over what they are given


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


def test_a_graph_that_is_kept_can_be_walked_twice(thrifty):
    inputs = CASES["both directions"].inputs(torch.float64)
    x = inputs.x.clone().requires_grad_()
    y = inputs.replaced({"x": x}).run(backend="portable", keep=KEEP)[0]
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


# A forward in longer pieces than the backward


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


# How much is kept, and how small pieces are


@pytest.fixture
def bytes_kept(bytes_held):
    """Bytes beyond the arguments that are held for the backward."""
    case = Case(batch=1, length=256, width=32, inner=64, states=4, rank=2)
    inputs = case.inputs(torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.named().items()}

    def count(keep: tuple[str, ...], **options: object) -> int:
        return bytes_held(
            leaves.values(), lambda: inputs.replaced(leaves).run(keep=keep, **options)
        )

    return count


def test_the_backward_holds_what_is_kept_and_nothing_else(bytes_kept):
    inner = 256 * 64 * 4
    assert bytes_kept(()) == 0
    assert bytes_kept(("xz",)) == 2 * inner
    assert bytes_kept(("u",)) == inner
    assert bytes_kept(("x_dbl",)) == 256 * (2 + 2 * 4) * 4
    assert inner < bytes_kept(("scan",), backend="cpu") <= 1.5 * inner + 4096
    assert bytes_kept((), fused=False) > 4 * inner


def test_the_output_of_a_scan_that_gives_it_again_is_not_kept(bytes_kept, thrifty):
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


# Compiled


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
