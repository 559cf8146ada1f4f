"""What the fuzzers found, each with its smallest input."""

from __future__ import annotations

import pytest

from dnassm.data import lines
from dnassm.data.annotation import read_bed, read_gff
from dnassm.data.haplotypes import read_phased
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.variants import read_variants
from dnassm.errors import ArtifactError, FormatError
from tests.fuzz.targets import TARGETS, outcome, seeds


@pytest.mark.parametrize("blank", ["\x1c", "\x1d", "\x1e", "\x1f", "\xa0", "\x0b", "\r"])
def test_a_number_with_odd_white_space_beside_it_is_refused(tmp_path, blank):
    """`\\s` of a regular expression matches more than int() strips: it was a ValueError."""
    (tmp_path / "x.bed").write_bytes(f"c\t0\t0{blank}\t\n".encode())
    with pytest.raises(FormatError, match=r"x\.bed:1: end: expected a whole number of bases"):
        read_bed(tmp_path / "x.bed")
    (tmp_path / "x.gff").write_bytes(f"c\tx\tgene\t1\t{blank}9\t.\t+\t.\t.\n".encode())
    with pytest.raises(FormatError, match=r"x\.gff:1: end: expected a whole number of bases"):
        read_gff(tmp_path / "x.gff")
    TARGETS["bed"].check(f"c\t0\t0{blank}\n".encode())


HEAD = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts\n"
MANY = 400_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("commas of ALT behind a <", HEAD + "c\t1\t.\tA\t<" + "," * MANY + "\t.\t.\t.\tGT\t0\n"),
        ("a long word in ##contig", "##contig=<" + "a" * MANY + ">\n" + HEAD),
        ("a contig line of >", "##contig=<" + ">  " * MANY + "x\n" + HEAD),
        ("brackets of ALT", HEAD + "c\t1\t.\tA\t[" + "c:1" * MANY + "\t.\t.\t.\tGT\t0\n"),
    ],
)
def test_a_long_field_of_a_vcf_takes_no_time(tmp_path, name, content):
    """The time of the first two grew with the square of the length: minutes."""
    (tmp_path / "x.vcf").write_text(content)
    outcome(lambda: read_variants(tmp_path / "x.vcf"))


@pytest.mark.timeout(60)
def test_white_space_in_the_attributes_of_a_gtf_takes_no_time(tmp_path):
    attributes = 'gene_id "a";' + " " * MANY + ";" + " " * MANY + 'tag "b"; level 3'
    (tmp_path / "x.gtf").write_text(f"c\tx\tCDS\t3\t9\t.\t+\t0\t{attributes}\n")
    assert read_gff(tmp_path / "x.gtf")[0].attributes == {"gene_id": "a", "tag": "b", "level": "3"}


@pytest.mark.timeout(60)
def test_a_line_of_many_blocks_is_put_together_once(tmp_path, monkeypatch):
    """Each block was joined to all those before it."""
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 1 << 10)
    long = "A" * (40 << 20)
    (tmp_path / "x").write_text(f"a\n{long}\nb\n\n\nc")
    assert [line for _, line in lines.read_lines(tmp_path / "x")] == ["a", long, "b", "", "", "c"]


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_LONGEST_LINE", 1 << 20)
    (tmp_path / "x.bed").write_text("A" * (3 << 20))
    with pytest.raises(FormatError, match=r"x\.bed: expected lines of at most 1,048,576 bytes"):
        read_bed(tmp_path / "x.bed")


def test_a_genotype_of_5000_digits_is_refused(tmp_path):
    """More digits than int() takes: it was a ValueError."""
    (tmp_path / "x.vcf").write_text(HEAD + f"c\t1\t.\tA\tG\t.\t.\t.\tGT\t0|{'9' * 5000}\n")
    with pytest.raises(FormatError, match=r"x\.vcf:3: GT must be like 0\|1"):
        read_phased(tmp_path / "x.vcf")


@pytest.mark.timeout(60)
def test_a_bcf_that_numbers_its_fields_by_billions_is_refused(tmp_path):
    """The library makes a slot for every number up to the largest: 8 GB, half a minute."""
    pytest.importorskip("pysam")
    bcf = b"BCF" + seeds("bcf")[0]
    (tmp_path / "x.bcf").write_bytes(bcf.replace(b"IDX=1>", b"IDX=999999999>", 1))
    with pytest.raises(FormatError, match=r"x\.bcf: expected numbers up to 1,000,000 .* got IDX=9"):
        read_variants(tmp_path / "x.bcf")


def store_after(tmp_path, change):
    """The message of a store that does not open after a change of the text of its header."""
    (tmp_path / "g.fa").write_text(">a\nACGT\n>b\nTTTT\n")
    build_store([tmp_path / "g.fa"], tmp_path / "g", force=True)
    header = tmp_path / "g" / "store.json"
    header.write_text(change(header.read_text()))
    with pytest.raises(ArtifactError) as caught:
        GenomeStore.open(tmp_path / "g")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_store_whose_header_was_changed_does_not_open(tmp_path):
    """A number with a point was a TypeError on reading; another offset gave other bases."""
    for old, new, said in [
        ('"offset": 4', '"offset": 4.0', "does not begin"),
        ('"offset": 4', '"offset": 0', "does not begin where the one before it ends"),
        ('"name": "b"', '"name": "a"', "the digest is not that of the contigs"),
        ('"name": "b"', '"name": "c"', "the digest is not that of the contigs"),
        ('"name"', '"na\\nme"', "unexpected keyword"),
        ('"length": 4', '"length": ' + "9" * 5000, "expected JSON"),
    ]:
        assert said in store_after(tmp_path, lambda text, o=old, n=new: text.replace(o, n))
