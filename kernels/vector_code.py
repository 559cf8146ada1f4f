"""Vector code for the CPU, written in Python and compiled in the process by LLVM (llvmlite).

A kernel is a Python function that is run once and leaves LLVM instructions behind: what it does
with a `Value` (``a * b``, ``a < b``, ``fma(a, b, c)``) becomes code, what it does with plain Python
numbers (a ``for`` over four states) is unrolled. Vectors are 64 bytes wide: one register of
AVX-512, two of AVX2, four of NEON; LLVM splits them. Nothing is left to an auto-vectoriser, and no
fast-math flag is set. A compile takes half a second, so there is no cache on disk to go stale.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch

from dnassm.machine_code import Compiled, architecture, compile_assembly, has_features, llvm

VECTOR_BYTES = 64
NUMBER_KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""Dtype -> the number by which code knows it at run time."""

_I64 = "i64"


def _ir() -> ModuleType:
    """llvmlite's writer, imported at first use: who never runs a kernel does not wait for it."""
    from llvmlite import ir

    llvm()
    return ir


@functools.cache
def has_half() -> bool:
    """Whether the CPU converts float16 itself; elsewhere LLVM would call what may not exist."""
    return architecture() in ("aarch64", "arm64") or has_features("f16c")


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A number, a vector or an address that the written code will have; operators write code."""

    code: Code
    raw: Any

    @property
    def type(self) -> Any:
        """LLVM's type."""
        return self.raw.type

    def _write(self, name: str, other: Value | float) -> Value:
        builder, is_float = self.code.builder, self.code.is_float(self.type)
        other = self.code.like(self, other)
        return Value(
            self.code, getattr(builder, f"f{name}" if is_float else name)(self.raw, other.raw)
        )

    def __add__(self, other: Value | float) -> Value:
        return self._write("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._write("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._write("mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._write("div", other)

    def __floordiv__(self, other: Value | float) -> Value:
        return Value(self.code, self.code.builder.sdiv(self.raw, self.code.like(self, other).raw))

    def __neg__(self) -> Value:
        if self.code.is_float(self.type):
            return Value(self.code, self.code.builder.fneg(self.raw))
        return self.code.like(self, 0) - self

    def _compare(self, sign: str, other: Value | float) -> Value:
        builder, other = self.code.builder, self.code.like(self, other)
        compare = builder.fcmp_ordered if self.code.is_float(self.type) else builder.icmp_signed
        return Value(self.code, compare(sign, self.raw, other.raw))

    def __lt__(self, other: Value | float) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._compare(">", other)

    def equals(self, other: Value | float) -> Value:
        """``==``; the operator itself stays Python's."""
        return self._compare("==", other)


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """A Value that changes from one turn of a loop to the next."""

    code: Code
    place: Any
    kind: Any

    def get(self) -> Value:
        """What was set last."""
        return Value(self.code, self.code.builder.load(self.place, typ=self.kind))

    def set(self, value: Value) -> None:
        """Change it."""
        self.code.builder.store(value.raw, self.place)


class Code:
    """Writes the body of one function of numbers of one precision.

    Args:
        unit: the module it belongs to.
        name: of the function.
        arguments: of the function, "ptr" or "i64".
    """

    def __init__(self, unit: Unit, name: str, arguments: Sequence[str]) -> None:
        ir = self.ir = _ir()
        self.unit = unit
        self.int = ir.IntType(64)
        self.pointer = ir.PointerType()
        self.number = ir.DoubleType() if unit.is_double else ir.FloatType()
        self.lanes = VECTOR_BYTES // unit.itemsize
        self.vector = ir.VectorType(self.number, self.lanes)
        kinds = {"ptr": self.pointer, _I64: self.int}
        signature = ir.FunctionType(ir.VoidType(), [kinds[kind] for kind in arguments])
        self.function = ir.Function(unit.module, signature, name)
        entry = self.function.append_basic_block("entry")
        # Variables live in a block of their own in front: one in a loop would grow the stack.
        self.variables = ir.IRBuilder(entry)
        body = self.function.append_basic_block("body")
        self.builder = ir.IRBuilder(body)
        self._end_of_entry = body
        self.arguments = [Value(self, argument) for argument in self.function.args]

    def finish(self) -> None:
        """Close the function."""
        self.builder.ret_void()
        self.variables.branch(self._end_of_entry)

    # Values

    def is_float(self, kind: Any) -> bool:
        """Whether operators of this type are those of floating point."""
        element = kind.element if isinstance(kind, self.ir.VectorType) else kind
        return isinstance(element, self.ir.FloatType | self.ir.DoubleType)

    def constant(self, kind: Any, number: float) -> Value:
        """`number` as this type, in every lane if that is a vector."""
        if isinstance(kind, self.ir.VectorType):
            element = self.ir.Constant(kind.element, number)
            return Value(self, self.ir.Constant(kind, [element] * kind.count))
        return Value(self, self.ir.Constant(kind, number))

    def like(self, value: Value, other: Value | float) -> Value:
        """`other`, as the type of `value` if it is a plain number."""
        return other if isinstance(other, Value) else self.constant(value.type, other)

    def integer(self, number: int) -> Value:
        """An integer as in addresses and counts."""
        return self.constant(self.int, number)

    def zero(self) -> Value:
        """A vector of zeros."""
        return self.constant(self.vector, 0.0)

    def splat(self, number: Value) -> Value:
        """A vector with the number in every lane."""
        kind = self.ir.VectorType(number.type, self.lanes)
        one = self.builder.insert_element(
            self.ir.Constant(kind, self.ir.Undefined), number.raw, self.ir.Constant(self.int, 0)
        )
        places = self.ir.Constant(
            self.ir.VectorType(self.ir.IntType(32), self.lanes),
            [self.ir.Constant(self.ir.IntType(32), 0)] * self.lanes,
        )
        return Value(self, self.builder.shuffle_vector(one, one, places))

    def select(self, condition: Value, yes: Value | float, no: Value) -> Value:
        """`yes` where the condition holds, else `no`."""
        yes = self.like(no, yes)
        return Value(self, self.builder.select(condition.raw, yes.raw, no.raw))

    def fma(self, a: Value, b: Value, c: Value | float) -> Value:
        """Compute a b + c, rounded once where the CPU can."""
        kind, c = a.type, self.like(a, c)
        signature = self.ir.FunctionType(kind, [kind] * 3)
        name = (
            f"llvm.fmuladd.{kind.intrinsic_name}"
            if kind is self.number
            else (f"llvm.fmuladd.v{self.lanes}f{64 if self.unit.is_double else 32}")
        )
        intrinsic = self.unit.declare(name, signature)
        return Value(self, self.builder.call(intrinsic, [a.raw, b.raw, c.raw]))

    def shuffle(self, a: Value, b: Value, places: Sequence[int]) -> Value:
        """Lanes of a (0..) and b (lanes..) in another order."""
        i32 = self.ir.IntType(32)
        mask = self.ir.Constant(
            self.ir.VectorType(i32, len(places)), [self.ir.Constant(i32, p) for p in places]
        )
        return Value(self, self.builder.shuffle_vector(a.raw, b.raw, mask))

    def masked(self, operation: str, a: Value, b: Any) -> Value:
        """An instruction of AVX-512 on all lanes, with the rounding that is set."""
        i32, lanes = self.ir.IntType(32), self.ir.IntType(self.lanes)
        kind = self.vector
        name = f"llvm.x86.avx512.mask.{operation}.p{'d' if self.unit.is_double else 's'}.512"
        signature = self.ir.FunctionType(kind, [kind, b.type, kind, lanes, i32])
        every, as_set = self.ir.Constant(lanes, -1), self.ir.Constant(i32, 4)
        call = self.builder.call(
            self.unit.declare(name, signature), [a.raw, b, a.raw, every, as_set]
        )
        return Value(self, call)

    def cast(self, operation: str, value: Value, element: Any) -> Value:
        """`value` as another element type: bitcast, fpext, fptrunc, zext, trunc, ..."""
        kind = element
        if isinstance(value.type, self.ir.VectorType):
            kind = self.ir.VectorType(element, value.type.count)
        if value.type == kind:
            return value
        return Value(self, getattr(self.builder, operation)(value.raw, kind))

    # Memory

    def at(self, base: Value, offset: Value | int, kind: Any | None = None) -> Value:
        """The address `offset` numbers behind `base` (bytes if kind is an 8-bit integer)."""
        offset = self.like(self.integer(0), offset)
        kind = self.number if kind is None else kind
        return Value(self, self.builder.gep(base.raw, [offset.raw], source_etype=kind))

    def behind(self, base: Value, offset: Value) -> Value:
        """The address `offset` bytes behind `base`."""
        return self.at(base, offset, self.ir.IntType(8))

    def load(self, place: Value, kind: Any, align: int | None = None) -> Value:
        """What is stored there; aligned to one element unless told."""
        element = kind.element if isinstance(kind, self.ir.VectorType) else kind
        align = align or self.bytes_of(element)
        return Value(self, self.builder.load(place.raw, align=align, typ=kind))

    def store(self, value: Value, place: Value, align: int | None = None) -> None:
        """Write it there."""
        kind = value.type
        element = kind.element if isinstance(kind, self.ir.VectorType) else kind
        self.builder.store(value.raw, place.raw, align=align or self.bytes_of(element))

    def prefetch(self, place: Value) -> None:
        """Ask for the cache line; an address that nobody has does no harm."""
        i32 = self.ir.IntType(32)
        signature = self.ir.FunctionType(self.ir.VoidType(), [self.pointer, i32, i32, i32])
        # to read, into every cache, data
        options = [self.ir.Constant(i32, number) for number in (0, 3, 1)]
        self.builder.call(self.unit.declare("llvm.prefetch.p0", signature), [place.raw, *options])

    def row(self, base: Value, index: Value | int) -> Value:
        """Vector number `index` of an aligned array of vectors."""
        return self.load(self.at(base, index, self.vector), self.vector, VECTOR_BYTES)

    def set_row(self, base: Value, index: Value | int, value: Value) -> None:
        """Write vector number `index` of an aligned array of vectors."""
        self.store(value, self.at(base, index, self.vector), VECTOR_BYTES)

    def clear(self, base: Value, rows: Value) -> None:
        """Zero so many vectors of an aligned array."""
        with self.loop(0, rows) as row:
            self.set_row(base, row, self.zero())

    def copy(self, source: Value, target: Value, rows: Value) -> None:
        """Copy so many vectors of an aligned array."""
        with self.loop(0, rows) as row:
            self.set_row(target, row, self.row(source, row))

    def accumulate(self, sums: Value, index: Value, vector: Value) -> None:
        """Add a vector to row `index` of an array of vectors of float64."""
        double = self.ir.DoubleType()
        kind = self.ir.VectorType(double, self.lanes)
        place = self.at(sums, index, kind)
        before = self.load(place, kind)
        self.store(before + self.cast("fpext", vector, double), place)

    def add_atomically(self, place: Value, number: int) -> Value:
        """Add to a counter that other threads use too; its value before that."""
        raw = self.builder.atomic_rmw(
            "add", place.raw, self.integer(number).raw, ordering="acq_rel"
        )
        return Value(self, raw)

    @staticmethod
    def bytes_of(element: Any) -> int:
        """Size of one number of this type."""
        sizes = {"float": 4, "double": 8, "half": 2, "ptr": 8}
        return sizes.get(str(element)) or int(element.width) // 8

    # Flow

    def variable(self, start: Value) -> Variable:
        """A new variable."""
        place = self.variables.alloca(start.type)
        variable = Variable(self, place, start.type)
        variable.set(start)
        return variable

    @contextlib.contextmanager
    def loop(self, start: Value | int, stop: Value, step: int = 1) -> Iterator[Value]:
        """``for index in range(start, stop, step)``, step > 0."""
        index = self.variable(self.like(stop, start))
        check = self.builder.append_basic_block("check")
        body = self.builder.append_basic_block("body")
        behind = self.builder.append_basic_block("behind")
        self.builder.branch(check)
        self.builder.position_at_end(check)
        self.builder.cbranch((index.get() < stop).raw, body, behind)
        self.builder.position_at_end(body)
        now = index.get()
        yield now
        index.set(now + step)
        self.builder.branch(check)
        self.builder.position_at_end(behind)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """``if condition:``."""
        with self.builder.if_then(condition.raw):
            yield

    @contextlib.contextmanager
    def either(self, condition: Value) -> Iterator[tuple[Any, Any]]:
        """``if condition: ... else: ...`` as two contexts."""
        with self.builder.if_else(condition.raw) as branches:
            yield branches

    @contextlib.contextmanager
    def claims(self, counter: Value, tasks: Value) -> Iterator[Value]:
        """Tasks 0 .. tasks-1, each to whichever thread claims it first."""
        task = self.variable(self.add_atomically(counter, 1))
        check = self.builder.append_basic_block("check")
        body = self.builder.append_basic_block("body")
        behind = self.builder.append_basic_block("behind")
        self.builder.branch(check)
        self.builder.position_at_end(check)
        self.builder.cbranch((task.get() < tasks).raw, body, behind)
        self.builder.position_at_end(body)
        yield task.get()
        task.set(self.add_atomically(counter, 1))
        self.builder.branch(check)
        self.builder.position_at_end(behind)

    def call(self, other: Code, *arguments: Value | int) -> None:
        """Call another function of the unit."""
        given = [self.like(self.integer(0), argument).raw for argument in arguments]
        self.builder.call(other.function, given)


class Unit:
    """Functions compiled together, for numbers of one precision."""

    def __init__(self, name: str, dtype: torch.dtype, *, portable: bool = False) -> None:
        ir = _ir()
        self.has_avx512 = not portable and has_features("avx512f", "avx512dq")
        self.is_double = dtype == torch.float64
        self.itemsize = 8 if self.is_double else 4
        self.module = ir.Module(name)
        self.module.triple = llvm().get_default_triple()
        self._declared: dict[str, Any] = {}
        self._entries: list[str] = []

    def declare(self, name: str, signature: Any) -> Any:
        """A function from outside, such as an intrinsic of LLVM."""
        if name not in self._declared:
            self._declared[name] = _ir().Function(self.module, signature, name)
        return self._declared[name]

    def entry(self, name: str, body: Code) -> None:
        """A function for Python that runs `body(ptr)` with denormals taken as zero (x86).

        A state that decays with nothing flowing in ends among the denormals, where x86 needs a
        hundred times as long per multiplication.
        """
        code = Code(self, name, ["ptr"])
        body.function.attributes.add("noinline")
        self._entries.append(name)
        if not has_features():
            code.call(body, code.arguments[0])
            code.finish()
            return
        ir, i32 = code.ir, code.ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [code.pointer])
        read = self.declare("llvm.x86.sse.stmxcsr", signature)
        write = self.declare("llvm.x86.sse.ldmxcsr", signature)
        before, during = (code.variables.alloca(i32) for _ in range(2))
        code.builder.call(read, [before])
        flags = code.builder.or_(code.builder.load(before, typ=i32), ir.Constant(i32, 0x8040))
        code.builder.store(flags, during)
        code.builder.call(write, [during])
        code.call(body, code.arguments[0])
        code.builder.call(write, [before])
        code.finish()

    def compile(self) -> Compiled:
        """Optimise and load."""
        entries = dict.fromkeys(self._entries, (ctypes.c_void_p,))
        return compile_assembly(str(self.module), entries, passes="all")
