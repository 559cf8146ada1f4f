"""Numbered lines of a text file, plain or gzip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dnassm.data.bytestream import ByteStream
from dnassm.errors import ArtifactError, FormatError

_BLOCK_BYTES = 1 << 20


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) of a UTF-8 file with Unix or DOS line ends.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: truncated or damaged gzip data, or no UTF-8 text.
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
    rest = b""
    with ByteStream(path) as stream:
        while count := stream.readinto(memoryview(buffer)):
            *lines, rest = (rest + buffer[:count]).split(b"\n")
            yield from lines
    if rest:
        yield rest
