"""The code of the `cpu` backend: forward, backward, and the sums of dB and dC over channels.

A task is one sequence and one block of channels, as many as a vector has lanes. It walks time in
tiles. In a tile the loop over states is outside and the loop over time inside, so that four states
of a block stay in registers from step to step (README, section "cpu").
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import torch

from dnassm.kernels.vector_code import VECTOR_BYTES, Code, Unit, Value
from dnassm.kernels.vector_math import (
    LN_2,
    LOG2_E,
    exp2,
    sigmoid,
    softplus,
    sum_lanes,
    write_tile_reader,
    write_tile_writer,
)
from dnassm.machine_code import Compiled

STEPS = 32
"""Steps per tile, and between two marks: the decays and states of four states fill 16 KiB."""
UNROLL = 4
"""States that are advanced together."""
_PLANS = 8
"""Tensors that are asked for ahead of their use."""

TENSORS = ("x", "dt", "B", "C", "z", "y", "dy", "dx", "ddt", "dB", "dC", "dz")
_MAPS = ("B", "C", "dB", "dC")
_STATES = ("initial", "final", "dfinal", "dinitial")
_ADDRESSES = (
    *("claimed", "slots", "rows", "places", "scratch", "D", "dt_bias", "A", "marks"),
    *("carry", "sums", "partial", *_STATES, *TENSORS),
)
_SIZES = (
    *("tasks", "blocks", "scratch_bytes", "channels", "states", "padded", "softplus"),
    *("A_lane", "A_state", "first_row", "first_tile", "end_tile", "groups", "group_blocks"),
)
_STRIDES = tuple(f"{t}_{s}" for t in TENSORS for s in ("batch", "time", "group", "lane", "kind"))
FIELDS = {name: index for index, name in enumerate((*_ADDRESSES, *_SIZES, *_STRIDES))}
"""What Python passes, each 8 bytes: an address (0 for None), a size, a stride in bytes. Strides of
time are negative when time is walked backwards."""

# Scratch of one thread: name -> what is kept.
_FORWARD = {
    **dict.fromkeys(("D", "dt_bias"), "channel"),
    "plan": "plan",
    **dict.fromkeys(("d", "u", "y"), "step"),
    **dict.fromkeys(("A", "h"), "state"),
    **dict.fromkeys(("B", "C"), "map"),
}
_BACKWARD = {
    **dict.fromkeys(("D", "dt_bias"), "channel"),
    "plan": "plan",
    **dict.fromkeys(("d", "slope", "u", "inflow", "gy", "z", "y", "q", "dd"), "step"),
    **dict.fromkeys(("decay", "h"), "history"),
    **dict.fromkeys(("A", "adjoint"), "state"),
    **dict.fromkeys(("B", "C"), "map"),
}
_REDUCE = {"sum": "map"}


def _rows(kind: str, lanes: int) -> tuple[int, int]:
    """Vectors of one piece of scratch: a constant, and so many per state."""
    sizes = {
        "channel": (1, 0),
        "plan": (2 * _PLANS * 8 // VECTOR_BYTES, 0),
        "step": (STEPS, 0),
        "history": ((STEPS + 1) * UNROLL, 0),
        "state": (0, 1),
        "map": (0, STEPS // lanes),
    }
    return sizes[kind]


def scratch_bytes(padded: int, lanes: int) -> int:
    """Scratch of one thread."""
    sizes = [_rows(kind, lanes) for kind in _BACKWARD.values()]
    return VECTOR_BYTES * sum(constant + padded * each for constant, each in sizes)


@dataclasses.dataclass
class _Job:
    """What Python passed, and this thread's scratch."""

    code: Code
    fields: Value
    scratch: dict[str, Value] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> Value:
        code = self.code
        place = code.at(self.fields, FIELDS[name], code.int)
        return code.load(place, code.pointer if name in _ADDRESSES else code.int)

    def given(self, name: str) -> Value:
        """Whether the address is not 0 (the flag not False)."""
        code = self.code
        return code.load(code.at(self.fields, FIELDS[name], code.int), code.int) > 0

    def take_scratch(self, pieces: dict[str, str]) -> None:
        """Zero and divide a part of the scratch that no other thread has."""
        code = self.code
        slot = code.add_atomically(self["slots"], 1)
        base = code.behind(self["scratch"], slot * self["scratch_bytes"])
        total = code.integer(0)
        for name, kind in pieces.items():
            self.scratch[name] = code.at(base, total, code.vector)
            constant, each = _rows(kind, code.lanes)
            total = total + self["padded"] * each + constant
        code.clear(base, total)

    def row(self, name: str, index: Value | int) -> Value:
        """Vector `index` of a piece of scratch."""
        return self.code.row(self.scratch[name], index)

    def set_row(self, name: str, index: Value | int, value: Value) -> None:
        """Write it."""
        self.code.set_row(self.scratch[name], index, value)

    def entry(self, name: str, index: Value) -> Value:
        """One number of a piece of scratch, in every lane."""
        code = self.code
        return code.splat(code.load(code.at(self.scratch[name], index), code.number))


