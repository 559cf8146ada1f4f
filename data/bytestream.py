"""Bytes of a plain, gzip or bgzip file, streamed.

A compressed file's own sha256 is taken on the way: it costs little, and publishers print it. That
of a plain file would cost as much again as the digests of its contigs, which say the same.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dnassm.errors import ArtifactError, FormatError

_HEAD_BYTES = 4096
_UTF8_MARK = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
# SAM specification, section 4.1.2: every complete BGZF file ends with this empty block.
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


class ByteStream:
    """Reads one file from start to end; a context manager.

    `head` is the first 4 KiB of the content, to look at before reading.

    Args:
        path: the file.
        threads: inflate compressed data in a thread of its own, some MB ahead.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: gzip data is truncated or damaged.
    """

    def __init__(self, path: Path, *, threads: bool = False) -> None:
        self.path = path
        self._threads = threads
        if path.is_dir():
            raise ArtifactError(f"{path} is a folder, expected a FASTA file; name the files in it")
        try:
            self._raw = _HashingFile(path.open("rb", buffering=0))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} does not exist; check the path") from error
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
        self._content: Any = self._raw
        try:
            self._content, self.compressed = self._open_content()
            self.head = self._read_head()
        except BaseException:
            self._close()
            raise
        self._served = 0

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._content.close()  # first: it may have a thread that reads the file
        self._raw.close()

    @property
    def position(self) -> int:
        """Bytes of the file on disk consumed so far, compressed ones where it is compressed."""
        return self._raw.consumed

    def sha256(self) -> str | None:
        """Hex digest of a compressed file once `readinto` has returned 0; None for a plain one."""
        return self._raw.digest.hexdigest() if self.compressed else None

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` with content as far as there is any; returns the number of bytes."""
        filled = 0
        if self._served < len(self.head):
            part = self.head[self._served : self._served + len(buffer)]
            buffer[: len(part)] = part
            self._served += len(part)
            filled = len(part)
        return filled + self._fill(buffer[filled:])

    def _fill(self, buffer: memoryview) -> int:
        filled = 0
        try:
            while filled < len(buffer):
                count = self._content.readinto(buffer[filled:])
                if not count:
                    break
                filled += count
        except EOFError as error:
            raise FormatError(
                f"{self.path}: the gzip data ends too early: the file is truncated; "
                "download or copy it again"
            ) from error
        except OSError as error:
            if error.errno is None:  # gzip.BadGzipFile carries no errno
                raise self._damaged(error) from error
            raise ArtifactError(f"{self.path}: cannot be read ({error.strerror})") from error
        except _inflate_errors() as error:
            raise self._damaged(error) from error
        return filled

    def _damaged(self, error: Exception) -> FormatError:
        return FormatError(
            f"{self.path}: the gzip data is damaged, or followed by something else ({error}); "
            "download or compress it again"
        )

    def _open_content(self) -> tuple[Any, bool]:
        magic = self._raw.peek_start(18)
        if magic[:2] != _GZIP_MAGIC:
            return self._raw, False
        self._raw.hashing = True
        if magic[12:14] == b"BC" and self._raw.peek_end(len(_BGZF_END)) != _BGZF_END:
            raise FormatError(
                f"{self.path}: bgzip data without its end-of-file block: the file is truncated; "
                "download or copy it again"
            )
        return _gunzip(self._raw, threads=self._threads), True

    def _read_head(self) -> bytes:
        buffer = bytearray(_HEAD_BYTES)
        head = bytes(buffer[: self._fill(memoryview(buffer))])
        return head.removeprefix(_UTF8_MARK)  # some editors put it before the first header


class _HashingFile(io.RawIOBase):
    """A file that counts, and hashes where it is told to, what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.hashing = False
        self.consumed = 0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        count = int(self._file.readinto(view) or 0)  # type: ignore[attr-defined]
        if self.hashing:
            self.digest.update(view[:count])
        self.consumed += count
        return count

    def peek_start(self, count: int) -> bytes:
        return os.pread(self.fileno(), count, 0) if self._seekable() else b""

    def peek_end(self, count: int) -> bytes:
        size = os.fstat(self.fileno()).st_size
        return os.pread(self.fileno(), count, max(0, size - count))

    def _seekable(self) -> bool:
        return self._file.seekable()


def _gunzip(raw: _HashingFile, *, threads: bool) -> Any:
    """The content of gzip data; isal is more than twice as fast as the standard library."""
    try:
        from isal import igzip, igzip_threaded
    except ImportError:
        import gzip

        return gzip.GzipFile(fileobj=raw, mode="rb")
    if threads:
        return igzip_threaded.open(raw, "rb")  # type: ignore[no-untyped-call]
    return igzip.IGzipFile(fileobj=raw, mode="rb")  # type: ignore[no-untyped-call]


def _inflate_errors() -> tuple[type[Exception], ...]:
    try:
        from isal import isal_zlib
    except ImportError:
        return (zlib.error,)
    isal_error: type[Exception] = isal_zlib.error  # type: ignore[assignment]
    return (zlib.error, isal_error)
