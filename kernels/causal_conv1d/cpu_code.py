"""The code of the `cpu` backend: the convolution forward and backward, for one number of taps.

A task is a tile of positions and up to `CHANNELS` channels. It walks onwards in groups of positions
and in each group over all its channels: rows are read from memory one after the other, and the taps
meet inputs that are still in the nearest cache (README, section "cpu").
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from dnassm.kernels.vector_code import NUMBER_KINDS, Code, Unit, Value
from dnassm.kernels.vector_math import (
    LOG2_E,
    exp2,
    sigmoid,
    write_tile_reader,
    write_tile_writer,
)
from dnassm.machine_code import Compiled

TILE = 256
"""Positions of a piece: a sequence is cut into so long ones."""
CHANNELS = 256
"""Channels of a task at most."""
_GROUP = 8
"""Positions that are computed together; one where the taps alone fill the registers."""
_MANY_TAPS = 8

TENSORS = ("x", "y", "dy", "dx")
_ADDRESSES = (
    *("claimed", "slots", "pieces", "tiles", "places", "scratch", "parameters", "partial"),
    *("initial", "dinitial", "dfinal", *TENSORS),
)
_SIZES = ("tasks", "all_places", "scratch_bytes", "padded", "initial_bytes")
_STRIDES = tuple(f"{t}_{s}" for t in TENSORS for s in ("batch", "time", "lane", "direct"))
FIELDS = {name: index for index, name in enumerate((*_ADDRESSES, *_SIZES, *_STRIDES))}
"""What Python passes, each 8 bytes: an address (0 for None), a size, a stride in bytes. Strides of
time are negative in reverse. `direct`: rows of the unit's own numbers, side by side."""


def _scratch(width: int) -> dict[str, int]:
    """Rows of `CHANNELS` numbers that a thread has for each purpose."""
    copied = TILE + 2 * (width - 1)
    return {
        "x": copied,
        "dy": copied,
        "out": TILE,
        "gradients": width - 1,  # of the last sums before SiLU
        "totals": width + 1,
        "nowhere": 1,
    }


def scratch_bytes(width: int, itemsize: int) -> int:
    """Scratch of one thread."""
    return sum(_scratch(width).values()) * CHANNELS * itemsize


class Variant(NamedTuple):
    """What is compiled in."""

    dtype: torch.dtype
    """Of x, y and their gradients."""
    width: int
    silu: bool


class _Job:
    """What Python passed, this thread's scratch, and what is compiled in."""

    def __init__(self, code: Code, variant: Variant) -> None:
        self.code, self.variant = code, variant
        self.width, self.past = variant.width, variant.width - 1
        self.group = _GROUP if self.width <= _MANY_TAPS else 1
        self.row_bytes = CHANNELS * code.unit.itemsize
        slot = code.add_atomically(self["slots"], 1)
        base = code.behind(self["scratch"], slot * self["scratch_bytes"])
        self.scratch, before = {}, 0
        for name, rows in _scratch(self.width).items():
            self.scratch[name] = code.behind(base, code.integer(before * self.row_bytes))
            before += rows

    def __getitem__(self, name: str) -> Value:
        code = self.code
        place = code.at(code.arguments[0], FIELDS[name], code.int)
        return code.load(place, code.pointer if name in _ADDRESSES else code.int)

    def given(self, name: str) -> Value:
        """Whether the address is not 0 (the flag not False)."""
        code = self.code
        return code.load(code.at(code.arguments[0], FIELDS[name], code.int), code.int) > 0

    def numbers(self, table: str, first: Value, count: int) -> list[Value]:
        """Neighbouring integers of a table."""
        code = self.code
        start = code.at(self[table], first, code.int)
        return [code.load(code.at(start, k, code.int), code.int) for k in range(count)]

    def row(self, name: str, index: Value | int) -> Value:
        """Address of a row of scratch."""
        index = self.code.like(self.code.integer(0), index)
        return self.code.behind(self.scratch[name], index * self.row_bytes)


