"""Every example of docs/data.md runs, from the first to the last, and says what comes out."""

from __future__ import annotations

import ast
import gzip
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dnassm.config import ModelConfig
from dnassm.data.store import build_store
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.model import DNAModel
from dnassm.pipelines.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SMALL = ["--max-steps", "2", "--no-evaluate", "--force"]
SMALL_MODEL = ["model.d_model=8", "model.pattern=m", "data.length=256", "training.batch_size=2"]


def examples() -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def bases(length: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def fasta(path: str, contigs: dict[str, str]) -> Path:
    Path(path).write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
    return Path(path)


def write_genomes() -> None:
    """The stores and FASTA files that the page reads."""
    bgzf = pytest.importorskip("Bio.bgzf")
    yeast = {name: bases(20_000, seed) for seed, name in enumerate(("I", "II", "III", "IV"))}
    made = fasta("yeast.fa", yeast | {"Mito": bases(3_000, 9).lower()})
    for name in ("yeast", "STORE"):
        build_store([made], Path(name), split="blocks:size=5000,every=4,gap=0")
    text = bases(400, 0)
    build_store([fasta("g.fa", {"1": text})], Path("genome"))
    build_store([fasta("g.fa", {"part": text[100:300]})], Path("part"))
    fasta("plain.fa", {"plain": bases(20_000, 20)})
    blocks = {name: f">{name}\n{bases(20_000, 21)}\n".encode() for name in ("packed", "blocked")}
    Path("packed.fa.gz").write_bytes(gzip.compress(blocks["packed"]))
    with bgzf.BgzfWriter("blocked.fa.bgz") as file:
        file.write(blocks["blocked"])


def write_variants() -> None:
    """calls.vcf.gz and calls.bcf of the contig 1 of the store `genome`."""
    pysam = pytest.importorskip("pysam")
    text, other = bases(400, 0), dict(zip("ACGT", "CGTA", strict=True))
    places = [(50, "0|1"), (120, None), (150, "1|1"), (160, "0/1"), (350, "0|0")]
    head = '##fileformat=VCFv4.3\n##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">\n'
    head += '##INFO=<ID=END,Number=1,Type=Integer,Description="end">\n'
    head += "##contig=<ID=chr1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tNA1\tNA2\n"
    content = head
    for at, genotype in places:
        ref = text[at - 1]
        alt = other[ref] if genotype else "<DEL>"
        content += f"chr1\t{at}\t.\t{ref}\t{alt}\t.\t.\t.\tGT\t{genotype or '0|0'}\t.\n"
    Path("calls.vcf").write_text(content)
    Path("calls.vcf.gz").write_bytes(gzip.compress(content.encode()))
    with (
        pysam.VariantFile("calls.vcf") as source,
        pysam.VariantFile("calls.bcf", "wb", header=source.header) as target,
    ):
        for record in source:
            target.write(record)


def write_annotation() -> None:
    """BED, GFF3 and bigWig files, labelled sequences, and a run."""
    pybigtools = pytest.importorskip("pybigtools")
    rows = "".join(f"chrIV\t{at}\t{at + 1500}\ttrain\n" for at in range(1000, 14_000, 1600))
    Path("Scer_transcripts_w_verifiedORFs.bed.gz").write_bytes(gzip.compress(rows.encode()))
    Path("intervals.bed").write_text(rows.replace("chrIV", "IV"))
    Path("regions.bed").write_text("plain\t2000\t4000\tvalid\nplain\t9000\t12000\ttest\n")
    genes = "IV\tx\tCDS\t3001\t3900\t.\t+\t0\tID=c\n"
    Path("genes.gff3").write_text("plain\tx\tgene\t101\t900\t.\t+\t.\tID=g\n" + genes)
    signal = [("plain", 8, 12, 0.5), ("plain", 12, 90, 2.0)]
    pybigtools.open("signal.bw", "w").write({"plain": 20_000}, iter(signal))
    Path("gue/tf/0").mkdir(parents=True)
    for seed, part in enumerate(("train", "dev", "test")):
        lines = "".join(f"{bases(60, 100 * seed + i)},{i % 2}\n" for i in range(8))
        Path(f"gue/tf/0/{part}.csv").write_text("sequence,label\n" + lines)
    torch.manual_seed(0)
    DNAModel(ModelConfig(d_model=8, pattern="m")).save_pretrained(Path("RUN"))
    for path in ("RUN/tokenizer.json", "tokenizer.json"):
        TOKENIZERS["single"]().save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("sourmash")
    pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    write_genomes()
    write_variants()
    write_annotation()
    return tmp_path


def run_python(block: str, scope: dict[str, object]) -> list[str]:
    """Run a block; a comment that is a Python value stands for what its line gives."""
    lines, shown = block.splitlines(), []
    for node in ast.parse(block).body:
        says = lines[node.end_lineno - 1].partition("  # ")[2]
        if not isinstance(node, ast.Expr) or not says:
            exec(compile(ast.Module([node], []), str(PAGE), "exec"), scope)
            continue
        found = eval(compile(ast.Expression(node.value), str(PAGE), "eval"), scope)
        try:
            expected = ast.literal_eval(says)
        except (SyntaxError, ValueError):
            continue
        assert found == expected, says
        shown.append(says)
    return shown


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "dnassm"
    name, *rest = words[1:]
    if name == "fetch" and rest[0] != "--list":  # nothing is downloaded here
        assert rest[0] in CliRunner().invoke(cli, ["fetch", "--list"]).stdout
        return
    if name == "pretrain":
        rest[rest.index("--out") + 1] = "trained"  # RUN is the one that `variants` reads
        rest += [*SMALL, *(word for value in SMALL_MODEL for word in ("--set", value))]
    result = CliRunner().invoke(cli, [name, *rest])
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"


def test_every_example_of_the_page_runs_in_its_order(folder):
    scope: dict[str, object] = {}
    shown: list[str] = []
    for language, block in examples():
        if language == "python":
            shown += run_python(block, scope)
            continue
        assert language == "bash"
        for line in block.replace("\\\n", " ").splitlines():
            run_command(line)
    assert len(shown) > 10


FORMATS = """plain.fa .fa.gz .fa.bgz tokenize three.bed twelve.bed .gff3 .gtf calls.vcf.gz calls.bcf
signal.bw TOKENIZERS SAMPLERS --split --leakage fetch simulate HaplotypeWindower --sample"""


@pytest.mark.parametrize("word", FORMATS.split())
def test_every_format_has_an_example(word):
    assert any(word in block for _, block in examples())