class _Task:
    """One sequence, one block of channels."""

    def __init__(self, job: _Job, row: Value, block: Value, *, direction: int = 1) -> None:
        code = job.code
        self.job, self.row, self.block, self.direction = job, row, block, direction
        self.planned = 0
        tables = ((job["rows"], row), (job["places"], block))
        (self.batch, self.origin, self.length, self.first_mark), place = (
            [code.load(code.at(table, index * 4 + k, code.int), code.int) for k in range(4)]
            for table, index in tables
        )
        self.channel, self.lanes, self.group, _ = place

    def start(self, inputs: tuple[str, ...]) -> None:
        """Read what holds for all of time. Lanes beyond the last channel get zeros as inputs."""
        job, code = self.job, self.job.code
        with code.when(self.lanes < code.lanes):
            for name in inputs:
                code.clear(job.scratch[name], code.integer(STEPS))
        plan = job.scratch["plan"]
        with code.loop(0, code.integer(_PLANS)) as slot:  # of no use, but an address that exists
            code.store(plan, code.at(plan, slot * 2, code.int))
        for name in ("D", "dt_bias"):
            code.clear(job.scratch[name], code.integer(1))
            with code.when(job.given(name)), code.loop(0, self.lanes) as lane:
                number = code.load(code.at(job[name], self.channel + lane), code.number)
                code.store(number, code.at(job.scratch[name], lane))
        base = code.behind(job["A"], self.channel * job["A_lane"])
        self._states(base, (job["A_lane"], job["A_state"]), job.scratch["A"], scale=LOG2_E)

    def move(self, mover: Code, name: str, inside: str, position: Value, steps: Value) -> None:
        """Copy a tile from a tensor to scratch or back, whatever `mover` does."""
        job, code = self.job, self.job.code
        maps = name in _MAPS
        across = self.group * job[f"{name}_group"] if maps else self.channel * job[f"{name}_lane"]
        along = (self.origin + position) * job[f"{name}_time"]
        outside = code.behind(job[name], self.batch * job[f"{name}_batch"] + along + across)
        width, columns = (
            (job["padded"], job["states"]) if maps else (code.integer(code.lanes), self.lanes)
        )
        strides = (job[f"{name}_time"], job[f"{name}_lane"])
        given = (job.scratch[inside], width, outside, *strides, steps, columns)
        code.call(mover, *given, job[f"{name}_kind"])
        if not maps:
            self._plan(code.behind(outside, strides[0] * (STEPS * self.direction)), strides[0])

    def _plan(self, next_tile: Value, stride: Value) -> None:
        """Note where a tensor will be read or written next; `_Ahead` asks for it in time."""
        job, code = self.job, self.job.code
        place = code.at(job.scratch["plan"], self.planned * 2, code.int)
        code.store(next_tile, place)
        code.store(stride, code.at(place, 1, code.int))
        self.planned = (self.planned + 1) % _PLANS

    def read_states(self, name: str, into: Value) -> None:
        """States (D, N) of this sequence and block to a vector per state; zeros without any."""
        code = self.job.code
        code.clear(into, self.job["padded"])
        with code.when(self.job.given(name)):
            self._states(*self._of_sequence(name), into)

    def write_states(self, name: str, source: Value) -> None:
        """The way back, if anybody wants them."""
        with self.job.code.when(self.job.given(name)):
            self._states(*self._of_sequence(name), source, inwards=False)

    def _of_sequence(self, name: str) -> tuple[Value, tuple[Value, Value]]:
        job, code = self.job, self.job.code
        first = (self.row * job["channels"] + self.channel) * job["states"]
        size = code.unit.itemsize
        return code.at(job[name], first), (job["states"] * size, code.integer(size))

    def _states(
        self,
        outside: Value,
        strides: tuple[Value, Value],
        inside: Value,
        *,
        scale: float = 1.0,
        inwards: bool = True,
    ) -> None:
        job, code = self.job, self.job.code
        with code.loop(0, self.lanes) as lane, code.loop(0, job["states"]) as state:
            there = code.behind(outside, lane * strides[0] + state * strides[1])
            here = code.at(inside, state * code.lanes + lane)
            if inwards:
                code.store(code.load(there, code.number) * scale, here)
            else:
                code.store(code.load(here, code.number), there)

    def mark(self, tile: Value) -> Value:
        """Address of the states at the start of a tile."""
        job = self.job
        index = (self.first_mark + tile) * job["blocks"] + self.block
        return job.code.at(job["marks"], index * job["padded"], job.code.vector)

    def accumulator(self, name: str, rows: Value) -> Value:
        """Address of what this task keeps from one call to the next: so many vectors."""
        job = self.job
        index = (self.row - job["first_row"]) * job["blocks"] + self.block
        element = job.code.ir.DoubleType() if name == "sums" else job.code.number
        return job.code.at(job[name], index * rows * job.code.lanes, element)