class _Piece:
    """Neighbouring positions of one sequence, and the channels of the task."""

    def __init__(self, job: _Job, index: Value, place: tuple[Value, Value]) -> None:
        self.job, self.code = job, job.code
        self.batch, self.origin, self.begin, self.steps, self.length, self.sequence = job.numbers(
            "pieces", index * 6, 6
        )
        self.end = self.begin + self.steps
        self.channel, self.columns = place
        self.vectors = _vectors(job.code, self.columns)

    def outside(self, name: str, position: Value | int) -> Value:
        """Address of a position of a tensor in its own memory."""
        job = self.job
        along = (self.origin + position) * job[f"{name}_time"]
        across = self.channel * job[f"{name}_lane"]
        return self.code.behind(job[name], self.batch * job[f"{name}_batch"] + along + across)

    def move(self, mover: Code, name: str, inside: str, first: Value, rows: Value) -> None:
        """Copy rows of a tensor to scratch or back, whatever `mover` does."""
        job = self.job
        strides = (job[f"{name}_time"], job[f"{name}_lane"])
        given = (job.scratch[inside], CHANNELS, self.outside(name, first), *strides)
        self.code.call(mover, *given, rows, self.columns, NUMBER_KINDS[job.variant.dtype])

    def row_of_state(self, name: str, slot: Value) -> Value:
        """Address of a row of what belongs to final or initial states."""
        job = self.job
        row = self.sequence * job.past + slot
        return self.code.at(job[name], row * job["padded"] + self.channel)

    def initial(self, slot: Value) -> Value:
        """The same of the initial states; without any, all sequences share one of zeros."""
        job = self.job
        state = self.code.behind(job["initial"], self.sequence * job["initial_bytes"])
        return self.code.at(state, slot * job["padded"] + self.channel)

    def window(self, x: _Rows, position: Value) -> list[Value]:
        """Addresses of the inputs that a position meets; those before 0 lie in the state."""
        found = []
        for k in range(self.job.width):
            slot = position + k  # K-1 more than the position of the input
            in_state = slot < self.job.past
            found.append(self.code.select(in_state, self.initial(slot), x.at(slot - self.job.past)))
        return found


class _Rows:
    """Rows of a tensor by position: where they are, or in scratch if the code cannot take them so.

    Args:
        piece: whose positions.
        name: of the tensor.
        inside: the scratch in its stead.
        first: the first position that scratch has.
    """

    def __init__(self, piece: _Piece, name: str, inside: str, first: Value) -> None:
        job, code = piece.job, piece.code
        self.piece, self.name, self.inside, self.first = piece, name, inside, first
        whole = (_vectors(code, piece.columns) * code.lanes).equals(piece.columns)
        flag = code.select(whole, job[f"{name}_direct"], code.integer(0))
        self.copied = flag.equals(0)
        self.base = code.select(
            self.copied, job.row(inside, -first), piece.outside(name, code.integer(0))
        )
        own = code.integer(job.row_bytes)
        self.stride = code.select(self.copied, own, job[f"{name}_time"])

    def at(self, position: Value) -> Value:
        """Address of the first channel of the task."""
        return self.piece.code.behind(self.base, position * self.stride)

    def read(self, reader: Code, end: Value) -> _Rows:
        """Copy what must be, up to position `end`."""
        with self.piece.code.when(self.copied):
            self.piece.move(reader, self.name, self.inside, self.first, end - self.first)
        return self

    def write(self, writer: Code, end: Value) -> None:
        """Copy back what was computed in scratch."""
        with self.piece.code.when(self.copied):
            self.piece.move(writer, self.name, self.inside, self.first, end - self.first)


def _vectors(code: Code, columns: Value) -> Value:
    return (columns + (code.lanes - 1)) // code.lanes


def _smaller(code: Code, a: Value, b: Value) -> Value:
    return code.select(a < b, a, b)


def _larger(code: Code, a: Value, b: Value) -> Value:
    return code.select(a < b, b, a)


class _Task(NamedTuple):
    job: _Job
    tile: Value
    place: tuple[Value, Value]

    @contextlib.contextmanager
    def pieces(self) -> Iterator[_Piece]:
        """Piece after piece of the tile."""
        start, stop = self.job.numbers("tiles", self.tile, 2)
        with self.job.code.loop(start, stop) as index:
            yield _Piece(self.job, index, self.place)


@contextlib.contextmanager
def _tasks(unit: Unit, name: str, variant: Variant) -> Iterator[_Task]:
    """A function that claims task after task; the body of the ``with`` is one of them."""
    code = Code(unit, f"{name}_tasks", ["ptr"])
    job = _Job(code, variant)
    with code.claims(job["claimed"], job["tasks"]) as index:
        tile = index // job["all_places"]
        channel, columns = job.numbers("places", (index - tile * job["all_places"]) * 2, 2)
        yield _Task(job, tile, (channel, columns))
    code.finish()
    unit.entry(name, code)


class _Column:
    """One vector of channels, at the same place of every row."""

    def __init__(self, job: _Job, column: Value) -> None:
        self.job, self.code, self.column = job, job.code, column

    def load(self, row: Value) -> Value:
        code = self.code
        return code.load(code.at(row, self.column, code.vector), code.vector)

    def store(self, row: Value, value: Value) -> None:
        self.code.store(value, self.code.at(row, self.column, self.code.vector))

    def loaded(self, rows: Sequence[Value]) -> list[Value]:
        return [self.load(row) for row in rows]

    def sum(self, bias: Value, taps: Sequence[Value], inputs: Sequence[Value]) -> Value:
        """Before SiLU."""
        total = bias
        for tap, value in zip(taps, inputs, strict=True):
            total = self.code.fma(tap, value, total)
        return total

    def gradient(self, total: Value, dy: Value) -> Value:
        """Of the sum, from that of y."""
        if not self.job.variant.silu:
            return dy
        share = sigmoid(self.code, total)
        rest = self.code.zero() + 1.0 - share
        return dy * share * self.code.fma(total, rest, 1.0)


