"""`dnassm variants`: from a VCF to a table, also on a genome that begins inside of a chromosome."""

from __future__ import annotations

import csv
import gzip

import pytest
import torch
from click.testing import CliRunner

from dnassm.config import ModelConfig
from dnassm.data.store import build_store
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.errors import ArtifactError, ConfigError, DnassmError, GenomeError
from dnassm.model import DNAModel
from dnassm.pipelines.variants import command

HEAD = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    DNAModel(ModelConfig(d_model=8, pattern="m")).save_pretrained(folder)
    TOKENIZERS["single"]().save(folder / "tokenizer.json")
    return folder


def invoke(*arguments):
    """Output of a call that succeeds; a DnassmError comes through, as `main` would see it."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if isinstance(result.exception, DnassmError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(path):
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.DictReader(text.decode().splitlines(), delimiter="\t"))


@pytest.fixture
def files(tmp_path):
    (tmp_path / "g.fa").write_text(">c\n" + "ACGTTGCA" * 20 + "\n")
    build_store([tmp_path / "g.fa"], tmp_path / "g")
    lines = ["17\t14\trs1\tT\tG,GG,*", "17\t16\t.\tG\tC", "17\t17\t.\tC\tCA", "17\t999\t.\tA\tC"]
    (tmp_path / "v.vcf").write_text(HEAD + "".join(f"{line}\t.\t.\t.\n" for line in lines))
    return tmp_path


def test_every_variant_of_the_file_has_a_line_and_those_that_match_a_score(run, files):
    options = ["--vcf", files / "v.vcf", "--genome", files / "g", "--offset", "c=17:11"]
    out = files / "scores.tsv"
    said = invoke(run, *options, "--context", 16, "--out", out)
    assert "scores.tsv: 4 of 5 variants scored" in said
    assert "refused: 1 '*'" in said
    assert "4 match, 1 outside" in said
    found = rows_of(out)
    assert [
        [row[k] for k in ("contig", "position", "ref", "alt", "ref_check")] for row in found
    ] == [
        ["17", "14", "T", "G", "match"],
        ["17", "14", "T", "GG", "match"],
        ["17", "16", "G", "C", "match"],
        ["17", "17", "C", "CA", "match"],
        ["17", "999", "A", "C", "outside"],
    ]
    assert [bool(row["llr"]) for row in found] == [True] * 4 + [False]
    assert found[0]["id"] == "rs1"
    invoke(run, *options, "--context", 16, "--batch-size", 1, "--out", files / "s.tsv.gz")
    assert [float(row["llr"]) for row in rows_of(files / "s.tsv.gz")[:4]] == pytest.approx(
        [float(row["llr"]) for row in found[:4]], abs=1e-3
    )


def test_mistakes_are_found_before_the_model_runs(run, files):
    right = ["--vcf", files / "v.vcf", "--genome", files / "g", "--offset", "c=17:11"]
    for change, error, said in [
        (["--out", files / "x.vcf"], ConfigError, r"\.tsv or \.tsv\.gz"),
        (["--out", files / "v.vcf", "--force"], ConfigError, r"\.tsv or"),
        (["--out", files / "x.tsv", "--offset", "c:11"], ConfigError, "CONTIG=CHROMOSOME:START"),
        (["--out", files / "x.tsv", "--vcf", files / "none"], ArtifactError, "does not exist"),
    ]:
        with pytest.raises(error, match=said):
            invoke(run, *right, *change)
    wrong = [*right[:-1], "c=17:10", "--out", files / "x.tsv"]
    with pytest.raises(GenomeError, match=r"more than 1\.00%"):
        invoke(run, *wrong)
    invoke(run, *wrong, "--max-wrong-ref", 1)
    with pytest.raises(ArtifactError, match="--force"):
        invoke(run, *right, "--out", files / "x.tsv")


def test_brca1_is_scored_on_a_stretch_of_chromosome_17(run, real_data, tmp_path):
    """All 3,893 variants of the saturation set match the FASTA that begins at 42,425,000."""
    name = "chr17_42425000_43600000"
    fasta = real_data / "human_brca1_region/hg38_chr17_42425000_43600000.plus.fa.gz"
    build_store([fasta], tmp_path / "g")
    with gzip.open(real_data / "brca1_sge/brca1_sge_hg38.tsv.gz", "rt") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    lines = (f"{r['chrom']}\t{r['pos_hg38']}\t.\t{r['ref']}\t{r['alt']}\t.\t.\t.\n" for r in rows)
    (tmp_path / "v.vcf").write_text(HEAD + "".join(lines))
    options = ["--vcf", tmp_path / "v.vcf", "--genome", tmp_path / "g", "--context", 32]
    place = f"{name}=chr17:42,425,000"
    options += ["--batch-size", 512, "--max-wrong-ref", 0, "--offset", place]
    said = invoke(run, *options, "--out", tmp_path / "s.tsv")
    assert "3,893 of 3,893 variants scored" in said
    assert "3,893 match" in said
    found = rows_of(tmp_path / "s.tsv")
    assert [(r["position"], r["ref"], r["alt"]) for r in found] == [
        (r["pos_hg38"], r["ref"], r["alt"]) for r in rows
    ]
    assert all(r["ref_check"] == "match" and r["llr"] for r in found)


def test_a_sample_is_scored_with_the_variants_of_each_haplotype_together(run, tmp_path):
    (tmp_path / "g.fa").write_text(">c\n" + "ACGTTGCA" * 20 + "\n")
    head = HEAD.strip() + "\tFORMAT\tNA1\tNA2\n"
    rows = [
        ("13\t.\tT\tG", "0|1"),  # alone in its window on the second haplotype
        ("60\t.\tT\tC", "1|1"),
        ("64\t.\tA\tAG", "1|0"),  # with 60 on the first
        ("80\t.\tA\tC", "0/1"),  # on no haplotype
        ("999\t.\tA\tC", "1|1"),  # not in the genome
    ]
    lines = "".join(f"17\t{row}\t.\t.\t.\tGT\t{genotype}\t0|0\n" for row, genotype in rows)
    (tmp_path / "v.vcf").write_text(head + lines)
    options = ["--vcf", tmp_path / "v.vcf", "--genome", tmp_path / "g.fa", "--context", 16]
    options += ["--offset", "c=17:1"]
    said = invoke(run, *options, "--sample", "NA1", "--out", tmp_path / "h.tsv")
    assert "3 of 4 variants scored; NA1: 4 variants on its haplotypes" in said
    assert "1 heterozygous and not phased" in said
    found = rows_of(tmp_path / "h.tsv")
    columns = ("position", "ref_check", "genotype", "together_1", "together_2")
    assert [[row[name] for name in columns] for row in found] == [
        ["13", "match", "0|1", "", "1"],
        ["60", "match", "1|1", "2", "1"],
        ["64", "match", "1|0", "2", ""],
        ["999", "outside", "1|1", "", ""],
    ]
    assert all(bool(row[f"together_{n}"]) == bool(row[f"llr_{n}"]) for row in found for n in "12")
    invoke(run, *options, "--out", tmp_path / "each.tsv")
    each = {row["position"]: row["llr"] for row in rows_of(tmp_path / "each.tsv")}
    assert float(found[0]["llr_2"]) == pytest.approx(float(each["13"]), abs=1e-4)
    assert float(found[1]["llr_2"]) == pytest.approx(float(each["60"]), abs=1e-4)
    assert abs(float(found[1]["llr_1"]) - float(each["60"])) > 1e-3
    with pytest.raises(ConfigError, match="sample 'NA3', the file has NA1, NA2; name one of"):
        invoke(run, *options, "--sample", "NA3", "--out", tmp_path / "x.tsv")
    invoke(run, *options, "--sample", "NA2", "--out", tmp_path / "none.tsv")
    assert not rows_of(tmp_path / "none.tsv")
