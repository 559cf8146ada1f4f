"""One file, however often the connection is cut: NAME.part grows until it is whole.

What was received stays in NAME.part, also after Ctrl-C, a kill or a full disk; NAME.part.json says
which file it is a part of, so that it is only ever continued with the same one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import http.client
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dnassm.artifact import read_json, write_json
from dnassm.console import quantity
from dnassm.data.fetch.web import RangeError, TransientError, looks_like_html, open_url
from dnassm.errors import ArtifactError, DnassmError, FetchError, Interrupted

_Answer = TypeVar("_Answer")
_BLOCK = 1 << 18
_MAGIC = {
    ".gz": b"\x1f\x8b",
    ".zip": b"PK",
    ".xlsx": b"PK",
    ".parquet": b"PAR1",
    ".fna": b">",
    ".fa": b">",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """How files are fetched.

    Attributes:
        mirror: address below which hosts and paths are repeated; None for the publishers.
        max_bytes: a longer file is refused.
        tries: attempts in a row that may bring nothing before it is given up.
        pause_s: time before the second attempt in s; doubled for each further one.
    """

    mirror: str | None = None
    max_bytes: int = 20_000_000_000
    tries: int = 5
    pause_s: float = 1.0


def part_path(target: Path) -> Path:
    """Where the bytes of `target` are until it is whole."""
    return target.with_name(target.name + ".part")


def received(target: Path) -> int:
    """Bytes of `target` that earlier calls brought."""
    part = part_path(target)
    return part.stat().st_size if part.exists() else 0


@contextlib.contextmanager
def claimed(target: Path) -> Iterator[BinaryIO]:
    """The part of `target`, open for appending, for one process at a time.

    The system frees the claim of a process that is killed.

    Raises:
        ArtifactError: another process has it, the disk is full or the place is not writable.
    """
    part = part_path(target)
    with _disk_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            while True:
                stream = stack.enter_context(part.open("ab"))
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ArtifactError(
                        f"{part}: another process is fetching it; wait for it, or choose another "
                        "--out"
                    ) from error
                if _is_open(part, stream):
                    break  # and not one that was finished between open() and flock()
            try:
                yield stream
            finally:
                # Only our own part, while the claim still holds: after `finish` another process may
                # have begun one of the same name.
                if _is_open(part, stream) and not received(target):
                    _discard(target)


def _is_open(path: Path, stream: BinaryIO) -> bool:
    """Whether the file that now has this name is the one that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _discard(target: Path) -> None:
    part = part_path(target)
    for path in (part, _note_path(part)):
        path.unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    transfer: Transfer,
    stream: BinaryIO,
    *,
    sure: bool,
    progress: Callable[[int, int | None], object] = lambda done, total: None,
) -> Path:
    """Fetch `url` into ``TARGET.part``, going on where an earlier call stopped.

    Args:
        url: where it is, on the mirror if there is one.
        target: the file that the caller makes of the part once it is checked.
        transfer: limits and patience.
        stream: the part, `claimed`.
        sure: a checksum is known, so that the length need not be.
        progress: called with the bytes received and the bytes in all.

    Returns:
        The part, which is complete.

    Raises:
        FetchError: it cannot be had, or what comes is not the file.
        ArtifactError: the disk is too small.
        Interrupted: Ctrl-C; the part stays.
    """
    part = part_path(target)
    attempt = _Attempt(url, target, stream, transfer, sure=sure)
    try:
        _insist(attempt, transfer, progress)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped; {quantity(attempt.done(), 'B')} are kept in {part}. "
            "The same command goes on from there"
        ) from stop
    os.fsync(stream.fileno())
    return part


def finish(target: Path) -> None:
    """Give a complete and checked part its name."""
    part = part_path(target)
    part.replace(target)
    _note_path(part).unlink(missing_ok=True)


def patiently(action: Callable[[], _Answer], transfer: Transfer) -> _Answer:
    """Do what may fail for a moment, as often as `transfer` says."""
    for pause in range(transfer.tries - 1):
        with contextlib.suppress(TransientError):
            return action()
        time.sleep(transfer.pause_s * 2**pause)
    return action()


def _insist(
    attempt: _Attempt, transfer: Transfer, progress: Callable[[int, int | None], object]
) -> None:
    """Try until the file is whole; attempts count only while it does not become longer."""
    longest, failures = attempt.done(), 0
    while True:
        try:
            attempt.run(progress)
            return
        except RangeError:
            attempt.begin_anew()  # the next request asks for no range
            failures += 1
            if failures >= transfer.tries:
                raise
        except TransientError:
            failures = 1 if attempt.done() > longest else failures + 1
            longest = max(longest, attempt.done())
            if failures >= transfer.tries:
                raise
            time.sleep(transfer.pause_s * 2 ** (failures - 1))


