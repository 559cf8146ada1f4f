"""From a file to variants that fit a genome: names, offsets and the threshold on REF together."""

from __future__ import annotations

import pytest

from dnassm.data.alphabet import decode
from dnassm.data.haplotypes import HaplotypeWindower
from dnassm.data.interval import Interval
from dnassm.data.store import build_store
from dnassm.data.variant_input import Offset, load_phased, load_variants, parse_offset
from dnassm.data.variant_reference import RefMatch
from dnassm.errors import ConfigError, GenomeError

HEAD = "##fileformat=VCFv4.3\n##contig=<ID=chr17,length=83257441>\n"
HEAD += "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts\n"


@pytest.fixture
def store(tmp_path):
    (tmp_path / "g.fa").write_text(">part\nACGTTTTACG\n>2\nGGGG\n")
    return build_store([tmp_path / "g.fa"], tmp_path / "g")


def write(tmp_path, *rows):
    path = tmp_path / "x.vcf"
    lines = ["{}\t{}\t.\t{}\t{}\t.\t.\t.\tGT\t{}\n".format(*row) for row in rows]
    path.write_text(HEAD + "".join(lines))
    return path


ROWS = (
    ("chr17", 1_000, "G", "T", "0|1"),
    ("chr17", 1_002, "C", "T", "0|1"),
    ("chr17", 1_006, "TT", "T", "1|1"),
    ("chr2", 1, "G", "<DEL>", "0|1"),
    ("chr2", 2, "G", "C", "0/1"),
    ("chr17", 1_011, "A", "T", "0|1"),
)
OFFSET = Offset("part", "chr17", 1_000)


def test_a_part_of_a_chromosome_is_found_with_its_offset(store, tmp_path):
    loaded = load_variants(write(tmp_path, *ROWS), store, offsets=[OFFSET])
    assert [str(v) for v in loaded.variants] == ["part:2 C>T", "part:3 GT>G", "2:2 G>C"]
    assert loaded.indices.tolist() == [1, 2, 3]
    assert str(loaded.file.variants[loaded.indices[0]]) == "chr17:1002 C>T"
    # what lies beside the part is no sign of a wrong assembly
    assert loaded.check.counts() == {RefMatch.MATCH: 3, RefMatch.OUTSIDE: 2}
    assert loaded.summary().endswith("line 7); REF against the genome: 3 match, 2 outside")


def test_without_the_offset_or_with_a_wrong_one_the_run_stops(store, tmp_path):
    path = write(tmp_path, *ROWS)
    with pytest.raises(GenomeError, match=r"more than 1\.00%"):
        load_variants(path, store, offsets=[Offset("part", "chr17", 1_001)])
    loaded = load_variants(path, store, offsets=[Offset("part", "chr17", 1_001)], max_wrong=None)
    assert loaded.check.counts()[RefMatch.MISMATCH] >= 1
    path = write(tmp_path, *ROWS[:2])
    with pytest.raises(GenomeError, match="none of its 2 variants lies in the genome's part"):
        load_variants(path, store, offsets=[Offset("part", "chr17", 5_000)])
    with pytest.raises(GenomeError, match="no contig of it"):
        load_variants(path, store)
    with pytest.raises(ConfigError, match="every contig and every chromosome once"):
        load_variants(path, store, offsets=[OFFSET, OFFSET])


def test_what_a_sample_carries_is_placed_the_same_way(store, tmp_path):
    phased, check = load_phased(write(tmp_path, *ROWS), store, offsets=[OFFSET])
    assert check.counts() == {RefMatch.MATCH: 2, RefMatch.OUTSIDE: 2}
    assert [str(v) for v in phased.variants] == ["part:2 C>T", "part:6 TT>T"]
    windows = HaplotypeWindower(store, phased, 10)([Interval("part", 5, 6)])
    assert [decode(codes) for codes in windows.codes[0]] == ["ACGTTTACGN", "ATGTTTACGN"]


@pytest.mark.parametrize("text", ["part", "part=chr17", "part=chr17:0", "part=17:1e3", "=a:1", ""])
def test_an_offset_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="expected CONTIG=CHROMOSOME:START"):
        parse_offset(text)


def test_an_offset_may_name_a_contig_with_colons():
    assert parse_offset("a:1-9=HLA:A:5") == Offset("a:1-9", "HLA:A", 4)
