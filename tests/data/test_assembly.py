"""Whether a file belongs to a genome: names resolved, lengths and MD5 compared, the first named."""

from __future__ import annotations

import gzip
import json

import pytest

from dnassm.data.assembly import AGREE, MISSING, check_assembly
from dnassm.data.genome import open_genome
from dnassm.data.store import build_store
from dnassm.errors import ArtifactError, ConfigError, FormatError, GenomeError

COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture
def genome(tmp_path):
    fasta = tmp_path / "g.fa"
    fasta.write_text(">1\nACGTACGTAC\n>2 second\nGGGCCC\n>MT\nTTTTTTTT\n")
    return build_store([fasta], tmp_path / "store")


def vcf(path, *lines):
    path.write_text("##fileformat=VCF4.3\n" + "".join(f"{line}\n" for line in lines) + COLUMNS)
    return path


def verdicts(check):
    return {row.name: (row.contig, row.verdict) for row in check.rows}


def test_a_vcf_with_lengths_and_md5_belongs_under_other_names(genome, tmp_path):
    path = vcf(
        tmp_path / "calls.vcf",
        f"##contig=<ID=chr1,length=10,assembly=toy,md5={genome.contig('1').md5.upper()}>",
        '##contig=<ID=chr2,length=6,species="a, b">',
        "##contig=<ID=chrM>",
        "##contig=<ID=chr9,length=77>",
    )
    check = check_assembly(path, genome)
    assert check.belongs
    assert verdicts(check) == {
        "chr1": ("1", "same MD5"),
        "chr2": ("2", "same length"),
        "chrM": ("MT", "inside"),
        "chr9": (None, MISSING),
    }
    assert check.summary() == (
        f"{path} (VCF) belongs to {genome.path}: 1 same MD5, 1 same length, 1 inside, "
        "1 not in the genome; it says toy"
    )
    check.require()
    facts = json.loads(json.dumps(check.to_json()))
    assert (facts["belongs"], facts["first_mismatch"]) == (True, None)
    assert facts["contigs"][1]["verdict"] == "same length"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("##contig=<ID=chr2,length=7>", "contig 'chr2' has 7 bp in .*, '2' of .* has 6 bp"),
        (
            f"##contig=<ID=2,length=6,md5={'0' * 32}>",
            "contig '2' has MD5 0000.*, '2' of .* has MD5",
        ),
        ("##contig=<ID=X,length=7>", r"no contig of .* \(X\) is in"),
    ],
)
def test_the_first_mismatch_is_named(genome, tmp_path, line, message):
    check = check_assembly(vcf(tmp_path / "calls.vcf", line), genome)
    assert not check.belongs
    assert "does not belong" in check.summary()
    with pytest.raises(GenomeError, match=message) as caught:
        check.require()
    assert "\n" not in str(caught.value)


def test_a_name_that_no_rule_knows_is_found_by_its_md5(genome, tmp_path):
    md5 = genome.contig("2").md5
    path = vcf(tmp_path / "c.vcf", "##contig=<ID=1>", f"##contig=<ID=NW_77.1,length=6,md5={md5}>")
    assert verdicts(check_assembly(path, genome))["NW_77.1"] == ("2", "same MD5")
    path = vcf(tmp_path / "c.vcf", *(f"##contig=<ID={name},md5={md5}>" for name in ("a", "b")))
    assert {row.verdict for row in check_assembly(path, genome).rows} == {MISSING}


def test_without_any_known_name_lengths_that_occur_once_decide(genome, tmp_path):
    path = tmp_path / "a.gff3"
    path.write_text(
        "##gff-version 3\n##sequence-region NC_7.1 1 10\n##sequence-region NC_8.1 1 6\n"
        "##sequence-region NC_9.1 1 9\nNC_7.1\tx\tgene\t2\t10\t.\t+\t.\tID=a\n"
    )
    check = check_assembly(path, genome)
    assert verdicts(check) == {
        "NC_7.1": ("1", "same length"),
        "NC_8.1": ("2", "same length"),
        "NC_9.1": (None, MISSING),
    }


def test_a_vcf_without_contig_lines_is_held_to_its_records(genome, tmp_path):
    path = tmp_path / "calls.vcf"
    header = "##fileformat=VCFv4.3\n" + COLUMNS
    path.write_text(header + "chr1\t9\t.\tAC\tA\t.\t.\t.\n")
    assert check_assembly(path, genome).belongs
    path.write_text(header + "chr1\t10\t.\tCA\tC\t.\t.\t.\n")
    with pytest.raises(GenomeError, match=r"'chr1' has a position 11 in .* has 10 bp"):
        check_assembly(path, genome).require()


