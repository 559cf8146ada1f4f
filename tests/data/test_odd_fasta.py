"""Every file of a folder of odd and broken files, each read right or refused for a stated reason.

The table holds the reader's answers, each of which was looked at: a change of behaviour has to
change the table. What is read is also compared with Biopython's parser.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser

from dnassm.data.alphabet import decode
from dnassm.data.interval import Interval
from dnassm.data.store import build_store
from dnassm.errors import DnassmError

# (contigs, bases) of a file that is read, or words of the error of one that is refused.
EXPECTED: dict[str, tuple[int, int] | str] = {
    "SOURCE.md": "looks like text, but no FASTA",
    "bcftools/consensus.11.fa": (1, 30),
    "bcftools/consensus.12.fa": (2, 1001),
    "bcftools/consensus.13.fa": (1, 36),
    "bcftools/consensus.14.fa": (1, 4),
    "bcftools/consensus.15.fa": (1, 8),
    "bcftools/consensus.18.fa": (1, 501),
    "bcftools/consensus.19.fa": (1, 111),
    "bcftools/consensus.20.fa": (1, 8),
    "bcftools/consensus.21.fa": (3, 24),
    "bcftools/consensus.22.fa": (5, 40),
    "bcftools/consensus.9.1.fa": (5, 115),
    "bcftools/consensus.9.2.fa": (4, 92),
    "bcftools/consensus.beyond.fa": (2, 2),
    "bcftools/consensus.fa": (2, 1001),
    "bcftools/consensus.gvcf-missing.fa": (3, 18),
    "bcftools/consensus.overlaps.1.fa": (2, 16),
    "bcftools/consensus.overlaps.2.fa": (2, 16),
    "bcftools/consensus2.fa": (4, 242),
    "bcftools/consensus5.fa": (1, 11),
    "bcftools/consensus6.fa": (1, 201),
    "bcftools/consensus7.fa": (1, 32),
    "bcftools/norm.2.fa": (1, 20),
    "bcftools/norm.3.fa": (1, 21),
    "bcftools/norm.atom-split-norm.fa": (1, 15),
    "bcftools/norm.breakend.1.fa": (2, 1000),
    "bcftools/norm.check-ref.fa": (1, 21),
    "bcftools/norm.fa": (8, 1057),
    "bcftools/norm.iupac.fa": "a digit",
    "bcftools/norm.right-align.fa": (1, 29201),
    "bcftools/norm.rmdup.3.fa": (1, 25),
    "bcftools/norm.symbolic.3.fa": (1, 44),
    "bcftools/norm.symbolic.fa": (1, 120),
    "bedtools2/getfasta__blocks.bed": "looks like BED",
    "bedtools2/getfasta__rna.bed": "looks like BED",
    "bedtools2/getfasta__rna.fasta": (1, 10),
    "bedtools2/getfasta__t.fa": (1, 50),
    "bedtools2/getfasta__t.fa.fai": "looks like a FASTA index",
    "bedtools2/getfasta__t.fa.gz": (1, 50),
    "bedtools2/getfasta__t_fH.fa": (1, 50),
    "bedtools2/getfasta__t_fH.fa.fai": "looks like a FASTA index",
    "bedtools2/getfasta__test.iupac.bed": "looks like BED",
    "bedtools2/getfasta__test.iupac.fa": "'X', no IUPAC",
    "biopython/NC_001802.fna": (1, 9181),
    "biopython/NC_001802lc.fna": (1, 9181),
    "biopython/NC_001802x.fna": (1, 9181),
    "biopython/NC_005816.fna": (1, 9609),
    "biopython/NC_005816.gb": "looks like GenBank",
    "biopython/README": "looks like text, but no FASTA",
    "biopython/aster.pro": "an amino acid",
    "biopython/aster_blast.pro": "looks like text, but no FASTA",
    "biopython/aster_no_wrap.pro": "an amino acid",
    "biopython/aster_pearson.pro": "looks like text, but no FASTA",
    "biopython/centaurea.nu": (1, 1002),
    "biopython/dups.fasta": "contig 'alpha' occurs a second time",
    "biopython/elderberry.nu": (1, 2050),
    "biopython/example.fasta": (3, 75),
    "biopython/f001": "an amino acid",
    "biopython/f002": (3, 1517),
    "biopython/f003.fa": "an amino acid",
    "biopython/fa01": "an amino acid",
    "biopython/flowers.pro.gz": "'X', no IUPAC",
    "biopython/lavender.nu": (1, 550),
    "biopython/loveliesbleeding.pro": "'X', no IUPAC",
    "biopython/lupine.nu": (1, 655),
    "biopython/multi.fna": (3, 24),
    "biopython/nucleotide_lib.fa": "contig 'RABGSTB' occurs a second time",
    "biopython/phlox.nu": (1, 623),
    "biopython/protein_lib.fa": "an amino acid",
    "biopython/rose.pro": "an amino acid",
    "biopython/rosemary.pro": "an amino acid",
    "biopython/sequence.bigendian.2bit": "looks like UCSC 2bit",
    "biopython/sequence.fa": (6, 1723),
    "biopython/sequence.littleendian.2bit": "looks like UCSC 2bit",
    "biopython/sweetpea.nu": (1, 309),
    "biopython/wisteria.nu": (1, 2551),
    "biopython_genbank_bad/bad_loc_wrap.gb": "looks like GenBank",
    "biopython_genbank_bad/bad_origin_wrap.gb": "looks like GenBank",
    "biopython_genbank_bad/bad_origin_wrap_CDS.gb": "looks like GenBank",
    "biopython_genbank_bad/bad_origin_wrap_fuzzy.gb": "looks like GenBank",
    "biopython_genbank_bad/bad_origin_wrap_linear.gb": "looks like GenBank",
    "biopython_genbank_bad/blank_seq.gb": "looks like GenBank",
    "biopython_genbank_bad/empty_accession.gbk": "looks like GenBank",
    "biopython_genbank_bad/empty_feature_qualifier.gb": "looks like GenBank",
    "biopython_genbank_bad/empty_version.gbk": "looks like GenBank",
    "biopython_genbank_bad/invalid_locus_line_spacing.gb": "looks like GenBank",
    "biopython_genbank_bad/invalid_misc_feature.gb": "looks like GenBank",
    "biopython_genbank_bad/invalid_product.gb": "looks like GenBank",
    "biopython_genbank_bad/invalid_structured_comment.gb": "looks like GenBank",
    "biopython_genbank_bad/negative_location.gb": "looks like GenBank",
    "biopython_genbank_bad/no_end_marker.gb": "looks like GenBank",
    "biopython_genbank_bad/no_origin_no_end.gb": "looks like GenBank",
    "biopython_genbank_bad/wrong_sequence_indent.gb": "looks like GenBank",
    "genomepy/README.txt": "looks like text, but no FASTA",
    "genomepy/empty.fa": "is empty",
    "genomepy/gap.bed": "looks like BED",
    "genomepy/gap.fa": (3, 88),
    "genomepy/regexp.fa": (17, 68),
    "genomepy/regions.bed": "looks like text, but no FASTA",
    "genomepy/regions.txt": "looks like text, but no FASTA",
    "genomepy/regions2.bed": "looks like BED",
    "genomepy/regions2.txt": "looks like text, but no FASTA",
    "genomepy/sanitize.annotation.bed": "looks like BED",
    "genomepy/sanitize.annotation.gtf": "looks like GFF",
    "genomepy/sanitize.fa": (1, 4),
    "genomepy/sanitize.fa.fai": "looks like a FASTA index",
    "genomepy/sanitize.fa.sizes": "looks like text, but no FASTA",
    "genomepy/small_genome.fa.gz": (17, 170000),
    "genomepy/tar1.fa": (3, 88),
    "genomepy/tar2.fa.tar.gz": "looks like a tar archive",
    "genomepy/test.fa": (3, 30),
    "genomepy/test.fa.fai": "looks like a FASTA index",
    "genomepy/test.fasta": (3, 30),
    "grelu/test.fa": (2, 6),
    "grelu/test.fa.gz": (2, 6),
    "grelu/test_genome.fa": (2, 4000),
    "htsjdk/Homo_sapiens_assembly18.fasta.fai": "looks like a FASTA index",
    "htsjdk/Homo_sapiens_assembly18.trimmed.dict": "looks like a SAM header",
    "htsjdk/Homo_sapiens_assembly18.trimmed.fasta.fai": "looks like a FASTA index",
    "htsjdk/Homo_sapiens_assembly18.trimmed.fasta.gz.fai": "looks like a FASTA index",
    "htsjdk/Homo_sapiens_assembly18.trimmed.fasta.gz.gzi": "looks like binary data",
    "htsjdk/Homo_sapiens_assembly18.trimmed.nodict.fasta.fai": "looks like a FASTA index",
    "htsjdk/Homo_sapiens_assembly18.trimmed.nogzindex.fasta.gz.fai": "looks like a FASTA index",
    "htsjdk/crlf.fasta": (2, 8),
    "htsjdk/crlf.fasta.fai": "looks like a FASTA index",
    "htsjdk/header_with_extra_white_space.fasta": (2, 8),
    "htsjdk/header_with_white_space.fasta": (2, 8),
    "htsjdk/header_with_white_space.fasta.fai": "looks like a FASTA index",
    "htsjdk/human_g1k_v37.20.21.fasta.gz.fai": "looks like a FASTA index",
    "htsjdk/human_g1k_v37.20.21.fasta.gz.gzi": "looks like binary data",
    "htsjdk/reference_with_trailing_whitespace.dict": "looks like a SAM header",
    "htsjdk/reference_with_trailing_whitespace.fasta": (2, 16),
    "htsjdk/testing.fai": "looks like a FASTA index",
    "htslib/UMI.fq": "looks like FASTQ",
    "htslib/auxf.fa": (1, 20),
    "htslib/bgziptest.txt": "looks like text, but no FASTA",
    "htslib/bgziptest.txt.gz": "looks like text, but no FASTA",
    "htslib/bgziptest.txt.gz.gzi": "looks like binary data",
    "htslib/c1.fa": (1, 10),
    "htslib/c2.fa": (1, 9),
    "htslib/ce.1.expected.fa": (2, 250),
    "htslib/faidx.1.expected.fa": (3, 10),
    "htslib/faidx.fa": "header without a name",
    "htslib/faidx.fa.expected.fai": "looks like text, but no FASTA",
    "htslib/fastqs.1.expected.fq": "looks like FASTQ",
    "htslib/fastqs.2.expected.fa": (4, 99),
    "htslib/fastqs.fq.expected.fai": "looks like a FASTA index",
    "htslib/filter_casava.fa": "contig 'HS25_09827:2:1201:1505:59795#49' occurs a second time",
    "htslib/filter_casava.fq": "looks like FASTQ",
    "htslib/interleaved.fa": (10, 1000),
    "htslib/interleaved.fq": "looks like FASTQ",
    "htslib/interleaved_casava.fa": "contig 'HS25_09827:2:1201:1505:59795#49' occurs a second time",
    "htslib/interleaved_casava.fq": "looks like FASTQ",
    "htslib/longline.fq": "looks like FASTQ",
    "htslib/md.fa": (1, 40),
    "htslib/minimal.fa": (1, 1),
    "htslib/minimal.fq": "looks like FASTQ",
    "htslib/multiline.fa": (2, 78),
    "htslib/multiline.fq": "looks like FASTQ",
    "htslib/name2.fa": (4, 400),
    "htslib/name2.fq": "looks like FASTQ",
    "htslib/r1.fa": (5, 500),
    "htslib/r1.fq": "looks like FASTQ",
    "htslib/r2.fa": (5, 500),
    "htslib/r2.fq": "looks like FASTQ",
    "htslib/realn01.fa": (1, 686),
    "htslib/realn02.fa": (1, 4200),
    "htslib/realn03.fa": (1, 11),
    "htslib/single.fa": (5, 500),
    "htslib/single.fq": "looks like FASTQ",
    "htslib/xx.fa": (3, 70),
    "pyfaidx/gene.bed12": "looks like BED",
    "pyfaidx/gene.bed12.fasta": (1, 1073),
    "pyfaidx/issue_83.fasta": (2, 179),
    "pyfaidx/malformed.bed": "looks like text, but no FASTA",
    "pyfaidx/regions.bed": "looks like BED",
    "tangermeme/test.fa": "'Z', no IUPAC",
    "tangermeme/test_int_chroms.fa": "'Z', no IUPAC",
}


@pytest.fixture(scope="module")
def odd_fasta(real_data) -> Path:
    folder = real_data / "odd_fasta"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def independent_records(path: Path) -> list[tuple[str, str]]:
    """Name and bases as Biopython reads them; white space is no base, U is T."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        records = list(SimpleFastaParser(file))
    letters = str.maketrans({"U": "T", "u": "t", "\t": None, "\x0b": None, "\x0c": None})
    return [(title.split()[0], bases.translate(letters)) for title, bases in records]