def _parameters(piece: _Piece) -> list[Value]:
    """Rows of the taps, and at last that of the bias."""
    job, code = piece.job, piece.code
    first = code.at(job["parameters"], piece.channel)
    return [code.at(first, job["padded"] * k) for k in range(job.width + 1)]


@contextlib.contextmanager
def _columns(piece: _Piece) -> Iterator[_Column]:
    with piece.code.loop(0, piece.vectors) as column:
        yield _Column(piece.job, column)


@contextlib.contextmanager
def _groups(piece: _Piece, start: Value, stop: Value, rest: list[Value]) -> Iterator[Value]:
    """First positions of whole groups in [start, stop); then `rest` holds where they end."""
    code, group = piece.code, piece.job.group
    whole = start + (stop - start) // group * group
    with code.loop(start, whole, group) as t:
        yield t
    rest.append(whole)


# Forward


def _write_forward(unit: Unit, reader: Code, writer: Code, variant: Variant) -> None:
    with _tasks(unit, "forward", variant) as task, task.pieces() as piece:
        code, past, rest = piece.code, piece.job.past, list[Value]()
        x = _Rows(piece, "x", "x", _larger(code, piece.begin - past, code.integer(0)))
        x.read(reader, piece.end)
        y = _Rows(piece, "y", "out", piece.begin)
        border = _larger(code, piece.begin, _smaller(code, code.integer(past), piece.end))
        with code.loop(piece.begin, border) as t:
            _forward_at(piece, piece.window(x, t), [y.at(t)])
        with _groups(piece, border, piece.end, rest) as t:
            inputs = [x.at(t + (k - past)) for k in range(past + piece.job.group)]
            _forward_at(piece, inputs, [y.at(t + k) for k in range(piece.job.group)])
        with code.loop(rest[0], piece.end) as t:
            _forward_at(piece, piece.window(x, t), [y.at(t)])
        y.write(writer, piece.end)


def _forward_at(piece: _Piece, inputs: Sequence[Value], results: Sequence[Value]) -> None:
    """Neighbouring positions, from the rows of their inputs to those of y."""
    width, parameters = piece.job.width, _parameters(piece)
    with _columns(piece) as at:
        *taps, bias = at.loaded(parameters)
        values = at.loaded(inputs)
        for k, row in enumerate(results):
            total = at.sum(bias, taps, values[k : k + width])
            if piece.job.variant.silu:
                total = total / (exp2(piece.code, total * -LOG2_E) + 1.0)
            at.store(row, total)


# Backward. At position t the gradients of the sums up to t are known, and with them that of the
# input K-1 before: each sum is taken once per piece, but those K-1 beyond its end.


def _write_backward(unit: Unit, reader: Code, writer: Code, variant: Variant) -> None:
    with _tasks(unit, "backward", variant) as task:
        job, code = task.job, task.job.code
        vectors = _vectors(code, task.place[1])
        _clear(job, "totals", job.width + 1, vectors)
        with task.pieces() as piece:
            _clear(job, "gradients", job.past, vectors)
            _piece_backward(piece, reader, writer)
        _give_totals(task, vectors)


def _clear(job: _Job, name: str, rows: int, vectors: Value) -> None:
    for k in range(rows):
        row = job.row(name, k)
        with job.code.loop(0, vectors) as column:
            _Column(job, column).store(row, job.code.zero())


def _piece_backward(piece: _Piece, reader: Code, writer: Code) -> None:
    code, past, group, rest = piece.code, piece.job.past, piece.job.group, list[Value]()
    behind = piece.end + past
    seen = _smaller(code, behind, piece.length)
    x = _Rows(piece, "x", "x", _larger(code, piece.begin - past, code.integer(0)))
    x.read(reader, seen)
    dy = _Rows(piece, "dy", "dy", piece.begin).read(reader, seen)
    dx = _Rows(piece, "dx", "out", piece.begin)
    border = _smaller(code, piece.begin + past, piece.end)
    with code.loop(piece.begin, border) as t:
        _backward_at_border(piece, x, dy, dx, t)
    with _groups(piece, border, piece.end, rest) as t:
        _backward_inside(
            piece,
            [x.at(t + (k - past)) for k in range(past + group)],
            [dy.at(t + k) for k in range(group)],
            [dx.at(t + (k - past)) for k in range(group)],
        )
    with code.loop(rest[0], behind) as t:
        _backward_at_border(piece, x, dy, dx, t)
    dx.write(writer, piece.end)


