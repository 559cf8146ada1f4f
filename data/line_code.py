"""One pass over lines of bases: line ends dropped, letters checked, encoded, counted, upper case.

64 bytes at a time: all of them are encoded and stored, and the next 64 are stored behind the first
byte that is none of A, C, G, T and N. That one is looked up in a table: white space is skipped, an
IUPAC letter or U written by itself, and anything else ends the pass.
"""

from __future__ import annotations

import ctypes
import functools

from dnassm.data.alphabet import ASCII_TO_CODE, NO_BASE, SOFT_MASK, Codes, N
from dnassm.data.encoder import COUNTS
from dnassm.machine_code import Assembly, Compiled, compile_assembly, missing

AHEAD = 64
"""Bytes behind the text that are read, and behind the bases that are written."""
WHITE = b" \t\n\x0b\x0c\r"
TOTALS = ("bases", "end", "lines", *COUNTS)
"""What the pass counts; `end` are the bytes that were read: fewer than given before a wrong one."""

_PLAIN, _WHITE = 0x7D, 0x7E
_WRITTEN = ("upper", "codes")
_U = 0x10
"""Bit of the code of U in the table."""
_V, _BITS = "<64 x i8>", "<64 x i1>"


def _kinds() -> Codes:
    table = ASCII_TO_CODE.copy()
    for letter in b"Uu":
        table[letter] |= _U
    for letter in b"ACGTNacgtn":
        table[letter] = _PLAIN
    for letter in WHITE:
        table[letter] = _WHITE
    return table


KINDS = _kinds()
"""uint8[256]: what to do with a byte; the argument `kinds`."""


@functools.cache
def compiled() -> Compiled | None:
    """The function ``encode_all(text, spans, count, upper, codes, kinds, totals)``, or None.

    All but `count` are addresses. A span is where a stretch of the text begins and ends, int64; a
    row of `totals`, one int64 for each of TOTALS, is written for each span, up to the first one
    that holds a wrong byte.
    """
    if missing():
        return None
    pointer = ctypes.c_void_p
    arguments = (pointer, pointer, ctypes.c_int64, pointer, pointer, pointer, pointer)
    module = _module() + _encode_all()
    return compile_assembly(module, {"encode_all": arguments}, passes="variables")


def _module() -> str:
    variables = "\n".join(f"%{name} = alloca i64\nstore i64 0, ptr %{name}" for name in TOTALS)
    finish = Assembly("finish")
    for place, name in enumerate(TOTALS):
        finish.store("i64", finish.load("i64", f"%{name}"), "%totals", 8 * place)
    return f"""
        declare i64 @llvm.ctpop.i64(i64)
        declare i64 @llvm.cttz.i64(i64, i1)
        define void @encode(
          ptr %text, i64 %size, ptr %upper, ptr %codes, ptr %kinds, ptr %totals
        ) {{
        entry:
          {variables}
          %guess = alloca i64
          store i64 0, ptr %guess
          br label %many
        many:
          {_many()}
        one:
          {_one()}
        finish:
          {finish}
          ret void
        }}
    """


def _encode_all() -> str:
    """One span after the other; the bases of each stand behind those of the one before."""
    code = Assembly("all")
    span = code.at("%spans", code.value("shl i64 %number, 4"))
    start, end = code.load("i64", span), code.load("i64", span, 8)
    size = code.value(f"sub i64 {end}, {start}")
    row = code.at("%totals", code.value(f"mul i64 %number, {8 * len(TOTALS)}"))
    places = (code.at("%text", start), *(code.at(f"%{name}", "%done") for name in _WRITTEN))
    text, upper, codes = (f"ptr {place}" for place in places)
    code.write(f"call void @encode({text}, i64 {size}, {upper}, {codes}, ptr %kinds, ptr {row})")
    code.write(f"%sum = add i64 %done, {code.load('i64', row)}")
    read = code.load("i64", row, 8 * TOTALS.index("end"))
    code.write(f"%next = add i64 %number, 1\n%is_right = icmp eq i64 {read}, {size}")
    code.write("%is_more = icmp slt i64 %next, %count\n%goes_on = and i1 %is_right, %is_more")
    return f"""
        define void @encode_all(
          ptr %text, ptr %spans, i64 %count, ptr %upper, ptr %codes, ptr %kinds, ptr %totals
        ) {{
        entry:
          br label %loop
        loop:
          %number = phi i64 [0, %entry], [%next, %loop]
          %done = phi i64 [0, %entry], [%sum, %loop]
          {code}
          br i1 %goes_on, label %loop, label %finish
        finish:
          ret void
        }}
    """


