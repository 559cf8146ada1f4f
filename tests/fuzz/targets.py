"""What is fuzzed: for each reader a check that takes any bytes, and whole files to begin with.

A check lets nothing through but a refusal in one line: no other exception, no answer other than
that of the slow reader in `tests.fuzz.plain`.
"""

from __future__ import annotations

import copy
import gzip
import io
import itertools
import json
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from Bio.SeqIO.FastaIO import SimpleFastaParser

from dnassm.data.alphabet import PAD, SOFT_MASK, decode
from dnassm.data.annotation import bed_blocks, read_bed, read_gff
from dnassm.data.bytestream import ByteStream
from dnassm.data.fasta import Header, read_fasta
from dnassm.data.fetch.digests import from_list
from dnassm.data.fetch.lock import LOCK_NAME, read_lock
from dnassm.data.fetch.unpack import Bounds, unpack
from dnassm.data.haplotypes import HaplotypeWindower
from dnassm.data.interval import Interval
from dnassm.data.labelled import read_labelled
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.variant_input import load_phased
from dnassm.data.variants import read_variants
from dnassm.errors import DnassmError
from tests.fuzz import plain

T = TypeVar("T")
BLOCKS = (1, 7, 64, 5000)
"""Sizes of reading buffers; the answer must not depend on them."""


class Target(NamedTuple):
    """Something that reads bytes."""

    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    """What a fuzzer may put in: the words of the format."""


class _Folder:
    """One folder for all inputs of a process, in memory where the system has such a place."""

    path: Path | None = None

    def __call__(self) -> Path:
        if self.path is None:
            memory = Path("/dev/shm")
            place = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
            self.keep, self.path = place, Path(place.name)
        return self.path


folder = _Folder()


def _file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


def outcome(read: Callable[[], T]) -> T | None:
    """What was read, or None where it was refused in one line."""
    message = ""
    try:
        return read()
    except DnassmError as error:
        message = str(error)
    assert "\n" not in message, message
    return None


def _plain(read: Callable[[bytes], T], data: bytes) -> T | None:
    try:
        return read(data)
    except plain.RefusedError:
        return None


def _is_gzip(data: bytes) -> bool:
    return data[:2] == b"\x1f\x8b"


def _fasta_records(path: Path, block: int, compile_code: bool) -> list[tuple[str, str, str]]:
    records: list[list[str]] = []
    for item in read_fasta(path, block_bytes=block, compile_code=compile_code):
        if isinstance(item, Header):
            records.append([item.name, item.description, ""])
        else:
            bases = decode(item.codes)
            assert bases.upper() == item.upper.tobytes().decode().replace("U", "T")
            records[-1][2] += bases
    return [(name, description, bases) for name, description, bases in records]


def check_fasta(data: bytes) -> None:
    path = _file("x.fa", data)
    least = len(data) // 40  # a call per block is slow
    blocks = [max(block, least) for block in BLOCKS]
    found = [
        outcome(lambda way=way: _fasta_records(path, *way))
        for way in itertools.product(blocks, (False, True))
    ]
    assert all(answer == found[0] for answer in found)
    if _is_gzip(data):
        return
    assert found[0] == _plain(plain.fasta, data)
    if found[0] is not None and not set(data) & set(b"\r\t\x0b\x0c"):
        text = io.StringIO(data.removeprefix(b"\xef\xbb\xbf").decode())
        expected = [bases.replace("U", "T").replace("u", "t") for _, bases in _biopython(text)]
        assert [bases for _, _, bases in found[0]] == expected


def _biopython(text: io.StringIO) -> list[tuple[str, str]]:
    return list(SimpleFastaParser(text))


def check_bed(data: bytes) -> None:
    path = _file("x.bed", data)
    records = outcome(lambda: read_bed(path))
    if records is not None:
        for record in records:
            outcome(lambda record=record: bed_blocks(record))
    if not _is_gzip(data):
        found = None if records is None else [_place(record.interval) for record in records]
        assert found == _plain(plain.bed, data)