class _Ahead:
    """Asks for one tensor's rows of the next tile, one row per step of a loop over time.

    A block of channels is one cache line per row, rows are far apart, and no prefetcher of the CPU
    follows eight such tensors. Asked for all at once, they would be waited for.
    """

    def __init__(self, job: _Job, slot: Value) -> None:
        code = job.code
        self.code = code
        within = _smaller(code, slot, code.integer(_PLANS - 1))
        place = code.at(job.scratch["plan"], within * 2, code.int)
        self.start = code.load(place, code.pointer)
        self.stride = code.load(code.at(place, 1, code.int), code.int)

    def ask(self, t: Value) -> None:
        """For row t."""
        self.code.prefetch(self.code.behind(self.start, t * self.stride))


@contextlib.contextmanager
def _tasks(unit: Unit, name: str, pieces: dict[str, str]) -> Iterator[tuple[_Job, Value]]:
    """A function that claims task after task; the body of the ``with`` is one of them."""
    code = Code(unit, f"{name}_tasks", ["ptr"])
    job = _Job(code, code.arguments[0])
    job.take_scratch(pieces)
    with code.claims(job["claimed"], job["tasks"]) as task:
        yield job, task
    code.finish()
    unit.entry(name, code)


def _smaller(code: Code, a: Value, b: Value) -> Value:
    return code.select(a < b, a, b)


# Forward


