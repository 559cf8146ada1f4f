"""Slow, obvious readers that the fuzzers hold the fast ones to; written from the rules in the docs.

Each takes the bytes of a plain file and returns what is in it, or raises RefusedError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

_MARK = b"\xef\xbb\xbf"
_BASES = "ACGTUNRYSWKMBDHV"
_VCF_NAMES = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]
_BREAKENDS = (
    r"[A-Za-z]*\[[^\[\]\s]+:[0-9]+\[[A-Za-z]*",
    r"[A-Za-z]*\][^\[\]\s]+:[0-9]+\][A-Za-z]*",
    r"[A-Za-z]*\[<[^<>\s]+>(:[0-9]+)?\[[A-Za-z]*",
    r"[A-Za-z]*\]<[^<>\s]+>(:[0-9]+)?\][A-Za-z]*",
    r"\.[A-Za-z]+",
    r"[A-Za-z]+\.",
)


class RefusedError(Exception):
    """What the format does not allow."""


def need(condition: object) -> None:
    if not condition:
        raise RefusedError


def fasta(data: bytes) -> list[tuple[str, str, str]]:
    """(name, description, bases with their case, U as T) of every record."""
    records: list[list[str]] = []
    for raw in data.removeprefix(_MARK).split(b"\n"):
        if raw.startswith(b">"):
            need(not records or records[-1][2])
            records.append([*_header(raw[1:]), ""])
            continue
        bases = "".join(chr(byte) for byte in raw if byte not in b" \t\n\x0b\x0c\r")
        need(records or not bases)
        need(all(letter in _BASES + _BASES.lower() for letter in bases))
        if records:
            records[-1][2] += bases.replace("U", "T").replace("u", "t")
    need(records and records[-1][2])
    return [(name, description, bases) for name, description, bases in records]


def _header(raw: bytes) -> tuple[str, str]:
    need(len(raw) <= 1 << 20)
    text = _decoded(raw).strip()
    need(text and "\r" not in text)
    words = text.split(None, 1)
    need(words[0].isprintable())
    return words[0], words[1] if len(words) > 1 else ""


def lines(data: bytes) -> Iterator[str]:
    """The lines of a text, one at a time: what lies behind the end of a GFF need not be text."""
    rows = data.removeprefix(_MARK).split(b"\n")
    for row in rows[: len(rows) - (not rows[-1])]:
        yield _decoded(row.removesuffix(b"\r"))


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError from None


Place = tuple[str, int, int, str]
"""Contig, start and end from 0 and half-open, strand."""


def bed(data: bytes) -> list[Place]:
    found: list[Place] = []
    header: list[str] = []
    for line in lines(data):
        if not line.strip() or line.startswith(("track ", "browser ")):
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if fields[0] in ("track", "browser"):
            continue
        names = [field.strip().lower() for field in fields]
        is_header = len(names) > 2 and names[1] in ("start", "chromstart", "begin")
        if line.startswith("#") or (is_header and not found):
            header = names if is_header else header
            continue
        need(len(fields) > 2 and fields[0].strip())
        start, end = _whole(fields[1]), _whole(fields[2])
        need(0 <= start <= end)
        for name in ("label", "split"):
            if name in header:
                at = len(header) - 1 - header[::-1].index(name)
                need(len(fields) > at and fields[at].strip())
        found.append((fields[0], start, end, _strand(fields[5] if len(fields) > 5 else ".")))
    return found


def gff(data: bytes) -> list[tuple[Place, str, int]]:
    """Place, type and line of every feature."""
    found = []
    for number, line in enumerate(lines(data), 1):
        if line.startswith(("##FASTA", ">")):
            break
        if not line.strip() or line.startswith(("#", "track ", "browser ")):
            continue
        fields = line.split("\t")
        need(len(fields) == 9)
        start, end = _whole(fields[3]), _whole(fields[4])
        need(1 <= start <= end)
        place = (unquote(fields[0]), start - 1, end, _strand(fields[6]))
        found.append((place, fields[2], number))
    return found


def _whole(text: str) -> int:
    text = text.strip(" ")
    digits = text[1:] if text[:1] in ("+", "-") and text else text
    need(digits.isdigit() and digits.isascii() and len(digits) <= 18)
    return int(text)


def _strand(text: str) -> str:
    need(text in ("+", "-", ".", "?", "*"))
    return "-" if text == "-" else "+"


class Row(NamedTuple):
    """One allele of a VCF that is a sequence."""

    contig: str
    position: int
    ref: str
    alt: str
    id: str


def vcf(data: bytes) -> tuple[list[Row], int]:
    """Alleles that are sequences of A C G T N, and how many are no sequence."""
    rows: list[Row] = []
    refused = 0
    width = 0
    for line in lines(data):
        if not width:
            need(line.startswith("#") or not line.strip())
            if line.startswith("#") and not line.startswith("##"):
                line = line.rstrip("\t")
                need(line.split("\t")[:8] == _VCF_NAMES)
                width = len(line.split("\t"))
            continue
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split("\t")
        need(len(fields) >= width)
        contig, position, name, ref = fields[:4]
        need(contig and " " not in contig)
        need(position.isdigit() and position.isascii() and len(position) <= 18)
        need(ref and all(letter in _BASES.replace("U", "") for letter in _upper(ref)))
        plain = set(_upper(ref)) <= set("ACGTN") and int(position) > 0
        for alt in _alleles(fields[4]):
            sequence = bool(alt) and set(_upper(alt)) <= set("ACGTN")
            if plain:  # whatever stands beside a REF that is no sequence is not looked at
                need(sequence or _known(alt))
            if plain and sequence:
                rows.append(Row(contig, int(position) - 1, _upper(ref), _upper(alt), name))
            else:
                refused += 1
    need(width)
    return rows, refused


def _upper(text: str) -> str:
    return text.upper() if text.isascii() else text


def _alleles(text: str) -> list[str]:
    """Split at commas, but not inside of <>."""
    if not text.isascii():
        return text.split(",")
    hidden = re.sub("<[^<>]*>", lambda name: name[0].replace(",", "\0"), text)
    return [alt.replace("\0", ",") for alt in hidden.split(",")]


def _known(alt: str) -> bool:
    if alt in (".", "*") or re.fullmatch(r"<[^<>\s]+>", alt):
        return True
    if alt.isascii() and alt and set(alt.upper()) <= set("ACGTNRYSWKMBDHV"):
        return True
    return any(re.fullmatch(form, alt) for form in _BREAKENDS)