def test_intervals_must_lie_inside(genome, tmp_path):
    path = tmp_path / "a.bed.gz"
    path.write_bytes(gzip.compress(b"chr1\t0\t10\nchr2\t1\t6\n"))
    assert check_assembly(path, genome).belongs
    path.write_bytes(gzip.compress(b"chr1\t0\t10\nchr2\t1\t7\n"))
    assert check_assembly(path, genome).first_mismatch.startswith("contig 'chr2' has a position 7")


def test_a_feature_over_the_origin_of_a_circle_is_no_mismatch(genome, tmp_path):
    path = tmp_path / "a.gff3"
    ring = "MT\tx\tregion\t1\t8\t.\t+\t.\tID=r;Is_circular=true\n"
    gene = "MT\tx\tgene\t7\t11\t.\t+\t.\tID=g\n"
    path.write_text("##gff-version 3\n" + ring + gene)
    assert check_assembly(path, genome).belongs
    path.write_text("##gff-version 3\n" + gene + ">MT\nACGT\n")
    assert not check_assembly(path, genome).belongs


def test_a_part_of_a_contig_as_region_is_no_length(genome, tmp_path):
    path = tmp_path / "a.gff3"
    path.write_text("##gff-version 3\n##sequence-region 1 3 8\n")
    assert verdicts(check_assembly(path, genome)) == {"1": ("1", "inside")}


def test_a_bigwig_states_lengths(genome, tmp_path):
    pybigtools = pytest.importorskip("pybigtools", reason="needs the extra tracks")
    path = tmp_path / "signal.bw"
    for length, belongs in ((10, True), (11, False)):
        pybigtools.open(str(path), "w").write({"chr1": length}, iter([("chr1", 0, 5, 1.0)]))
        assert check_assembly(path, genome).belongs is belongs


def test_a_fasta_file_answers_as_its_store_does(genome, tmp_path):
    path = vcf(tmp_path / "calls.vcf", f"##contig=<ID=chr1,md5={genome.contig('1').md5}>")
    assert check_assembly(path, open_genome(tmp_path / "g.fa")).belongs


def test_an_explicit_name_stands_above_the_rules(genome, tmp_path):
    path = vcf(tmp_path / "calls.vcf", "##contig=<ID=ring,length=8>")
    assert verdicts(check_assembly(path, genome, explicit={"ring": "MT"}))["ring"][0] == "MT"


def test_what_cannot_be_compared_is_refused(genome, tmp_path):
    (tmp_path / "a.txt").write_text("words\n")
    with pytest.raises(ConfigError, match="expected VCF, BED, GFF3, GTF or bigWig"):
        check_assembly(tmp_path / "a.txt", genome)
    with pytest.raises(ArtifactError, match="cannot be read"):
        check_assembly(tmp_path / "nothing.bed", genome)
    with pytest.raises(FormatError, match=":2: length of a contig must be a whole number"):
        check_assembly(vcf(tmp_path / "a.vcf", "##contig=<ID=1,length=ten>"), genome)
    with pytest.raises(FormatError, match=":2: MD5 of a contig must be 32 hexadecimal digits"):
        check_assembly(vcf(tmp_path / "a.vcf", "##contig=<ID=1,md5=12>"), genome)
    with pytest.raises(GenomeError, match="'1' and 'chr1' both mean contig '1'"):
        check_assembly(vcf(tmp_path / "a.vcf", "##contig=<ID=chr1>", "##contig=<ID=1>"), genome)


def test_real_annotation_belongs_to_its_genome_and_to_no_other(real_data, tmp_path):
    yeast, coli = real_data / "yeast_s288c", real_data / "ecoli_mg1655"
    genomes = {
        folder: build_store(
            [next(p for p in sorted(folder.glob("*.gz")) if ".fa" in p.name or ".fna" in p.name)],
            tmp_path / folder.name,
        )
        for folder in (yeast, coli)
    }
    files = {
        folder: [
            path
            for path in sorted(folder.glob("*.gz"))
            if any(kind in path.name for kind in (".gff", ".gtf", ".bed"))
        ]
        for folder in genomes
    }
    assert len(files[yeast]) >= 3
    for folder, genome in genomes.items():
        for other, paths in files.items():
            for path in paths:
                check = check_assembly(path, genome)
                assert check.belongs == (folder == other), check.summary()
                if check.belongs:
                    assert all(row.verdict in AGREE for row in check.rows), check.summary()
