"""MD5 (SAM's M5, of the letters) and SHA-256 (of the codes) of contigs.

By hashlib one after the other, or by `data/digest_code.py` both at once: of a contig that comes in
pieces, here, and of many that are there as a whole, by `data/digest_batch.py`. The answers are the
same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import Codes
from dnassm.data.digest_code import BLOCK, MD5_START, SHA256_START, digest

_FROM_ABCDEFGH = [5, 4, 1, 0, 7, 6, 3, 2]
"""The order f e b a h g d c in which the CPU's instructions have the state of SHA-256."""
_TO_ABCDEFGH = np.argsort(_FROM_ABCDEFGH)
START = np.array([*MD5_START, *(SHA256_START[i] for i in _FROM_ABCDEFGH)], dtype=np.uint32)
"""The state of either digest before the first byte, as digest_code has it."""


class Hashlib:
    """One digest of contigs, one after the other, by hashlib."""

    def __init__(self, new: Callable[[], hashlib._Hash]) -> None:
        self._new = new
        self._running: hashlib._Hash | None = None
        self._found: list[str] = []

    def take(self, stream: Codes, ends: npt.NDArray[np.int64]) -> None:
        """Take stretches that end there: of the contig that is under way, and each of another."""
        start = 0
        for number, end in enumerate(ends.tolist()):
            if number:
                self._end()
                self._running = self._new()
            if end > start and self._running is not None:
                self._running.update(stream[start:end].data)
            start = end

    def finish(self) -> list[str]:
        """In hex, of each contig."""
        self._end()
        return self._found

    def _end(self) -> None:
        if self._running is not None:
            self._found.append(self._running.hexdigest())
            self._running = None


class Interleaved:
    """Both at once of one contig by digest_code; others may use that on `state` too: see `skip`."""

    def __init__(self) -> None:
        self.state = START.copy()
        """uint32 (12,), as digest_code has it."""
        self.address = self.state.ctypes.data
        self._length = 0
        self._waiting = bytearray(), bytearray()
        """What does not fill a block yet, of both streams."""

    def skip(self, size: int) -> None:
        """Count bytes that `state` was taken on by; whole blocks, and only behind such."""
        self._length += size

    def update(self, upper: Codes, codes: Codes) -> None:
        """Take on what comes next of both."""
        self._length += upper.size
        at = 0
        if self._waiting[0]:
            at = min(BLOCK - len(self._waiting[0]), upper.size)
            self._wait(upper[:at], codes[:at])
            if len(self._waiting[0]) < BLOCK:
                return
            self._take(*(np.frombuffer(bytes(held), dtype=np.uint8) for held in self._waiting))
            for held in self._waiting:
                held.clear()
        end = upper.size - (upper.size - at) % BLOCK
        self._take(upper[at:end], codes[at:end])
        self._wait(upper[end:], codes[end:])

    def hexdigests(self) -> tuple[str, str]:
        """MD5 and SHA-256: of what stands behind the padding and the number of bits."""
        state, bits = self.state.copy(), 8 * self._length
        padding = b"\x80" + bytes((-self._length - 9) % BLOCK)
        upper = self._waiting[0] + padding + bits.to_bytes(8, "little")
        codes = self._waiting[1] + padding + bits.to_bytes(8, "big")
        self._take(np.frombuffer(upper, dtype=np.uint8), np.frombuffer(codes, dtype=np.uint8))
        (found,) = hexdigests(self.state[None])
        self.state[:] = state
        return found

    def _wait(self, upper: Codes, codes: Codes) -> None:
        for held, stream in zip(self._waiting, (upper, codes), strict=True):
            held += stream.data

    def _take(self, upper: Codes, codes: Codes) -> None:
        """Whole blocks."""
        if upper.size:
            stream = (self.address, upper.ctypes.data, codes.ctypes.data)
            digest([stream], upper.size // BLOCK)


def hexdigests(states: npt.NDArray[np.uint32]) -> list[tuple[str, str]]:
    """MD5 and SHA-256 of states (n, 12) as digest_code has them."""
    md5 = states[:, :4].astype("<u4").tobytes().hex()
    sha256 = states[:, 4:][:, _TO_ABCDEFGH].astype(">u4").tobytes().hex()
    return [
        (md5[32 * number : 32 * number + 32], sha256[64 * number : 64 * number + 64])
        for number in range(len(states))
    ]
