"""Many FASTA files to parts of a store, over processes; what is finished outlives a kill.

Each file becomes a shard, two files in ``.NAME.shards`` beside the store: ``KEY.codes`` and,
written last, ``KEY.json``, which says of which file it is: path, size, time of its last change. A
shard is there as a whole or not at all, since both are staged and renamed. The next run takes the
shards of unchanged files as they are, whatever else is in its list. One run at a time may have the
folder; the system frees the claim of one that is killed. It is removed when the store stands.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from dnassm.artifact import staged_file
from dnassm.data.codes_file import CodesFile
from dnassm.data.store_header import StoredContig, read_lines, write_lines
from dnassm.data.store_writer import Part, Progress, usable_cores, write_part
from dnassm.errors import ArtifactError

_VERSION = 1
_COPY_BYTES = 1 << 20
_LOOK_S = 0.2
"""Between two looks at what the processes have done."""


def shard_folder(out: Path) -> Path:
    """Where the shards of a store wait until it is built."""
    return out.absolute().parent / f".{out.name}.shards"


@contextlib.contextmanager
def shards(
    fastas: Sequence[Path], out: Path, *, jobs: int, progress: Progress | None
) -> Iterator[Callable[[Path, CodesFile], Part]]:
    """Make the shards of all files in `jobs` processes; the context removes them if it ends well.

    Yields:
        what copies the codes of the shard of a file to where a store is written, and says what is
        in it; the counterpart of `write_part`.

    Raises:
        FormatError: a file is no DNA FASTA: the first one of the list that is none.
        ArtifactError: a file cannot be read, nothing can be written, or another process builds
            the same store.
    """
    folder = shard_folder(out)
    with _claim(folder, out):
        _make_all(list(dict.fromkeys(fastas)), folder, jobs, progress)
        yield functools.partial(_copy, folder)
        shutil.rmtree(folder)


def drop_shards(out: Path) -> None:
    """Remove what a killed run left for the store `out`, unless another one works with it."""
    folder = shard_folder(out)
    if folder.is_dir():
        with contextlib.suppress(ArtifactError), _claim(folder, out):
            shutil.rmtree(folder)


def finished_bytes(fastas: Sequence[Path], out: Path) -> int:
    """Bytes of the input files that a killed run has finished."""
    folder = shard_folder(out)
    return sum(path.stat().st_size for path in dict.fromkeys(fastas) if _is_made(folder, path))


@contextlib.contextmanager
def _claim(folder: Path, out: Path) -> Iterator[None]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                descriptor = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # another process has just finished with it
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ArtifactError(
                    f"{out}: another process is building it; wait for it, or choose another --out"
                ) from error
            if not _is_open(folder, descriptor):
                continue
            yield
            return


def _is_open(folder: Path, descriptor: int) -> bool:
    """Whether the folder that now has this name is the one that is open."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _make_all(fastas: Sequence[Path], folder: Path, jobs: int, progress: Progress | None) -> None:
    missing = [path for path in fastas if not _is_made(folder, path)]
    before = sum(path.stat().st_size for path in fastas if path not in missing)
    if not missing:
        return
    # Not forked: the threads of whoever calls would leave their locks behind in the children.
    context = multiprocessing.get_context("spawn")
    shared = context.Value("q", 0)
    stop = context.Event()
    workers = min(jobs, len(missing))
    threads = usable_cores() >= 2 * workers
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start, (shared, stop)) as pool:
        futures = [pool.submit(_make, path, folder, threads) for path in missing]
        try:
            for path, future in zip(missing, futures, strict=True):
                while not concurrent.futures.wait([future], _LOOK_S).done:
                    if progress is not None:
                        progress(before + shared.value)
                _raise_error_of(future, path)
            if progress is not None:
                progress(before + shared.value)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _raise_error_of(future: concurrent.futures.Future[None], path: Path) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise ArtifactError(
            f"{path}: a process that read files was killed, maybe for want of memory; what is "
            "finished is kept: run it again, with fewer --jobs"
        ) from error


_shared: Any
"""In a process of the pool: bytes that all of them have read."""
_stop: Any
"""In a process of the pool: set when the work is given up."""


class _StoppedError(Exception):
    """Nobody waits for the shard any more."""


def _start(shared: Any, stop: Any) -> None:
    """Set up a process of the pool."""
    global _shared, _stop
    _shared, _stop = shared, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the queue it waits at stays open without the parent


def _make(path: Path, folder: Path, threads: bool) -> None:  # noqa: FBT001  a pool calls it
    """In a process of the pool: make the shard of a file."""
    key = _key(path)
    identity = _identity(path)
    read = 0

    def report(position: int) -> None:
        nonlocal read
        if _stop.is_set():
            raise _StoppedError
        with _shared.get_lock():
            _shared.value += position - read
        read = position

    with staged_file(folder / f"{key}.codes") as staging, CodesFile(staging) as codes:
        part = write_part(path, codes, threads=threads, progress=report)
    record = {
        "of": identity,
        "contigs": map(StoredContig.json, part.contigs),
        "lines": part.lines,
        "source": part.source,
    }
    with staged_file(folder / f"{key}.json") as staging:
        write_lines(staging, record)


def _copy(folder: Path, path: Path, codes: CodesFile) -> Part:
    with (folder / f"{_key(path)}.codes").open("rb") as shard:
        while block := shard.read(_COPY_BYTES):
            codes.append(block)
    entry = read_lines(folder / f"{_key(path)}.json")
    return Part(entry["contigs"], entry["lines"], entry["source"] | {"path": str(path)})


def _is_made(folder: Path, path: Path) -> bool:
    record = folder / f"{_key(path)}.json"
    try:
        entry = read_lines(record)
        size = sum(contig.length for contig in entry["contigs"])
        same = bool(entry["of"] == _identity(path))
        return same and record.with_suffix(".codes").stat().st_size == size
    except (OSError, KeyError, TypeError, AttributeError):
        return False  # missing, half a pair, or of another version: it is made anew


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]


def _identity(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "version": _VERSION,
        "path": str(path.resolve()),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
