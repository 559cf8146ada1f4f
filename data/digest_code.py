"""MD5 of buffers and SHA-256 of others of the same length, of one pair or of four side by side.

Each byte of a digest depends on the one before, so that a core waits most of the time: MD5 takes
4.5 cycles per byte and SHA-256 two, however many units stand idle. Two ways around that stand here
in one: between the rounds of MD5 stand those of SHA-256 (the CPU's SHA instructions, vector
registers), and both together take as long as MD5 alone; and four streams that do not wait for each
other are taken together, each of them one lane of MD5 in vector registers. Sources: RFC 1321;
FIPS 180-4.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import BASE, LETTERS
from dnassm.machine_code import Assembly, Compiled, compile_assembly, has_features, missing

BLOCK = 64
"""Bytes that one turn of either digest takes."""
LANES = 4
"""Streams that are taken together."""
MD5_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)

_Address = ctypes.c_uint64
_V, _BYTES = "<4 x i32>", "<16 x i8>"
_SHA256 = {"feba": 16, "hgdc": 32}
"""Byte of the state where they stand."""
_DECLARATIONS = f"""
    declare i32 @llvm.fshl.i32(i32, i32, i32)
    declare {_V} @llvm.fshl.v4i32({_V}, {_V}, {_V})
    declare {_V} @llvm.bswap.v4i32({_V})
    declare {_V} @llvm.x86.sha256rnds2({_V}, {_V}, {_V})
    declare {_V} @llvm.x86.sha256msg1({_V}, {_V})
    declare {_V} @llvm.x86.sha256msg2({_V}, {_V})
    declare {_BYTES} @llvm.x86.ssse3.pshuf.b.128({_BYTES}, {_BYTES})
