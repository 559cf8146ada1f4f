"""Every VCF of a folder of odd and broken files, each read right or refused for a stated reason.

The table holds the reader's answers, each of which was looked at: a change of behaviour has to
change the table. What is read is also compared with a parser of a few lines that knows no errors.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from pathlib import Path

import pytest

from dnassm.data.annotation import read_bed, read_gff
from dnassm.data.variants import read_variants
from dnassm.errors import DnassmError

# (variants, refused alleles) or a number of intervals of a file that is read, or the line and words
# of the error of one that is refused.
EXPECTED: dict[str, tuple[int, int] | int | str] = {
    "SOURCE.md": "1: expected the header CHROM POS ID REF ALT QUAL",
    "baskerville/eqtl.vcf": "2: expected the header line #CHROM POS ID REF ALT",
    "baskerville/eqtl_flip.vcf": "2: expected the header line #CHROM POS ID REF ALT",
    "baskerville/snp.vcf": "2: expected the header line #CHROM POS ID REF ALT",
    "bcftools/check.vcf": (24, 0),
    "bcftools/checkploidy.2.vcf": (4, 0),
    "bcftools/checkploidy.vcf": (2, 0),
    "bcftools/consensus.10.vcf": (1, 1),
    "bcftools/consensus.11.vcf": (3, 0),
    "bcftools/consensus.12.vcf": (13, 3),
    "bcftools/consensus.13.vcf": (1, 3),
    "bcftools/consensus.14.vcf": (1, 0),
    "bcftools/consensus.15.vcf": (5, 0),
    "bcftools/consensus.16.vcf": (15, 1),
    "bcftools/consensus.17.vcf": (0, 0),
    "bcftools/consensus.18.vcf": (1, 12),
    "bcftools/consensus.19.vcf": (1, 9),
    "bcftools/consensus.20.vcf": (4, 0),
    "bcftools/consensus.21.vcf": (4, 0),
    "bcftools/consensus.22.vcf": (9, 1),
    "bcftools/consensus.9.vcf": (1, 1),
    "bcftools/consensus.beyond.vcf": (1, 0),
    "bcftools/consensus.gvcf-missing.1.vcf": (0, 5),
    "bcftools/consensus.overlaps.1.vcf": (5, 5),
    "bcftools/consensus.vcf": (13, 1),
    "bcftools/consensus2.vcf": (8, 0),
    "bcftools/consensus3.vcf": (3, 1),
    "bcftools/consensus4.vcf": (4, 0),
    "bcftools/consensus5.vcf": (3, 0),
    "bcftools/consensus6.vcf": (3, 0),
    "bcftools/consensus7.vcf": (6, 0),
    "bcftools/consensus8.vcf": (13, 3),
    "bcftools/convert.23andme.vcf": (12, 15),
    "bcftools/convert.gs.noids.vcf": (32, 0),
    "bcftools/convert.gs.vcf": (32, 0),
    "bcftools/convert.gt.noHead.ids.vcf": (32, 0),
    "bcftools/convert.gt.noHead.vcf": (34, 1),
    "bcftools/convert.gt.vcf": (34, 0),
    "bcftools/convert.gvcf.vcf": (1, 30),
    "bcftools/convert.hap-missing.vcf": (4, 1),
    "bcftools/convert.tsv.vcf": (7, 17),
    "bcftools/convert.vcf": (34, 0),
    "bcftools/csq.2.vcf": (2, 0),
    "bcftools/csq.nchr.vcf": (1, 0),
    "bcftools/csq.vcf": (33, 0),
    "bcftools/csq.ychr.vcf": (1, 0),
    "bcftools/csq.yychr.vcf": (1, 0),
    "bcftools/filter-missing-floats.vcf": (35, 0),
    "bcftools/filter.1.vcf": (16, 0),
    "bcftools/filter.10.vcf": (2, 0),
    "bcftools/filter.11.vcf": (4, 0),
    "bcftools/filter.12.vcf": (6, 0),
    "bcftools/filter.13.vcf": (1, 1),
    "bcftools/filter.2.vcf": (17, 1),
    "bcftools/filter.3.vcf": (4, 0),
    "bcftools/filter.4.vcf": (2, 0),
    "bcftools/filter.5.vcf": (3, 0),
    "bcftools/filter.6.vcf": (1, 0),
    "bcftools/filter.7.vcf": (14, 1),
    "bcftools/filter.8.vcf": (1, 0),
    "bcftools/filter.9.vcf": (1, 0),
    "bcftools/filter.string.1.vcf": (3, 0),
    "bcftools/merge.10.a.vcf": (4, 0),
    "bcftools/merge.10.b.vcf": (4, 0),
    "bcftools/merge.11.a.vcf": (3, 2),
    "bcftools/merge.11.b.vcf": (3, 1),
    "bcftools/merge.12.a.vcf": (1, 1),
    "bcftools/merge.12.b.vcf": (2, 1),
    "bcftools/merge.2.a.vcf": (9, 0),
    "bcftools/merge.2.b.vcf": (10, 0),
    "bcftools/merge.3.a.vcf": (1, 0),
    "bcftools/merge.3.b.vcf": (1, 0),
    "bcftools/merge.4.a.vcf": (5, 0),
    "bcftools/merge.4.b.vcf": (5, 0),
    "bcftools/merge.5.a.vcf": (5, 2),
    "bcftools/merge.5.b.vcf": (3, 2),
    "bcftools/merge.6.a.vcf": (2, 0),
    "bcftools/merge.6.b.vcf": (2, 0),
    "bcftools/merge.7.a.vcf": (1, 0),
    "bcftools/merge.7.b.vcf": (1, 0),
    "bcftools/merge.8.a.vcf": (1, 0),
    "bcftools/merge.8.b.vcf": (1, 0),
    "bcftools/merge.9.a.vcf": (1, 0),
    "bcftools/merge.9.b.vcf": (1, 0),
    "bcftools/merge.LPL.a.vcf": (7, 0),
    "bcftools/merge.LPL.b.vcf": (7, 0),
    "bcftools/merge.LPL.c.vcf": (7, 0),
    "bcftools/merge.a.vcf": (17, 1),
    "bcftools/merge.b.vcf": (14, 0),
    "bcftools/merge.broken-gvcf.a.vcf": (0, 2),
    "bcftools/merge.broken-gvcf.b.vcf": (0, 2),
    "bcftools/merge.c.vcf": (15, 1),
    "bcftools/merge.gvcf.10.a.vcf": (1, 4),
    "bcftools/merge.gvcf.10.b.vcf": (2, 2),
    "bcftools/merge.gvcf.11.a.vcf": (0, 2),
    "bcftools/merge.gvcf.11.b.vcf": (0, 2),
    "bcftools/merge.gvcf.11.c.vcf": (0, 2),
    "bcftools/merge.gvcf.2.a.vcf": (6, 11),
    "bcftools/merge.gvcf.2.b.vcf": (7, 11),
    "bcftools/merge.gvcf.2.c.vcf": (1, 0),
    "bcftools/merge.gvcf.3.a.vcf": (0, 1),
    "bcftools/merge.gvcf.3.b.vcf": (3, 0),
    "bcftools/merge.gvcf.4.a.vcf": (0, 2),
    "bcftools/merge.gvcf.4.b.vcf": (1, 5),
    "bcftools/merge.gvcf.5.a.vcf": (0, 1),
    "bcftools/merge.gvcf.5.b.vcf": (1, 1),
    "bcftools/merge.gvcf.7.a.vcf": (3, 2),
    "bcftools/merge.gvcf.7.b.vcf": (2, 2),
    "bcftools/merge.gvcf.8.a.vcf": (2, 1),
    "bcftools/merge.gvcf.8.b.vcf": (1, 1),
    "bcftools/merge.gvcf.9a.vcf": (1, 2),
    "bcftools/merge.gvcf.9b.vcf": (0, 2),
    "bcftools/merge.gvcf.9c.vcf": (1, 2),
    "bcftools/merge.gvcf.9d.vcf": (1, 2),
    "bcftools/merge.gvcf.9e.vcf": (0, 2),
    "bcftools/merge.join.a.vcf": (3, 0),
    "bcftools/merge.join.b.vcf": (2, 0),
    "bcftools/merge.mrules.1.a.vcf": (4, 4),
    "bcftools/merge.mrules.1.b.vcf": (4, 4),
    "bcftools/merge.multiallelics.1.a.vcf": (2, 0),
    "bcftools/merge.multiallelics.1.b.vcf": (1, 0),
    "bcftools/merge.noidx.a.vcf": (4, 0),
    "bcftools/merge.noidx.b.vcf": (8, 0),
    "bcftools/merge.noidx.c.vcf": (8, 0),
    "bcftools/merge.phased.1.a.vcf": (1, 0),
    "bcftools/merge.phased.1.b.vcf": (1, 0),
    "bcftools/merge.symbolic.1.a.vcf": (0, 1),
    "bcftools/merge.symbolic.1.b.vcf": (0, 1),
    "bcftools/norm.2.vcf": (2, 3),
    "bcftools/norm.3.vcf": (2, 0),
    "bcftools/norm.4.vcf": (5, 0),
    "bcftools/norm.5.vcf": (3, 0),
    "bcftools/norm.6.vcf": (2, 2),
    "bcftools/norm.atom-split-norm.vcf": (2, 0),
    "bcftools/norm.breakend.1.vcf": (0, 2),
    "bcftools/norm.check-ref.vcf": (1, 0),
    "bcftools/norm.filter.vcf": (6, 0),
    "bcftools/norm.iupac.vcf": (0, 1),
    "bcftools/norm.join-missing-ploidy.vcf": (4, 0),
    "bcftools/norm.m-any.vcf": (2, 0),
    "bcftools/norm.merge.2.vcf": (3, 3),
    "bcftools/norm.merge.3.vcf": (9, 0),
    "bcftools/norm.merge.4.vcf": (4, 2),
    "bcftools/norm.merge.vcf": (25, 1),
    "bcftools/norm.phased-join.vcf": (3, 0),
    "bcftools/norm.phased-split.vcf": (3, 0),
    "bcftools/norm.right-align.vcf": (2, 0),
    "bcftools/norm.rmdup.2.vcf": (6, 0),
    "bcftools/norm.rmdup.3.vcf": (2, 9),
    "bcftools/norm.rmdup.vcf": (21, 0),
    "bcftools/norm.setref.vcf": "39: REF must be letters A C G T N or IUPAC, got '.'",
    "bcftools/norm.sort.vcf": (3, 0),
    "bcftools/norm.split.2.vcf": (101, 0),
    "bcftools/norm.split.3.vcf": (2, 0),
    "bcftools/norm.split.4.vcf": (4, 0),
    "bcftools/norm.split.5.vcf": (4, 0),
    "bcftools/norm.split.merge.vcf": (29, 0),
    "bcftools/norm.split.vcf": (29, 1),
    "bcftools/norm.string-tags.vcf": (16, 0),
    "bcftools/norm.symbolic.2.vcf": (2, 2),
    "bcftools/norm.symbolic.3.vcf": (1, 1),
    "bcftools/norm.symbolic.vcf": (2, 2),
    "bcftools/norm.telomere.vcf": (1, 0),
    "bcftools/norm.vcf": "60: ALT must be letters A C G T N, got 'I'",
    "bcftools/query.2.vcf": (1, 0),
    "bcftools/query.3.vcf": (1, 0),
    "bcftools/query.add-variantkey.vcf": (66, 0),
    "bcftools/query.filter-or.vcf": (0, 1),
    "bcftools/query.filter-type.vcf": (5, 1),
    "bcftools/query.filter.10.vcf": (3, 0),
    "bcftools/query.filter.11.vcf": (3, 0),
    "bcftools/query.filter.12.vcf": (9, 0),
    "bcftools/query.filter.13.vcf": (4, 0),
    "bcftools/query.filter.14.vcf": (2, 0),
    "bcftools/query.filter.15.vcf": "5: REF must be letters A C G T N or IUPAC, got '*'",
    "bcftools/query.filter.2.vcf": (18, 0),
    "bcftools/query.filter.3.vcf": (18, 0),
    "bcftools/query.filter.4.vcf": (15, 2),
    "bcftools/query.filter.5.vcf": (20, 0),
    "bcftools/query.filter.6.vcf": (12, 1),
    "bcftools/query.filter.7.vcf": (2, 0),
    "bcftools/query.filter.8.vcf": (2, 0),
    "bcftools/query.filter.9.vcf": (4, 0),
    "bcftools/query.filter.id.vcf": (0, 3),
    "bcftools/query.filter.vcf": (4, 0),
    "bcftools/query.func.1.vcf": (4, 0),
    "bcftools/query.gtidx.1.vcf": (4, 0),
    "bcftools/query.header.vcf": (1, 0),
    "bcftools/query.negative.vcf": (20, 0),
    "bcftools/query.nucleotide.vcf": (67, 0),
    "bcftools/query.pbinom.1.vcf": (24, 0),
    "bcftools/query.smpl.vcf": (1, 0),
    "bcftools/query.string.2.vcf": (3, 0),
    "bcftools/query.string.vcf": (3, 0),
    "bcftools/query.variantkey.vcf": (66, 0),
    "bcftools/query.vcf": (16, 1),
    "bcftools/view-a.vcf": (1, 1),
    "bcftools/view-t.vcf": (4, 0),
    "bcftools/view.GL-GP.vcf": (15, 1),
    "bcftools/view.GL.vcf": (15, 1),
    "bcftools/view.GP.vcf": (36, 0),
    "bcftools/view.GT.vcf": (36, 0),
    "bcftools/view.PL.vcf": (15, 1),
    "bcftools/view.chrs.vcf": (96, 0),
    "bcftools/view.filter.2.vcf": (2, 0),
    "bcftools/view.filter.annovar.vcf": (2, 1),
    "bcftools/view.filter.vcf": (4, 0),
    "bcftools/view.minmaxac.vcf": (6, 0),
    "bcftools/view.omitgenotypes.vcf": (6, 1),
    "bcftools/view.sites.vcf": (4, 0),
    "bcftools/view.vcf": (15, 1),
    "bcftools/view.vectors.2.vcf": (6, 0),
    "bcftools/view.vectors.vcf": (10, 0),
    "bcftools/view64bit.1.vcf": (2, 0),
    "bcftools/view64bit.2.vcf": (1, 0),
    "bcftools/view64bit.3.vcf": (1, 0),
    "bcftools/view64bit.4.vcf": (1, 0),
    "bcftools/view64bit.5.vcf": (6, 0),
    "bedtools2/intersect__a_vcfSVtest.vcf": "2: expected the header line #CHROM POS ID REF ALT",
    "bedtools2/intersect__b.issue311.vcf": (1, 0),
    "bedtools2/intersect__b_vcfSVtest.vcf": "2: expected the header line #CHROM POS ID REF ALT",
    "bedtools2/intersect__bug223_d.vcf": "2: expected the header line #CHROM POS ID REF ALT",
    "bedtools2/intersect__bug223_e.vcf": (0, 2),
    "grelu/test_variants.txt": "1: expected the header line #CHROM POS ID REF ALT",
    "hts_specs_vcf_4.3.tar.gz": "1: expected the header line #CHROM POS ID REF ALT",
    "htsjdk/HiSeq.10000.vcf.bgz": (9965, 0),
    "htslib/formatcols.vcf": (1, 0),
    "htslib/formatmissing.vcf": (1, 0),
    "htslib/large_chr.vcf": (12, 1),
    "htslib/modhdr.vcf.gz": (0, 0),
    "htslib/noroundtrip.vcf": (5, 0),
    "htslib/test-vcf-hdr-in.vcf": (10, 2),
    "htslib/vcf44_1.vcf": (28, 0),
    "htslib/vcf_file.vcf": (322, 1),
    "htslib/vcf_meta_meta.vcf": (1, 0),
    "htslib/weird-chr-names.vcf": (6, 0),
    "pysam/13.vcf": (179, 0),
    "pysam/20.vcf": (300, 0),
    "pysam/21.vcf": (300, 0),
    "pysam/empty.bed.gz": 0,
    "pysam/example_badcomments.bed.gz": 164,
    "pysam/example_badcomments.gtf.gz": 237,
    "pysam/example_badcomments.vcf.gz": (6, 1),
    "pysam/example_comments.bed.gz": 164,
    "pysam/example_comments.gtf.gz": 237,
    "pysam/example_comments.vcf.gz": (6, 1),
    "pysam/example_empty.vcf": "expected a VCF, found no header line #CHROM POS ID REF ALT",
    "pysam/example_unicode.vcf": (6, 1),
    "pysam/example_vcf40.vcf": (6, 1),
    "pysam/example_vcf42.vcf": (6, 1),
    "pysam/example_vcf42_only_header.vcf": (0, 0),
    "pysam/example_vcf42_withcontigs.vcf": (6, 1),
    "pysam/example_vcf43.vcf": (6, 1),
    "pysam/example_vcf43_with_utf8.vcf": (7, 1),
    "pysam/fivecolumns.bed": 4,
    "pysam/gnomad.vcf": (10, 0),
    "pysam/gnomad_fixed.vcf": (10, 0),
    "pysam/gtf_toofew_fields.gtf.gz": "1: expected 9 tab-separated columns of GFF3 or",
    "pysam/gtf_toomany_fields.gtf.gz": "1: expected 9 tab-separated columns of GFF3 or",
    "pysam/issue85.vcf": "expected a VCF, found no header line #CHROM POS ID REF ALT",
    "pysam/missing_genotypes.vcf": (2, 0),
    "pysam/vcf_v42.vcf": (6, 1),
    "tangermeme/test.vcf": (6, 1),
}

# The suite of the VCF specification: what of its wrong files is refused. The others deviate in
# INFO, FORMAT, samples, IDs, order or the header, none of which can change a base or a position.
REFUSED_OF_SUITE = {
    "body_alt_001": "4: ALT must be letters A C G T N, got 'A T'",
    "body_alt_002": "4: ALT must be letters A C G T N, got ''",
    "body_alt_003": "4: ALT must be letters A C G T N, got '<INS>BLAH>'",
    "body_chrom_002": "4: CHROM must be a name without white space, got 'chr 1'",
    "body_pos_000": "4: POS must be a whole number, got '.'",
    "body_pos_001": "4: POS must be a whole number, got '123abc'",
    "body_pos_002": "4: POS must be a whole number, got '-1'",
    "body_ref_000": "4: REF must be letters A C G T N or IUPAC, got 'C,A'",
    "body_ref_002": "4: REF must be letters A C G T N or IUPAC, got '.'",
    "empty": "expected a VCF, found no header line",
    "empty_sample": "expected a VCF, found no header line",
    "header_000": "2: expected the header CHROM POS ID REF ALT QUAL",
    "meta_002": "4: expected the header line #CHROM POS ID REF ALT",
    "meta_004": "3: expected the header line #CHROM POS ID REF ALT",
    "meta_005": "3: expected the header line #CHROM POS ID REF ALT",
}
# Wrong alleles that are counted instead of read.
COUNTED_OF_SUITE = ("body_alt_000", "body_alt_005", "body_ref_001")


@pytest.fixture(scope="module")
def odd_vcf(real_data) -> Path:
    folder = real_data / "odd_vcf"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="module")
def suite(odd_vcf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    with tarfile.open(odd_vcf / "hts_specs_vcf_4.3.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "vcf/4.3"


def plain_variants(path: Path) -> list[tuple[str, int, str, str]]:
    """Contig, 0-based position, REF and ALT of every allele that is a sequence."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    found = []
    for line in io.StringIO(text, newline=None):
        if line.startswith("#") or not line.strip():
            continue
        contig, position, _, ref, alts = line.rstrip("\n").split("\t")[:5]
        for alt in re.sub("<[^<>]*>", "<>", alts).upper().split(","):
            if re.fullmatch("[ACGTN]+,[ACGTN]+", f"{ref.upper()},{alt}") and int(position):
                found.append((contig, int(position) - 1, ref.upper(), alt))
    return found


