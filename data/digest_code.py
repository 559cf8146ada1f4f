"""MD5 of one buffer and SHA-256 of another of the same length, in one stream of instructions.

Each byte of a digest depends on the one before, so that a core waits most of the time: MD5 takes
4.5 cycles per byte and SHA-256 two, however many units stand idle. Between every two rounds of MD5
(general registers) stand two of SHA-256 (the CPU's SHA instructions, vector registers), and both
together take as long as MD5 alone. Sources: RFC 1321; FIPS 180-4.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence

from dnassm.machine_code import Assembly, Compiled, compile_assembly, has_features, missing

BLOCK = 64
"""Bytes that one turn of either digest takes."""
MD5_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)

_V = "<4 x i32>"
_PLACES = (0, 1, 2, 3, 4, 8)
"""Where a, b, c, d, feba and hgdc stand in the state."""
_SHIFTS = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
_WORDS = ((1, 0), (5, 1), (3, 5), (7, 0))
"""Round i of each sixteen takes word (factor i + first) mod 16 of the block."""


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


_PRIMES = [number for number in range(2, 312) if _is_prime(number)]
SHA256_START = tuple(math.isqrt(prime << 64) & 0xFFFFFFFF for prime in _PRIMES[:8])


def _cube_root_bits(number: int) -> int:
    """The first 32 bits behind the point of its cube root."""
    root = round(math.cbrt(number) * 2**32)  # right but for the last bits
    while root**3 > number << 96:
        root -= 1
    while (root + 1) ** 3 <= number << 96:
        root += 1
    return root & 0xFFFFFFFF


@functools.cache
def compiled() -> Compiled | None:
    """The function ``digest(state, first, second, blocks)``; None without SHA instructions.

    It takes the state (12 uint32: MD5's a b c d, SHA-256's f e b a h g d c) on by so many blocks of
    `first` for MD5 and of `second` for SHA-256; all but `blocks` are addresses.
    """
    if missing() or not has_features("sha", "ssse3", "sse4.1"):
        return None
    arguments = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    # The optimiser would move the constants of MD5 to where they are waited for.
    return compile_assembly(_module(), {"digest": arguments}, passes="none")


def _module() -> str:
    """The loop over the blocks."""
    code = Assembly()
    before = ["%a", "%b", "%c", "%d", "%feba", "%hgdc"]
    kinds = ["i32"] * 4 + [_V] * 2
    md5, sha256 = before[:4], before[4:]
    rounds = _md5_rounds(code, md5)
    for _ in zip(rounds, rounds, _sha256_rounds(code, sha256), strict=True):
        pass
    after = [
        code.value(f"add {kind} {old}, {new}")
        for kind, old, new in zip(kinds, before, md5 + sha256, strict=True)
    ]
    start, end = Assembly("start"), Assembly("end")
    first = [start.load(k, "%state", 4 * i) for k, i in zip(kinds, _PLACES, strict=True)]
    for kind, value, place in zip(kinds, after, _PLACES, strict=True):
        end.store(kind, value, "%state", 4 * place)
    carried = "\n".join(
        f"{name} = phi {kind} [{here}, %entry], [{there}, %loop]"
        for name, kind, here, there in zip(before, kinds, first, after, strict=True)
    )
    return f"""
        declare i32 @llvm.fshl.i32(i32, i32, i32)
        declare {_V} @llvm.bswap.v4i32({_V})
        declare {_V} @llvm.x86.sha256rnds2({_V}, {_V}, {_V})
        declare {_V} @llvm.x86.sha256msg1({_V}, {_V})
        declare {_V} @llvm.x86.sha256msg2({_V}, {_V})
        define void @digest(ptr %state, ptr %first, ptr %second, i64 %blocks) {{
        entry:
          %sums = alloca [16 x {_V}], align 64
          {start}
          br label %loop
        loop:
          %block = phi i64 [0, %entry], [%next, %loop]
          {carried}
          %offset = shl i64 %block, 6
          %text = getelementptr i8, ptr %first, i64 %offset
          %data = getelementptr i8, ptr %second, i64 %offset
          {code}
          %next = add i64 %block, 1
          %more = icmp slt i64 %next, %blocks
          br i1 %more, label %loop, label %end
        end:
          {end}
          ret void
        }}
    """


def _md5_rounds(code: Assembly, state: list[str]) -> Iterator[None]:
    """Write the 64 rounds on a block at %text; `state` is that after the rounds so far."""
    for number in range(64):
        stage, i = divmod(number, 16)
        if i == 0:
            _sum_words(code, stage)
        a, b, c, d = state
        word = code.load("i32", "%sums", 64 * stage + 4 * _word(stage, i))
        total = code.value(f"add i32 {a}, {word}")
        total = _mixed(code, stage, total, b, c, d)
        total = code.value(
            f"call i32 @llvm.fshl.i32(i32 {total}, i32 {total}, i32 {_SHIFTS[stage][i % 4]})"
        )
        b, c, d, a = code.value(f"add i32 {total}, {b}"), b, c, d
        if i % 2:
            b = _pinned(code, "i32", "r", b)
        state[:] = a, b, c, d
        yield


def _mixed(code: Assembly, stage: int, total: str, b: str, c: str, d: str) -> str:
    """`total` + F, G, H or I of b, c and d, with as little as can be behind b, which comes last."""

    def bits(operation: str, first: str, second: str) -> str:
        return code.value(f"{operation} i32 {first}, {second}")

    if stage == 0:
        mixed = bits("xor", d, bits("and", b, bits("xor", c, d)))
    elif stage == 1:  # no bit is set in both halves: they can be added one after the other
        total = bits("add", total, bits("and", c, bits("xor", d, "-1")))
        mixed = bits("and", b, d)
    elif stage == 2:
        mixed = bits("xor", b, bits("xor", c, d))
    else:
        mixed = bits("xor", c, bits("or", b, bits("xor", d, "-1")))
    return bits("add", total, mixed)


def _sum_words(code: Assembly, stage: int) -> None:
    """Add the constants of sixteen rounds to the words that they take, four words at a time."""
    constants = [0] * 16
    for i in range(16):
        constants[_word(stage, i)] = int(abs(math.sin(16 * stage + i + 1)) * 2**32)
    for at in range(0, 16, 4):
        words = code.load(_V, "%text", 4 * at)
        total = code.value(f"add {_V} {words}, {_vector(constants[at : at + 4])}")
        code.store(_V, total, "%sums", 64 * stage + 4 * at)


def _word(stage: int, i: int) -> int:
    factor, first = _WORDS[stage]
    return (factor * i + first) % 16


def _sha256_rounds(code: Assembly, state: list[str]) -> Iterator[None]:
    """Write the 64 rounds on a block at %data, two by two; `state` is that after those so far."""
    words: list[str] = []
    for four in range(16):
        words.append(_schedule(code, four, words))
        constants = _vector([_cube_root_bits(prime) for prime in _PRIMES[4 * four : 4 * four + 4]])
        pairs = code.value(f"add {_V} {words[-1]}, {constants}")
        for half in range(2):
            if half:
                pairs = _shuffled(code, pairs, pairs, (2, 3, 0, 1))
            feba, hgdc = state
            new = code.value(
                f"call {_V} @llvm.x86.sha256rnds2({_V} {hgdc}, {_V} {feba}, {_V} {pairs})"
            )
            state[:] = _pinned(code, _V, "x", new), feba
            yield


def _schedule(code: Assembly, four: int, words: Sequence[str]) -> str:
    """Four words of the message schedule: of the block itself, then of the sixteen before."""
    if four < 4:
        loaded = code.load(_V, "%data", 16 * four)
        return code.value(f"call {_V} @llvm.bswap.v4i32({_V} {loaded})")
    w16, w12, w8, w4 = words[-4:]
    begun = code.value(f"call {_V} @llvm.x86.sha256msg1({_V} {w16}, {_V} {w12})")
    w7 = _shuffled(code, w8, w4, (1, 2, 3, 4))
    begun = code.value(f"add {_V} {begun}, {w7}")
    return code.value(f"call {_V} @llvm.x86.sha256msg2({_V} {begun}, {_V} {w4})")


def _pinned(code: Assembly, kind: str, register: str, value: str) -> str:
    """The same value; keeps LLVM from moving its instructions to before or behind other pins."""
    return code.value(f'call {kind} asm sideeffect "", "={register},0"({kind} {value})')


def _shuffled(code: Assembly, a: str, b: str, lanes: Sequence[int]) -> str:
    places = ", ".join(f"i32 {lane}" for lane in lanes)
    return code.value(f"shufflevector {_V} {a}, {_V} {b}, {_V} <{places}>")


def _vector(numbers: Sequence[int]) -> str:
    return "<" + ", ".join(f"i32 {number}" for number in numbers) + ">"
