"""The FASTA reader: any block size, any line ends, and a reason for everything it refuses."""

from __future__ import annotations

import builtins
import gzip
import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnassm.data.alphabet import LETTERS, decode, encode_ascii
from dnassm.data.fasta import BLOCK_BYTES, Header, read_fasta
from dnassm.errors import ArtifactError, DnassmError, FormatError

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
ANY_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(path, block_bytes=BLOCK_BYTES):
    """What numpy reads of a file, and compiled code as well."""
    ways = []
    for compile_code in (False, True):
        try:
            ways.append(read_one_way(path, block_bytes, compile_code))
        except DnassmError as error:
            ways.append(error)
    one, other = ways
    if isinstance(one, DnassmError):
        assert (type(one), str(one)) == (type(other), str(other))
        raise one
    assert one == other
    return one


def read_one_way(path, block_bytes, compile_code):
    """[(name, description, line, bases, upper, counts)] of a file."""
    records = []
    for item in read_fasta(path, block_bytes=block_bytes, compile_code=compile_code):
        if isinstance(item, Header):
            records.append([item.name, item.description, item.line, "", b"", {}])
            continue
        record = records[-1]
        record[3] += decode(item.codes)
        record[4] += item.upper.tobytes()
        for key in item.counts.__slots__:
            record[5][key] = record[5].get(key, 0) + getattr(item.counts, key)
    return records


def outcome(path, block_bytes):
    try:
        return read(path, block_bytes)
    except DnassmError as error:
        return str(error)


@st.composite
def fasta_texts(draw) -> tuple[bytes, list[tuple[str, str]]]:
    """A FASTA file with odd line ends and widths, and its records."""
    bases = st.text(alphabet=LETTERS + LETTERS.lower(), min_size=1, max_size=120)
    records = draw(st.lists(bases, min_size=1, max_size=4))
    text = draw(st.sampled_from(["", "\n", " \r\n\n"]))
    for number, sequence in enumerate(records):
        end = draw(st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\t\r\n \n"]))
        width = draw(st.integers(1, 130))
        text += f">c{number} of many{end}"
        for start in range(0, len(sequence), width):
            text += sequence[start : start + width] + end
    if draw(st.booleans()):
        text = text.rstrip()
    return text.encode(), [(f"c{i}", sequence) for i, sequence in enumerate(records)]


@ANY_FILE
@given(fasta_texts())
def test_every_block_size_gives_the_records_that_were_written(tmp_path, case):
    text, records = case
    path = tmp_path / "a.fa"
    path.write_bytes(text)
    whole = read(path)
    assert [(name, bases) for name, _, _, bases, _, _ in whole] == records
    for _, _, _, bases, upper, counts in whole:
        assert upper == bases.upper().encode()
        assert counts["soft_masked"] == sum(base.islower() for base in bases)
        assert [counts[base] for base in "ACGTN"] == [bases.upper().count(b) for b in "ACGTN"]
        assert counts["iupac"] == sum(base.upper() in LETTERS[5:] for base in bases)
    for block_bytes in range(1, 51):
        assert read(path, block_bytes) == whole


@ANY_FILE
@given(st.lists(st.sampled_from([b">", b"\n", b"\r", b"A", b"n", b" ", b"X", b">a\n", b"\x00"])))
def test_any_bytes_are_read_or_refused_alike_at_every_block_size(tmp_path, parts):
    path = tmp_path / "a.fa"
    path.write_bytes(b"".join(parts))
    whole = outcome(path, BLOCK_BYTES)
    assert "\n" not in whole
    for block_bytes in (1, 2, 3, 7):
        assert outcome(path, block_bytes) == whole


@pytest.mark.parametrize("width", [60, 61, 80, 1, 2, 10**6])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_long_contigs_take_the_fast_way_with_the_same_result(tmp_path, width, end):
    unit = "ACGTTGCAAC" * 700 + "acgtacg" * 500 + "N" * 900 + "RYKMacgu" * 100
    sequence = unit * 3
    lines = [sequence[i : i + width] for i in range(0, len(sequence), width)]
    path = tmp_path / "a.fa"
    path.write_text(f">a{end}" + end.join(lines) + f"{end}>b{end}ACGT{end}", newline="")
    for block_bytes in (BLOCK_BYTES, 10_000, 5000, 4097):
        (_, _, line, bases, upper, counts), second = read(path, block_bytes)
        assert bases == sequence.replace("u", "t")
        assert upper == sequence.upper().encode()
        assert (line, second[2]) == (1, len(lines) + 2)
        assert counts["U"] == sequence.count("u")
        assert counts["T"] == sequence.upper().count("T") + sequence.count("u")


@pytest.mark.parametrize("blemish", ["\n\n", " ", "\t\r\n", "\n"])
@pytest.mark.parametrize("at", [5000, 9999, 12_345])
def test_white_space_in_the_middle_of_regular_lines_is_dropped(tmp_path, blemish, at):
    lines = "\n".join(["ACGTACGTAC" * 6] * 400)
    text = lines[:at] + blemish + lines[at:]
    path = tmp_path / "a.fa"
    path.write_text(">a\n" + text, newline="")
    assert read(path)[0][3] == "".join(text.split())


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("ACGTACGTAC\n", "ACGTT" * 5000),
        ("ACGTACGTAC\n", "ACGTTACGTTACGTT\n" * 900),
        ("ACGTACGTA\r\n", "ACGTTACGTT\n" * 900),
        ("ACGTTACGTT\n", "ACGTACGTA\r\n" * 900),
        ("A\n", "C\n" * 9000),
        ("  \n", "AC\n" * 9000),
    ],
)
def test_lines_that_change_their_width_or_their_ends_lose_no_base(tmp_path, first, then):
    text = first * 40 + then
    path = tmp_path / "a.fa"
    path.write_text(">a\n" + text + "\n>b\nA\n", newline="")
    record, after = read(path)
    assert record[3] == "".join(text.split())
    assert after[2] == 3 + text.count("\n")


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 20_000, 24_398])
def test_a_wrong_letter_is_found_at_its_line_wherever_it_is(tmp_path, at):
    text = bytearray(("ACGTACGTAC" * 6 + "\n").encode() * 400)
    at -= text[at] == 10
    text[at] = ord("x")
    path = tmp_path / "a.fa"
    path.write_bytes(b">chr1\n" + text)
    with pytest.raises(FormatError, match=rf"line {2 + at // 61}, contig 'chr1'.* got 'x'"):
        read(path)


