import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.store import build_store
from dnassm.data.variants import Variant, check_reference, read_vcf, write_vcf
from dnassm.errors import ArtifactError, FormatError, GenomeError

HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def record(chrom="c", pos="5", name=".", ref="A", alt="G", info="."):
    return f"{chrom}\t{pos}\t{name}\t{ref}\t{alt}\t.\t.\t{info}\n"


def write(folder, text):
    path = folder / "x.vcf"
    path.write_text(text)
    return path


def test_a_record_becomes_a_variant_with_a_0_based_position(tmp_path):
    path = write(tmp_path, HEADER + record(name="rs1", ref="ac", alt="T", info="AF=0.5;DB;X=a=b"))
    info = {"AF": "0.5", "DB": "", "X": "a=b"}
    assert read_vcf(path) == [Variant("c", 4, "AC", "T", "rs1", info)]


def test_several_alternatives_become_several_variants(tmp_path):
    path = write(tmp_path, HEADER + record(ref="A", alt="G,AT,TTN"))
    assert [v.alt for v in read_vcf(path)] == ["G", "AT", "TTN"]


def test_gzip_windows_line_ends_sample_columns_and_empty_lines_are_read(tmp_path):
    text = (HEADER + record() + "\n" + record(pos="6").rstrip() + "\tGT\t0/1\n").replace(
        "\n", "\r\n"
    )
    path = tmp_path / "any.name"
    path.write_bytes(gzip.compress(text.encode()))
    assert [v.position for v in read_vcf(path)] == [4, 5]


letters = st.text("ACGTN", min_size=1, max_size=4)
variants = st.builds(
    Variant,
    st.sampled_from(["c", "chr2"]),
    st.integers(0, 10**9),
    letters,
    letters,
    st.just("x"),
    st.dictionaries(st.sampled_from("KLM"), st.text("ab=", max_size=3)),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(variants, max_size=4), st.sampled_from(["v.vcf", "v.vcf.gz"]))
def test_what_is_written_is_read_back(tmp_path_factory, several, name):
    path = tmp_path_factory.mktemp("vcf") / name
    write_vcf(path, several, contigs={"c": 9}, info={"K": "a key"})
    assert read_vcf(path) == several
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no header line"),
        ("##fileformat=VCFv4.3\n", "no header line"),
        (record(), "x.vcf:1: expected the header line"),
        ("#CHROM\tPOS\n", "x.vcf:1: expected the header CHROM POS ID"),
        (HEADER + "c 5 . A G . . .\n", "x.vcf:3: expected at least 8 columns"),
        (HEADER + record(pos="five"), "x.vcf:3: POS must be a whole number from 1 on, got 'five'"),
        (HEADER + record(pos="0"), "got '0'"),
        (HEADER + record(pos="٣"), "POS must be"),
        (HEADER + record(ref="AX"), "x.vcf:3: REF must be letters A C G T N, got 'AX'"),
        (HEADER + record(ref="R"), "got 'R'"),
        (HEADER + record(ref=""), "REF must be"),
        (HEADER + record(alt="."), "no variant"),
        (HEADER + record(alt="G,"), "ALT must be letters A C G T N, got ''"),
        (HEADER + record(alt="G,*"), r"the '\*' allele"),
        (HEADER + record(alt="<DEL>"), "the symbolic allele <DEL>"),
        (HEADER + record(alt="G]17:198982]"), "the breakend"),
        (HEADER + record(alt="G?"), "got 'G\\?'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_file_and_line(tmp_path, text, said):
    with pytest.raises(FormatError, match=said):
        read_vcf(write(tmp_path, text))


def test_missing_damaged_and_binary_files_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_vcf(tmp_path / "none.vcf")
    whole = gzip.compress((HEADER + record() * 500).encode())
    (tmp_path / "cut.vcf.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"cut\.vcf\.gz"):
        read_vcf(tmp_path / "cut.vcf.gz")
    (tmp_path / "junk").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(FormatError, match="expected UTF-8 text"):
        read_vcf(tmp_path / "junk")


def test_ref_is_compared_with_the_genome(tmp_path):
    (tmp_path / "g.fa").write_text(">c\nACGTacgtNN\n")
    store = build_store([tmp_path / "g.fa"], tmp_path / "g")
    check_reference([Variant("c", 3, "TAC", "G"), Variant("c", 9, "N", "A")], store)
    for bad, said in [
        (Variant("c", 0, "G", "T"), "c:1 G>T: REF is G, the genome has A"),
        (Variant("c", 9, "NN", "T"), "past the end of c"),
        (Variant("d", 0, "A", "T"), "'d'"),
    ]:
        with pytest.raises(GenomeError, match=said):
            check_reference([bad], store)
