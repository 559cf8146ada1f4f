"""The file of a store's codes while it is written: it grows, and is read again behind its end."""

from __future__ import annotations

import errno
import os
from io import FileIO
from pathlib import Path

from dnassm.data.alphabet import Codes

Block = bytes | memoryview

_FLUSH_BYTES = 1 << 23
"""Measured: of 32 MiB at a time the last ones are waited for at the end; 2 MiB save no more."""


class CodesFile(FileIO):
    """Appends to a file, which goes to the disk while the next bases are parsed.

    All at the end would cost as much again as writing, and a genome of unwritten memory until then.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a+b")
        self.size = self._flushed = self.seek(0, os.SEEK_END)
        """Bytes in the file."""

    def append(self, block: Block) -> None:
        """Write all of `block` behind the end."""
        left = memoryview(block)
        while left:
            left = left[self.write(left) :]
        self.size += len(block)
        if self.size - self._flushed >= _FLUSH_BYTES:
            _start_flush(self.fileno(), self._flushed, self.size - self._flushed)
            self._flushed = self.size

    def fetch(self, codes: Codes, at: int) -> None:
        """Read what stands from byte `at` on, as much as `codes` takes; from any thread."""
        left = codes.data
        while left:
            count = os.preadv(self.fileno(), [left], at)
            if not count:
                raise OSError(errno.EIO, "cut short while it was written")
            left, at = left[count:], at + count


def _start_flush(descriptor: int, start: int, length: int) -> None:
    """Have the disk write this stretch of a file, and wait for it only where there is no other way.

    Linux begins to write pages that are said to be no longer needed; it drops only clean ones.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
    else:
        os.fsync(descriptor)
