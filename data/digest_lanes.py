"""Digests of contigs that stand in a file already, four contigs side by side.

One contig keeps a core waiting (see data/digest_code.py); four that do not wait for each other take
less than half the time. The bases of one come long before those of the next, so that their codes
are written first and read again soon: the system has them in memory still.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from dnassm.data.alphabet import CODE_TO_ASCII
from dnassm.data.codes_file import CodesFile
from dnassm.data.contig_digest import Interleaved
from dnassm.data.digest_code import BLOCK, LANES, digest, spell

_ROW = 1 << 17
"""Bytes of each contig at a time: of all lanes, codes and letters fit the cache of a core."""
_APART = 5 * BLOCK
"""Between rows: without, all of them would want the same places of the cache."""
_HELD = 2 * LANES
"""Contigs to choose from, so that the last ones end together."""
_LAG = 1 << 30
"""Bytes that may wait to be chosen from."""
_UPPER = np.frombuffer(CODE_TO_ASCII.tobytes().upper(), dtype=np.uint8)


@dataclasses.dataclass(slots=True)
class _Contig:
    """What stands of a contig in the file."""

    digest: Interleaved
    at: int
    """Where the bytes stand that come next."""
    end: int
    is_whole: bool = False

    def ready(self) -> int:
        """Whole blocks that can be taken, in bytes; of a contig that grows, only whole rows."""
        unit = BLOCK if self.is_whole else _ROW  # first: when it is whole, its end is the last one
        return (self.end - self.at) // unit * unit


class DigestLanes:
    """Takes contigs in the order in which they are written, up to LANES of them side by side.

    `begin` and `grow` are for the thread that writes; `run` may be called by another one.
    """

    def __init__(self, codes: CodesFile) -> None:
        self._file = codes
        self._coming: collections.deque[_Contig] = collections.deque()
        self._held: list[_Contig] = []
        self._growing: _Contig | None = None
        self._taken = codes.size
        """Where the bytes would end that were taken, if they stood at the beginning."""
        rows = np.zeros((LANES, 2, _ROW + _APART), dtype=np.uint8)
        self._rows = rows[:, 0]
        self._places = [(codes.ctypes.data, letters.ctypes.data) for codes, letters in rows]

    def begin(self, at: int) -> Interleaved:
        """Another contig, from byte `at` of the file on."""
        self._end()
        self._growing = _Contig(Interleaved(), at, at)
        self._coming.append(self._growing)
        return self._growing.digest

    def grow(self, end: int) -> None:
        """The contig that was begun last now reaches to byte `end` of the file."""
        if self._growing is not None:
            self._growing.end = end

    def run(self, turns: int, *, eager: bool) -> None:
        """Take a row of each of LANES contigs, so many times or until no more wait.

        Args:
            turns: how many times.
            eager: also of fewer contigs, and without waiting for more to choose from.
        """
        for _ in range(turns):
            self._fill()
            ready = [contig for contig in self._held if contig.ready()]
            is_time = len(ready) >= LANES and self._file.size - self._taken > _LAG
            if not ready or not (eager or is_time):
                return
            ready.sort(key=_Contig.ready, reverse=True)
            self._turn(ready[:LANES])

    def drain(self) -> None:
        """Take all that waits; the contig that was begun last grows no more."""
        self._end()
        while self._held or self._coming:
            self.run(1, eager=True)

    def _end(self) -> None:
        if self._growing is not None:
            self._growing.is_whole = True
            self._growing = None

    def _fill(self) -> None:
        """Let contigs go of which less than a block is left, and take others."""
        for contig in [held for held in self._held if held.is_whole and not held.ready()]:
            self._finish(contig)
            self._held.remove(contig)
        while self._coming and len(self._held) < _HELD:
            self._held.append(self._coming.popleft())

    def _finish(self, contig: _Contig) -> None:
        rest = self._rows[0, : contig.end - contig.at]
        self._file.fetch(rest, contig.at)
        contig.digest.update(_UPPER[rest], rest)
        self._taken += rest.size

    def _turn(self, contigs: list[_Contig]) -> None:
        """Take as much of each as of the one of which least is ready."""
        size = min(_ROW, *(contig.ready() for contig in contigs))
        streams = []
        for contig, row, (codes, letters) in zip(contigs, self._rows, self._places, strict=False):
            self._file.fetch(row[:size], contig.at)
            spell(codes, letters, size // BLOCK)
            streams.append((contig.digest.address, letters, codes))
            contig.at += size
            contig.digest.skip(size)
        self._taken += size * len(contigs)
        digest(streams, size // BLOCK)