def check_read(path: Path) -> tuple[int, int]:
    found = read_variants(path)
    assert [(v.contig, v.position, v.ref, v.alt) for v in found.variants] == plain_variants(path)
    return len(found.variants), sum(found.refused.values())


def read_any(path: Path) -> object:
    if ".bed" in path.name:
        return len(read_bed(path))
    return len(read_gff(path)) if ".gtf" in path.name else check_read(path)


def table() -> list[str]:
    """The rows that docs/odd_files.md has."""
    rows = ["| file | outcome |", "|---|---|"]
    for name, answer in sorted(EXPECTED.items()):
        if isinstance(answer, tuple):
            counted = f", {answer[1]} alleles counted as refused" if answer[1] else ""
            outcome = f"{answer[0]} variants{counted}"
        elif isinstance(answer, int):
            outcome = f"{answer} intervals"
        else:
            outcome = f"refused: {'line ' if answer[0].isdigit() else ''}{answer}"
        rows.append(f"| {name} | {outcome} |")
    return rows


def test_the_documentation_has_the_same_table():
    text = (Path(__file__).parents[2] / "docs/odd_files.md").read_text(encoding="utf-8")
    section = text.partition("## VCF\n\n")[2].partition("\n\n")[0]
    assert section.rstrip().split("\n") == table()


