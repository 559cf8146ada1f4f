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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import ASCII_TO_CODE, NO_BASE, Codes
from dnassm.data.bytestream import ByteStream
from dnassm.data.encoder import COUNTS, BaseCounts, NotABaseError
from dnassm.data.line_code import AHEAD, TOTALS, WHITE
from dnassm.data.line_encoder import Encoded, line_encoder
from dnassm.data.sniff import looks_like
from dnassm.errors import FormatError

BLOCK_BYTES = 3 << 18
"""Measured: smaller blocks cost more calls, and more changes between parsing, digests and writing;
larger ones leave the cache."""
_MAX_HEADER_BYTES = 1 << 20
_NEWLINE, _GREATER = 10, ord(">")
_LETTERS = bytes(int(byte) for byte in np.flatnonzero(ASCII_TO_CODE != NO_BASE))


class Header(NamedTuple):
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


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """The contigs of one block of a file; the arrays are valid until the next one.

    A contig may begin in one block and end in another one. The first stretch of a block belongs to
    the contig whose header came last before it, and each other one to a header of `headers`.
    """

    headers: list[Header]
    codes: Codes
    """(n,) uint8 as in a store, all stretches one behind the other."""
    upper: Codes
    """(n,) uint8 ASCII, the letters as written but in upper case."""
    ends: npt.NDArray[np.int64]
    """(1 + headers,) where each stretch ends in `codes`; some may be empty."""
    counts: npt.NDArray[np.int64]
    """(1 + headers, len(COUNTS)) of each stretch."""


def read_fasta(
    path: Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    compile_code: bool = False,
    on_end: Callable[[str | None], None] | None = None,
) -> Iterator[Header | Bases]:
    """Yield each header and then the bases that belong to it, as they stand in `read_blocks`.

    For the arguments and errors see there.
    """
    blocks = read_blocks(path, block_bytes=block_bytes, compile_code=compile_code, on_end=on_end)
    for block in blocks:
        start = 0
        for number, (end, counts) in enumerate(zip(block.ends, block.counts, strict=True)):
            if number:
                yield block.headers[number - 1]
            if end > start:
                letters = block.codes[start:end], block.upper[start:end]
                yield Bases(*letters, BaseCounts(*counts.tolist()))
            start = end


