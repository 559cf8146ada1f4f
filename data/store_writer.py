"""One FASTA file to codes and what is known of its contigs: the part of a store that it becomes.

Where more than one core may be used, the digests run in a thread of their own beside reading,
parsing and writing, and so does the inflating of a compressed file: all of them release the
interpreter's lock while they work.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import Codes
from dnassm.data.codes_file import CodesFile
from dnassm.data.contig_digest import Hashlib, Interleaved
from dnassm.data.digest_batch import digest_each
from dnassm.data.digest_code import can_compile
from dnassm.data.digest_lanes import DigestLanes
from dnassm.data.encoder import COUNTS
from dnassm.data.fasta import Block, read_blocks
from dnassm.data.genome import genome_digest
from dnassm.data.store_header import StoredContig
from dnassm.errors import FormatError

_Integers = npt.NDArray[np.int64]
Progress = Callable[[int], None]
"""Called with the bytes of all input files that have been read, of `input_bytes`."""

WORTH_COMPILING = 3 << 25
"""Bytes of a file that pay for compiling code for it, which takes some 100 ms."""
_AHEAD = 4
"""Blocks that wait for a thread at most: memory does not grow where parsing is faster."""
_SMALL = 1 << 16
"""Bytes below which handing a block over costs more than it saves."""
_U = COUNTS.index("U")
_SHORT = 1 << 16
"""Bases of a contig from which on a block holds too few others of about its length."""
_TURNS = 256
"""Turns of the lanes, some 50 ms, after which a thread looks whether it is still wanted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What one FASTA file gives to a store."""

    contigs: list[StoredContig]
    """With offsets from the first base of the file."""
    lines: list[int]
    """Line of the header of each contig, from 1."""
    source: dict[str, Any]
    """What the file was: path, bytes, sha256, and what that is over."""


def write_part(
    path: Path, codes: CodesFile, *, threads: bool, progress: Progress | None = None
) -> Part:
    """Append the codes of all contigs of a FASTA file, in their order, and say what they are.

    Args:
        path: plain, gzip or bgzip.
        codes: where the codes go.
        threads: work in several threads; changes nothing else.
        progress: called after every block with the bytes of the file that were read.

    Raises:
        FormatError: it is no DNA FASTA, or the name of a contig occurs twice.
        ArtifactError: it cannot be read.
    """
    drafts = _Drafts(path)
    compile_code = path.stat().st_size >= WORTH_COMPILING
    file_digest: list[str | None] = []
    with _digests(codes, threads=threads, compile_code=compile_code) as digests:
        blocks = read_blocks(
            path,
            threads=threads,
            compile_code=compile_code,
            progress=progress,
            on_end=file_digest.append,
        )
        for block in blocks:
            drafts.take(block)
            start = codes.size
            codes.append(block.codes.data)
            digests.take(block, start)
        contigs = drafts.contigs(digests.finish())
    return Part(contigs, list(drafts.lines.values()), _source(path, file_digest[0], contigs))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def twice(name: str, where: str, first: str) -> FormatError:
    """Build the error for a second contig of one name."""
    return FormatError(
        f"{where}: contig {name!r} occurs a second time, first in {first}; names (the first word "
        "of a header) must differ: rename or remove one"
    )


class _Drafts:
    """What is known of the contigs of a file but for their digests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: dict[str, int] = {}
        """Line of the header by name."""
        self._descriptions: list[str] = []
        self._counts = [np.zeros((1, len(COUNTS)), dtype=np.int64)]
        """Rows of the contigs of each block, behind one that no contig has."""

    def take(self, block: Block) -> None:
        """Take what a block holds; raises FormatError where a name was there before."""
        for name, description, line in block.headers:
            if name in self.lines:
                first = f"{self._path}, line {self.lines[name]}"
                raise twice(name, f"{self._path}, line {line}", first)
            self.lines[name] = line
            self._descriptions.append(description)
        self._counts[-1][-1] += block.counts[0]
        if block.headers:
            self._counts.append(block.counts[1:].astype("<i8"))

    def contigs(self, digests: list[tuple[str, str]]) -> list[StoredContig]:
        """All of them, with these digests."""
        counts = np.concatenate(self._counts)[1:]
        lengths = counts[:, : COUNTS.index("soft_masked")].sum(axis=1)
        starts = lengths.cumsum() - lengths
        rows = counts.tobytes()
        size = counts.strides[0]
        columns = (
            self.lines,
            self._descriptions,
            starts.tolist(),
            lengths.tolist(),
            (sha256 for _, sha256 in digests),
            (md5 for md5, _ in digests),
            (rows[at : at + size] for at in range(0, len(rows), size)),
        )
        return list(map(StoredContig, *columns))


class _Behind:
    """Calls functions in a thread that may lag a little behind, one after the other.

    It gives way to the threads that it waits for, where the system knows priorities of threads. An
    error is raised by a later call. Leaving the context gives up what has not begun.
    """

    def __init__(self, threads: bool) -> None:  # noqa: FBT001  the only thing it is told
        self.has_thread = threads
        give_way = functools.partial(os.nice, 10) if sys.platform == "linux" else None
        self._pool = ThreadPoolExecutor(1, initializer=give_way) if threads else None
        self._pending: collections.deque[Future[object]] = collections.deque()

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def call(self, function: Callable[..., object], *arrays: npt.NDArray[Any]) -> None:
        """Call `function` with copies of the arrays, or with them at once if that is cheaper."""
        self._settle(_AHEAD - 1)
        if self._pool is None or (arrays[0].size < _SMALL and not self._pending):
            function(*arrays)
        else:
            self._pending.append(self._pool.submit(function, *(array.copy() for array in arrays)))

    def wake(self, function: Callable[[], object]) -> None:
        """Call `function`, unless the last call is still under way."""
        self._settle(1)
        if self._pool is None:
            function()
        elif not self._pending:
            self._pending.append(self._pool.submit(function))

    def wait(self) -> None:
        """Wait for all calls."""
        self._settle(0)

    def _settle(self, at_most: int) -> None:
        """Wait until no more calls than these are under way."""
        while self._pending and (len(self._pending) > at_most or self._pending[0].done()):
            self._pending.popleft().result()


class _Digests(ABC):
    """The digests of one contig after the other."""

    @abstractmethod
    def take(self, block: Block, start: int) -> None:
        """Take a block, whose codes are in the file already, from byte `start` on."""

    @abstractmethod
    def finish(self) -> list[tuple[str, str]]:
        """MD5 and SHA-256 of each contig."""


@contextlib.contextmanager
def _digests(codes: CodesFile, *, threads: bool, compile_code: bool) -> Iterator[_Digests]:
    with _Behind(threads) as behind, _Behind(threads) as other:
        if compile_code and can_compile():
            yield _Later(behind, DigestLanes(codes))
        else:
            yield _AtOnce(behind, other)


class _AtOnce(_Digests):
    """By hashlib, block after block, either digest in a thread of its own."""

    def __init__(self, behind: _Behind, other: _Behind) -> None:
        self._behind = behind
        self._other = other
        self._md5 = Hashlib(functools.partial(hashlib.md5, usedforsecurity=False))
        self._sha256 = Hashlib(hashlib.sha256)

    def take(self, block: Block, start: int) -> None:
        self._behind.call(self._md5.take, block.upper, block.ends)
        self._other.call(self._sha256.take, block.codes, block.ends)

    def finish(self) -> list[tuple[str, str]]:
        self._behind.wait()
        self._other.wait()
        return list(zip(self._md5.finish(), self._sha256.finish(), strict=True))


class _Later(_Digests):
    """Contigs that are short, and in one block, at once; the others later, from the file.

    Those several at a time; in a thread as soon as anything waits. The codes do not tell U from T:
    from its first U on such a contig is digested block after block.
    """

    def __init__(self, behind: _Behind, lanes: DigestLanes) -> None:
        self._behind = behind
        self._lanes = lanes
        self._found: list[tuple[str, str]] = []
        self._long: dict[int, Interleaved] = {}
        """By their place in `_found`."""
        self._digest = Interleaved()
        """Of the contig that was begun last, if it is a long one."""
        self._has_u = False

    def take(self, block: Block, start: int) -> None:
        self._grow(block, 0, start)
        if block.headers:
            self._begin(block, start)
        self._behind.wake(self._run)

    def finish(self) -> list[tuple[str, str]]:
        self._drain()
        for place, digest in self._long.items():
            self._found[place] = digest.hexdigests()
        return self._found

    def _begin(self, block: Block, start: int) -> None:
        """Take the contigs that begin in a block."""
        spans = np.stack([block.ends[:-1], block.ends[1:]], axis=1)
        places = np.arange(len(spans)) + len(self._found)
        self._found += [("", "")] * len(spans)
        is_short = spans[:, 1] - spans[:, 0] < _SHORT
        is_short[-1] = False  # it may go on in the next block
        if is_short.any():
            arrays = (block.upper, block.codes, spans[is_short], places[is_short])
            self._behind.call(self._take_short, *arrays)
        for number in np.flatnonzero(~is_short).tolist():
            self._digest = self._lanes.begin(start + int(spans[number, 0]))
            self._long[int(places[number])] = self._digest
            self._has_u = False
            self._grow(block, number + 1, start)

    def _grow(self, block: Block, number: int, start: int) -> None:
        """The contig that was begun last goes on with this stretch of a block."""
        if block.counts[number, _U] and not self._has_u:
            self._drain()
            self._has_u = True
        end = int(block.ends[number])
        if self._has_u:
            stretch = slice(int(block.ends[number - 1]) if number else 0, end)
            self._digest.update(block.upper[stretch], block.codes[stretch])
        else:
            self._lanes.grow(start + end)

    def _take_short(self, upper: Codes, codes: Codes, spans: _Integers, places: _Integers) -> None:
        for place, digest in zip(places.tolist(), digest_each(upper, codes, spans), strict=True):
            self._found[place] = digest

    def _drain(self) -> None:
        self._behind.wait()
        self._lanes.drain()

    def _run(self) -> None:
        self._lanes.run(_TURNS, eager=self._behind.has_thread)


def _source(path: Path, digest: str | None, contigs: list[StoredContig]) -> dict[str, Any]:
    """What an input was: by the bytes of a compressed file, by the contigs of a plain one."""
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": genome_digest(contigs) if digest is None else digest,
        "over": "contigs" if digest is None else "file",
    }
