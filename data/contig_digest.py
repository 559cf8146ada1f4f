"""MD5 (SAM's M5, of the letters) and SHA-256 (of the codes) of one contig.

By hashlib one after the other, or by `data/digest_code.py` both at once. The answers are the same.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import numpy as np

from dnassm.data.alphabet import Codes
from dnassm.data.digest_code import BLOCK, MD5_START, SHA256_START, digest

_FROM_ABCDEFGH = [5, 4, 1, 0, 7, 6, 3, 2]
"""The order f e b a h g d c in which the CPU's instructions have the state of SHA-256."""
_TO_ABCDEFGH = np.argsort(_FROM_ABCDEFGH)
_START = np.array([*MD5_START, *(SHA256_START[i] for i in _FROM_ABCDEFGH)], dtype=np.uint32)


class ContigDigest(ABC):
    """Digests of two streams of the same length."""

    @abstractmethod
    def update(self, upper: Codes, codes: Codes) -> None:
        """Take on what comes next of both."""

    @abstractmethod
    def hexdigests(self) -> tuple[str, str]:
        """MD5 and SHA-256."""


class Hashlib(ContigDigest):
    """One after the other, or each by itself."""

    def __init__(self) -> None:
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.sha256 = hashlib.sha256()

    def update(self, upper: Codes, codes: Codes) -> None:
        """Take on what comes next of both."""
        self.md5.update(upper.data)
        self.sha256.update(codes.data)

    def hexdigests(self) -> tuple[str, str]:
        """MD5 and SHA-256."""
        return self.md5.hexdigest(), self.sha256.hexdigest()


class Interleaved(ContigDigest):
    """Both at once by digest_code, which others may use on `state` as well: see `skip`."""

    def __init__(self) -> None:
        self.state = _START.copy()
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
        md5 = self.state[:4].astype("<u4").tobytes().hex()
        sha256 = self.state[4:][_TO_ABCDEFGH].astype(">u4").tobytes().hex()
        self.state[:] = state
        return md5, sha256

    def _wait(self, upper: Codes, codes: Codes) -> None:
        for held, stream in zip(self._waiting, (upper, codes), strict=True):
            held += stream.data

    def _take(self, upper: Codes, codes: Codes) -> None:
        """Whole blocks."""
        if upper.size:
            stream = (self.address, upper.ctypes.data, codes.ctypes.data)
            digest([stream], upper.size // BLOCK)