def _write_forward(unit: Unit, reader: Code, writer: Code) -> None:
    with _tasks(unit, "forward", _FORWARD) as (job, index):
        code = job.code
        row = index // job["blocks"]
        task = _Task(job, row, index - row * job["blocks"])
        task.start(("d", "u", "y"))
        task.read_states("initial", job.scratch["h"])
        with code.loop(0, (task.length + (STEPS - 1)) // STEPS) as tile:
            code.copy(job.scratch["h"], task.mark(tile), job["padded"])
            position = tile * STEPS
            steps = _smaller(code, task.length - position, code.integer(STEPS))
            for name, into in (("x", "u"), ("dt", "d"), ("B", "B"), ("C", "C")):
                task.move(reader, name, into, position, steps)
            _prepare(job, steps)
            _advance(job, steps)
            with code.when(job.given("z")):
                task.move(reader, "z", "u", position, steps)
                with code.loop(0, steps) as t:
                    z = job.row("u", t)
                    job.set_row("y", t, job.row("y", t) * z * sigmoid(code, z))
            task.move(writer, "y", "y", position, steps)
        task.write_states("final", job.scratch["h"])


def _step_size(job: _Job, t: Value) -> tuple[Value, Value]:
    """softplus(dt + dt_bias) of a step and its derivative, or dt + dt_bias and 1."""
    code = job.code
    before = job.row("d", t) + job.row("dt_bias", 0)
    d, slope = code.variable(before), code.variable(code.zero() + 1.0)
    with code.when(job.given("softplus")):
        value, derivative = softplus(code, before)
        d.set(value)
        slope.set(derivative)
    return d.get(), slope.get()


def _prepare(job: _Job, steps: Value) -> None:
    """dt and x of a tile become d and d x; y becomes D x."""
    code = job.code
    with code.loop(0, steps) as t:
        d, _ = _step_size(job, t)
        x = job.row("u", t)
        job.set_row("d", t, d)
        job.set_row("u", t, d * x)
        job.set_row("y", t, _skip(job, x))


def _skip(job: _Job, x: Value) -> Value:
    """D x, and 0 without D even where x is not finite."""
    return job.code.select(job.given("D"), job.row("D", 0) * x, job.code.zero())


def _advance(job: _Job, steps: Value) -> None:
    """All states through a tile; y += C h."""
    code = job.code
    with code.loop(0, job["padded"], UNROLL) as first:
        A = [job.row("A", first + k) for k in range(UNROLL)]
        h = [code.variable(job.row("h", first + k)) for k in range(UNROLL)]
        ahead = _Ahead(job, first // UNROLL)
        with code.loop(0, steps) as t:
            ahead.ask(t)
            d, u, y = (job.row(name, t) for name in ("d", "u", "y"))
            at = t * job["padded"] + first
            for k in range(UNROLL):
                inflow = u * job.entry("B", at + k)
                h[k].set(code.fma(exp2(code, d * A[k]), h[k].get(), inflow))
                y = code.fma(job.entry("C", at + k), h[k].get(), y)
            job.set_row("y", t, y)
        for k in range(UNROLL):
            job.set_row("h", first + k, h[k].get())


# Backward


def _write_backward(unit: Unit, reader: Code, writer: Code) -> None:
    with _tasks(unit, "backward", _BACKWARD) as (job, index):
        code = job.code
        row = index // job["blocks"]
        task = _Task(job, row + job["first_row"], index - row * job["blocks"], direction=-1)
        task.start(("u", "d", "gy", "z"))
        tiles = (task.length + (STEPS - 1)) // STEPS
        carry = task.accumulator("carry", job["padded"])
        with code.either(job["end_tile"] < tiles) as (later, first):
            with later:
                code.copy(carry, job.scratch["adjoint"], job["padded"])
            with first:
                task.read_states("dfinal", job.scratch["adjoint"])
        end = _smaller(code, job["end_tile"], tiles)
        with code.loop(0, end - job["first_tile"]) as count:
            _tile_backward(task, end - count - 1, reader, writer)
        code.copy(job.scratch["adjoint"], carry, job["padded"])
        with code.when(job["first_tile"].equals(0)):
            task.write_states("dinitial", job.scratch["adjoint"])


def _tile_backward(task: _Task, tile: Value, reader: Code, writer: Code) -> None:
    job, code = task.job, task.job.code
    position = tile * STEPS
    steps = _smaller(code, task.length - position, code.integer(STEPS))
    for name, into in (("x", "u"), ("dt", "d"), ("B", "B"), ("C", "C"), ("dy", "gy")):
        task.move(reader, name, into, position, steps)
    with code.when(job.given("z")):
        task.move(reader, "z", "z", position, steps)
    _prepare_backward(job, steps)
    sums = task.accumulator("sums", job["padded"] + 2)
    with code.loop(0, job["padded"], UNROLL) as first:
        with code.either(job.given("z")) as (gated, plain):
            with gated:
                _recompute(task, tile, first, steps, gated=True)
            with plain:
                _recompute(task, tile, first, steps, gated=False)
        _walk_back(job, first, steps, sums)
        _sum_over_channels(task, tile, first, steps)
    _finish_backward(job, steps, sums)
    for name, source in (("dx", "q"), ("ddt", "dd")):
        task.move(writer, name, source, position, steps)
    with code.when(job.given("z")):
        task.move(writer, "dz", "z", position, steps)


def _prepare_backward(job: _Job, steps: Value) -> None:
    """d and its slope, d x, the gradient of C h, D x; z becomes what y is multiplied by for dz."""
    code = job.code
    with code.loop(0, steps) as t:
        d, slope = _step_size(job, t)
        x = job.row("u", t)
        for name, value in (("d", d), ("slope", slope), ("inflow", d * x), ("y", _skip(job, x))):
            job.set_row(name, t, value)
        for name in ("q", "dd"):
            job.set_row(name, t, code.zero())
        with code.when(job.given("z")):
            z, dy = job.row("z", t), job.row("gy", t)
            share = sigmoid(code, z)
            gate = z * share
            job.set_row("gy", t, dy * gate)
            job.set_row("z", t, dy * code.fma(gate, code.zero() + 1.0 - share, share))


def _recompute(task: _Task, tile: Value, first: Value, steps: Value, *, gated: bool) -> None:
    """Decays and states of a tile from its mark; with a gate also y before it."""
    job, code = task.job, task.job.code
    A = [job.row("A", first + k) for k in range(UNROLL)]
    h = [code.variable(code.row(task.mark(tile), first + k)) for k in range(UNROLL)]
    for k in range(UNROLL):
        job.set_row("h", k, h[k].get())
    ahead = _Ahead(job, first // (UNROLL // 2))
    with code.loop(0, steps) as t:
        ahead.ask(t)
        d, inflow = job.row("d", t), job.row("inflow", t)
        at, row = t * job["padded"] + first, t * UNROLL
        y = job.row("y", t) if gated else d
        for k in range(UNROLL):
            decay = exp2(code, d * A[k])
            h[k].set(code.fma(decay, h[k].get(), inflow * job.entry("B", at + k)))
            job.set_row("decay", row + k, decay)
            job.set_row("h", row + UNROLL + k, h[k].get())
            y = code.fma(job.entry("C", at + k), h[k].get(), y)
        if gated:
            job.set_row("y", t, y)


def _walk_back(job: _Job, first: Value, steps: Value, sums: Value) -> None:
    """The adjoint through a tile. Leaves the summands of dC in place of h, of dB in place of decay.

    `carried` is the gradient of the state before the step, README section 3: a[t] g[t].
    """
    code = job.code
    A = [job.row("A", first + k) for k in range(UNROLL)]
    carried = [code.variable(job.row("adjoint", first + k)) for k in range(UNROLL)]
    dA = [code.variable(code.zero()) for _ in range(UNROLL)]
    ahead = _Ahead(job, first // (UNROLL // 2) + 1)
    with code.loop(0, steps) as count:
        t = steps - count - 1
        ahead.ask(t)
        at, row = t * job["padded"] + first, t * UNROLL
        d, inflow, gy, q, dd = (job.row(name, t) for name in ("d", "inflow", "gy", "q", "dd"))
        for k in range(UNROLL):
            g = code.fma(gy, job.entry("C", at + k), carried[k].get())
            job.set_row("h", row + UNROLL + k, gy * job.row("h", row + UNROLL + k))
            carried[k].set(g * job.row("decay", row + k))
            job.set_row("decay", row + k, g * inflow)
            q = code.fma(g, job.entry("B", at + k), q)
            received = carried[k].get() * job.row("h", row + k)
            dd = code.fma(received, A[k], dd)
            dA[k].set(code.fma(received, d, dA[k].get()))
        job.set_row("q", t, q)
        job.set_row("dd", t, dd)
    for k in range(UNROLL):
        job.set_row("adjoint", first + k, carried[k].get())
        code.accumulate(sums, first + k, dA[k].get())


def _partial(task: _Task, tile: Value) -> tuple[Value, Value]:
    """Where this block's part of dB and dC of a tile goes."""
    job = task.job
    size = job["padded"] * STEPS
    tiles = job["end_tile"] - job["first_tile"]
    index = ((task.row - job["first_row"]) * job["blocks"] + task.block) * tiles * 2
    dB = job.code.at(job["partial"], (index + tile - job["first_tile"]) * size)
    return dB, job.code.at(dB, tiles * size)


def _sum_over_channels(task: _Task, tile: Value, first: Value, steps: Value) -> None:
    job, code = task.job, task.job.code
    at_once = code.lanes // UNROLL  # steps
    for source, shift, target in zip(
        ("decay", "h"), (0, UNROLL), _partial(task, tile), strict=True
    ):
        with code.loop(0, steps, at_once) as t:
            rows = [job.row(source, t * UNROLL + (shift + i)) for i in range(code.lanes)]
            sums = sum_lanes(code, rows)
            for i in range(at_once):
                states = code.shuffle(sums, sums, range(i * UNROLL, (i + 1) * UNROLL))
                code.store(states, code.at(target, (t + i) * job["padded"] + first))


def _finish_backward(job: _Job, steps: Value, sums: Value) -> None:
    """q becomes dx, dd becomes ddt, z becomes dz; sums of dD and of the bias."""
    code = job.code
    bias, skip = code.variable(code.zero()), code.variable(code.zero())
    with code.loop(0, steps) as t:
        d, x, gy, q = (job.row(name, t) for name in ("d", "u", "gy", "q"))
        ddt = code.fma(x, q, job.row("dd", t) * LN_2) * job.row("slope", t)
        job.set_row("q", t, code.fma(d, q, gy * job.row("D", 0)))
        job.set_row("dd", t, ddt)
        job.set_row("z", t, job.row("z", t) * job.row("y", t))
        bias.set(bias.get() + ddt)
        skip.set(code.fma(gy, x, skip.get()))
    code.accumulate(sums, job["padded"], skip.get())
    code.accumulate(sums, job["padded"] + 1, bias.get())


# Sums of dB and dC over the blocks of a group


def _write_reduce(unit: Unit, writer: Code) -> None:
    """A task is one sequence, one group, one tile."""
    with _tasks(unit, "reduce", _REDUCE) as (job, index):
        code = job.code
        tiles = job["end_tile"] - job["first_tile"]
        pair = index // tiles
        tile = index - pair * tiles + job["first_tile"]
        row = pair // job["groups"]
        block = (pair - row * job["groups"]) * job["group_blocks"]
        task = _Task(job, row + job["first_row"], block)
        position = tile * STEPS
        with code.when(position < task.length):
            steps = _smaller(code, task.length - position, code.integer(STEPS))
            for name, part in zip(("dB", "dC"), _partial(task, tile), strict=True):
                _sum_blocks(job, part, tiles, steps)
                task.move(writer, name, "sum", position, steps)


def _sum_blocks(job: _Job, part: Value, tiles: Value, steps: Value) -> None:
    code = job.code
    next_block = tiles * job["padded"] * (2 * STEPS)
    vectors = (steps * job["padded"] + (code.lanes - 1)) // code.lanes
    with code.loop(0, vectors) as row:
        total = code.variable(code.row(part, row))
        with code.loop(1, job["group_blocks"]) as block:
            total.set(total.get() + code.row(code.at(part, next_block * block), row))
        job.set_row("sum", row, total.get())


@functools.cache
def compiled(dtype: torch.dtype, *, portable: bool = False) -> Compiled:
    """forward, backward and reduce for states of this dtype."""
    unit = Unit("selective_scan", dtype, portable=portable)
    reader, writer = write_tile_reader(unit), write_tile_writer(unit)
    _write_forward(unit, reader, writer)
    _write_backward(unit, reader, writer)
    _write_reduce(unit, writer)
    return unit.compile()
