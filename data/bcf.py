"""BCF, the binary form of VCF, as the lines of text that it stands for; read by pysam (htslib)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from dnassm.data.bytestream import ByteStream
from dnassm.errors import FormatError
from dnassm.extras import require

MAGIC = b"BCF"
_FIXED_COLUMNS = 8
_PYSAM_ERRORS = (OSError, ValueError, IndexError, KeyError, OverflowError, MemoryError)
"""What it is known to raise on damaged data, in the header or in a record."""
_START = struct.Struct("<5sI")
_LONGEST_HEADER = 1 << 28
_BLOCK_BYTES = 1 << 16
_LARGEST_IDX = 1_000_000
_IDX = re.compile(rb"IDX\s*=[\s+]*([0-9]{1,20})")


def is_bcf(path: Path) -> bool:
    """Whether a file on disk, compressed or not, begins as BCF does; a pipe is not looked into.

    Raises:
        ArtifactError: it cannot be read.
        FormatError: damaged or truncated gzip data.
    """
    if not path.is_file():
        return False
    with ByteStream(path) as stream:
        return stream.head.startswith(MAGIC)


def bcf_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of the VCF that a BCF file stands for: header, then records.

    The lines, and so their numbers in messages, are those that ``bcftools view`` prints.

    Raises:
        MissingExtraError: pysam is not installed.
        FormatError: the file is damaged or truncated.
    """
    _check_header(path)
    columns = 0
    for number, line in enumerate(_texts(path), 1):
        if line.startswith("#CHROM\t"):
            columns = line.count("\t") + 1
        elif (columns and line.count("\t") + 1 not in (_FIXED_COLUMNS, columns)) or "\n" in line:
            raise FormatError(
                f"{path}:{number}: expected {columns} fields, got one with a tab or a line end "
                "inside; write the file again with bcftools view"
            )
        yield number, line


def _check_header(path: Path) -> None:
    """Refuse what htslib would fill the memory with: a slot for each number up to the largest."""
    with ByteStream(path) as stream:
        _, size = _START.unpack(_read(stream, _START.size).ljust(_START.size, b"\0"))
        if size > _LONGEST_HEADER:
            raise FormatError(
                f"{path}: expected a BCF header of at most {_LONGEST_HEADER:,} bytes, got "
                f"{size:,}; the file is damaged or truncated: copy or download it again"
            )
        largest = max((int(number) for number in _IDX.findall(_read(stream, size))), default=0)
    if largest > _LARGEST_IDX:
        raise FormatError(
            f"{path}: expected numbers up to {_LARGEST_IDX:,} in the header of a BCF, got "
            f"IDX={largest}; write the file again with bcftools view"
        )


def _read(stream: ByteStream, size: int) -> bytes:
    """Up to `size` bytes; a file that is shorter than it says takes no memory for the rest."""
    parts = []
    room = memoryview(bytearray(_BLOCK_BYTES))
    while size and (count := stream.readinto(room[:size])):
        parts.append(bytes(room[:count]))
        size -= count
    return b"".join(parts)


def _texts(path: Path) -> Iterator[str]:
    pysam = require("pysam", "vcf", "reading BCF")
    records = 0
    quiet = pysam.set_verbosity(0)  # htslib prints what its caller is told anyway
    try:
        with pysam.VariantFile(str(path), "r") as file:
            yield from str(file.header).splitlines()
            for record in file:
                yield str(record).removesuffix("\n")
                records += 1
    except _PYSAM_ERRORS as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(
            f"{path}: expected BCF, got a damaged or truncated file ({words}; {records} "
            "records read); copy or download it again"
        ) from error
    finally:
        pysam.set_verbosity(quiet)