class _Attempt:
    """One request after the other for the same file."""

    def __init__(
        self, url: str, target: Path, stream: BinaryIO, transfer: Transfer, *, sure: bool
    ) -> None:
        self._url, self._target, self._stream = url, target, stream
        self._most, self._sure = transfer.max_bytes, sure
        self._plain = transfer.mirror is not None
        self._note_at = _note_path(part_path(target))
        self._note = _read_note(self._note_at)
        if self._note.get("url") != url:
            self.begin_anew()

    def done(self) -> int:
        """Bytes on disk."""
        return os.fstat(self._stream.fileno()).st_size

    def begin_anew(self) -> None:
        """Drop what was received."""
        self._stream.truncate(0)
        self._note = {}

    def run(self, progress: Callable[[int, int | None], object]) -> None:
        """Make a request and take what comes; returns when the file is whole."""
        total: int | None = self._note.get("total")
        if total is not None and self.done() == total > 0:
            return
        if not self._note.get("validator"):
            self.begin_anew()
        start = self.done()
        with open_url(self._url, headers=self._conditions(start), plain=self._plain) as response:
            start, total = self._begin(response, start)
            self._check_size(total, start)
            for block in _blocks(response, self._url):
                if start == 0:
                    self._check_head(block, response)
                start += len(block)
                self._check_size(start, start)
                self._stream.write(block)
                self._stream.flush()
                progress(start, total)
        if total is not None and start != total:
            raise TransientError(
                f"{self._url}: expected {total} bytes, got {start}, then the connection was cut; "
                "run the same command again, it goes on from there"
            )
        if start == 0:
            raise FetchError(f"{self._url}: expected a file, got nothing; try later or a --mirror")

    def _conditions(self, start: int) -> dict[str, str]:
        if not start:
            return {}
        # The server sends the rest only of the very file that was begun, and else all of the new.
        return {"Range": f"bytes={start}-", "If-Range": self._note["validator"]}

    def _begin(self, response: http.client.HTTPResponse, start: int) -> tuple[int, int | None]:
        """Where the body begins in the file, and how long the file is."""
        if response.status == 206 and start:
            return start, self._range(response, start)
        if response.status != 200:
            raise FetchError(f"{self._url}: expected 200 OK, got {response.status}; try later")
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        # Many servers say x-gzip of a .gz file and mean the file itself.
        if encoding != "identity" and not self._target.name.endswith(".gz"):
            raise FetchError(f"{self._url}: expected the file as it is, got it in {encoding}")
        self.begin_anew()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        if total is None and not self._sure and not _is_chunked(response):
            raise FetchError(
                f"{self._url}: expected its length or a checksum, got neither, so that a cut could "
                "not be seen; try a --mirror"
            )
        self._note = {"url": self._url, "validator": _validator(response), "total": total}
        write_json(self._note_at, self._note)
        return 0, total

    def _range(self, response: http.client.HTTPResponse, start: int) -> int:
        said = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", said.strip())
        total = self._note["total"]
        if not match or int(match[1]) != start or total not in (None, int(match[2])):
            said = said or "no range"
        elif _validator(response) not in (None, self._note["validator"]):
            said = "those of another version"  # by a server that does not know If-Range
        else:
            return int(match[2])
        raise RangeError(
            f"{self._url}: expected bytes from {start} of {total}, got {said}; run it again to "
            "begin anew"
        )

    def _check_size(self, size: int | None, have: int) -> None:
        if size is None:
            return
        if size > self._most:
            raise FetchError(
                f"{self._url}: expected at most {quantity(self._most, 'B')}, got "
                f"{quantity(size, 'B')} or more; if that is right, raise --max-gb"
            )
        free = shutil.disk_usage(self._target.parent).free if size != have else size
        if size - have > free:
            raise ArtifactError(
                f"{self._target}: expected {quantity(size - have, 'B')} of free space, got "
                f"{quantity(free, 'B')}; free some or choose another --out, then run it again"
            )

    def _check_head(self, head: bytes, response: http.client.HTTPResponse) -> None:
        kind = response.headers.get_content_type()
        if kind == "text/html" or looks_like_html(head):
            got = "a web page"
        elif not head.startswith(_MAGIC.get(self._target.suffix, b"")):
            got = f"data that begins with {head[:8]!r}"
        else:
            return
        raise FetchError(
            f"{self._url}: expected a file like {self._target.name}, got {got}; perhaps a "
            "log-in or an error page: open the address in a browser, or name a --mirror"
        )


def _blocks(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(_BLOCK)
        except http.client.IncompleteRead as cut:
            yield from filter(None, [cut.partial])
            raise TransientError(f"{url}: the connection was cut; run it again") from cut
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(
                f"{url}: expected more, got {error or type(error).__name__}; run the same command "
                "again, it goes on from there"
            ) from error
        if not block:
            return
        yield block


def _is_chunked(response: http.client.HTTPResponse) -> bool:
    return response.headers.get("Transfer-Encoding", "").lower() == "chunked"


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What tells this version of the file from others; a weak tag does not promise equal bytes."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(path: Path) -> dict[str, Any]:
    """The note beside a part; a missing or damaged one only means to begin anew."""
    try:
        note = read_json(path)
    except ArtifactError:
        return {}
    fits = isinstance(note, dict) and isinstance(note.get("validator"), str | None)
    return note if fits else {}


_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file system does not take files of this size",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
}


@contextlib.contextmanager
def _disk_errors(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, DnassmError):  # from the network, and one line already
            raise
        reason = _REASONS.get(error.errno or 0) or f"cannot be written ({error.strerror})"
        raise ArtifactError(
            f"{part}: {reason}; what was received is kept. Free space or choose another --out, "
            "then run the same command again"
        ) from error
