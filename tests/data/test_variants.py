import gzip
import os
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.variants import Variant, read_variants, read_vcf, write_vcf
from dnassm.data.vcf import AMBIGUOUS, BREAKEND, MISSING, STAR, SYMBOLIC, VcfReader
from dnassm.errors import ArtifactError, FormatError

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
        (HEADER + record(pos="five"), "x.vcf:3: POS must be a whole number, got 'five'"),
        (HEADER + record(pos="0"), "POS 0"),
        (HEADER + record(pos="-1"), "got '-1'"),
        (HEADER + record(pos="٣"), "POS must be"),
        (HEADER + record(ref="AX"), "x.vcf:3: REF must be letters A C G T N or IUPAC, got 'AX'"),
        (HEADER + record(ref="R"), r"x.vcf:3: 'R' \(ambiguous letters\) has no sequence"),
        (HEADER + record(ref=""), "REF must be"),
        (HEADER + record(alt="."), "no alternative"),
        (HEADER + record(alt="G,"), "ALT must be letters A C G T N, got ''"),
        (HEADER + record(alt="G,*"), r"x.vcf:3: '\*' \('\*' \(deleted"),
        (HEADER + record(alt="<DEL>"), r"x.vcf:3: '<DEL>' \(symbolic\)"),
        (HEADER + record(alt="G]17:198982]"), r"x.vcf:3: 'G\]17:198982\]' \(breakend\)"),
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


def test_alleles_without_a_sequence_are_counted_by_kind_and_the_others_read(tmp_path):
    path = write(
        tmp_path,
        "##contig=<ID=c,length=99>\n##contig=<ID=d>\n"
        + HEADER
        + record(alt="G,*,<DEL>,T")
        + record(alt=".")
        + record(alt="<INS:ME,x>,C[c:3[,]c:3]C,.C,C.,[<x>:3[C")
        + record(ref="AR", alt="T,C")
        + record(alt="Y,g"),
    )
    found = read_variants(path)
    assert [v.alt for v in found.variants] == ["G", "T", "G"]
    assert found.refused == {STAR: 1, SYMBOLIC: 2, MISSING: 1, BREAKEND: 5, AMBIGUOUS: 3}
    assert found.examples[AMBIGUOUS] == ("AR", 8)
    assert found.examples[SYMBOLIC] == ("<DEL>", 5)
    assert found.contigs == {"c": 99, "d": None}
    assert "x.vcf: 3 variants; refused: 1 '*'" in found.summary()
    assert "2 symbolic (first: <DEL> in line 5)" in found.summary()
    assert read_variants(path, info=False).variants[0].info == {}


def test_a_record_cut_off_in_its_samples_is_refused(tmp_path):
    header = HEADER.rstrip() + "\tFORMAT\ta\tb\t\n"  # a tab at the end of the header counts not
    whole = record().rstrip() + "\tGT\t0|1\t1|1\n"
    assert len(read_vcf(write(tmp_path, header + whole))) == 1
    reader = VcfReader(write(tmp_path, header + whole))
    assert reader.samples == ("a", "b")
    assert [r.samples for r in reader] == ["GT\t0|1\t1|1"]
    with pytest.raises(FormatError, match=r"x\.vcf:4: expected at least 11 columns .* got 10"):
        read_vcf(write(tmp_path, header + whole + whole[:-5] + "\n"))


@pytest.mark.parametrize(
    "alt", ["<DEL", "DEL>", "<>", "<a b>", "I", "G[3", "[c:3]G", "ß", "G ", "-"]
)
def test_what_no_vcf_knows_is_an_error_and_not_counted(tmp_path, alt):
    with pytest.raises(FormatError, match=r"x\.vcf:3: ALT must be letters"):
        read_variants(write(tmp_path, HEADER + record(alt=alt)))


def test_bcf_from_a_pipe_is_refused_by_name(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    content = b"BCF\x02\x02\x10\x00\x00\x00##fileformat=VCFv4.2\n"
    writer = threading.Thread(target=path.write_bytes, args=[content])
    writer.start()
    with pytest.raises(FormatError, match="got BCF from a pipe; give the file itself"):
        read_variants(path)
    writer.join()


def oracle(text):
    """Variants of a VCF, read the plain way: split at tabs and commas, take what is a sequence."""
    found = []
    for line in text.split("\n"):
        if line.startswith("#") or not line.strip():
            continue
        columns = line.removesuffix("\r").split("\t")
        for alt in re.sub("<[^<>]*>", "<>", columns[4]).split(","):
            ref, alt = columns[3].upper(), alt.upper()
            if set(ref + alt) <= set("ACGTN") and alt and int(columns[1]):
                found.append((columns[0], int(columns[1]) - 1, ref, alt))
    return found


junk = st.text(st.characters(max_codepoint=0x250, exclude_characters="\0"), max_size=6)
alleles = st.sampled_from(["A", "acg", "<DEL>", "<a,b>", "*", ".", "G]c:1]", "", "X"])
columns = st.tuples(
    st.sampled_from(["c", "chr1", "", "a b", "#"]) | junk,
    st.integers(-1, 10**20).map(str) | st.sampled_from(["1e3", "", "007", "1_0"]) | junk,
    junk,
    st.text("ACGTNacgtnRß.*", max_size=4),
    st.lists(
        st.sampled_from(["A", "acg", "<DEL>", "<a,b>", "*", ".", "G]c:1]", "", "X"]) | junk,
        max_size=4,
    ).map(",".join),
    junk,
    junk,
    junk,
    junk,
).map("\t".join)
good = st.tuples(
    st.sampled_from(["c", "chr2"]),
    st.integers(1, 10**12).map(str),
    st.just("."),
    st.text("ACGTNacgtn", min_size=1, max_size=4),
    st.lists(st.text("ACGTNacgt", min_size=1, max_size=3), min_size=1, max_size=3).map(",".join),
    st.just(".\t.\tX=1"),
).map("\t".join)
bodies = st.lists(good | columns | junk, max_size=6)


def outcome(path):
    try:
        return read_variants(path), ""
    except (FormatError, ArtifactError) as error:
        return None, str(error)


@settings(max_examples=300, deadline=None)
@given(bodies, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_text_is_read_as_it_says_or_refused_in_one_line(tmp_path_factory, body, end, packed):
    text = end.join([*HEADER.splitlines(), *body])
    path = tmp_path_factory.mktemp("fuzz") / "x.vcf"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found, message = outcome(path)
    if found is None:
        assert str(path) in message
        assert "\n" not in message
        assert body
    else:
        read = [(v.contig, v.position, v.ref, v.alt) for v in found.variants]
        assert read == oracle(text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda b: HEADER.encode() + b))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "x.vcf"
    path.write_bytes(content)
    found, message = outcome(path)
    if found is None:
        assert str(path) in message
    else:
        assert all(v.position >= 0 and v.ref and v.alt for v in found.variants)
