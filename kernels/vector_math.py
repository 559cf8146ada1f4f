"""Functions of vectors for `vector_code`: exp2, softplus, sigmoid, sums of lanes, tiles in and out.

Errors are relative to the result, over the whole range (tests/kernels/test_scan_cpu.py). NaN stays
NaN; above the range stands inf, below it 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dnassm.kernels.vector_code import NUMBER_KINDS, Code, Unit, Value, has_half

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

# 2^f - 1 = f (c1 + f (c2 + ...)) for |f| <= 1/2. float32: fitted to the least relative error, 2e-9.
# The constant term is exactly 1: a decay near 1 is as right as float32 can say it, however many
# steps multiply it. float64: the Taylor series, whose next term is below 1e-17.
_EXP2 = {
    False: (
        0.6931471824645996,
        0.24022647738456726,
        0.055503323674201965,
        0.00961843691766262,
        0.0013398875016719103,
        0.00015353361959569156,
    ),
    True: tuple(LN_2**k / math.factorial(k) for k in range(1, 14)),
}
# log(1 + s) = s - s^2/2 + s^3 (l0 + s (l1 + ...)) for sqrt(1/2) <= 1 + s <= sqrt(2); float32.
# Source: Moshier, Cephes Mathematical Library 2.2 (1992), logf.
_LOG1P = (
    3.3333331174e-1,
    -2.4999993993e-1,
    2.0000714765e-1,
    -1.6668057665e-1,
    1.4249322787e-1,
    -1.2420140846e-1,
    1.1676998740e-1,
    -1.1514610310e-1,
    7.0376836292e-2,
)


def polynomial(code: Code, x: Value, coefficients: Sequence[float]) -> Value:
    """c[0] + c[1] x + c[2] x^2 + ... by Horner's rule."""
    total = code.constant(x.type, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = code.fma(total, x, coefficient)
    return total


def exp2(code: Code, t: Value) -> Value:
    """2^t; 0 below 2^-126.5 (float64: 2^-1022.5), inf above 2^127.5 (2^1023.5)."""
    if code.unit.has_avx512:
        return _exp2_avx512(code, t)
    double = code.unit.is_double
    mantissa, bias = (52, 1023) if double else (23, 127)
    integer = code.ir.IntType(64 if double else 32)
    # Added to t, it leaves round(t) + bias in the lowest bits: shifted up, those are 2^round(t).
    # At -bias they are 0, at bias + 1 they are inf, and beyond these two t is not let.
    magic = 1.5 * 2.0**mantissa + bias
    t = code.select(t < -bias, -bias, t)
    t = code.select(t > bias + 1, bias + 1, t)
    rounded = t + magic
    power = _power_of_fraction(code, t - (rounded - magic))
    bits = code.cast("bitcast", rounded, integer)
    shift = code.constant(bits.type, mantissa)
    scale = Value(code, code.builder.shl(bits.raw, shift.raw))
    return power * code.cast("bitcast", scale, code.number)


def _exp2_avx512(code: Code, t: Value) -> Value:
    """The same in 9 instructions instead of 13: two of AVX-512 round, and scale in every range."""
    fraction = code.masked("reduce", t, code.ir.Constant(code.ir.IntType(32), 0))
    return code.masked("scalef", _power_of_fraction(code, fraction), (t - fraction).raw)


def _power_of_fraction(code: Code, fraction: Value) -> Value:
    return code.fma(polynomial(code, fraction, _EXP2[code.unit.is_double]), fraction, 1.0)


def _log1p_of_unit(code: Code, e: Value) -> Value:
    """log(1 + e) for 0 <= e <= 1."""
    # 1 + e = 2 (1 + (e - 1)/2) brings s near 0 without rounding it.
    large = e > math.sqrt(2.0) - 1.0
    s = code.select(large, (e - 1.0) * 0.5, e)
    offset = code.select(large, LN_2, code.constant(e.type, 0.0))
    if code.unit.is_double:  # 2 artanh(s / (2 + s)), |.|^2 < 0.03
        ratio = s / (s + 2.0)
        series = polynomial(code, ratio * ratio, [2.0 / (2 * k + 1) for k in range(12)])
        return code.fma(series, ratio, offset)
    square = s * s
    tail = code.fma(polynomial(code, s, _LOG1P), s, -0.5)
    return code.fma(tail, square, s) + offset


def softplus(code: Code, s: Value) -> tuple[Value, Value]:
    """log(1 + exp(s)) and its derivative 1 / (1 + exp(-s))."""
    positive = s > 0.0
    e = exp2(code, code.select(positive, -s, s) * LOG2_E)
    value = code.select(positive, s, code.constant(s.type, 0.0)) + _log1p_of_unit(code, e)
    return value, code.select(positive, 1.0, e) / (e + 1.0)


def sigmoid(code: Code, z: Value) -> Value:
    """1 / (1 + exp(-z))."""
    return code.constant(z.type, 1.0) / (exp2(code, z * -LOG2_E) + 1.0)


def sum_lanes(code: Code, vectors: Sequence[Value]) -> Value:
    """As many vectors as a vector has lanes -> one, whose lane i is the sum over the lanes of i.

    Source: the transposition by halves; every level adds two vectors into one, so that the sums
    cost fewer than three instructions per vector.
    """
    lanes, step = code.lanes, 1
    level = list(vectors)
    while len(level) > 1:
        merged = []
        for a, b in zip(level[::2], level[1::2], strict=True):
            # Half of the lanes from a, half from b; then the lanes that are added to them.
            kept = [i + lanes if i & step else i for i in range(lanes)]
            added = [(i ^ step) + lanes if i & step else i ^ step for i in range(lanes)]
            merged.append(code.shuffle(a, b, kept) + code.shuffle(a, b, added))
        level, step = merged, 2 * step
    return level[0]


# Between the caller's tensors, of any dtype and strides, and rows of numbers of the unit


def _read(code: Code, place: Value, dtype: torch.dtype, lanes: int) -> Value:
    element = _element(code, dtype)
    kind = code.ir.VectorType(element, lanes) if lanes > 1 else element
    value = code.load(place, kind)
    if dtype == torch.bfloat16:  # the upper half of a float32
        wide = code.cast("zext", value, code.ir.IntType(32))
        shifted = code.builder.shl(wide.raw, code.constant(wide.type, 16).raw)
        value = code.cast("bitcast", Value(code, shifted), code.ir.FloatType())
    narrow = dtype == torch.float64 and not code.unit.is_double
    return code.cast("fptrunc" if narrow else "fpext", value, code.number)


def _write(code: Code, value: Value, place: Value, dtype: torch.dtype) -> None:
    single = code.ir.FloatType()
    if dtype == torch.float64:
        value = code.cast("fpext", value, code.ir.DoubleType())
    else:
        value = code.cast("fptrunc", value, single)
    if dtype == torch.float16:
        value = code.cast("fptrunc", value, code.ir.HalfType())
    elif dtype == torch.bfloat16:
        value = _rounded_to_bfloat16(code, value)
    code.store(value, place)


def _rounded_to_bfloat16(code: Code, value: Value) -> Value:
    """The nearest, ties to even, as 16 bits."""
    bits = code.cast("bitcast", value, code.ir.IntType(32))
    sixteen, one = code.constant(bits.type, 16), code.constant(bits.type, 1)
    odd = code.builder.and_(code.builder.lshr(bits.raw, sixteen.raw), one.raw)
    rounded = bits + Value(code, odd) + 0x7FFF
    is_number = code.builder.fcmp_ordered("==", value.raw, value.raw)
    kept = code.select(Value(code, is_number), rounded, code.constant(bits.type, 0x7FC00000))
    upper = Value(code, code.builder.lshr(kept.raw, sixteen.raw))
    return code.cast("trunc", upper, code.ir.IntType(16))


def _element(code: Code, dtype: torch.dtype) -> Any:
    kinds = {
        torch.float32: code.ir.FloatType(),
        torch.float64: code.ir.DoubleType(),
        torch.bfloat16: code.ir.IntType(16),
        torch.float16: code.ir.HalfType(),
    }
    return kinds[dtype]


_MOVE = ("ptr", "i64", "ptr", "i64", "i64", "i64", "i64", "i64")


def write_tile_reader(unit: Unit) -> Code:
    """Function (to, numbers per row, from, bytes per row, per column, rows, columns, kind)."""
    return _tile_mover(unit, "read_tile", inwards=True)


def write_tile_writer(unit: Unit) -> Code:
    """The way back: the same arguments, `to` and `from` in the same places."""
    return _tile_mover(unit, "write_tile", inwards=False)


def _tile_mover(unit: Unit, name: str, *, inwards: bool) -> Code:
    code = Code(unit, name, _MOVE)
    code.function.attributes.add("noinline")
    kind = code.arguments[-1]
    for dtype, number in NUMBER_KINDS.items():
        if dtype != torch.float16 or has_half():
            with code.when(kind.equals(number)):
                _move(code, dtype, inwards=inwards)
    code.finish()
    return code


def _move(code: Code, dtype: torch.dtype, *, inwards: bool) -> None:
    inside, inside_row, outside, row_bytes, column_bytes, rows, columns, _ = code.arguments
    one_after_the_other = column_bytes.equals(code.bytes_of(_element(code, dtype)))
    contiguous = code.select(one_after_the_other, columns, code.integer(0))
    whole = contiguous // code.lanes * code.lanes

    def move(here: Value, there: Value, lanes: int) -> None:
        if inwards:
            code.store(_read(code, there, dtype, lanes), here)
        else:
            kind = code.vector if lanes > 1 else code.number
            _write(code, code.load(here, kind), there, dtype)

    def each_row() -> Iterator[tuple[Value, Value]]:
        with code.loop(0, rows) as row:
            there = code.behind(outside, row * row_bytes)
            yield code.at(inside, row * inside_row), there

    with code.either(contiguous.equals(code.lanes)) as (one_vector, otherwise):
        with one_vector:
            for here, there in each_row():
                move(here, there, code.lanes)
        with otherwise:
            for here, there in each_row():
                with code.loop(0, whole, code.lanes) as column:
                    beyond = code.behind(there, column * column_bytes)
                    move(code.at(here, column), beyond, code.lanes)
                with code.loop(whole, columns) as column:
                    move(code.at(here, column), code.behind(there, column * column_bytes), 1)
