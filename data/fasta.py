"""FASTA, streamed in blocks: headers, and the bases between them as store codes.

What counts as FASTA here:

- A record is a line ``>NAME DESCRIPTION`` and lines of bases. NAME is the first word; white space
  between ``>`` and NAME is allowed. The header is UTF-8.
- Bases are A C G T U N and the IUPAC letters in either case. White space between them (line ends of
  any kind, blank lines, trailing blanks) is dropped. Anything else is refused by name: gaps
  (``-`` ``.`` ``*``), X, amino acids, digits.
- A record without bases is refused: SAM cannot name it (LN >= 1), and it is how a download that
  broke off looks.
- Lines that begin with ``;`` or ``#`` are no part of FASTA and are refused.

The result does not depend on where the blocks are cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dnassm.data.alphabet import ASCII_TO_CODE, NO_BASE, Codes
from dnassm.data.bytestream import ByteStream
from dnassm.data.encoder import BaseCounts, NotABaseError
from dnassm.data.line_code import AHEAD, WHITE
from dnassm.data.line_encoder import line_encoder
from dnassm.data.sniff import looks_like
from dnassm.errors import FormatError

BLOCK_BYTES = 3 << 18
"""Measured: smaller blocks cost more calls, and more changes between parsing, digests and writing;
larger ones leave the cache."""
_MAX_HEADER_BYTES = 1 << 20
_NEWLINE, _GREATER = 10, ord(">")


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """The line that begins a contig."""

    name: str
    description: str
    line: int
    """Counted from 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bases:
    """A stretch of the contig whose header came last; the arrays are valid until the next one."""

    codes: Codes
    """(n,) uint8 as in a store."""
    upper: Codes
    """(n,) uint8 ASCII, the letters as written but in upper case."""
    counts: BaseCounts


def read_fasta(
    path: Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    threads: bool = False,
    compile_code: bool = False,
    progress: Callable[[int], None] | None = None,
    on_end: Callable[[str | None], None] | None = None,
) -> Iterator[Header | Bases]:
    """Yield each header and then the bases that belong to it, in blocks of at most `block_bytes`.

    Args:
        path: plain, gzip or bgzip FASTA.
        block_bytes: size of the reading buffer; changes speed and memory, never the result.
        threads: inflate compressed data in a thread of its own; changes speed, never the result.
        compile_code: compile code for the parsing; changes speed, never the result.
        progress: called after every block with the bytes of the file consumed so far.
        on_end: called once at the end with the sha256 of a compressed file, None for a plain one.

    Raises:
        ArtifactError: the file is missing or unreadable.
        FormatError: it is no DNA FASTA; names file, line, contig and what was found.
    """
    with ByteStream(path, threads=threads) as stream:
        _check_head(path, stream.head)
        parser = _Parser(path, block_bytes, compile_code=compile_code)
        while filled := stream.readinto(parser.room):
            yield from parser.parse(filled)
            if progress is not None:
                progress(stream.position)
        yield from parser.finish()
        if on_end is not None:
            on_end(stream.sha256())


def _check_head(path: Path, head: bytes) -> None:
    if not head:
        raise FormatError(
            f"{path} is empty, expected FASTA; was the download or the disk complete?"
        )
    text = head.lstrip(WHITE)
    blank = head[: len(head) - len(text)]
    if text and text[0] == _GREATER and blank and blank[-1] != _NEWLINE:
        raise FormatError(
            f"{path}, line {1 + _leading_lines(head)}: expected '>' at the beginning of a line, "
            "got white space before it; remove it"
        )
    if text and text[0] != _GREATER:
        line = 1 + _leading_lines(head)
        raise FormatError(
            f"{path}, line {line}: expected a FASTA header '>NAME', got {_shown(text)}; "
            f"the file looks like {looks_like(text if line > 1 else head)}"
        )
    if not text and len(head) < 4096:
        raise FormatError(f"{path} holds only white space, expected FASTA")


