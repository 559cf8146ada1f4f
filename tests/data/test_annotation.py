"""GFF3, GTF and BED: real files read right, wrong lines refused, windows labelled by genes."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dnassm.data.annotation import Feature, label_windows, read_bed, read_gff
from dnassm.data.fasta import Header, read_fasta
from dnassm.data.interval import Interval
from dnassm.errors import ArtifactError, ConfigError, FormatError, GenomeError, LabelError


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


GFF = """\
##gff-version 3
##sequence-region c1 1 100
# a comment

c1\tRefSeq\tgene\t1\t9\t.\t+\t.\tID=g1;Name=a%3Bb%20c;Dbxref=X:1,Y%2C2
c%7C2\t.\tCDS\t10\t10\t0.5\t-\t0\tID = c1 ;Parent=g1;
c1\t.\tregion\t5\t8\t.\t?\t.\t.
##FASTA
>c1
ACGT
"""


@pytest.mark.parametrize("name", ["a.gff", "a.gff3.gz"])
def test_a_gff_line_becomes_a_zero_based_half_open_feature(name, tmp_path):
    gene, cds, region = read_gff(write(tmp_path / name, GFF))
    assert gene == Feature(
        Interval("c1", 0, 9, "+"),
        "gene",
        {"ID": "g1", "Name": "a;b c", "Dbxref": "X:1,Y,2"},
        5,
    )
    assert cds == Feature(Interval("c|2", 9, 10, "-"), "CDS", {"ID": "c1", "Parent": "g1"}, 6)
    assert region == Feature(Interval("c1", 4, 8, "+"), "region", {}, 7)


def test_gtf_attributes_are_read_with_semicolons_inside_quotes_and_repeated_keys(tmp_path):
    line = 'c1\tx\texon\t1\t9\t.\t+\t.\tgene_id "a;1"; exon_number 2; tag "x"; tag "y"; lonely\n'
    (exon,) = read_gff(write(tmp_path / "a.gtf", line))
    assert exon.attributes == {"gene_id": "a;1", "exon_number": "2", "tag": "x,y", "lonely": ""}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c1\tx\tgene\t1\t9\t.\t+\t.", "expected 9 tab-separated columns of GFF3 or GTF, got 8"),
        ("c1 x gene 1 9 . + . ID=1", "expected 9 tab-separated columns of GFF3 or GTF, got 1"),
        ("c1\tx\tgene\t9\t1\t.\t+\t.\t.", "expected 1 <= start <= end, got start 9 and end 1"),
        ("c1\tx\tgene\t0\t1\t.\t+\t.\t.", "expected 1 <= start <= end, got start 0"),
        ("c1\tx\tgene\t1\tx9\t.\t+\t.\t.", "end: expected a whole number of bases, got 'x9'"),
        ("c1\tx\tgene\t1.5\t9\t.\t+\t.\t.", "start: expected a whole number of bases, got '1.5'"),
        ("c1\tx\tgene\t1\t9\t.\tplus\t.\t.", "strand: expected '+', '-' or '.', got 'plus'"),
    ],
)
def test_a_wrong_gff_line_is_refused_by_file_and_line(line, message, tmp_path):
    path = write(tmp_path / "bad.gff", f"##gff-version 3\n{line}\n")
    with pytest.raises(FormatError) as caught:
        read_gff(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bed_file_is_read_with_its_header_lines_names_and_strands(tmp_path):
    text = (
        "browser position chr1:1-10\ntrack name=x\n#chrom\tstart\tend\tname\tscore\tstrand\tlabel"
        "\tsplit\n\nchr1\t0\t10\ta b\t5.5\t-\tcoding\ttrain\r\nchr1\t10\t10\t\twhy\t.\tother\ttest"
    )
    first, second = read_bed(write(tmp_path / "a.bed.gz", text))
    assert first.interval == Interval("chr1", 0, 10, "-")
    assert (first.name, first.score, first.label, first.split, first.line) == (
        *("a b", 5.5, "coding", "train"),
        5,
    )
    assert first.columns == ("a b", "5.5", "-", "coding", "train")
    assert second.interval == Interval("chr1", 10, 10, "+")
    assert (second.name, second.score, second.label) == (None, None, "other")


def test_a_bed_line_without_tabs_is_separated_by_spaces(tmp_path):
    records = read_bed(write(tmp_path / "a.bed", "chr1  1 5   x\nchr2 1 5\n"))
    assert [record.interval for record in records] == [
        Interval("chr1", 1, 5),
        Interval("chr2", 1, 5),
    ]
    assert [record.name for record in records] == ["x", None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c1\t5", "expected at least 3 columns of BED (contig, start, end), got 2"),
        ("c1:1-5", "got 1: 'c1:1-5'"),
        ("c1\t9\t1", "expected 0 <= start <= end, got start 9 and end 1"),
        ("c1\t-1\t1", "expected 0 <= start <= end, got start -1"),
        ("c1\tstart\tend", "start: expected a whole number of bases, got 'start'"),
        ("c1\t1\t9e3", "end: expected a whole number of bases, got '9e3'"),
        ("c1\t1\t9\tx\t0\t11", "strand: expected '+', '-' or '.', got '11'"),
        ("c1\t1\t9\tx\t0\t+", "the header names a column 'label', this line has none"),
    ],
)
def test_a_wrong_bed_line_is_refused_by_file_and_line(line, message, tmp_path):
    header = "#chrom\tstart\tend\tname\tscore\tstrand\tlabel"
    path = write(tmp_path / "bad.bed", f"{header}\nc1\t1\t2\tx\t0\t+\tl\n{line}\n")
    with pytest.raises(FormatError) as caught:
        read_bed(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_a_file_that_is_missing_no_text_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.bed does not exist"):
        read_bed(tmp_path / "none.bed")
    with pytest.raises(ArtifactError, match="is a folder"):
        read_gff(tmp_path)
    (tmp_path / "junk.bed").write_bytes(b"chr1\t1\t2\n\xff\xfe\x00")
    with pytest.raises(FormatError, match=r"junk\.bed:2: expected UTF-8 text, got byte 0xff"):
        read_bed(tmp_path / "junk.bed")
    (tmp_path / "cut.gff.gz").write_bytes(gzip.compress(GFF.encode())[:-12])
    with pytest.raises(FormatError, match="truncated"):
        read_gff(tmp_path / "cut.gff.gz")


REFUSED = {
    "intersect__bed6.bed": "strand",
    "intersect__bedplus.bed": "strand",
    "merge__expFormat.bed": "'8e02'",
    "regions.txt": "3 columns",
    "regions2.txt": "start",
    "NA12878.deletions.10kbp.het.gq99.hand_curated.hg19.bed": ":34: end",
    "malformed.bed": ":1: expected at least 3 columns",
}


def test_every_odd_file_is_read_or_refused_by_line(real_data):
    files = [path for path in sorted((real_data / "odd_bed").glob("*/*")) if path.is_file()]
    assert len(files) > 90
    for path in files:
        read = read_gff if path.name.endswith(".gff") else read_bed
        if path.name in REFUSED:
            with pytest.raises(FormatError) as caught:
                read(path)
            assert REFUSED[path.name] in str(caught.value)
        else:
            read(path)


@pytest.fixture(scope="module")
def ecoli(real_data: Path) -> list[Feature]:
    return read_gff(real_data / "ecoli_mg1655" / "GCF_000005845.2_ASM584v2_genomic.gff.gz")


def test_the_real_bacterial_annotation_has_the_known_number_of_features(ecoli):
    counts = Counter(feature.type for feature in ecoli)
    expected = {"gene": 4494, "CDS": 4337, "exon": 207, "pseudogene": 145, "ncRNA": 99, "tRNA": 86}
    assert {name: counts[name] for name in expected} == expected
    thr = next(feature for feature in ecoli if feature.attributes.get("gene") == "thrL")
    assert thr.interval == Interval("NC_000913.3", 189, 255, "+")


def test_real_coding_sequences_begin_with_a_start_codon_on_their_strand(ecoli, real_data):
    genome = real_data / "ecoli_mg1655" / "GCF_000005845.2_ASM584v2_genomic.fna.gz"
    pieces = [item.codes.copy() for item in read_fasta(genome) if not isinstance(item, Header)]
    codes = np.concatenate(pieces) & 0x0F
    whole = [f.interval for f in ecoli if f.type == "CDS" and "pseudo" not in f.attributes]
    starts = Counter()
    for interval in whole:
        read = codes[interval.start : interval.end]
        read = 3 - read[::-1] if interval.strand == "-" else read
        starts["".join("ACGT"[code] for code in read[:3])] += 1
    assert (starts["ATG"] + starts["GTG"] + starts["TTG"]) / len(whole) > 0.99


def test_real_yeast_annotation_is_read(real_data):
    yeast = real_data / "yeast_s288c"
    gtf = Counter(f.type for f in read_gff(yeast / "sacCer3_chrIV.annotation.gtf.gz"))
    assert gtf == {
        "transcript": 885,
        "exon": 924,
        "CDS": 870,
        "start_codon": 836,
        "stop_codon": 836,
    }
    genes = [f for f in read_gff(yeast / "sc_chrom1.gff3.gz") if f.type == "gene"]
    assert len(genes) == 100
    assert {gene.interval.contig for gene in genes} == {"NC_001133.9"}
    bed = read_bed(yeast / "Scer_transcripts_w_verifiedORFs.bed.gz")
    assert len(bed) == 5088
    assert bed[0].interval == Interval("chrI", 147593, 151166, "-")
    assert bed[0].name == "TFC3"


def feature(kind: str, start: int, end: int, strand: str = "+", contig: str = "c") -> Feature:
    return Feature(Interval(contig, start, end, strand), kind, {})


GENES = [
    feature("region", 0, 200),
    feature("gene", 20, 50),
    feature("CDS", 20, 50),
    feature("gene", 100, 140, "-"),
    feature("CDS", 100, 140, "-"),
    feature("tRNA", 150, 160),
]


def test_windows_are_coding_inside_coding_sequences_and_intergenic_away_from_all_genes():
    found = label_windows({"c": 200}, GENES, size=10, step=10, balance=False)
    by_label = {
        name: [
            w.start for w, label in zip(found.intervals, found.labels, strict=True) if label == name
        ]
        for name in ("coding", "intergenic")
    }
    assert by_label["coding"] == [20, 30, 40, 100, 110, 120, 130]
    assert by_label["intergenic"] == [0, 10, 50, 60, 70, 80, 90, 140, 160, 170, 180, 190]
    assert {w.strand for w in found.intervals} == {"+"}
    assert {len(w) for w in found.intervals} == {10}


def test_a_lower_share_of_coding_bases_admits_windows_over_the_edge_of_a_gene():
    found = label_windows({"c": 200}, GENES, size=10, step=5, min_coding=0.5, balance=False)
    coding = [
        w.start for w, label in zip(found.intervals, found.labels, strict=True) if label == "coding"
    ]
    assert coding == [15, 20, 25, 30, 35, 40, 45, *range(95, 136, 5)]


def test_windows_stay_inside_the_regions_and_begin_at_their_starts():
    regions = [Interval("c", 3, 60), Interval("c", 103, 200)]
    found = label_windows(regions, GENES, size=10, step=10, balance=False)
    for window in found.intervals:
        region = next(r for r in regions if r.overlaps(window))
        assert region.start <= window.start
        assert window.end <= region.end
        assert (window.start - region.start) % 10 == 0


def test_gene_strand_reads_genes_forward_and_the_rest_on_either_strand():
    found = label_windows({"c": 200}, GENES, size=5, step=1, strand="gene", balance=False)
    for window, label in zip(found.intervals, found.labels, strict=True):
        if label == "coding":
            assert window.strand == ("+" if window.start < 60 else "-")
    free = Counter(
        window.strand
        for window, label in zip(found.intervals, found.labels, strict=True)
        if label == "intergenic"
    )
    assert 0.25 < free["-"] / free.total() < 0.75


def test_balance_keeps_as_many_of_each_and_the_seed_decides_which():
    arguments = {"size": 5, "step": 1}
    one, same, other = (label_windows({"c": 200}, GENES, **arguments, seed=s) for s in (1, 1, 2))
    assert len(set(Counter(one.labels).values())) == 1
    assert one == same
    assert one != other
    assert list(one.intervals) == sorted(one.intervals)


def test_features_of_other_contigs_only_are_an_error_with_the_nearest_name():
    with pytest.raises(GenomeError, match=r"\(chr1\), got features on chr01.*Did you mean 'chr1'"):
        label_windows({"chr1": 99}, [feature("gene", 1, 9, contig="chr01")], size=5, step=5)


def test_a_class_without_windows_and_wrong_numbers_are_errors():
    with pytest.raises(LabelError, match="got 0 coding and"):
        label_windows({"c": 200}, [feature("gene", 20, 50)], size=10, step=10)
    for wrong in ({"size": 0}, {"step": 0}, {"min_coding": 0.0}, {"min_coding": 1.5}):
        with pytest.raises(ConfigError, match="label_windows: expected size"):
            label_windows({"c": 200}, GENES, **({"size": 10, "step": 10} | wrong))


def test_real_halves_of_a_genome_give_windows_of_both_classes(ecoli):
    for half in (
        Interval("NC_000913.3", 0, 2_320_826),
        Interval("NC_000913.3", 2_320_826, 4_641_652),
    ):
        found = label_windows([half], ecoli, size=200, step=100)
        counts = Counter(found.labels)
        assert counts["coding"] == counts["intergenic"] > 500
        assert all(half.start <= w.start and w.end <= half.end for w in found.intervals)