def check_gff(data: bytes) -> None:
    path = _file("x.gff", data)
    features = outcome(lambda: read_gff(path))
    if not _is_gzip(data):
        found = features and [(_place(f.interval), f.type, f.line) for f in features]
        assert found == _plain(plain.gff, data)


def _place(interval: Interval) -> plain.Place:
    return interval.contig, interval.start, interval.end, interval.strand


def check_vcf(data: bytes) -> None:
    path = _file("x.vcf", data)
    read = outcome(lambda: read_variants(path))
    short = outcome(lambda: read_variants(path, info=False))
    assert (read is None) == (short is None)
    if read is not None:
        assert "\n" not in read.summary()
    if not _is_gzip(data) and not data.startswith(b"BCF"):
        rows = read and [plain.Row(v.contig, v.position, v.ref, v.alt, v.id) for v in read.variants]
        assert (read and (rows, sum(read.refused.values()))) == _plain(plain.vcf, data)


def check_bcf(data: bytes) -> None:
    """Uncompressed BCF: a fuzzer finds no checksum of a compressed block by itself."""
    path = _file("x.bcf", b"BCF" + data)
    read = outcome(lambda: read_variants(path))
    assert read is None or all(v.ref and v.alt and v.position >= 0 for v in read.variants)


def check_phased(data: bytes) -> None:
    """What a sample carries is cut into windows, or refused; twice the same."""
    _, _, bases = whole_store()
    store = GenomeStore.open(folder() / "whole")
    path = _file("x.vcf", data)
    for sample in (None, "s2"):
        found = outcome(
            lambda sample=sample: load_phased(path, store, sample=sample, max_wrong=None)
        )
        if found is None:
            continue
        phased, check = found
        assert len(phased.variants) == len(phased.carriers) == check.matching().size
        places = [Interval(name, at, at + 1) for name in bases for at in (0, 5)]
        windows = HaplotypeWindower(store, phased, 8)(places)
        assert windows.codes.shape == (len(windows.kept), 2, 8)
        assert len(windows.kept) + sum(windows.refused.values()) == len(places)


def check_gzip(data: bytes) -> None:
    """What comes out of compressed data is what the standard library takes out of it."""
    path = _file("x.gz", data)
    found = [outcome(lambda size=size: _content(path, size)) for size in (3, 1 << 16)]
    assert found[0] == found[1]
    if found[0] is not None and _is_gzip(data):
        assert found[0] == gzip.decompress(data).removeprefix(b"\xef\xbb\xbf")


def _content(path: Path, size: int) -> bytes:
    buffer, content = bytearray(size), b""
    with ByteStream(path) as stream:
        while count := stream.readinto(memoryview(buffer)):
            content += buffer[:count]
    return content


_GENOME = b">a first\nACGTNacgtn\n>b\nRYKMSWBDHVUu\n>c\n" + b"ACCGTT" * 20 + b"\n"


class _Store:
    """A whole store: its header, its codes, and its bases."""

    made: tuple[dict[str, object], bytes, dict[str, str]] | None = None

    def __call__(self) -> tuple[dict[str, object], bytes, dict[str, str]]:
        if self.made is None:
            fasta = _file("g.fa", _GENOME)
            path = folder() / "whole"
            store = build_store([fasta], path, split="halves", force=True)
            bases = {
                c.name: decode(store.fetch(Interval(c.name, 0, c.length))) for c in store.contigs
            }
            header = json.loads((path / "store.json").read_text())
            self.made = header, (path / "codes.bin").read_bytes(), bases
        return self.made


whole_store = _Store()