@pytest.mark.parametrize(
    ("header", "name", "description"),
    [
        (">chr1", "chr1", ""),
        (">chr1 the first  one ", "chr1", "the first  one"),
        (">chr1\tthe first", "chr1", "the first"),
        ("> chr1 x", "chr1", "x"),
        (">gi|1|ref|NC.1| a >b", "gi|1|ref|NC.1|", "a >b"),
        (">1 répétition", "1", "répétition"),
    ],
)
def test_the_name_is_the_first_word_of_the_header(tmp_path, header, name, description):
    path = tmp_path / "a.fa"
    path.write_text(f"{header}\r\nACGT\r\n", encoding="utf-8", newline="")
    assert read(path)[0][:2] == [name, description]


def test_a_byte_order_mark_before_the_first_header_is_skipped(tmp_path):
    path = tmp_path / "a.fa"
    path.write_bytes(b"\xef\xbb\xbf>a\nACGT\n")
    assert read(path)[0][3] == "ACGT"


def test_gzip_in_members_and_bgzip_read_as_the_plain_file(tmp_path):
    plain = b">a\nACGTN\nacgt\n>b\nGG\n"
    (tmp_path / "a.fa").write_bytes(plain)
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress(plain[:7]) + gzip.compress(plain[7:]))
    (tmp_path / "b.fa.gz").write_bytes(bgzip(plain[:9]) + bgzip(plain[9:]) + BGZF_END)
    expected = read(tmp_path / "a.fa")
    assert read(tmp_path / "a.fa.gz") == read(tmp_path / "b.fa.gz") == expected


def test_without_isal_the_standard_library_decompresses(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_isal(name, *rest):
        if name.startswith("isal"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_isal)
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(b">a\nACGT\n"))
    assert read(path)[0][3] == "ACGT"
    path.write_bytes(gzip.compress(b">a\n" + b"ACGT" * 999)[:-12])
    with pytest.raises(FormatError, match="truncated"):
        read(path)


def test_a_compressed_file_is_known_by_its_own_sha256_a_plain_one_is_not(tmp_path):
    digests = []
    for name, content in (("a.fa", b">a\nAC\n"), ("a.fa.gz", gzip.compress(b">a\nAC\n"))):
        (tmp_path / name).write_bytes(content)
        list(read_fasta(tmp_path / name, on_end=digests.append))
    assert digests == [None, hashlib.sha256(content).hexdigest()]


def bgzip(data: bytes) -> bytes:
    """One BGZF block: a gzip member with its own length in the extra field BC."""
    member = gzip.compress(data, mtime=0)
    size = len(member) + 8 - 1
    head = member[:3] + b"\x04" + member[4:10] + b"\x06\x00BC\x02\x00" + size.to_bytes(2, "little")
    return head + member[10:]