def _backward_inside(
    piece: _Piece, inputs: Sequence[Value], dys: Sequence[Value], dxs: Sequence[Value]
) -> None:
    """Neighbouring positions with the K-1 before them in the piece."""
    job, parameters = piece.job, _parameters(piece)
    width, past, group = job.width, job.past, job.group
    carried = [job.row("gradients", k) for k in range(past)]
    with _columns(piece) as at:
        *taps, bias = at.loaded(parameters)
        values, gradients = at.loaded(inputs), at.loaded(carried)
        for k, row in enumerate(dys):
            total = at.sum(bias, taps, values[k : k + width])
            gradients.append(at.gradient(total, at.load(row)))
        for k, row in enumerate(dxs):
            at.store(row, _spread(at, taps, gradients[k : k + width]))
        for row, gradient in zip(carried, gradients[group:], strict=True):
            at.store(row, gradient)
        _add_to_totals(at, gradients[past:], values)


def _spread(at: _Column, taps: Sequence[Value], gradients: Sequence[Value]) -> Value:
    """Gradient of the input that the first of the sums meets last."""
    total = taps[-1] * gradients[0]
    for tap, gradient in zip(reversed(taps[:-1]), gradients[1:], strict=True):
        total = at.code.fma(tap, gradient, total)
    return total


def _add_to_totals(at: _Column, gradients: Sequence[Value], values: Sequence[Value]) -> None:
    """Gradients of taps and bias."""
    job = at.job
    for k in range(job.width + 1):
        row = job.row("totals", k)
        total = at.load(row)
        for t, gradient in enumerate(gradients):
            last = k == job.width
            total = total + gradient if last else at.code.fma(gradient, values[t + k], total)
        at.store(row, total)


def _backward_at_border(piece: _Piece, x: _Rows, dy: _Rows, dx: _Rows, t: Value) -> None:
    """One position, near the ends of the piece or of the sequence or beyond them."""
    job, code = piece.job, piece.code
    parameters, inputs, dy_row, result = (
        _parameters(piece),
        piece.window(x, t),
        dy.at(t),
        _row_of_result(piece, dx, t),
    )
    exists, counts = t < piece.length, t < piece.end
    dfinal = piece.row_of_state("dfinal", t - piece.length)
    carried = [job.row("gradients", k) for k in range(job.past)]
    with _columns(piece) as at:
        *taps, bias = at.loaded(parameters)
        gradient = code.variable(code.zero())
        with code.when(exists):
            values = at.loaded(inputs)
            gradient.set(at.gradient(at.sum(bias, taps, values), at.load(dy_row)))
            with code.when(counts):
                _add_to_totals(at, [gradient.get()], values)
        gradients = [*at.loaded(carried), gradient.get()]
        total = code.variable(_spread(at, taps, gradients))
        with code.when((t < piece.length).equals(0)):  # its input is in the final state
            total.set(total.get() + at.load(dfinal))
        at.store(result, total.get())
        for row, value in zip(carried, gradients[1:], strict=True):
            at.store(row, value)


def _row_of_result(piece: _Piece, dx: _Rows, t: Value) -> Value:
    """Where the gradient of the input K-1 before t goes: to dx, or to the initial state.

    Or nowhere, if it is another piece that has all of it.
    """
    job, code = piece.job, piece.code
    first = piece.begin.equals(0)
    wanted = code.select(job.given("dinitial"), code.integer(1), code.integer(0))
    to_state = code.select(first, wanted, code.integer(0)).equals(1)
    before = code.select(to_state, piece.row_of_state("dinitial", t), job.row("nowhere", 0))
    return code.select(t - piece.begin < job.past, before, dx.at(t - job.past))


def _give_totals(task: _Task, vectors: Value) -> None:
    """The sums of a task, in float64."""
    job, code = task.job, task.job.code
    double = code.ir.DoubleType()
    for k in range(job.width + 1):
        index = (task.tile * (job.width + 1) + k) * job["padded"] + task.place[0]
        target, source = code.at(job["partial"], index, double), job.row("totals", k)
        with code.loop(0, vectors) as column:
            wide = code.cast("fpext", _Column(job, column).load(source), double)
            code.store(wide, code.at(target, column * code.lanes, double))


@functools.cache
def compiled(variant: Variant, *, backward: bool, portable: bool = False) -> Compiled:
    """`forward` or `backward`; sums are float32, float64 for float64."""
    unit = Unit("causal_conv1d", variant.dtype, portable=portable)
    reader, writer = write_tile_reader(unit), write_tile_writer(unit)
    for mover in (reader, writer):
        # Nobody else calls it: LLVM sees that the dtype is always one, and drops the others.
        mover.function.linkage = "internal"
    write = _write_backward if backward else _write_forward
    write(unit, reader, writer, variant)
    return unit.compile()
