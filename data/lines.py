"""Numbered lines of a text file, plain or gzip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dnassm.data.bytestream import ByteStream
from dnassm.errors import ArtifactError, FormatError

_BLOCK_BYTES = 1 << 20
_LONGEST_LINE = 1 << 28
"""Far beyond the genotypes of a million samples: what has no line ends is no such text."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) of a UTF-8 file with Unix or DOS line ends.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: truncated or damaged gzip data, no UTF-8 text, or a line without an end.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, expected a text file; name the file in it")
    for number, line in enumerate(_raw_lines(path), 1):
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{path}:{number}: expected UTF-8 text, got byte {line[error.start]:#04x}; "
                "this is another kind of file, or text in another encoding"
            ) from error


def _raw_lines(path: Path) -> Iterator[bytes]:
    buffer = bytearray(_BLOCK_BYTES)
    begun: list[bytes] = []  # of the line that the block before left unfinished
    size = 0
    with ByteStream(path) as stream:
        while count := stream.readinto(memoryview(buffer)):
            first, *others = bytes(buffer[:count]).split(b"\n")
            begun.append(first)
            size += len(first)
            if others:
                yield b"".join(begun)
                yield from others[:-1]
                begun, size = [others[-1]], len(others[-1])
            if size > _LONGEST_LINE:
                raise FormatError(
                    f"{path}: expected lines of at most {_LONGEST_LINE:,} bytes, got a longer one; "
                    "this is another kind of file"
                )
    if size:
        yield b"".join(begun)
