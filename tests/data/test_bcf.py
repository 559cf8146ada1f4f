"""BCF gives the records of the VCF that it was made from, or is refused in one line."""

from __future__ import annotations

import builtins
import gzip
import tarfile
from pathlib import Path

import pytest

from dnassm.data.variants import read_variants
from dnassm.data.vcf import VcfReader
from dnassm.errors import DnassmError, FormatError, MissingExtraError

pysam = pytest.importorskip("pysam")

END = '##INFO=<ID=END,Number=1,Type=Integer,Description="end">'
VCF = """##fileformat=VCFv4.3
##contig=<ID=c,length=99>
##contig=<ID=chr2>
##INFO=<ID=AC,Number=A,Type=Integer,Description="count">
##INFO=<ID=DB,Number=0,Type=Flag,Description="known">
##INFO=<ID=END,Number=1,Type=Integer,Description="end">
##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">
##FORMAT=<ID=PS,Number=1,Type=Integer,Description="phase set">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2
c\t5\trs1\tac\tT,*,G\t9\tPASS\tAC=1,2,3;DB\tGT:PS\t0|1:3\t1/2:.
c\t0\t.\tN\tG\t.\t.\t.\tGT\t1\t./.
c\t7\t.\tA\t<DEL>,AT,A[c:9[\t.\t.\tEND=9\tGT\t0/3\t1|1
chr2\t8\t.\tACGTN\tA,Y\t.\t.\t.\tGT\t0\t.
"""


def to_bcf(vcf: Path, bcf: Path, mode: str = "wb") -> Path:
    """Convert with the library; OSError or ValueError where it does not take the file."""
    quiet = pysam.set_verbosity(0)
    try:
        with pysam.VariantFile(str(vcf)) as source:
            if "END" not in source.header.info:  # the library writes it beside symbolic alleles
                source.header.add_line(END)
            with pysam.VariantFile(str(bcf), mode, header=source.header) as target:
                for record in source:
                    target.write(record)
    finally:
        pysam.set_verbosity(quiet)
    return bcf


@pytest.fixture
def vcf(tmp_path):
    path = tmp_path / "x.vcf"
    path.write_text(VCF)
    return path


@pytest.mark.parametrize("mode", ["wb", "wb0"])
def test_bcf_is_read_as_the_vcf_that_it_stands_for(vcf, tmp_path, mode):
    bcf = to_bcf(vcf, tmp_path / "any.name", mode)
    text, binary = read_variants(vcf), read_variants(bcf)
    assert len(text.variants) == 4
    assert binary.variants[0].info == {"AC": "1,2,3", "DB": ""}
    assert [str(v) for v in binary.variants] == [str(v) for v in text.variants]
    assert [v.id for v in binary.variants] == [v.id for v in text.variants]
    assert (binary.refused, binary.contigs) == (text.refused, text.contigs)
    one, other = VcfReader(vcf), VcfReader(bcf)
    assert one.samples == other.samples == ("s1", "s2")
    assert [record.samples for record in one] == [record.samples for record in other]


def test_the_odd_files_are_the_same_as_bcf(real_data, tmp_path):
    with tarfile.open(real_data / "odd_vcf/hts_specs_vcf_4.3.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    same = 0
    files = [*(real_data / "odd_vcf").rglob("*.vcf*"), *tmp_path.rglob("*.vcf")]
    for path in files:
        try:
            bcf = to_bcf(path, tmp_path / "x.bcf")
            text = read_variants(path, info=False)
        except (OSError, ValueError, DnassmError):
            continue  # what either of the two does not read
        binary = read_variants(bcf, info=False)
        assert [str(v) for v in binary.variants] == [str(v) for v in text.variants], path
        assert binary.refused == text.refused, path
        same += 1
    assert same >= 150


def test_what_is_cut_or_damaged_is_refused_in_one_line(vcf, tmp_path):
    whole = to_bcf(vcf, tmp_path / "x.bcf").read_bytes()
    raw = gzip.decompress(whole)
    damaged = {
        "no end block": whole[:-28],
        "cut in a block": whole[: len(whole) // 2],
        "cut in a record": raw[:-9],
        "cut in the header": raw[:90],
        "other version": b"BCF\x04" + raw[4:],
        "header of no bytes": raw[:5] + b"\0" * 4,
        "header of 4 GB": raw[:5] + b"\xff" * 4 + raw[9:],
    }
    for name, data in damaged.items():
        path = tmp_path / "damaged.bcf"
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"damaged\.bcf: [^\n]+\Z") as caught:
            read_variants(path)
        assert "truncated" in str(caught.value), name


def test_a_field_with_a_tab_inside_is_no_other_field(vcf, tmp_path):
    raw = gzip.decompress(to_bcf(vcf, tmp_path / "x.bcf").read_bytes())
    (tmp_path / "tab.bcf").write_bytes(raw.replace(b"rs1", b"r\t1"))
    with pytest.raises(FormatError, match=r"^\S+tab\.bcf:11: expected 11 fields"):
        read_variants(tmp_path / "tab.bcf")


def test_a_missing_library_is_named_with_its_extra(vcf, tmp_path, monkeypatch):
    bcf = to_bcf(vcf, tmp_path / "x.bcf")
    real = builtins.__import__

    def refuse(name, *rest):
        if name.partition(".")[0] == "pysam":
            raise ModuleNotFoundError("No module named 'pysam'", name="pysam")
        return real(name, *rest)

    monkeypatch.delitem(__import__("sys").modules, "pysam")
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.import_module", lambda name: refuse(name))
    with pytest.raises(MissingExtraError, match=r"reading BCF needs pysam.*'dnassm\[vcf\]'"):
        read_variants(bcf)
    assert len(read_variants(vcf).variants) == 4
