"""BCF, the binary form of VCF, as the lines of text that it stands for; read by pysam (htslib)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dnassm.data.bytestream import ByteStream
from dnassm.errors import FormatError
from dnassm.extras import require

MAGIC = b"BCF"
_FIXED_COLUMNS = 8
_PYSAM_ERRORS = (OSError, ValueError, IndexError, KeyError, OverflowError, MemoryError)
"""What it is known to raise on damaged data, in the header or in a record."""


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