def _many() -> str:
    """Up to 64 plain letters."""
    code = Assembly("many")
    end, bases = code.load("i64", "%end"), code.load("i64", "%bases")
    letters = code.load(_V, code.at("%text", end))
    upper = code.value(f"and {_V} {letters}, {_all(0xDF)}")
    is_soft_masked = code.value(f"and {_V} {letters}, {_all(0x20)}")
    masks = {base: _mask(code, f"eq {_V} {upper}, {_all(ord(base))}") for base in "ACGTN"}
    known = functools.reduce(lambda a, b: code.value(f"or i64 {a}, {b}"), masks.values())
    masks["soft_masked"] = _mask(code, f"ne {_V} {is_soft_masked}, zeroinitializer")
    code.store(_V, upper, code.at("%upper", bases))
    code.store(_V, _encoded(code, upper, is_soft_masked), code.at("%codes", bases))

    left = code.value(f"sub i64 %size, {end}")
    beyond = code.value(f"shl i64 -1, {left}")
    is_last = code.value(f"icmp slt i64 {left}, 64")
    beyond = code.value(f"select i1 {is_last}, i64 {beyond}, i64 0")
    others = code.value(f"or i64 {beyond}, {code.value(f'xor i64 {known}, -1')}")
    before = code.value(f"xor i64 {others}, -1")
    inside = code.value(f"and i64 {before}, {code.value(f'sub i64 {others}, 1')}")
    for name, mask in masks.items():
        here = code.value(f"and i64 {mask}, {inside}")
        _add(code, name, code.value(f"call i64 @llvm.ctpop.i64(i64 {here})"))
    is_full = code.value(f"icmp eq i64 {others}, 0")
    code.write(f"br i1 {is_full}, label %full, label %part\nfull:")
    _advance(code, "64")
    code.write("br label %many\npart:")
    taken = code.value(f"call i64 @llvm.cttz.i64(i64 {others}, i1 true)")
    guess = code.load("i64", "%guess")
    code.write(f"br i1 {code.value(f'icmp eq i64 {taken}, {guess}')}, label %right, label %wrong")
    code.write("right:")
    _advance(code, code.value(f'call i64 asm sideeffect "", "=r,0"(i64 {guess})'))
    code.write("br label %one\nwrong:")
    code.store("i64", taken, "%guess")
    _advance(code, taken)
    code.write("br label %one")
    return str(code)


def _advance(code: Assembly, letters: str) -> None:
    for name in ("end", "bases"):
        _add(code, name, letters)


def _one() -> str:
    """White space and unusual letters, until a plain one comes."""
    code = Assembly("one")
    end = code.load("i64", "%end")
    is_end = code.value(f"icmp sge i64 {end}, %size")
    code.write(f"br i1 {is_end}, label %finish, label %byte\nbyte:")
    byte = code.load("i8", code.at("%text", end))
    kind = code.load("i8", code.at("%kinds", code.value(f"zext i8 {byte} to i64")))
    code.write(
        f"switch i8 {kind}, label %letter [i8 {_PLAIN}, label %many i8 {_WHITE}, label %white "
        f"i8 {NO_BASE}, label %finish]\nwhite:"
    )
    _add_flag(code, "lines", f"icmp eq i8 {byte}, 10")
    _add(code, "end", "1")
    code.write("br label %one\nletter:")
    bases = code.load("i64", "%bases")
    code.store("i8", code.value(f"and i8 {byte}, {0xDF}"), code.at("%upper", bases))
    code.store("i8", code.value(f"and i8 {kind}, {0xFF ^ _U}"), code.at("%codes", bases))
    u = code.value(f"and i8 {kind}, {_U}")
    for name in ("T", "U"):
        _add_flag(code, name, f"icmp ne i8 {u}, 0")
    _add_flag(code, "iupac", f"icmp eq i8 {u}, 0")
    _add_flag(code, "soft_masked", f"icmp slt i8 {kind}, 0")
    _advance(code, "1")
    code.write("br label %one")
    return str(code)


def _encoded(code: Assembly, upper: str, is_soft_masked: str) -> str:
    """The codes of A, C, G, T and N; bits 1 and 2 of the letters tell the first four apart."""
    bits = _shifted(code, "lshr", upper, 1, 3)
    bits = code.value(f"xor {_V} {bits}, {_shifted(code, 'lshr', bits, 1, 1)}")
    is_n = code.value(f"icmp eq {_V} {upper}, {_all(ord('N'))}")
    bits = code.value(f"select {_BITS} {is_n}, {_V} {_all(N)}, {_V} {bits}")
    return code.value(f"or {_V} {bits}, {_shifted(code, 'shl', is_soft_masked, 2, SOFT_MASK)}")


def _shifted(code: Assembly, shift: str, values: str, by: int, keep: int) -> str:
    moved = code.value(f"{shift} {_V} {values}, {_all(by)}")
    return code.value(f"and {_V} {moved}, {_all(keep)}")


def _mask(code: Assembly, comparison: str) -> str:
    """One bit per byte, the first one lowest."""
    bits = code.value(f"icmp {comparison}")
    return code.value(f"bitcast {_BITS} {bits} to i64")


def _add(code: Assembly, name: str, amount: str) -> None:
    total = code.value(f"add i64 {code.load('i64', f'%{name}')}, {amount}")
    code.store("i64", total, f"%{name}")


def _add_flag(code: Assembly, name: str, comparison: str) -> None:
    _add(code, name, code.value(f"zext i1 {code.value(comparison)} to i64"))


def _all(byte: int) -> str:
    return f"splat (i8 {byte})"
