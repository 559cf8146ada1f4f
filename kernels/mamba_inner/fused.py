"""The Mamba block and its gradients, piece by piece, by the backends of its two operators.

A piece hands its states to the next one and leaves for the backward what `Block.keep` names. All
else lives as long as the piece (README, section 2).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.causal_conv1d.op import BACKENDS as CONV
from dnassm.kernels.mamba_inner.arguments import Block, splits
from dnassm.kernels.mamba_inner.calls import DT_ALONE, Room, backend_of, conv_call, scan_call
from dnassm.kernels.mamba_inner.plan import Key, Plan
from dnassm.kernels.pieces import Piece, Sums, flat, inner_dtype
from dnassm.kernels.selective_scan.arguments import Gradients, Scan

PRIORITY = 10

Kept = dict[Key, Tensor]
T = TypeVar("T")


def supports(block: Block) -> str | None:
    """Runs wherever its operators do."""
    return None


class States(NamedTuple):
    """States at a border of a piece, or their gradients; None where a sequence starts anew."""

    conv: Tensor | None
    ssm: Tensor | None


# One piece, forward


def _rows(block: Block, states: States, piece: Piece) -> States:
    """The states of the rows of a piece."""
    if block.cu_seqlens is not None:
        return states
    rows = slice(piece.row, piece.row_end)
    return States(*(None if state is None else state[rows] for state in states))


class Forward:
    """The forward of one call."""

    def __init__(self, block: Block) -> None:
        self.block, self.plan, self._kept = block, Plan(block), Kept()
        self._wanted = list(self.plan.leaves())
        self.states: list[Tensor] = []
        """Of the convolution and of the scan of each walk, one after the other."""
        self._xz: dict[int, Tensor] = {}
        self._gated: dict[int, Tensor] = {}

    @functools.cached_property
    def y(self) -> Tensor:
        """(B, L, M), allocated when the first piece gets to it: by then it has let go of most."""
        return self.block.x.new_empty(*self.block.x.shape[:2], self.block.out_weight.shape[0])

    @property
    def kept(self) -> list[Tensor]:
        """For the backward, in the order of `Plan.leaves`."""
        return [self._kept[key] for key in self._wanted]

    def run(self) -> None:
        """Let one walk after the other go over the pieces, and project what the last leaves."""
        walks, cut = self.block.walks, self.plan.pieces
        for index in range(len(walks)):
            ends: dict[int, States] = {}
            state = States(None, None)
            for number, piece in cut.order(reverse=walks[index].reverse):
                state = self._piece(index, number, piece, state)
                if cut.last(piece, reverse=walks[index].reverse):
                    ends[piece.row] = state
                if index == len(walks) - 1:
                    self._project(number, piece)
            self.states += [state for state in _joined(ends) if state is not None]

    def _keep(self, name: str, walk: int, piece: int, tensor: Tensor | None) -> None:
        key = Key(name, walk, piece)
        if tensor is not None and key in self._wanted:
            self._kept[key] = tensor

    def _projected(self, number: int, piece: Piece, *, last: bool) -> Tensor:
        """The input projection of a piece: once for all walks."""
        xz = self._xz.pop(number, None)
        if xz is None:
            xz = F.linear(piece.of(self.block.x), self.block.in_weight)
            self._keep("xz", -1, number, xz)
        if not last:
            self._xz[number] = xz
        return xz

    def _piece(self, index: int, number: int, piece: Piece, start: States) -> States:
        """One walk over one piece; its output is added to that of the walks before."""
        block, walk = self.block, self.block.walks[index]
        if self.plan.pieces.first(piece, reverse=walk.reverse):
            start = _rows(block, States(walk.conv_state, walk.ssm_state), piece)
        self._keep("conv", index, number, start.conv)
        self._keep("ssm", index, number, start.ssm)
        xz = self._projected(number, piece, last=index == len(block.walks) - 1)
        before, gate = xz.chunk(2, dim=2)  # read where they lie
        self._keep_borders(index, number, before)
        conv = conv_call(block, walk, before, start.conv)
        u, conv_state = CONV.choose(block.backend, conv).forward(conv)
        x_dbl = F.linear(u, walk.x_weight)
        scan = scan_call(block, walk, (u, gate, x_dbl), start.ssm)
        y, ssm_state, marks = backend_of(block, scan).forward(scan)
        for name, tensor in (("u", u), ("x_dbl", x_dbl), ("marks", marks)):
            self._keep(name, index, number, tensor)
        others = self._gated.get(number)
        self._gated[number] = y if others is None else others.add_(y)
        if not self.plan.pieces.last(piece, reverse=walk.reverse):
            # Exact, and so its gradient is not rounded.
            conv_state = conv_state.to(inner_dtype(conv_state))
        return States(conv_state, ssm_state)

    def _keep_borders(self, index: int, number: int, before: Tensor) -> None:
        """The inputs of the convolution that the backward enters parts of this piece with."""
        walk, piece = self.block.walks[index], self.plan.pieces.pieces[number]
        past = walk.conv_weight.shape[1] - 1
        for part, place in self.plan.borders(number, reverse=walk.reverse):
            begin = place.end if walk.reverse else place.begin - past
            border = Piece(place.row, place.row_end, begin, begin + past)
            found = border.shifted(-piece.row, -piece.begin).of(before)
            found = found.flip(1) if walk.reverse else found
            self._keep("border", index, part, found.to(inner_dtype(found), copy=True))

    def _project(self, number: int, piece: Piece) -> None:
        gated = self._gated.pop(number)
        if Key("y", -1, number) in self._wanted:
            kept = self.plan.keeps_output(piece.of(self.block.x))
            self._keep("y", -1, number, gated if kept else gated.new_empty(0))
        torch.mm(flat(gated), self.block.out_weight.t(), out=flat(piece.of(self.y)))


def _joined(by_row: dict[int, States]) -> States:
    """States of all rows from those of their groups."""
    columns = zip(*(by_row[row] for row in sorted(by_row)), strict=True)
    return States(*(_together(list(column)) for column in columns))


def _together(parts: list[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None
    return torch.cat(found)


# One piece, backward


class _Input(NamedTuple):
    """Of a piece: what its input projection gave, and where the gradients of that go."""

    before: Tensor
    """(rows, T, E) before the convolution."""
    gate: Tensor
    """(rows, T, E)."""
    gradient: Tensor
    """(rows, T, 2E) of both side by side. Its first half is free until the convolution's gradient
    goes there: that is where u goes, or y. The second is the memory of `gate`, unless xz is kept,
    which nobody may write over."""

    @property
    def free(self) -> Tensor:
        """The first half of `gradient`."""
        return self.gradient.chunk(2, dim=2)[0]

    @property
    def dz(self) -> Tensor:
        """Its second half."""
        return self.gradient.chunk(2, dim=2)[1]


class Backward:
    """The backward of one call: walks and pieces against their order."""

    def __init__(self, block: Block, kept: list[Tensor], dy: Tensor, dstates: list[Tensor]) -> None:
        self.block, self.plan, self.dy = block, Plan(block), dy
        self._kept: Kept = dict(zip(self.plan.leaves(), kept, strict=True))
        self.dstates = [States(*pair) for pair in zip(dstates[::2], dstates[1::2], strict=True)]
        self.sums = Sums()
        self._held: dict[tuple[str, int], Any] = {}
        self._apart: tuple[Piece, Tensor] | None = None

    @functools.cached_property
    def dx(self) -> Tensor:
        """Allocated when a piece needs it: by then it has let go of most."""
        return torch.empty_like(self.block.x, memory_format=torch.contiguous_format)

    def _dx_of(self, piece: Piece) -> Tensor:
        """Where the gradient of a piece of x goes.

        The first of two groups of rows has a tensor of its own, so that there is no more than that
        beside what the second takes.
        """
        two = len(self.plan.parts.pieces) == 2 and self.block.x.shape[0] > 1
        if two and self._apart is None:
            x = piece.of(self.block.x)
            self._apart = piece, torch.empty_like(x, memory_format=torch.contiguous_format)
            return self._apart[1]
        if self._apart is not None:
            first, part = self._apart
            first.of(self.dx).copy_(part)
        return piece.of(self.dx)

    def run(self) -> None:
        """Fill `dx` and `sums`."""
        for index in reversed(range(len(self.block.walks))):
            walk, cut = self.block.walks[index], self.plan.parts
            after, starts = States(None, None), {}
            for number, piece in cut.order(reverse=not walk.reverse):
                if cut.last(piece, reverse=walk.reverse):
                    after = _rows(self.block, self.dstates[index], piece)
                after = self._piece(index, number, piece, after)
                if cut.first(piece, reverse=walk.reverse):
                    starts[piece.row] = after
            found = _joined(starts)
            self.sums.add((index, "conv_state"), found.conv)
            self.sums.add((index, "ssm_state"), found.ssm)

    def _piece(self, index: int, number: int, piece: Piece, after: States) -> States:
        """One walk over one piece: `after` are the gradients of the states that it left."""
        block, walk = self.block, self.block.walks[index]
        start = self._start(index, number, piece)
        given = self._once("input", number, lambda: self._input(number, piece), last=index == 0)
        # The walk that comes to a piece first leaves its gradient where the product takes it.
        free = given.free if index == len(block.walks) - 1 else None
        conv = conv_call(block, walk, given.before, start.conv, free)
        u, x_dbl = (self._part(name, index, number) for name in ("u", "x_dbl"))
        beside_dz = None if u is None else free
        if u is None:
            u, _ = CONV.choose(block.backend, conv).forward(conv)
        if x_dbl is None:
            x_dbl = F.linear(u, walk.x_weight)
        # What no other walk needs is written over.
        room = Room(("dt", "dy"), given.dz, beside_dz) if index == 0 else DT_ALONE
        scan = scan_call(block, walk, (u, given.gate, x_dbl), start.ssm, room)
        found: Any = self._scan(index, number, piece, scan, after.ssm)
        du, dgate, dssm = self._maps(index, u, x_dbl, found), found.z, found.initial_state
        del u, x_dbl, scan, found
        dconv = du.new_zeros(conv.state_shape) if after.conv is None else after.conv
        before = CONV.choose(block.backend, conv).backward(conv, du.view(conv.x.shape), dconv)
        del du
        self.sums.add((index, "conv_weight"), before.weight)
        self.sums.add((index, "conv_bias"), before.bias)
        self._project(index, number, piece, given, (before.x, dgate))
        return States(before.initial_state, dssm)

    def _start(self, index: int, number: int, piece: Piece) -> States:
        """The states that a walk entered a part with."""
        block, walk, owner = self.block, self.block.walks[index], self.plan.owners[number]
        if self.plan.parts.first(piece, reverse=walk.reverse):
            return _rows(block, States(walk.conv_state, walk.ssm_state), piece)
        border = self._kept.get(Key("border", index, number))
        if border is not None:  # the scan has its marks, and reads no state
            return States(border, walk.A.new_zeros(1, *walk.A.shape))
        return States(*(self._kept[Key(name, index, owner)] for name in States._fields))

    def _part(self, name: str, index: int, number: int) -> Tensor | None:
        """Of what is kept of the piece that a part belongs to."""
        owner = self.plan.owners[number]
        kept = self._kept.get(Key(name, index, owner))
        if kept is None or kept.numel() == 0:
            return kept
        piece, part = self.plan.pieces.pieces[owner], self.plan.parts.pieces[number]
        return part.shifted(-piece.row, -piece.begin).of(kept)

    def _marks(self, index: int, number: int, scan: Scan) -> Tensor | None:
        """The marks of a part: `mark_steps` steps of the walk lie between two."""
        plan, owner = self.plan, self.plan.owners[number]
        marks = self._kept.get(Key("marks", index, owner))
        if marks is None or plan.pieces is plan.parts:
            return marks
        owned = plan.pieces.pieces[owner]
        steps = backend_of(self.block, scan).mark_steps(owned.end - owned.begin, marks)
        first = plan.steps_before(number, reverse=scan.reverse) // steps
        rows, length, _ = scan.x.shape
        row = plan.parts.pieces[number].row - owned.row
        return marks[row : row + rows, first : first - (-length // steps)]

    def _input(self, number: int, piece: Piece) -> _Input:
        """The input projection: kept, or once more, with room for its gradient beside it."""
        kept, inner = self._part("xz", -1, number), self.block.inner
        if kept is not None:
            before, gate = kept.chunk(2, dim=2)
            return _Input(before, gate, torch.empty_like(kept))
        x = piece.of(self.block.x)
        lanes = x.new_empty(*x.shape[:2], 3 * inner)  # free, gate, before
        torch.mm(flat(x), self._gate_first.t(), out=flat(lanes)[:, inner:])
        _, gate, before = lanes.chunk(3, dim=2)
        return _Input(before, gate, lanes[:, :, : 2 * inner])

    @functools.cached_property
    def _gate_first(self) -> Tensor:
        """The input projection with its halves the other way round."""
        return self.block.in_weight.roll(self.block.inner, 0)

    def _once(self, name: str, number: int, make: Callable[[], T], *, last: bool) -> T:
        """What all walks need of a piece: made for the first, let go with the `last`."""
        made: T | None = self._held.pop((name, number), None)
        if made is None:
            made = make()
        if not last:
            self._held[name, number] = made
        return made

    def _scan(
        self, index: int, number: int, piece: Piece, scan: Scan, dfinal: Tensor | None
    ) -> Gradients:
        """Through output projection and scan."""
        block, last, dy = self.block, index == 0, flat(piece.of(self.dy))
        backend = backend_of(block, scan)
        marks, y = self._marks(index, number, scan), self._part("y", -1, number)
        if marks is None:
            y, _, marks = backend.forward(dataclasses.replace(scan, overwrite=()))
        again = y is not None and y.numel() == 0
        # What was kept is the sum over the walks: it counts once.
        if y is not None and not again and ("scan" not in block.keep or last):
            self.sums.add((-1, "out_weight"), dy.t() @ flat(y))
        del y
        dgated = self._once("dgated", number, lambda: dy @ block.out_weight, last=last)
        if dfinal is None:
            dfinal = scan.A.new_zeros(scan.state_shape)
        backward = backend.backward_and_output if again else backend.backward
        result = backward(scan, marks, dgated.view(scan.x.shape), dfinal)
        found: Gradients = result[0] if again else result
        if again:
            self.sums.add((-1, "out_weight"), dy.t() @ flat(result[1]))
        return found

    def _maps(self, index: int, u: Tensor, x_dbl: Tensor, found: Gradients) -> Tensor:
        """Through the projections into the scan: the gradient of u, flat."""
        walk = self.block.walks[index]
        for name in ("A", "D", "dt_bias"):
            self.sums.add((index, name), getattr(found, name))
        low, ddt = flat(x_dbl)[:, : splits(walk)[0]], flat(found.dt)
        self.sums.add((index, "dt_weight"), ddt.t() @ low)
        dx_dbl = torch.cat([ddt @ walk.dt_weight, flat(found.B), flat(found.C)], 1)
        self.sums.add((index, "x_weight"), dx_dbl.t() @ flat(u))
        return flat(found.x).addmm_(dx_dbl, walk.x_weight)

    def _project(
        self, index: int, number: int, piece: Piece, given: _Input, found: tuple[Tensor, Tensor]
    ) -> None:
        """Through the input projection, once all walks have added their gradients of its halves."""
        before, gate = found
        others = self._held.pop(("halves", number), None)
        if others is not None:
            before, gate = others[0].add_(before), gate.add_(others[1])
        if index > 0:
            self._held["halves", number] = before, gate
            return
        x, dx = flat(piece.of(self.block.x)), flat(self._dx_of(piece))
        weight = self.block.in_weight
        if gate.data_ptr() != given.dz.data_ptr():  # of a scan that writes where it likes
            given.dz.copy_(gate)
        both = flat(given.gradient)
        torch.mm(both, weight, out=dx)
        self.sums.add((-1, "in_weight"), both.t() @ x)