def test_the_table_names_exactly_the_files_of_the_folder(odd_fasta):
    files = {p.relative_to(odd_fasta).as_posix() for p in odd_fasta.rglob("*") if p.is_file()}
    assert files == set(EXPECTED)


@pytest.mark.parametrize("name", [k for k, v in EXPECTED.items() if isinstance(v, tuple)])
def test_a_file_is_read_as_an_independent_parser_reads_it(odd_fasta, tmp_path, name):
    store = build_store([odd_fasta / name], tmp_path / "store")
    assert (len(store.contigs), sum(store.lengths.values())) == EXPECTED[name]
    found = [(c.name, decode(store.fetch(Interval(c.name, 0, c.length)))) for c in store.contigs]
    assert found == independent_records(odd_fasta / name)
    for contig, (_, bases) in zip(store.contigs, found, strict=True):
        if contig.counts["U"] == 0:
            assert contig.md5 == hashlib.md5(bases.upper().encode()).hexdigest()


@pytest.mark.parametrize("name", [k for k, v in EXPECTED.items() if isinstance(v, str)])
def test_a_file_is_refused_in_one_line_that_says_why_and_leaves_nothing(odd_fasta, tmp_path, name):
    with pytest.raises(DnassmError) as caught:
        build_store([odd_fasta / name], tmp_path / "store")
    message = str(caught.value)
    assert EXPECTED[name] in message
    assert str(odd_fasta / name) in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []
