"""Every BED and GFF file of a folder of odd and broken files, read right or refused with a reason.

The table holds the reader's answers, each of which was looked at: a change of behaviour has to
change the table. What is read is also compared with a parser of a few lines that knows no errors.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dnassm.data.annotation import read_bed, read_gff
from dnassm.errors import DnassmError

# Number of intervals of a file that is read, or line and words of the error of one that is refused.
EXPECTED: dict[str, int | str] = {
    "SOURCE.md": "3: start: expected a whole number of bases, got 'headers,'",
    "baskerville/seqs.bed": 2,
    "baskerville/sequences.bed": 65,
    "bedtools2/bed12tobed6__bed6.bed": 1,
    "bedtools2/bed12tobed6__one_blocks.bed": 1,
    "bedtools2/bed12tobed6__three_blocks.bed": 1,
    "bedtools2/bed12tobed6__two_blocks.bed": 1,
    "bedtools2/bigchroms__abig.bed": 1,
    "bedtools2/bigchroms__big4.bed": 3,
    "bedtools2/bigchroms__big4c.bed": 2,
    "bedtools2/bigchroms__bigx.bed": 1,
    "bedtools2/coverage__a.bed": 6,
    "bedtools2/coverage__b.bed": 20,
    "bedtools2/coverage__c.bed": 2,
    "bedtools2/coverage__chr_0-100.bed": 1,
    "bedtools2/coverage__three_blocks_match.bed": 1,
    "bedtools2/coverage__three_blocks_match_1bp.bed": 1,
    "bedtools2/coverage__three_blocks_nomatch.bed": 1,
    "bedtools2/coverage__x.bed": 3,
    "bedtools2/coverage__y.bed": 1,
    "bedtools2/general__a.chromheader.bed": 1,
    "bedtools2/general__a.trackheader.bed": 1,
    "bedtools2/general__empty.bed": 0,
    "bedtools2/general__non-empty.bed.gz": 2,
    "bedtools2/general__t.bed": 4,
    "bedtools2/getfasta__attr.gff": 4,
    "bedtools2/getfasta__blocks.bed": 2,
    "bedtools2/getfasta__rna.bed": 2,
    "bedtools2/getfasta__t.bed": 0,
    "bedtools2/getfasta__test.iupac.bed": 2,
    "bedtools2/intersect__a.bed": 2,
    "bedtools2/intersect__a.issue311.bed": 1,
    "bedtools2/intersect__a_bgzipped.bed.gz": 2,
    "bedtools2/intersect__a_gzipped.bed.gz": 2,
    "bedtools2/intersect__a_testZeroLen.bed": 3,
    "bedtools2/intersect__a_withLargeHeader_bgzipped.bed.gz": 2,
    "bedtools2/intersect__a_withLargeHeader_gzipped.bed.gz": 2,
    "bedtools2/intersect__b.bed": 4,
    "bedtools2/intersect__b.issue311.gff": 1,
    "bedtools2/intersect__b_testZeroLen.bed": 2,
    "bedtools2/intersect__bed3.bed": 1,
    "bedtools2/intersect__bed4.bed": 1,
    "bedtools2/intersect__bed5.bed": 1,
    "bedtools2/intersect__bed6.bed": "1: strand: expected '+', '-' or '.', got '11'",
    "bedtools2/intersect__bed6.strand.bed": 1,
    "bedtools2/intersect__bed6.strand2.bed": 2,
    "bedtools2/intersect__bedplus.bed": "1: strand: expected '+', '-' or '.', got '11'",
    "bedtools2/intersect__blocks.bed12": 4,
    "bedtools2/intersect__bug150_a.bed": 1,
    "bedtools2/intersect__bug150_b.bed": 2,
    "bedtools2/intersect__bug167_strandSweep.bed": 10,
    "bedtools2/intersect__bug187_a.bed": 1,
    "bedtools2/intersect__bug187_b.bed": 2,
    "bedtools2/intersect__bug44_b.bed": 19,
    "bedtools2/intersect__c.bed": 1,
    "bedtools2/intersect__chromOrderA.bed": 6,
    "bedtools2/intersect__chromOrderB.bed": 12,
    "bedtools2/intersect__chromsOutOfOrder.bed": 4,
    "bedtools2/intersect__d.bed": 1,
    "bedtools2/intersect__dosLineCharWithExtraTab_b.bed": 4,
    "bedtools2/intersect__dosLineChar_a.bed": 3,
    "bedtools2/intersect__e.bed": 1,
    "bedtools2/intersect__exons.issue750.bed": 2,
    "bedtools2/intersect__gdc.gff": 12,
    "bedtools2/intersect__gdc_one.bed": 1,
    "bedtools2/intersect__issue-919.bed": 1,
    "bedtools2/intersect__issue-919.region.bed": 1,
    "bedtools2/intersect__issue_773_b.bed": 1,
    "bedtools2/intersect__issue_773_y.bed": 2,
    "bedtools2/intersect__j1.bed": 1,
    "bedtools2/intersect__jim.bed": 1,
    "bedtools2/intersect__large_a.bed": 3,
    "bedtools2/intersect__large_b.bed": 3,
    "bedtools2/intersect__nonamecheck_a.bed": 1,
    "bedtools2/intersect__nonamecheck_b.bed": 1,
    "bedtools2/intersect__null_a.bed": 4,
    "bedtools2/intersect__null_b.bed": 1,
    "bedtools2/intersect__null_c.bed": 1,
    "bedtools2/intersect__oneRecordNoNewline.bed": 1,
    "bedtools2/intersect__recordsOutOfOrder.bed": 4,
    "bedtools2/intersect__splitBug155_a.bed": 1,
    "bedtools2/intersect__splitBug155_b.bed": 1,
    "bedtools2/intersect__strand_with_star.a.bed": 10,
    "bedtools2/intersect__strand_with_star.b.bed": 2,
    "bedtools2/intersect__three_blocks_match.bed": 1,
    "bedtools2/intersect__three_blocks_match_1bp.bed": 1,
    "bedtools2/intersect__three_blocks_nomatch.bed": 1,
    "bedtools2/intersect__two_blocks_partial.bed": 1,
    "bedtools2/intersect__x.bed": 2,
    "bedtools2/intersect__y.bed": 2,
    "bedtools2/merge__a.bed": 4,
    "bedtools2/merge__a.full.bed": 8,
    "bedtools2/merge__a.gff": 3,
    "bedtools2/merge__a.names.bed": 4,
    "bedtools2/merge__b.bed": 6,
    "bedtools2/merge__bug254_c.bed": 2,
    "bedtools2/merge__bug254_d.bed": 2,
    "bedtools2/merge__bug254_e.bed": 2,
    "bedtools2/merge__expFormat.bed": "1: start: expected a whole number of bases, got '8e02'",
    "bedtools2/merge__mergeBugTest.bed": 12,
    "bedtools2/merge__mixedStrands.bed": 12,
    "bedtools2/merge__precisionTest.bed": 10,
    "bedtools2/merge__precisionTest2.bed": 5,
    "bedtools2/merge__unsorted.bed": 6,
    "bedtools2/sort__a.bed": 9,
    "bedtools2/sort__b.bed": 4,
    "bedtools2_real/data__aluY.chr1.bed.gz": 11628,
    "bedtools2_real/data__knownGene.hg18.chr21.bed": 828,
    "bedtools2_real/data__refseq.chr1.exons.bed.gz": 43424,
    "genomepy/custom.annotation.bed": 10,
    "genomepy/gap.bed": 4,
    "genomepy/regions.bed": 2,
    "genomepy/regions.txt": "1: expected at least 3 columns of BED (contig, start, end), got 1",
    "genomepy/regions2.bed": 2,
    "genomepy/regions2.txt": "3: start: expected a whole number of bases, got 'sample1'",
    "grelu/hg19-blacklist.v2.bed": 834,
    "grelu/hg38-blacklist.v2.bed": 636,
    "grelu/test.bed": 3,
    "htsjdk/2featuresNoHeader.bed.gz": 2,
    "htsjdk/2featuresWithHeader.bed.gz": 2,
    "htsjdk/3featuresNoHeader.bed.gz": 3,
    "htsjdk/NA12878.deletions.10kbp.het.gq99.hand_curated.hg19.bed": "34: end: expected a whole",
    "htsjdk/NA12878.deletions.10kbp.het.gq99.hand_curated.hg19_fixed.bed": 34,
    "htsjdk/Unigene.sample.bed": 72,
    "htsjdk/Unigene.sample.bed.gz": 72,
    "htsjdk/disconcontigs.bed": 5,
    "htsjdk/unsorted.bed": 5,
    "htslib/bed_file.bed": 15,
    "htslib/gff_file.gff": 62,
    "pyfaidx/gene.bed12": 1,
    "pyfaidx/malformed.bed": "1: expected at least 3 columns of BED (contig,",
    "pyfaidx/regions.bed": 2,
    "tangermeme/test.bed": 5,
    "tangermeme/test2.bed": 9,
    "tangermeme/test_int.bed": 5,
}


@pytest.fixture(scope="module")
def odd_bed(real_data) -> Path:
    folder = real_data / "odd_bed"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def read(path: Path):
    return read_gff(path) if path.suffix == ".gff" else read_bed(path)


def plain_intervals(path: Path) -> list[tuple[str, int, int, str]]:
    """Contig, start, end and strand of every line with numbers where they belong."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    gff = path.suffix == ".gff"
    at, strand_at = (3, 6) if gff else (1, 5)
    found = []
    for line in text.replace("\r", "").split("\n"):
        fields = line.split("\t") if "\t" in line else line.split()
        if line.startswith("#") or len(fields) <= at + 1 or not fields[at].isdigit():
            continue
        strand = fields[strand_at] if len(fields) > strand_at else "."
        start = int(fields[at]) - gff
        found.append((fields[0], start, int(fields[at + 1]), "-" if strand == "-" else "+"))
    return found


def table() -> list[str]:
    """The rows that docs/odd_files.md has."""
    rows = ["| file | outcome |", "|---|---|"]
    for name, answer in sorted(EXPECTED.items()):
        read = isinstance(answer, int)
        rows.append(f"| {name} | {f'{answer} intervals' if read else f'refused: line {answer}'} |")
    return rows


def test_the_documentation_has_the_same_table():
    text = (Path(__file__).parents[2] / "docs/odd_files.md").read_text(encoding="utf-8")
    section = text.partition("## BED and GFF\n\n")[2].partition("\n\n")[0]
    assert section.rstrip().split("\n") == table()


def test_the_table_names_exactly_the_files_of_the_folder(odd_bed):
    files = {p.relative_to(odd_bed).as_posix() for p in odd_bed.rglob("*") if p.is_file()}
    assert files == set(EXPECTED)


@pytest.mark.parametrize("name", [k for k, v in EXPECTED.items() if isinstance(v, int)])
def test_a_file_is_read_as_a_plain_parser_reads_it(odd_bed, name):
    intervals = [record.interval for record in read(odd_bed / name)]
    assert len(intervals) == EXPECTED[name]
    found = [(i.contig, i.start, i.end, i.strand) for i in intervals]
    assert found == plain_intervals(odd_bed / name)


@pytest.mark.parametrize("name", [k for k, v in EXPECTED.items() if isinstance(v, str)])
def test_a_file_is_refused_in_one_line_that_says_where_and_why(odd_bed, name):
    with pytest.raises(DnassmError) as caught:
        read(odd_bed / name)
    message = str(caught.value)
    assert message.startswith(f"{odd_bed / name}:{EXPECTED[name]}")
    assert "\n" not in message