def test_the_table_names_exactly_the_files_of_the_folder(odd_vcf):
    files = {p.relative_to(odd_vcf).as_posix() for p in odd_vcf.rglob("*") if p.is_file()}
    assert files == set(EXPECTED)


@pytest.mark.parametrize("name", [k for k, v in EXPECTED.items() if not isinstance(v, str)])
def test_a_file_is_read_as_a_plain_parser_reads_it(odd_vcf, name):
    assert read_any(odd_vcf / name) == EXPECTED[name]


def refusal(path: Path) -> str:
    with pytest.raises(DnassmError) as caught:
        read_any(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert "\n" not in message
    return message.removeprefix(f"{path}:").strip()


@pytest.mark.parametrize("name", [k for k, v in EXPECTED.items() if isinstance(v, str)])
def test_a_file_is_refused_in_one_line_that_says_where_and_why(odd_vcf, name):
    assert refusal(odd_vcf / name).startswith(str(EXPECTED[name]))


def test_the_suite_of_the_specification_is_complete(suite):
    assert len(list(suite.glob("passed/*.vcf"))) == 25
    assert len(list(suite.glob("failed/*.vcf"))) == 224


def test_every_right_file_of_the_specification_is_read(suite):
    for path in sorted(suite.glob("passed/*.vcf")):
        check_read(path)


def test_wrong_files_of_the_specification_are_read_only_where_no_base_can_change(suite):
    for path in sorted(suite.glob("failed/*.vcf")):
        name = path.stem.removeprefix("failed_")
        if name in REFUSED_OF_SUITE:
            assert refusal(path).startswith(REFUSED_OF_SUITE[name])
        else:
            variants, refused = check_read(path)
            assert (refused > 0 and variants == 0) or name not in COUNTED_OF_SUITE
