"""What a file is that was given as FASTA and is none: a guess, for the error message only."""

from __future__ import annotations

import re

_MAGIC = (
    (b"\x1f\x8b", "gzip data inside gzip data or from a pipe; decompress it first"),
    (b"BZh", "bzip2 data; decompress it, or compress it with gzip"),
    (b"\xfd7zXZ", "xz data; decompress it, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd data; decompress it, or compress it with gzip"),
    (b"PK\x03\x04", "a zip archive; unpack it and give the FASTA file in it"),
    (b"\x1a\x41\x27\x43", "UCSC 2bit; convert it with twoBitToFa"),
    (b"\x43\x27\x41\x1a", "UCSC 2bit; convert it with twoBitToFa"),
    (b"BAM\x01", "BAM (aligned reads); give the reference genome's FASTA"),
    (b"CRAM", "CRAM (aligned reads); give the reference genome's FASTA"),
    (b"\xff\xfe", "text in UTF-16; save it as plain text (UTF-8)"),
    (b"\xfe\xff", "text in UTF-16; save it as plain text (UTF-8)"),
)
_TEXT = (
    (rb"LOCUS\s", "GenBank; download the record as FASTA, or convert it with Biopython"),
    (rb"ID   \S", "EMBL; download the record as FASTA, or convert it with Biopython"),
    (
        rb"@(HD|SQ|RG|PG)\t",
        "a SAM header or sequence dictionary; give the FASTA that belongs to it",
    ),
    (rb"@[^\n]*\n[A-Za-z.*-]", "FASTQ (reads); give an assembled genome as FASTA"),
    (rb"##fileformat=VCF", "VCF (variants); give the reference genome's FASTA"),
    (
        rb"##gff-version|[^\t\n]+\t[^\t\n]+\t[^\t\n]+\t\d+\t\d+\t\S+\t[+.?-]\t",
        "GFF or GTF; give the genome's FASTA",
    ),
    (rb"\s*<(!|\?xml|html)", "an HTML or XML page: the download probably failed; fetch it again"),
    (rb"\s*[{[]\s*[\"\[{]", "JSON; give a FASTA file"),
    (
        rb"[^\t\n]+\t\d+\t\d+\t\d+\t\d+(\t\d+)?\r?\n",
        "a FASTA index (.fai); give the FASTA that belongs to it",
    ),
    (
        rb"(#[^\n]*\n|track[^\n]*\n|browser[^\n]*\n)*[^\t\n]+\t\d+\t\d+",
        "BED (intervals); give the genome's FASTA",
    ),
    (rb";", "FASTA in the old style with ';' lines; remove these lines, begin records with '>'"),
    (rb"[ACGTUNacgtun]{4,}\s", "a sequence without a header; put a line '>NAME' before it"),
)
_WHITE = b"\t\n\x0b\x0c\r"


def looks_like(head: bytes) -> str:
    r"""Name the format of a file from its first bytes, and what to do with it.

    >>> looks_like(b"@read1\nACGT\n+\nIIII\n")
    'FASTQ (reads); give an assembled genome as FASTA'
    """
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the FASTA file in it"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if any(byte < 32 and byte not in _WHITE for byte in head):
        return "binary data; give a FASTA file, plain or compressed with gzip or bgzip"
    for pattern, name in _TEXT:
        if re.match(pattern, head):
            return name
    return "text, but no FASTA; a FASTA record begins with a line '>NAME'"
