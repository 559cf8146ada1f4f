"""The Mamba-2 block and its gradients, piece by piece, by the backends of its three operators.

A piece hands its states to the next one and leaves for the backward what `Block.keep` names. All
else lives as long as the piece, or shorter (README, section 2).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.causal_conv1d.arguments import Conv
from dnassm.kernels.causal_conv1d.op import BACKENDS as CONV
from dnassm.kernels.mamba2_inner.arguments import TENSORS, Block, Key, States
from dnassm.kernels.norm import arguments as of_norm
from dnassm.kernels.norm.arguments import Norm, Wanted
from dnassm.kernels.norm.op import BACKENDS as NORM
from dnassm.kernels.pieces import Piece, Sums, flat, inner_dtype
from dnassm.kernels.ssd import arguments as of_ssd
from dnassm.kernels.ssd.arguments import Ssd
from dnassm.kernels.ssd.op import BACKENDS as SSD

PRIORITY = 10

Kept = dict[Key, Tensor]


def supports(block: Block) -> str | None:
    """Runs wherever its operators do."""
    return None


# What the operators are called with


def _conv(block: Block, projected: Tensor, state: Tensor | None, into: Tensor | None) -> Conv:
    return Conv(
        x=block.parts(projected)[1],
        weight=block.conv_weight,
        bias=block.conv_bias,
        initial_state=state,
        cu_seqlens=block.cu_seqlens,
        silu=True,
        reverse=block.reverse,
        into=into,
    )


def _ssd(block: Block, projected: Tensor, convolved: Tensor, state: Tensor | None) -> Ssd:
    x, B, C = block.maps(convolved)
    return Ssd(
        x=x,
        dt=block.parts(projected)[2],
        A=block.A,
        B=B,
        C=C,
        D=block.D,
        z=None,
        dt_bias=block.dt_bias,
        initial_state=state,
        cu_seqlens=block.cu_seqlens,
        dt_softplus=True,
        dt_min=block.dt_min,
        dt_max=block.dt_max,
        reverse=block.reverse,
        chunk=None,
    )


def _norm(block: Block, projected: Tensor, scanned: Tensor) -> Norm:
    return Norm(
        x=scanned.flatten(2),
        weight=block.norm_weight,
        bias=None,
        residual=None,
        gate=block.parts(projected)[0],
        centred=False,
        eps=block.eps,
        groups=block.groups,
        total_dtype=scanned.dtype,
    )


class _Work:
    """What the forward makes of a piece: each made when it is asked for, unless it was kept."""

    conv_state: Tensor
    """After the piece, known with `convolved`."""
    ssm_state: Tensor
    """After the piece, known with `scanned`."""
    marks: Tensor
    """What the backward of SSD wants, known with `scanned`."""

    into: Tensor | None = None
    """Where the convolution writes, in the backward the gradient of its input."""

    def __init__(
        self, block: Block, piece: Piece, start: States, kept: Mapping[str, Tensor]
    ) -> None:
        self.block, self.piece, self.start = block, piece, start
        vars(self).update(kept)

    @functools.cached_property
    def projected(self) -> Tensor:
        """(rows, T, W): gate, what is convolved, step size, and what fills the row up."""
        x, weight = self.piece.of(self.block.x), self.block.in_weight
        rows = x.new_empty(*x.shape[:2], self.block.padded)
        torch.mm(flat(x), weight.t(), out=flat(rows)[:, : len(weight)])
        flat(rows)[:, len(weight) :].zero_()  # what is kept is a result, the same every time
        return rows

    @functools.cached_property
    def convolved(self) -> Tensor:
        """(rows, T, E + 2GN)."""
        call = self.conv()
        found: tuple[Tensor, Tensor] = CONV.choose(self.block.backend, call).forward(call)
        u, self.conv_state = found
        return u

    @functools.cached_property
    def scanned(self) -> Tensor:
        """(rows, T, H, P)."""
        call = self.ssd()
        found: tuple[Tensor, Tensor, Tensor] = SSD.choose(self.block.backend, call).forward(call)
        y, self.ssm_state, self.marks = found
        return y

    @functools.cached_property
    def normed(self) -> Tensor:
        """(rows, T, E)."""
        call = self.norm()
        y: Tensor = NORM.choose(self.block.backend, call).forward(call)[0]
        return y

    def conv(self) -> Conv:
        """The call of the convolution."""
        return _conv(self.block, self.projected, self.start.conv, self.into)

    def ssd(self) -> Ssd:
        """The call of SSD."""
        return _ssd(self.block, self.projected, self.convolved, self.start.ssm)

    def norm(self) -> Norm:
        """The call of the norm."""
        return _norm(self.block, self.projected, self.scanned)

    def forget(self, *names: str) -> None:
        """Let go of what is not needed any more."""
        for name in names:
            vars(self).pop(name, None)


def empty_kept(block: Block) -> list[Tensor]:
    """Tensors like those that `Forward` keeps, known from shapes alone."""
    pieces = block.cut().pieces
    return [_empty(block, name, pieces[number]) for name, number in block.leaves()]


def _empty(block: Block, name: str, piece: Piece) -> Tensor:
    x, (conv, ssm) = piece.of(block.x), block.state_shapes

    def along(width: int) -> Tensor:
        return x.new_empty(*x.shape[:2], width)

    if name == "conv":  # of a part of one row
        return x.new_empty(1, *conv[1:], dtype=inner_dtype(x))
    if name == "ssm":
        return block.A.new_empty(1, *ssm[1:])
    if name == "marks":
        call = _ssd(block, along(block.padded), along(block.convolved), None)
        return x.new_empty(SSD.choose(block.backend, call).marks_shape(call), dtype=call.inner)
    if name == "scanned":
        return x.new_empty(*x.shape[:2], *ssm[1:3])
    widths = {"projected": block.padded, "convolved": block.convolved, "normed": block.inner}
    return along(widths[name])


# Forward


class Forward:
    """The forward of one call."""

    def __init__(self, block: Block) -> None:
        self.block, self.kept = block, Kept()
        self.y = block.x.new_empty(*block.x.shape[:2], block.out_weight.shape[0])
        self._leaves = set(block.leaves())

    def run(self) -> States:
        """Fill `y` and `kept`, a piece after the other; return the states after the walk."""
        block, cut = self.block, self.block.cut()
        given = States(block.conv_state, block.ssm_state)
        state, ends = given, {}
        for number, piece in cut.order(reverse=block.reverse):
            if cut.first(piece, reverse=block.reverse):
                state = block.rows(given, piece)
            state = self._piece(number, piece, state)
            if cut.last(piece, reverse=block.reverse):
                ends[piece.row] = state
        return _joined(ends)

    def _piece(self, number: int, piece: Piece, start: States) -> States:
        work = _Work(self.block, piece, start, {})
        torch.mm(flat(work.normed), self.block.out_weight.t(), out=flat(piece.of(self.y)))
        made = {**vars(work), **start._asdict()}
        self.kept |= {key: made[key.name] for key in self._leaves if key.piece == number}
        conv_state = work.conv_state
        if not self.block.cut().last(piece, reverse=self.block.reverse):
            # Exact, and its gradient is not rounded.
            conv_state = conv_state.to(inner_dtype(conv_state))
        return States(conv_state, work.ssm_state)


def _joined(by_row: dict[int, States]) -> States:
    """States of all rows from those of their groups."""
    columns = zip(*(by_row[row] for row in sorted(by_row)), strict=True)
    return States(*(_together(column) for column in columns))


def _together(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None
    return torch.cat(found)


# Backward


class Backward:
    """The backward of one call, against the order of its walk."""

    def __init__(self, block: Block, kept: Kept, dy: Tensor, dstates: States) -> None:
        self.block, self.kept, self.dy, self.dstates = block, kept, dy, dstates
        self.dx = torch.empty_like(block.x, memory_format=torch.contiguous_format)
        self.sums = Sums()

    def run(self) -> list[Tensor]:
        """The gradient of every tensor, in their order; an empty one of what was not given."""
        block, cut = self.block, self.block.cut()
        after, starts = self.dstates, {}
        for number, piece in cut.order(reverse=not block.reverse):
            if cut.last(piece, reverse=block.reverse):
                after = block.rows(self.dstates, piece)
            after = self._piece(number, piece, after)
            if cut.first(piece, reverse=block.reverse):
                starts[piece.row] = after
        found = _joined(starts)
        self.sums.add("conv_state", found.conv)
        self.sums.add("ssm_state", found.ssm)
        return [self._gradient(name) for name in TENSORS]

    def _gradient(self, name: str) -> Tensor:
        given = getattr(self.block, name)
        if name == "x":
            return self.dx
        return self.dx.new_empty(0) if given is None else self.sums.get(name, given)

    def _piece(self, number: int, piece: Piece, after: States) -> States:
        """One piece: `after` are the gradients of the states that it left."""
        block, kept = self.block, {k.name: t for k, t in self.kept.items() if k.piece == number}
        start = States(kept.pop("conv", None), kept.pop("ssm", None))
        if block.cut().first(piece, reverse=block.reverse):
            start = block.rows(States(block.conv_state, block.ssm_state), piece)
        work = _Work(block, piece, start, kept)
        # Beside the gradients of gate and step size lies what was convolved, if it was not kept,
        # until the convolution's backward writes there.
        dprojected = torch.empty_like(work.projected)
        work.into = block.parts(dprojected)[1]
        dconvolved = self._through_norm(work, dprojected)
        dssm = self._through_ssd(work, dconvolved, dprojected, after.ssm)
        dconv = self._through_conv(work, dconvolved, after.conv)
        self._project(piece, dprojected)
        return States(dconv, dssm)

    def _through_norm(self, work: _Work, dprojected: Tensor) -> Tensor:
        """Through output projection, norm and gate.

        The gradient of what SSD gave, as the first E of room for that of what was convolved.
        """
        dy, block = flat(work.piece.of(self.dy)), self.block
        self.sums.add("out_weight", dy.t() @ flat(work.normed))
        work.forget("normed")
        call = work.norm()
        room = dprojected.new_empty(*dprojected.shape[:2], block.convolved)
        dnormed = room[..., : block.inner]
        torch.mm(dy, block.out_weight, out=flat(dnormed))
        into = of_norm.Into(dnormed, block.parts(dprojected)[0])
        backend, wanted = NORM.choose(block.backend, call), Wanted(call.x.dtype, None)
        found = backend.backward(call, dnormed, None, wanted, into)
        self.sums.add("norm_weight", found.weight)
        work.forget("scanned")
        return room

    def _through_ssd(
        self, work: _Work, dconvolved: Tensor, dprojected: Tensor, dfinal: Tensor | None
    ) -> Tensor | None:
        """The gradients of what was convolved, over that of what SSD gave, and of the state."""
        call = work.ssd()
        into = of_ssd.Into(*self.block.maps(dconvolved), self.block.parts(dprojected)[2])
        backend = SSD.choose(self.block.backend, call)
        found: Any = backend.backward(call, work.marks, into.x, dfinal, into)
        work.forget("convolved", "marks")
        for name in ("A", "D", "dt_bias"):
            self.sums.add(name, getattr(found, name))
        state: Tensor | None = found.initial_state
        return state

    def _through_conv(
        self, work: _Work, dconvolved: Tensor, dfinal: Tensor | None
    ) -> Tensor | None:
        """The gradient of the state before; all else is added where it belongs."""
        call = work.conv()
        backend = CONV.choose(self.block.backend, call)
        found: Any = backend.backward(call, dconvolved, dfinal)
        self.sums.add("conv_weight", found.weight)
        self.sums.add("conv_bias", found.bias)
        state: Tensor | None = found.initial_state
        return state

    def _project(self, piece: Piece, dprojected: Tensor) -> None:
        """Through the input projection; what fills a row up is not read."""
        weight, x = self.block.in_weight, flat(piece.of(self.block.x))
        gradient = flat(dprojected)[:, : len(weight)]
        torch.mm(gradient, weight, out=flat(piece.of(self.dx)))
        self.sums.add("in_weight", gradient.t() @ x)
