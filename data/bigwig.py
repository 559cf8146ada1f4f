"""Signal of a bigWig file, base by base, for the windows that a model sees.

Read with pybigtools (extra ``tracks``): it names what is wrong with a damaged file, where pyBigWig
may end the process, and reads twice as fast.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnassm.data.interval import Interval
from dnassm.errors import ArtifactError, FormatError, GenomeError
from dnassm.extras import require
from dnassm.registry import did_you_mean

MAGIC = (b"\x26\xfc\x8f\x88", b"\x88\x8f\xfc\x26")
"""How a bigWig file of either byte order begins."""
_LIBRARY = ("pybigtools", "pyo3_runtime")


class BigWig:
    """A bigWig file, open as long as this object lives.

    Safe to share: it pickles as its path, and every process, forked or spawned, opens the file for
    itself. `lengths` is what the file says of its contigs, in its order.

    Raises:
        MissingExtraError: pybigtools is not installed; names the extra.
        ArtifactError: the file is missing or cannot be read.
        FormatError: it is no bigWig, or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._library = require("pybigtools", "tracks", "reading bigWig")
        self._open()
        self.lengths: dict[str, int] = dict(self._ask(lambda: self._reader.chroms()))

    def __reduce__(self) -> tuple[type[BigWig], tuple[Path]]:
        return BigWig, (self.path,)

    def fetch(self, interval: Interval) -> npt.NDArray[np.float32]:
        """Values (L,) float32 of an interval, NaN where the file has none.

        The first value is that of the first base in reading direction: on strand '-' the last one
        of the interval.

        Raises:
            GenomeError: no such contig, or the interval ends past it.
            FormatError: the file is damaged.
        """
        length = self.lengths.get(interval.contig)
        if length is None:
            raise GenomeError(
                f"{self.path}: no contig {interval.contig!r}; it has "
                f"{', '.join(list(self.lengths)[:5])}."
                f"{did_you_mean(interval.contig, self.lengths)}"
            )
        if interval.end > length:
            raise GenomeError(
                f"{self.path}: contig {interval.contig!r} ends at {length:,} bp, asked for "
                f"[{interval.start:,}, {interval.end:,}); shorten the interval"
            )
        if self._owner != os.getpid():  # after a fork, parent and child share one position
            self._open()
        if not len(interval):
            return np.zeros(0, dtype=np.float32)
        start, end = interval.start, interval.end
        values = self._ask(lambda: self._reader.values(interval.contig, start, end, fillna=None))
        signal: npt.NDArray[np.float32] = values.astype(np.float32)
        return signal[::-1].copy() if interval.strand == "-" else signal

    def _open(self) -> None:
        try:
            file = self.path.open("rb")
            weakref.finalize(self, file.close)
            magic = file.read(4)
            file.seek(0)
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be read ({error.strerror})") from error
        if magic not in MAGIC:
            raise FormatError(f"{self.path}: expected a bigWig file, got another kind of file")
        self._owner = os.getpid()
        # A file that is open: of a path, the library would look at the suffix.
        self._reader = self._ask(lambda: self._library.open(file))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except BaseException as error:
            # Its own errors have no common base, and a panic of its Rust code is no Exception.
            if type(error).__module__ not in _LIBRARY and not isinstance(
                error, OSError | ValueError | RuntimeError | KeyError
            ):
                raise
            raise FormatError(
                f"{self.path}: the bigWig data is damaged ({' '.join(str(error).split())}); "
                "download or copy it again"
            ) from error