def check_store(data: bytes) -> None:
    """A header that opens gives no other bases than those of its contigs, or is refused."""
    _, codes, bases = whole_store()
    path = folder() / "store"
    path.mkdir(exist_ok=True)
    (path / "codes.bin").write_bytes(codes)
    (path / "store.json").write_bytes(data)
    store = outcome(lambda: GenomeStore.open(path))
    if store is None or outcome(lambda: store.verify() or True) is None:
        return
    for contig in store.contigs:
        for strand in ("+", "-"):
            wanted = Interval(contig.name, 0, contig.length, strand)
            fetched = outcome(lambda wanted=wanted: store.fetch(wanted))
            assert fetched is None or fetched.size == contig.length
            assert fetched is None or int((fetched & ~np.uint8(SOFT_MASK)).max(initial=0)) < PAD
            if fetched is not None and strand == "+" and contig.name in bases:
                assert decode(fetched) == bases[contig.name]
    for part in store.splits.values():
        for interval in part:
            outcome(lambda interval=interval: store.fetch(interval))


def check_codes(data: bytes) -> None:
    """Codes that are not those that were written are noticed by `verify`."""
    header, codes, _ = whole_store()
    path = folder() / "store"
    path.mkdir(exist_ok=True)
    (path / "codes.bin").write_bytes(data)
    (path / "store.json").write_text(json.dumps(header))
    store = outcome(lambda: GenomeStore.open(path))
    verified = store is not None and outcome(lambda: store.verify() or True) is not None
    assert verified == (data == codes)


def check_archive(data: bytes) -> None:
    """Nothing comes out beside the folder, and nothing is left of what is refused."""
    area = folder() / "archives"
    (area / "in").mkdir(parents=True, exist_ok=True)
    (area / "a").write_bytes(_with_checksums(data[1:]) if data[:1] == b"c" else data[1:])
    target = area / "in" / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = outcome(
            lambda: unpack(area / "a", target, Bounds(100, 1 << 22, 100), force=True) or 1
        )
    assert {path.name for path in area.iterdir()} == {"a", "in"}
    left = [path.name for path in (area / "in").iterdir()]
    assert left == (["out"] if done else [])
    if done:
        assert not any(path.is_symlink() for path in target.rglob("*"))
        assert sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) <= 1 << 22
        _remove(target)


def _remove(path: Path) -> None:
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


def _with_checksums(data: bytes) -> bytes:
    """Right checksums in what look like headers of tar: a fuzzer finds none by itself."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            total = sum(out[at : at + 148]) + sum(out[at + 156 : at + 512]) + 8 * 32
            out[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(out)


def check_checksums(data: bytes) -> None:
    """Lists of publishers and lock files."""
    text = data.decode("utf-8", "replace")
    for form in ("md5sum", "hub"):
        outcome(lambda form=form: from_list(text, "a.fa.gz", form, url="u"))
    _file(LOCK_NAME, data)
    outcome(lambda: read_lock(folder()))


def check_table(data: bytes) -> None:
    for name in ("x.csv", "x.tsv"):
        path = _file(name, data)
        read = outcome(lambda path=path: read_labelled(path))
        assert read is None or len(read.labels) == len(read.sequences)


def _tar(mode: str, form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:
        for name in ("chr1.fa", "d/" + "x" * 120 + ".fa", "ä.fa"):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 300, 1
            archive.addfile(member, io.BytesIO(b">ACGT\n" * 50))
        member = tarfile.TarInfo("folder")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    return buffer.getvalue()


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("chr1.fa", "d/y.fa"):
            archive.writestr(zipfile.ZipInfo(name), b">ACGT\n" * 50)
    return buffer.getvalue()


def bgzip(data: bytes) -> bytes:
    """One block of BGZF and the empty block that ends a file."""
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(data) + packer.flush()
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(body) + 25)
    end = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
    return head + body + struct.pack("<II", zlib.crc32(data), len(data)) + end


def _bcf() -> bytes:
    """A header and a record of BCF, without the letters that it begins with."""
    shared = struct.pack("<iiiIII", 0, 4, 1, 0x7F800001, 2 << 16 | 1, 1 << 24 | 1)
    shared += b"\x37rs1" + b"\x17A" + b"\x17G" + b"\x11\0" + b"\x11\1\x11\3"
    own = b"\x11\2\x21\x02\x05"  # GT 0|1
    head = struct.pack("<I", len(_BCF_TEXT)) + _BCF_TEXT
    return b"\x02\x02" + head + struct.pack("<II", len(shared), len(own)) + shared + own


def _changed_headers() -> tuple[bytes, ...]:
    header = whole_store()[0]
    turned = copy.deepcopy(header)
    turned["contigs"].reverse()  # type: ignore[attr-defined]
    return (
        json.dumps(header).encode(),
        json.dumps(header, indent=1).encode(),
        json.dumps(turned).encode(),
    )


_FASTA = (
    _GENOME,
    b"\n\n>a b c\r\nAC GT\r\n\r\nNN\r\n> spaced\tname\nacgt",
    b"\xef\xbb\xbf>\xc3\xa4\nACGT\n",
    b">a\n" + (b"ACGTACGTAC\n" * 500) + b"AC\n>b\nAX\n",
    b">a\n" + (b"ACGTACGTAC\r\n" * 450) + b"A\n",
    b"@r\nACGT\n+\nIIII\n",
)
_BED = (
    b"track name=x\n#chrom\tstart\tend\tlabel\tsplit\nc\t1\t9\tcoding\ttrain\n",
    b"chr1\t10\t90\tname\t3.5\t-\t10\t90\t0\t2\t10,20,\t0,60,\n",
    b"chrom  chromStart  chromEnd\nc 1 2\nc +3 4 x . ?\n",
    b"browser position c:1-2\r\nc\t0\t0\r\n",
)
_GFF = (
    b"##gff-version 3\nc%20d\tx\tgene\t1\t9\t.\t-\t.\tID=a;Parent=b,c;Note=x%3By\n##FASTA\n>c\nA\n",
    b'c\tx\tCDS\t3\t9\t.\t+\t0\tgene_id "a; b"; tag "x"; tag "y"; level 3;\n',
    b"c\tx\texon\t5\t5\t.\t?\t.\t.\n",
)
_VCF_HEAD = (
    b"##fileformat=VCFv4.3\n##contig=<ID=c,length=99>\n"
    b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
)
_VCF = (
    _VCF_HEAD + b"\nc\t5\trs1\tac\tT,<DEL>,*,.\t9\tPASS\tAF=0.5;DB\nc\t0\t.\tN\tG\t.\t.\t.\n",
    _VCF_HEAD + b"\tFORMAT\ts1\ts2\nc\t7\t.\tA\tG,TTT\t.\t.\tX=a=b\tGT:PS\t0|1:3\t1/2:.\n",
    _VCF_HEAD + b"\nc\t7\t.\tR\tY,C[d:3[,]<x>:2]C,.A,<INS:ME,x>\t.\t.\t.\n",
)
_PHASED = (
    _VCF_HEAD.replace(b"c,length=99", b"c") + b"\tFORMAT\ts1\ts2\n"
    b"a\t2\t.\tC\tG,TTT\t.\t.\t.\tGT:PS\t0|1:3\t1|2:9\nc\t1\t.\tACC\tA\t.\t.\t.\tGT\t1|0\t0|1\n"
    b"c\t2\t.\tC\tCAA,*\t.\t.\t.\tGT\t1|1\t0/1\nc\t6\t.\tT\tG\t.\t.\t.\tDP:GT\t1:1|1\t3:.|1\n",
    _VCF_HEAD.replace(b"c,length=99", b"b") + b"\tFORMAT\ts2\nb\t1\t.\tA\tC\t.\t.\t.\tGT\t1\n",
)
_BCF_TEXT = (
    b"##fileformat=VCFv4.3\n"
    b'##FILTER=<ID=PASS,Description="p",IDX=0>\n'
    b'##INFO=<ID=AC,Number=A,Type=Integer,Description="a",IDX=1>\n'
    b'##FORMAT=<ID=GT,Number=1,Type=String,Description="g",IDX=2>\n'
    b"##contig=<ID=c,length=99,IDX=0>\n"
    b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts\n\0"
)
_LIST = (
    b"d41d8cd98f00b204e9800998ecf8427e  ./a.fa.gz\n",
    b'[{"type":"file","path":"d/a.fa.gz","oid":"'
    + b"a" * 40
    + b'","lfs":{"oid":"'
    + b"b" * 64
    + b'"}}]',
    b'{"format":"dnassm-fetch-lock","version":1,"files":{"a":{"url":"u","size":1,"sha256":"s",'
    b'"checked":"nothing","date":"2026-01-01"}}}',
)
_TABLE = (
    b"sequence,label,split\nACGT,1,train\nacgn,0,dev\n",
    b'"Seq"\t"Class"\n"AC\nGT"\tx\n',
    b"label,sequence\r\n1,ACGT\r\n",
)
_PACKED = (
    gzip.compress(_GENOME, mtime=0),
    gzip.compress(b">a\nAC", mtime=0) + gzip.compress(b"GT\n", mtime=0),
    bgzip(_GENOME),
    gzip.compress(_GENOME, mtime=0) + b"\0" * 20,
    b"\x1f\x8b\x08\x1f\0\0\0\0\0\xff\x04\0xxxxname\0comment\0\0\0" + b"\x03\0" + b"\0" * 8,
)

TARGETS: dict[str, Target] = {
    "fasta": Target(check_fasta, _FASTA, (b"\n>", b"\r\n", b"\xef\xbb\xbf", b"ACGTACGTAC\n" * 9)),
    "bed": Target(check_bed, _BED, (b"track ", b"browser ", b"start", b"label", b"\t-\t", b"1e3")),
    "gff": Target(check_gff, _GFF, (b"##FASTA", b"%3B", b"CDS", b'";', b"\t.\t")),
    "vcf": Target(check_vcf, _VCF, (b"#CHROM", b"<DEL>", b"]c:1]", b"0|1", b"\t.\t", b",*")),
    "bcf": Target(
        check_bcf, (_bcf(),), (b"\x17A", b"\x17<X>", b"\x11\x01", b"##contig=<ID=", b"IDX=")
    ),
    "phased": Target(check_phased, _PHASED, (b"GT", b"0|1", b"1|1", b"2|.", b":PS", b"\ts2")),
    "gzip": Target(check_gzip, _PACKED, (b"\x1f\x8b\x08", b"BC\x02\0")),
    "store": Target(check_store, (), (b'"offset": ', b'"length": ', b"1e999", b"NaN", b"null")),
    "codes": Target(check_codes, ()),
    "archive": Target(
        check_archive,
        (
            b"c" + _tar("w", tarfile.PAX_FORMAT),
            b"c" + _tar("w", tarfile.GNU_FORMAT),
            b"." + _tar("w:gz", tarfile.PAX_FORMAT),
            b"." + _tar("w:xz", tarfile.GNU_FORMAT),
            b"." + _tar("w:bz2", tarfile.GNU_FORMAT),
            b"." + _zip(),
        ),
        (b"ustar", b"../", b"/etc", b"PK\x03\x04", b"././@LongLink", b"GNU.sparse.map"),
    ),
    "checksums": Target(check_checksums, _LIST, (b'"lfs"', b'"files"', b"./")),
    "table": Target(check_table, _TABLE, (b'"', b"sequence", b"label", b"split", b"\t")),
}


def seeds(name: str) -> tuple[bytes, ...]:
    """Whole files to begin with."""
    if name == "store":
        return _changed_headers()
    return (whole_store()[1],) if name == "codes" else TARGETS[name].seeds
