"""How forward and backward of a call are cut, and which tensors one leaves for the other."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from dnassm.kernels.mamba_inner.arguments import MULTIPLE, Block, Walk, splits
from dnassm.kernels.mamba_inner.calls import backend_of, gives_output, scan_like, shares_marks
from dnassm.kernels.pieces import Cut, Piece, inner_dtype


class Key(NamedTuple):
    """A tensor that is kept: its name, of which walk (-1: of all together), of which piece.

    It is a piece of the forward; for a "border", the inputs of the convolution before it, a part.
    """

    name: str
    walk: int
    piece: int


class Plan:
    """The pieces of the forward, and their parts, which are the pieces of the backward."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.parts = block.cut

    @functools.cached_property
    def pieces(self) -> Cut:
        """Longer than the parts where the backward of a part finds all it needs in them."""
        block, longer = self.block, self.block.forward_cut
        if longer.pieces == self.parts.pieces:
            return self.parts
        kept = "scan" in block.keep or not block.keep
        return longer if kept and all(map(self._shared_out, block.walks)) else self.parts

    def _shared_out(self, walk: Walk) -> bool:
        """Whether borders of parts are among the marks of a walk, which count its steps."""
        block = self.block
        if walk.reverse and block.x.shape[1] % MULTIPLE:
            return False
        near = walk.conv_weight.shape[1] <= MULTIPLE  # a border's inputs lie in one piece
        return near and shares_marks(block, scan_like(block, walk, block.x))

    @functools.cached_property
    def owners(self) -> list[int]:
        """Of every part, the number of the piece that it belongs to."""
        pieces = self.pieces.pieces
        if self.pieces is self.parts:
            return list(range(len(pieces)))
        parts = self.parts.pieces
        return [next(n for n, p in enumerate(pieces) if part.lies_in(p)) for part in parts]

    def borders(self, number: int, *, reverse: bool) -> Iterator[tuple[int, Piece]]:
        """The parts that a walk enters inside of a piece, with their numbers."""
        for part, owner in enumerate(self.owners):
            if owner == number and self.steps_before(part, reverse=reverse):
                yield part, self.parts.pieces[part]

    def steps_before(self, part: int, *, reverse: bool) -> int:
        """How many steps of its piece a walk has made when it enters a part."""
        inner, outer = self.parts.pieces[part], self.pieces.pieces[self.owners[part]]
        return outer.end - inner.end if reverse else inner.begin - outer.begin

    def leaves(self) -> Iterator[Key]:
        """Of what is kept, in the order in which the operator returns it."""
        block = self.block
        for number, piece in enumerate(self.pieces.pieces if block.keep else []):
            shared = {"xz": "xz", "y": "scan"}
            yield from (Key(n, -1, number) for n, kept in shared.items() if kept in block.keep)
            for index, walk in enumerate(block.walks):
                of_walk = {"u": "u", "x_dbl": "x_dbl", "marks": "scan"}
                yield from (Key(n, index, number) for n, k in of_walk.items() if k in block.keep)
                if not self.pieces.first(piece, reverse=walk.reverse):
                    yield from (Key(name, index, number) for name in ("conv", "ssm"))
                for part, _ in self.borders(number, reverse=walk.reverse):
                    yield Key("border", index, part)

    def keeps_output(self, x: Tensor) -> bool:
        """Whether y of a piece x is kept with the marks: asked for, or not given again."""
        block = self.block
        if "y" in block.keep:
            return True
        return not all(gives_output(block, scan_like(block, walk, x)) for walk in block.walks)

    def empty_kept(self) -> list[Tensor]:
        """Tensors like those that the forward keeps, known from shapes alone."""
        return [self._empty(*key) for key in self.leaves()]

    def _empty(self, name: str, index: int, number: int) -> Tensor:
        block = self.block
        walk = block.walks[max(index, 0)]
        conv, ssm = block.state_shapes(walk)
        if name == "ssm":  # of a part of one row, as the next two
            return walk.A.new_empty(1, *ssm[1:])
        if name in ("conv", "border"):
            return block.x.new_empty(1, *conv[1:], dtype=inner_dtype(block.x))
        x = self.pieces.pieces[number].of(block.x)
        if name == "marks":
            scan = scan_like(block, walk, x)
            return x.new_empty(backend_of(block, scan).marks_shape(scan), dtype=scan.inner)
        if name == "y" and not self.keeps_output(x):
            return x.new_empty(0)
        widths = {"xz": 2 * block.inner, "x_dbl": sum(splits(walk))}
        return x.new_empty(*x.shape[:2], widths.get(name, block.inner))
