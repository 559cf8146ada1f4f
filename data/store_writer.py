"""One FASTA file to codes and what is known of its contigs: the part of a store that it becomes.

Where more than one core may be used, the digests and the writing each run in a thread of their own
beside the parsing: all three release the interpreter's lock while they work. MD5 is then what takes
longest: one byte depends on the one before, so that no core does more than about 650 MB/s of one
contig.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from dnassm.data.alphabet import Codes
from dnassm.data.contig_digest import contig_digest
from dnassm.data.encoder import BaseCounts
from dnassm.data.fasta import Bases, Header, read_fasta
from dnassm.data.genome import genome_digest
from dnassm.errors import FormatError

Progress = Callable[[int], None]
"""Called with the bytes of all input files that have been read, of `input_bytes`."""
Block = bytes | memoryview
Write = Callable[[Block], object]

WORTH_COMPILING = 1 << 26
"""Bytes of a file that pay for compiling code for it, which takes some 60 ms."""
_AHEAD = 4
"""Blocks that wait for a thread at most: memory does not grow where parsing is faster."""
_SMALL = 1 << 16
"""Bytes below which handing a block over costs more than it saves."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredContig:
    """One sequence of a store."""

    name: str
    description: str
    offset: int
    """Where its codes begin in codes.bin."""
    length: int
    sha256: str
    md5: str
    counts: Mapping[str, int]


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
    path: Path, write: Write, *, threads: bool, progress: Progress | None = None
) -> Part:
    """Write the codes of all contigs of a FASTA file, in their order, and say what they are.

    Args:
        path: plain, gzip or bgzip.
        write: takes the codes, block by block, from whatever thread.
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
    with _Behind(threads) as hashing, _Behind(threads) as writing:
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
                draft = drafts[item.name] = _Draft(item, compile_code)
            elif draft is not None:
                draft.count(item)
                hashing.call(draft.digest.update, item.upper, item.codes)
                writing.call(functools.partial(_hash_and_write, draft, write), item.codes)
    contigs: list[StoredContig] = []
    offset = 0
    for draft in drafts.values():
        contigs.append(draft.contig(offset))
        offset += draft.length
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

    def __init__(self, header: Header, compile_code: bool) -> None:  # noqa: FBT001  one caller
        self.header = header
        self.length = 0
        self.counts = BaseCounts()
        self.digest = contig_digest(compile_code=compile_code)

    def count(self, bases: Bases) -> None:
        self.length += bases.codes.size
        self.counts.add(bases.counts)

    def contig(self, offset: int) -> StoredContig:
        md5, sha256 = self.digest.hexdigests()
        return StoredContig(
            name=self.header.name,
            description=self.header.description,
            offset=offset,
            length=self.length,
            sha256=sha256,
            md5=md5,
            counts=dataclasses.asdict(self.counts),
        )


class _Behind:
    """Calls functions with blocks, one after the other, in a thread that may lag a little behind.

    Leaving the context waits for all of them; an error of one is raised by a later call, or there.
    """

    def __init__(self, threads: bool) -> None:  # noqa: FBT001  the only thing it is told
        self._pool = ThreadPoolExecutor(max_workers=1) if threads else None
        self._pending: collections.deque[Future[object]] = collections.deque()

    def __enter__(self) -> _Behind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(cancel_futures=kind is not None)
        while self._pending and kind is None:
            self._pending.popleft().result()

    def call(self, function: Callable[..., object], *arrays: Codes) -> None:
        """Call `function` with copies of the arrays, or with them at once if that is cheaper."""
        while self._pending and (len(self._pending) == _AHEAD or self._pending[0].done()):
            self._pending.popleft().result()
        if self._pool is None or (arrays[0].size < _SMALL and not self._pending):
            function(*arrays)
        else:
            self._pending.append(self._pool.submit(function, *(array.copy() for array in arrays)))


def _hash_and_write(draft: _Draft, write: Write, codes: Codes) -> None:
    draft.digest.update_other(codes)
    write(codes.data)


def _source(path: Path, digest: str | None, contigs: list[StoredContig]) -> dict[str, Any]:
    """What an input was: by the bytes of a compressed file, by the contigs of a plain one."""
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": genome_digest(contigs) if digest is None else digest,
        "over": "contigs" if digest is None else "file",
    }