def read_blocks(
    path: Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    threads: bool = False,
    compile_code: bool = False,
    progress: Callable[[int], None] | None = None,
    on_end: Callable[[str | None], None] | None = None,
) -> Iterator[Block]:
    """Yield what stands in blocks of at most `block_bytes` of the file.

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
            block = parser.parse(filled)
            if block is not None:
                yield block
            if progress is not None:
                progress(stream.position)
        parser.finish()
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
    """Where in the file we are: in a header or among bases, and of which contig."""

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

    def parse(self, filled: int) -> Block | None:
        """What the first `filled` bytes of the buffer complete; None if only part of a header.

        Whatever is wrong is said in the order of the file, however the blocks are cut.
        """
        spans, raw_headers = self._divide(filled)
        if not spans:
            self._check_header_size(self.raw_header)
            return None
        if self.header is None:
            self._check_blank(*spans[0])
        wrong = None
        try:
            encoded = self.encoder.encode(self.text, spans)
        except NotABaseError:
            wrong = next(span for span in spans if self._wrong_bytes(*span))
            before = spans.index(wrong)
            encoded = self.encoder.encode(self.text, [*spans[:before], (0, 0)])
            raw_headers = raw_headers[:before]
        line = self.line
        headers = self._read_headers(raw_headers, encoded)
        if wrong is not None:
            raise self._not_a_base(*wrong, line)
        if self.in_header:
            self._check_has_bases()
            self._check_header_size(self.raw_header)
        codes, upper, totals = encoded
        counts = totals[:, -len(COUNTS) :]
        return Block(headers, codes, upper, totals[:, TOTALS.index("bases")].cumsum(), counts)

    def finish(self) -> None:
        """Check that nothing is missing at the end of the file."""
        if self.in_header:
            self._read_header(bytes(self.raw_header))
        self._check_has_bases()
        if self.header is None:
            raise FormatError(f"{self.path} holds no FASTA header '>NAME'; is it the right file?")

    def _divide(self, filled: int) -> tuple[list[tuple[int, int]], list[bytes]]:
        """Where the stretches of bases begin and end, and the headers between them.

        A header that the end of the block cuts is kept for the next one.
        """
        spans: list[tuple[int, int]] = []
        raw_headers: list[bytes] = []
        end = -1  # of a header that the block before has begun
        if not self.in_header:
            end = self._next_header(0, filled)
            spans.append((0, end))
            self.in_header = end < filled
        while self.in_header:
            newline = self.buffer.find(b"\n", end + 1, filled)
            self.raw_header += self.buffer[end + 1 : newline if newline >= 0 else filled]
            if newline < 0:
                return spans, raw_headers
            if not spans:
                spans.append((0, 0))
            raw_headers.append(bytes(self.raw_header))
            self.raw_header.clear()
            self.at_line_start = True
            end = self._next_header(newline + 1, filled)
            spans.append((newline + 1, end))
            self.in_header = end < filled
        self.at_line_start = self.buffer[filled - 1] == _NEWLINE
        return spans, raw_headers

    def _next_header(self, at: int, filled: int) -> int:
        """Index of the next '>' that begins a line, or `filled`."""
        found = self.buffer.find(b">", at, filled)
        while found >= 0:
            begins = self.at_line_start if found == at else self.buffer[found - 1] == _NEWLINE
            if begins:
                return found
            found = self.buffer.find(b">", found + 1, filled)
        return filled

    def _read_headers(self, raw_headers: list[bytes], encoded: Encoded) -> list[Header]:
        """Count lines and bases of the stretches; read the header behind each but the last one."""
        columns = (TOTALS.index(name) for name in ("bases", "lines"))
        bases, lines = (encoded.totals[:, column].tolist() for column in columns)
        headers = []
        for raw, here, ends in zip(raw_headers, bases[:-1], lines[:-1], strict=True):
            self.bases += here
            self.line += ends
            headers.append(self._read_header(raw))
        self.bases += bases[-1]
        self.line += lines[-1]
        return headers

    def _check_header_size(self, raw: bytes | bytearray) -> None:
        if len(raw) > _MAX_HEADER_BYTES:
            raise FormatError(
                f"{self._where()}: expected a header of at most "
                f"{_MAX_HEADER_BYTES:,} bytes, got more; is it FASTA?"
            )

    def _read_header(self, raw: bytes) -> Header:
        """The contig before ends; another one begins."""
        self._check_has_bases()
        self._check_header_size(raw)
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self._where()}: the header is not UTF-8 (byte 0x{raw[error.start]:02x}): "
                f"{_shown(raw)}; convert the file with iconv, or rename the contig"
            ) from error
        if "\r" in text:
            raise FormatError(
                f"{self._where()}: lines end with CR alone; convert them with: tr '\\r' '\\n'"
            )
        if not text:
            raise FormatError(
                f"{self._where()}: a header without a name; expected '>NAME', name the contig"
            )
        name, description = (*text.split(None, 1), "")[:2]
        if not name.isprintable():
            raise FormatError(
                f"{self._where()}: contig name {name!r} holds control characters; rename it"
            )
        self.header = Header(name, description, self.line)
        self.bases = 0
        self.line += 1
        return self.header

    def _where(self) -> str:
        return f"{self.path}, line {self.line}"

    def _check_has_bases(self) -> None:
        if self.header is not None and self.bases == 0:
            raise FormatError(
                f"{self.path}, line {self.header.line}, contig {self.header.name!r}: expected "
                "bases after the header, got none; is the file complete? If so, delete the header"
            )

    def _check_blank(self, start: int, end: int) -> None:
        text = bytes(self.buffer[start:end])
        if text.strip(WHITE):
            raise FormatError(
                f"{self.path}, line {self.line + _leading_lines(text)}: expected a FASTA header "
                f"'>NAME', got {_shown(text.lstrip(WHITE)[:1])}"
            )

    def _wrong_bytes(self, start: int, end: int) -> bytes:
        return bytes(self.buffer[start:end]).translate(None, _LETTERS + WHITE)

    def _not_a_base(self, start: int, end: int, line: int) -> FormatError:
        """Say what is wrong in this stretch, whose header came last, of a block from `line` on."""
        wrong = self._wrong_bytes(start, end)[0]
        at = self.buffer.index(wrong, start)
        line += self.buffer.count(b"\n", 0, at)
        contig = None if self.header is None else self.header.name
        return FormatError(
            f"{self.path}, line {line}, contig {contig!r}: expected DNA letters "
            f"(A C G T U N and IUPAC), got {_named(wrong)}"
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