BAD = {
    "empty": (b"", "is empty, expected FASTA"),
    "blank": (b" \n\r\n", "holds only white space"),
    "much blank": (b"\n" * 5000, "holds no FASTA header"),
    "late text": (b"\n" * 5000 + b"ACGT\n", "line 5001: expected a FASTA header '>NAME', got 'A'"),
    "indented": (b"\n  >a\nACGT\n", "line 2: expected '>' at the beginning of a line"),
    "no header": (b"ACGTACGT\nACGT\n", "looks like a sequence without a header; put a line"),
    "protein": (b">p\nMKVLAT\n", "line 2, contig 'p': expected DNA letters (A C G T U N and "
                "IUPAC), got 'L', an amino acid: this is a protein FASTA"),
    "FASTQ": (b"@r\nACGT\n+\nIIII\n", "looks like FASTQ (reads); give an assembled genome"),
    "GenBank": (b"LOCUS       X\n", "looks like GenBank"),
    "EMBL": (b"ID   X56734; SV 1;\n", "looks like EMBL"),
    "2bit": (b"\x43\x27\x41\x1a\x00", "looks like UCSC 2bit"),
    "BED": (b"chr1\t0\t10\n", "looks like BED"),
    "GFF": (b"##gff-version 3\n", "looks like GFF"),
    "VCF": (b"##fileformat=VCFv4.2\n", "looks like VCF"),
    "SAM": (b"@SQ\tSN:a\tLN:3\n", "looks like a SAM header"),
    "BAM": (gzip.compress(b"BAM\x01\x00\x00"), "looks like BAM"),
    "bzip2": (b"BZh91AY&SY", "looks like bzip2 data; decompress it"),
    "xz": (b"\xfd7zXZ\x00", "looks like xz data"),
    "zip": (b"PK\x03\x04", "looks like a zip archive"),
    "twice gzip": (gzip.compress(gzip.compress(b">a\nA\n")), "gzip data inside gzip data"),
    "HTML": (b"<!DOCTYPE html><html>", "the download probably failed"),
    "JSON": (b'{"a": ["b"]}', "looks like JSON"),
    "UTF-16": (">a\nACGT\n".encode("utf-16"), "UTF-16; save it as plain text"),
    "comments": (b";old style\n>a\nACGT\n", "remove these lines"),
    "junk": (bytes(range(200)), "looks like binary data"),
    "junk inside": (b">a\nACGT\x00\x01\n", "got byte 0x00: binary data, or a damaged file"),
    "high byte": (b">a\nAC\xe9GT\n", "got byte 0xe9"),
    "comment inside": (b">a\nACGT\n;x\n", "line 3, contig 'a': .* got ';'; FASTQ, comments"),
    "gap": (b">a\nAC-GT\n", "got '-', a gap or a stop: an alignment or a protein"),
    "dot": (b">a\nAC.GT\n", "got '.', a gap"),
    "stop": (b">a\nACGT*\n", "got '*', a gap or a stop"),
    "digits": (b">a\n1 acgt\n", "got '1', a digit"),
    "X": (b">a\nACXGT\n", "got 'X', no IUPAC nucleotide; give DNA, and write an unknown base as N"),
    "z": (b">a\nACzGT\n", "got 'z', no IUPAC nucleotide"),
    "no name": (b">a\nA\n>\nACGT\n", "line 3: a header without a name"),
    "blank name": (b">  \nACGT\n", "line 1: a header without a name"),
    "no bases": (b">a\n>b\nACGT\n", "line 1, contig 'a': expected bases after the header, got"),
    "cut short": (b">a\nACGT\n>b desc", "line 3, contig 'b': expected bases after the header"),
    "Latin-1": (b">chr\xe9\nACGT\n", "the header is not UTF-8 (byte 0xe9)"),
    "control": (b">a\x07b\nACGT\n", "holds control characters"),
    "old Mac": (b">a\rACGT\r", "lines end with CR alone"),
    "joined": (b">a\nACGT>b\nACGT\n", "line 2, contig 'a': .*'>' inside a line"),
    "endless header": (b">" + b"a" * 1_100_000, "a header of at most"),
    "truncated gzip": (gzip.compress(b">a\n" + b"ACGT" * 9999)[:-9], "the file is truncated"),
    "truncated gzip header": (gzip.compress(b">a\nA\n")[:7], "the file is truncated"),
    "gzip and more": (gzip.compress(b">a\nACGT\n") + b"g" * 20, "followed by something else"),
    "gzip bad sum": (gzip.compress(b">a\nACGT\n")[:-8] + b"\x00" * 8, "gzip data is damaged"),
    "bgzip cut": (bgzip(b">a\nACGT\n"), "bgzip data without its end-of-file block"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_dna_fasta_is_refused_in_one_line_that_says_what_it_is(tmp_path, what):
    content, words = BAD[what]
    path = tmp_path / "input file"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert str(path) in message
    for part in words.split(".*"):
        assert part in message


def test_a_damaged_deflate_stream_is_refused(tmp_path):
    data = bytearray(gzip.compress(b">a\n" + bytes(b"ACGT"[i * i % 7 % 4] for i in range(5000))))
    data[60:64] = b"\xff\xff\xff\xff"
    (tmp_path / "a.fa.gz").write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        read(tmp_path / "a.fa.gz")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read(tmp_path / "missing.fa")
    with pytest.raises(ArtifactError, match="is a folder, expected a FASTA file"):
        read(tmp_path)


def test_codes_are_those_of_the_alphabet(tmp_path):
    (tmp_path / "a.fa").write_text(">a\nACGTUNRYSWKMBDHVacgtunryswkmbdhv\n")
    (item,) = (i for i in read_fasta(tmp_path / "a.fa") if not isinstance(i, Header))
    assert item.codes.tolist() == encode_ascii(b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv").tolist()
