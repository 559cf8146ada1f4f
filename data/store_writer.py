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
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dnassm.data.alphabet import Codes
from dnassm.data.codes_file import CodesFile
from dnassm.data.contig_digest import ContigDigest, Hashlib, Interleaved
from dnassm.data.digest_code import can_compile
from dnassm.data.digest_lanes import DigestLanes
from dnassm.data.encoder import BaseCounts
from dnassm.data.fasta import Bases, Header, read_fasta
from dnassm.data.genome import genome_digest
from dnassm.data.store_header import StoredContig
from dnassm.errors import FormatError

Progress = Callable[[int], None]
"""Called with the bytes of all input files that have been read, of `input_bytes`."""

WORTH_COMPILING = 3 << 25
"""Bytes of a file that pay for compiling code for it, which takes some 100 ms."""
_AHEAD = 4
"""Blocks that wait for a thread at most: memory does not grow where parsing is faster."""
_SMALL = 1 << 16
"""Bytes below which handing a block over costs more than it saves."""
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
    drafts: dict[str, _Draft] = {}
    draft: _Draft | None = None
    compile_code = path.stat().st_size >= WORTH_COMPILING
    file_digest: list[str | None] = []
    start = codes.size
    with _digests(codes, threads=threads, compile_code=compile_code) as digests:
        items = read_fasta(
            path,
            threads=threads,
            compile_code=compile_code,
            progress=progress,
            on_end=file_digest.append,
        )
        for item in items:
            if isinstance(item, Header):
                if item.name in drafts:
                    first = f"{path}, line {drafts[item.name].header.line}"
                    raise twice(item.name, f"{path}, line {item.line}", first)
                draft = drafts[item.name] = _Draft(item, codes.size - start, digests.begin())
            elif draft is not None:
                draft.count(item)
                codes.append(item.codes.data)
                digests.take(item)
        digests.finish()
    contigs = [draft.contig() for draft in drafts.values()]
    lines = [draft.header.line for draft in drafts.values()]
    return Part(contigs, lines, _source(path, file_digest[0], contigs))


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


class _Draft:
    """A contig whose bases are still coming."""

    def __init__(self, header: Header, offset: int, digest: ContigDigest) -> None:
        self.header = header
        self.offset = offset
        self.digest = digest
        self.length = 0
        self.counts = BaseCounts()

    def count(self, bases: Bases) -> None:
        self.length += bases.codes.size
        self.counts.add(bases.counts)

    def contig(self) -> StoredContig:
        md5, sha256 = self.digest.hexdigests()
        return StoredContig(
            name=self.header.name,
            description=self.header.description,
            offset=self.offset,
            length=self.length,
            sha256=sha256,
            md5=md5,
            packed=np.array(dataclasses.astuple(self.counts), "<i8").tobytes(),
        )


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

    def call(self, function: Callable[..., object], *arrays: Codes) -> None:
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
    """The digests of one contig after the other; they are right after `finish`."""

    @abstractmethod
    def begin(self) -> ContigDigest:
        """Those of another contig."""

    @abstractmethod
    def take(self, bases: Bases) -> None:
        """Take more bases of the contig that was begun last; they are in the file already."""

    @abstractmethod
    def finish(self) -> None:
        """Take what still waits."""


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
        self._digest = Hashlib()

    def begin(self) -> ContigDigest:
        self._digest = Hashlib()
        return self._digest

    def take(self, bases: Bases) -> None:
        self._behind.call(self._digest.md5.update, bases.upper)
        self._other.call(self._digest.sha256.update, bases.codes)

    def finish(self) -> None:
        self._behind.wait()
        self._other.wait()


class _Later(_Digests):
    """From the file, several contigs at a time; in a thread as soon as anything waits.

    The codes do not tell U from T: from its first U on a contig is digested block after block.
    """

    def __init__(self, behind: _Behind, lanes: DigestLanes) -> None:
        self._behind = behind
        self._lanes = lanes
        self._digest = Interleaved()
        self._has_u = False

    def begin(self) -> ContigDigest:
        self._digest = self._lanes.begin()
        self._has_u = False
        return self._digest

    def take(self, bases: Bases) -> None:
        if bases.counts.U and not self._has_u:
            self.finish()
            self._has_u = True
        if self._has_u:
            self._digest.update(bases.upper, bases.codes)
        else:
            self._lanes.grow()
            self._behind.wake(self._run)

    def finish(self) -> None:
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
