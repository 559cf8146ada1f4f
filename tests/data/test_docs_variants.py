"""The examples of docs/data.md on variants and haplotypes run as they stand."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from dnassm.data.store import build_store

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
VCF = """##fileformat=VCFv4.3
##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">
##INFO=<ID=END,Number=1,Type=Integer,Description="end">
##contig=<ID=chr1>
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tNA1\tNA2
"""


def blocks(*sections: str) -> list[str]:
    text = DOCS.read_text(encoding="utf-8")
    found = []
    for section in sections:
        body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        found += re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pysam = pytest.importorskip("pysam")
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 400))
    for name, contig, text in [("genome", "1", bases), ("part", "part", bases[100:300])]:
        (tmp_path / "g.fa").write_text(f">{contig}\n{text}\n")
        build_store([tmp_path / "g.fa"], tmp_path / name)
    other = dict(zip("ACGT", "CGTA", strict=True))
    rows = [
        (50, bases[49], other[bases[49]], "0|1"),
        (120, bases[119], "<DEL>", "0|0"),
        (150, bases[149], other[bases[149]], "1|1"),
        (160, bases[159], other[bases[159]], "0/1"),
        (350, bases[349], other[bases[349]], "0|0"),
    ]
    lines = "".join(
        f"chr1\t{at}\t.\t{ref}\t{alt}\t.\t.\t.\tGT\t{genotype}\t.\n"
        for at, ref, alt, genotype in rows
    )
    (tmp_path / "calls.vcf").write_text(VCF + lines)
    (tmp_path / "calls.vcf.gz").write_bytes(gzip.compress((VCF + lines).encode()))
    bcf = str(tmp_path / "calls.bcf")
    with (
        pysam.VariantFile(str(tmp_path / "calls.vcf")) as source,
        pysam.VariantFile(bcf, "wb", header=source.header) as target,
    ):
        for record in source:
            target.write(record)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_variants_and_haplotypes_run_and_say_what_they_show(folder, capsys):
    names: dict[str, object] = {}
    code = blocks("VCF and BCF", "Haplotypes")
    assert len(code) == 3
    for block in code:
        exec(compile(block, str(DOCS), "exec"), names)
    said = capsys.readouterr().out.splitlines()
    shown = [
        line.partition("# ")[2] for block in code for line in block.splitlines() if "print(" in line
    ]
    assert len(said) == len(shown) == 2
    for line, comment in zip(said, shown, strict=True):
        assert line.startswith(comment.removesuffix(" ..."))
    assert names["windows"].reference.shape == (4, 1000)
    assert "{RefMatch.MATCH: 2, RefMatch.OUTSIDE: 2}" in "".join(code)
    assert {kind.name: n for kind, n in names["some"].check.counts().items()} == {
        "MATCH": 2,
        "OUTSIDE": 2,
    }
    assert names["both"].applied.tolist() == [[1, 2]]