class _Parser:
    """Where in the file we are: before the first header, in a header or among bases."""

    def __init__(self, path: Path, block_bytes: int, *, compile_code: bool) -> None:
        self.path = path
        self.buffer = bytearray(block_bytes + AHEAD)
        self.room = memoryview(self.buffer)[:block_bytes]
        self.text = np.frombuffer(self.buffer, dtype=np.uint8)
        self.encoder = line_encoder(block_bytes, compile_code=compile_code)
        self.line = 1
        self.at_line_start = True
        self.in_header = False
        self.raw_header = bytearray()
        self.header: Header | None = None
        self.bases = 0

    def parse(self, filled: int) -> Iterator[Header | Bases]:
        """Yield what the first `filled` bytes of the buffer complete."""
        at = 0
        while at < filled:
            if self.in_header:
                at, header = self._read_header(at, filled)
                if header is not None:
                    yield header
                continue
            end = self._next_header(at, filled)
            if end > at:
                bases = self._read_bases(at, end)
                if bases is not None:
                    yield bases
                self.at_line_start = self.buffer[end - 1] == _NEWLINE
            if end < filled:
                self._check_has_bases()
                self.in_header = True
                end += 1
            at = end

    def finish(self) -> Iterator[Header]:
        """Yield a header that the end of the file cut off, then check that nothing is missing."""
        if self.in_header:
            yield self._header()
        self._check_has_bases()
        if self.header is None:
            raise FormatError(f"{self.path} holds no FASTA header '>NAME'; is it the right file?")

    def _next_header(self, at: int, filled: int) -> int:
        """Index of the next '>' that begins a line, or `filled`."""
        found = self.buffer.find(b">", at, filled)
        while found >= 0:
            begins = self.at_line_start if found == at else self.buffer[found - 1] == _NEWLINE
            if begins:
                return found
            found = self.buffer.find(b">", found + 1, filled)
        return filled

    def _read_header(self, at: int, filled: int) -> tuple[int, Header | None]:
        end = self.buffer.find(b"\n", at, filled)
        self.raw_header += self.buffer[at : end if end >= 0 else filled]
        if len(self.raw_header) > _MAX_HEADER_BYTES:
            raise FormatError(
                f"{self.path}, line {self.line}: expected a header of at most "
                f"{_MAX_HEADER_BYTES:,} bytes, got more; is it FASTA?"
            )
        if end < 0:
            return filled, None
        header = self._header()
        self.in_header = False
        self.raw_header.clear()
        self.line += 1
        self.at_line_start = True
        return end + 1, header

    def _header(self) -> Header:
        raw = bytes(self.raw_header)
        where = f"{self.path}, line {self.line}"
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{where}: the header is not UTF-8 (byte 0x{raw[error.start]:02x}): {_shown(raw)}; "
                "convert the file with iconv, or rename the contig"
            ) from error
        if "\r" in text:
            raise FormatError(
                f"{where}: lines end with CR alone; convert them with: tr '\\r' '\\n'"
            )
        if not text:
            raise FormatError(
                f"{where}: a header without a name; expected '>NAME', name the contig"
            )
        name, description = (*text.split(None, 1), "")[:2]
        if not name.isprintable():
            raise FormatError(f"{where}: contig name {name!r} holds control characters; rename it")
        self.header = Header(name, description, self.line)
        self.bases = 0
        return self.header

    def _check_has_bases(self) -> None:
        if self.header is not None and self.bases == 0:
            raise FormatError(
                f"{self.path}, line {self.header.line}, contig {self.header.name!r}: expected "
                "bases after the header, got none; is the file complete? If so, delete the header"
            )

    def _read_bases(self, start: int, end: int) -> Bases | None:
        if self.header is None:
            self._check_blank(start, end)
            return None
        text = self.text[start:end]
        try:
            encoded, lines = self.encoder.encode(text)
        except NotABaseError:
            raise self._not_a_base(text.tobytes(), self.header.name) from None
        self.line += lines
        self.bases += encoded[0].size
        return Bases(*encoded) if encoded[0].size else None

    def _check_blank(self, start: int, end: int) -> None:
        text = bytes(self.buffer[start:end])
        if text.strip(WHITE):
            raise FormatError(
                f"{self.path}, line {self.line + _leading_lines(text)}: expected a FASTA header "
                f"'>NAME', got {_shown(text.lstrip(WHITE)[:1])}"
            )
        self.line += text.count(b"\n")

    def _not_a_base(self, text: bytes, contig: str) -> FormatError:
        allowed = {int(code) for code in np.flatnonzero(ASCII_TO_CODE != NO_BASE)} | set(WHITE)
        at = next(index for index, byte in enumerate(text) if byte not in allowed)
        line = self.line + text.count(b"\n", 0, at)
        return FormatError(
            f"{self.path}, line {line}, contig {contig!r}: expected DNA letters "
            f"(A C G T U N and IUPAC), got {_named(text[at])}"
        )


def _leading_lines(text: bytes) -> int:
    return text[: len(text) - len(text.lstrip(WHITE))].count(b"\n")


def _shown(text: bytes) -> str:
    """The beginning of a line, printable."""
    line = text[:200].split(b"\n", 1)[0].decode("ascii", "backslashreplace").rstrip()
    printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
    return repr(printable[:40] + ("..." if len(printable) > 40 else "")).replace("\\\\", "\\")


def _named(byte: int) -> str:
    """A character that is no base: what it is, what that means, what to do."""
    letter = chr(byte)
    if letter.upper() in "EFILPQ":
        return f"{letter!r}, an amino acid: this is a protein FASTA; give DNA"
    if letter.upper() in "XZJO":
        return f"{letter!r}, no IUPAC nucleotide; give DNA, and write an unknown base as N"
    if letter in "-.*":
        return f"{letter!r}, a gap or a stop: an alignment or a protein; remove gaps, or give DNA"
    if letter.isdigit() and byte < 128:
        return f"{letter!r}, a digit; remove numbers from the sequence"
    if letter == ">":
        return "'>' inside a line; begin the header on a line of its own"
    if letter in "@+;#":
        return f"{letter!r}; FASTQ, comments and mixed formats cannot be read, give plain FASTA"
    if 32 < byte < 127:
        return f"{letter!r}; remove it, or write N"
    return f"byte 0x{byte:02x}: binary data, or a damaged file; fetch it again"