"""
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


def can_compile() -> bool:
    """Whether there is a compiler, and a CPU with SHA instructions."""
    return not missing() and has_features("sha", "ssse3", "sse4.1")


def digest(streams: Sequence[tuple[int, int, int]], blocks: int) -> None:
    """Take up to LANES streams on by so many blocks each, at least one.

    A stream is three addresses: of its state (12 uint32: MD5's a b c d, SHA-256's f e b a h g d c),
    of what MD5 takes and of what SHA-256 takes.
    """
    lanes = 1 if len(streams) == 1 else LANES
    # What stands in for a stream that is missing computes, and writes, the same as another one.
    used = (streams[lane % len(streams)] for lane in range(lanes))
    addresses = itertools.chain.from_iterable(zip(*used, strict=True))
    compiled("one" if lanes == 1 else "four")((_Address * (3 * lanes))(*addresses), blocks)


def digest_rows(streams: npt.NDArray[np.uint64], blocks: npt.NDArray[np.int64]) -> None:
    """Take LANES streams on by so many blocks each, row after row.

    Args:
        streams: (rows, 3 * LANES) addresses as in `digest`: states, what MD5 takes, what SHA-256
            takes; of all lanes each. Lanes of a row may be the same stream.
        blocks: (rows,) at least one each.
    """
    if len(blocks):
        compiled("rows")(streams.ctypes.data, blocks.ctypes.data, len(blocks))


def spell(codes: int, letters: int, blocks: int) -> None:
    """Write the upper-case letters of codes that no U was, from one address to the other."""
    compiled("spell")(codes, letters, blocks)


def compiled(name: Literal["one", "four", "rows", "spell"]) -> Callable[..., None]:
    """A function; compiled where it is asked for first."""
    return _compiled("four" if name == "rows" else name).functions[name]


@functools.cache
def _compiled(name: str) -> Compiled:
    one, two = ((*[ctypes.c_void_p] * addresses, ctypes.c_int64) for addresses in (1, 2))
    if name == "spell":
        text, functions = _spell(), {"spell": two}
    elif name == "one":
        text, functions = _digest(name, 1), {"one": one}
    else:
        text, functions = _digest(name, LANES) + _rows(), {"four": one, "rows": two}
    # The optimiser would move the constants of MD5 to where they are waited for.
    return compile_assembly(_DECLARATIONS + text, functions, passes="none")


def _digest(name: str, lanes: int) -> str:
    """The loop over the blocks of so many streams."""
    start, code, end = Assembly("start"), Assembly(), Assembly("end")
    kind = "i32" if lanes == 1 else _V
    states = _addresses(start, "state", 0, lanes)
    for row, role in enumerate(("text", "data"), 1):
        _addresses(start, role, row, lanes)
    first = _load_md5(start, kind, states)
    first += [start.load(_V, state, place) for state in states for place in _SHA256.values()]

    kinds = [kind] * 4 + [_V] * (2 * lanes)
    before = [f"%{letter}" for letter in "abcd"]
    before += [f"%{letters}{lane}" for lane in range(lanes) for letters in _SHA256]
    after = _rounds(code, kind, before, lanes)
    after = [
        code.value(f"add {kind} {old}, {new}")
        for kind, old, new in zip(kinds, before, after, strict=True)
    ]
    _store_md5(end, kind, after[:4], states)
    places = itertools.product(states, _SHA256.values())
    for value, place in zip(after[4:], places, strict=True):
        end.store(_V, value, *place)
    carried = "\n".join(
        f"{name} = phi {kind} [{here}, %entry], [{there}, %loop]"
        for name, kind, here, there in zip(before, kinds, first, after, strict=True)
    )
    return _loop(
        f"{name}(ptr %streams, i64 %blocks)",
        f"%words = alloca [16 x {kind}], align 64\n{start}",
        f"{carried}\n%offset = shl i64 %block, 6\n{code}",
        str(end),
    )


def _rows() -> str:
    """The loop over rows of streams."""
    code = Assembly()
    streams = code.at("%streams", code.value(f"mul i64 %block, {8 * 3 * LANES}"))
    count = code.load("i64", code.at("%counts", code.value("shl i64 %block, 3")))
    code.write(f"call void @four(ptr {streams}, i64 {count})")
    return _loop("rows(ptr %streams, ptr %counts, i64 %blocks)", "", str(code), "")


def _loop(signature: str, start: str, body: str, end: str) -> str:
    """A function that does `body` for every %block of %blocks, at least once."""
    return f"""
        define void @{signature} {{
        entry:
          {start}
          br label %loop
        loop:
          %block = phi i64 [0, %entry], [%next, %loop]
          {body}
          %next = add i64 %block, 1
          %more = icmp slt i64 %next, %blocks
          br i1 %more, label %loop, label %end
        end:
          {end}
          ret void
        }}
    """


def _addresses(code: Assembly, role: str, row: int, lanes: int) -> list[str]:
    """Load the addresses of one row of %streams; those in the loop are known by their names."""
    names = [f"%{role}{lane}" for lane in range(lanes)]
    for lane, name in enumerate(names):
        place = code.at("%streams", 8 * (row * lanes + lane))
        code.write(f"{name} = load ptr, ptr {place}, align 1")
    return names


def _load_md5(code: Assembly, kind: str, states: Sequence[str]) -> list[str]:
    """a, b, c and d, each of all streams."""
    if kind == "i32":
        return [code.load(kind, states[0], 4 * word) for word in range(4)]
    return _transposed(code, [code.load(_V, state) for state in states])


def _store_md5(code: Assembly, kind: str, values: Sequence[str], states: Sequence[str]) -> None:
    if kind == "i32":
        for word, value in enumerate(values):
            code.store(kind, value, states[0], 4 * word)
    else:
        for value, state in zip(_transposed(code, values), states, strict=True):
            code.store(_V, value, state)


def _rounds(code: Assembly, kind: str, before: Sequence[str], lanes: int) -> list[str]:
    """Write the rounds of both digests in turn; returns what `before` has become.

    SHA-256 has half as many steps as MD5 has rounds: the streams take turns with theirs.
    """
    texts, datas = (
        [code.at(f"%{role}{lane}", "%offset") for lane in range(lanes)] for role in ("text", "data")
    )
    md5 = list(before[:4])
    sha256 = [list(before[4 + 2 * lane : 6 + 2 * lane]) for lane in range(lanes)]
    words = texts[0] if kind == "i32" else _gathered(code, texts)
    both = zip(datas, sha256, strict=True)
    streams = itertools.cycle([_sha256_rounds(code, *pair) for pair in both])
    for number, _ in enumerate(_md5_rounds(code, kind, md5, words)):
        for _ in range(number * lanes // 2, (number + 1) * lanes // 2):
            next(next(streams))
    return md5 + [value for state in sha256 for value in state]


def _gathered(code: Assembly, texts: Sequence[str]) -> str:
    """Store the words of all blocks: the first ones of all, the second ones, ...; returns where."""
    for four in range(4):
        loaded = [code.load(_V, text, 16 * four) for text in texts]
        for number, words in enumerate(_transposed(code, loaded)):
            code.store(_V, words, "%words", 64 * four + 16 * number)
    return "%words"


def _md5_rounds(code: Assembly, kind: str, state: list[str], words: str) -> Iterator[None]:
    """Write the 64 rounds; `state` is that after the rounds so far."""
    size, register = (4, "r") if kind == "i32" else (16, "v")

    def do(operation: str, first: str, second: str) -> str:
        return code.value(f"{operation} {kind} {first}, {second}")

    for number in range(64):
        stage, i = divmod(number, 16)
        factor, first = _WORDS[stage]
        a, b, c, d = state
        word = code.load(kind, words, size * ((factor * i + first) % 16))
        constant = _all(kind, int(abs(math.sin(number + 1)) * 2**32))
        # Not seen through, or LLVM would add the constant last, where it is waited for.
        word = _opaque(code, "asm", kind, register, do("add", word, constant))
        total = _mixed(do, _all(kind, -1), stage, do("add", a, word), b, c, d)
        by = _all(kind, _SHIFTS[stage][i % 4])
        suffix = "i32" if kind == "i32" else "v4i32"
        total = code.value(
            f"call {kind} @llvm.fshl.{suffix}({kind} {total}, {kind} {total}, {kind} {by})"
        )
        b, c, d, a = do("add", total, b), b, c, d
        if number % 2:
            b = _pinned(code, kind, register, b)
        state[:] = a, b, c, d
        yield


def _mixed(do: Callable[[str, str, str], str], ones: str, stage: int, total: str, *bcd: str) -> str:
    """`total` + F, G, H or I of b, c and d, with as little as can be behind b, which comes last."""
    b, c, d = bcd
    if stage == 0:
        mixed = do("xor", d, do("and", b, do("xor", c, d)))
    elif stage == 1:  # no bit is set in both halves: they can be added one after the other
        total = do("add", total, do("and", c, do("xor", d, ones)))
        mixed = do("and", b, d)
    elif stage == 2:
        mixed = do("xor", b, do("xor", c, d))
    else:
        mixed = do("xor", c, do("or", b, do("xor", d, ones)))
    return do("add", total, mixed)


def _sha256_rounds(code: Assembly, data: str, state: list[str]) -> Iterator[None]:
    """Write the 64 rounds on a block, two by two; `state` is that after those so far."""
    words: list[str] = []
    for four in range(16):
        words.append(_schedule(code, four, data, words))
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


def _schedule(code: Assembly, four: int, data: str, words: Sequence[str]) -> str:
    """Four words of the message schedule: of the block itself, then of the sixteen before."""
    if four < 4:
        loaded = code.load(_V, data, 16 * four)
        return code.value(f"call {_V} @llvm.bswap.v4i32({_V} {loaded})")
    w16, w12, w8, w4 = words[-4:]
    begun = code.value(f"call {_V} @llvm.x86.sha256msg1({_V} {w16}, {_V} {w12})")
    w7 = _shuffled(code, w8, w4, (1, 2, 3, 4))
    begun = code.value(f"add {_V} {begun}, {w7}")
    return code.value(f"call {_V} @llvm.x86.sha256msg2({_V} {begun}, {_V} {w4})")


def _spell() -> str:
    """The loop that looks up the letters, sixteen at a time."""
    code = Assembly()
    table = ", ".join(f"i8 {ord(letter)}" for letter in f"{LETTERS:16}")
    for at in range(0, BLOCK, 16):
        codes = code.load(_BYTES, "%codes_here", at)
        bases = code.value(f"and {_BYTES} {codes}, splat (i8 {BASE})")
        letters = code.value(
            f"call {_BYTES} @llvm.x86.ssse3.pshuf.b.128({_BYTES} <{table}>, {_BYTES} {bases})"
        )
        code.store(_BYTES, letters, "%letters_here", at)
    places = Assembly("place")
    places.write("%offset = shl i64 %block, 6")
    for name in ("codes", "letters"):
        places.write(f"%{name}_here = getelementptr i8, ptr %{name}, i64 %offset")
    return _loop("spell(ptr %codes, ptr %letters, i64 %blocks)", "", f"{places}\n{code}", "")


def _transposed(code: Assembly, rows: Sequence[str]) -> list[str]:
    """The first words of four vectors, their second ones, ..."""
    a, b, c, d = rows
    columns = []
    for pairs in ((0, 4, 1, 5), (2, 6, 3, 7)):
        ab, cd = _shuffled(code, a, b, pairs), _shuffled(code, c, d, pairs)
        columns += [_shuffled(code, ab, cd, (0, 1, 4, 5)), _shuffled(code, ab, cd, (2, 3, 6, 7))]
    return columns


def _pinned(code: Assembly, kind: str, register: str, value: str) -> str:
    """The same value; keeps LLVM from moving its instructions to before or behind other pins."""
    return _opaque(code, "asm sideeffect", kind, register, value)


def _opaque(code: Assembly, asm: str, kind: str, register: str, value: str) -> str:
    return code.value(f'call {kind} {asm} "", "={register},0"({kind} {value})')


def _shuffled(code: Assembly, a: str, b: str, lanes: Sequence[int]) -> str:
    places = ", ".join(f"i32 {lane}" for lane in lanes)
    return code.value(f"shufflevector {_V} {a}, {_V} {b}, {_V} <{places}>")


def _all(kind: str, number: int) -> str:
    return str(number) if kind == "i32" else _vector([number] * 4)


def _vector(numbers: Sequence[int]) -> str:
    return "<" + ", ".join(f"i32 {number}" for number in numbers) + ">"
