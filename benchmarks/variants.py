"""Speed from a VCF to (reference, alternative) token windows of 1 kb, on one core, by stage.

    taskset -c 0 python -m benchmarks.variants --out benchmarks/results/variants.json

A simulated chromosome with variants in the order of the genome (80 % single bases, 10 % insertions,
10 % deletions), once as plain text, once as gzip, once in random order, and once with the genotypes
of 100 samples in every line. `cpu` is the time the process computed; the best of several runs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe

BATCH = 256
SAMPLES = 100


def write_genome(path: Path, bases: int) -> str:
    """Write one chromosome of random bases; returns them."""
    rng = np.random.default_rng(0)
    text = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, bases, np.uint8)].tobytes().decode()
    path.write_text(f">chr1\n{text}\n", encoding="ascii")
    return text


def vcf_lines(genome: str, count: int, *, samples: int) -> list[str]:
    """Records of `count` variants in the order of the genome, without the header."""
    rng = np.random.default_rng(1)
    genotypes = ["0|0", "0|1", "1|0", "1|1"]
    lines = []
    for number, at in enumerate(np.sort(rng.choice(len(genome) - 10, count, replace=False))):
        ref, alt = genome[at], "CGTA"["ACGT".index(genome[at])]
        if number % 10 == 0:
            alt = ref + "ACGT"[: 1 + number // 10 % 4]
        elif number % 10 == 1:
            ref, alt = genome[at : at + 2 + number // 10 % 4], ref
        line = f"chr1\t{at + 1}\trs{number}\t{ref}\t{alt}\t50\tPASS\tAC=1;AF=0.5;AN=2"
        if samples:
            line += "\tGT\t" + "\t".join(genotypes[i] for i in rng.integers(0, 4, samples))
        lines.append(line)
    return lines


def write_vcf_text(path: Path, lines: list[str], *, samples: int) -> None:
    """Write the lines below a header; gzip where the name says so."""
    names = "".join(f"\ts{i}" for i in range(samples))
    head = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    head += "\tFORMAT" + names if samples else ""
    content = ("\n".join([head, *lines]) + "\n").encode()
    path.write_bytes(gzip.compress(content, 6) if path.suffix == ".gz" else content)


def measure(vcf: Path, store: Any, context: int) -> dict[str, float]:
    """Seconds of CPU of every stage, and of the whole by the clock."""
    from dnassm.data.tokenizer import TOKENIZERS
    from dnassm.data.variant_reference import check_variants, left_align_all
    from dnassm.data.variant_windows import VariantWindower
    from dnassm.data.variants import read_variants

    tokenizer = TOKENIZERS["single"]()
    wall = time.perf_counter()
    marks = [time.process_time()]
    variants = read_variants(vcf, info=False).variants
    marks.append(time.process_time())
    check_variants(variants, store, max_wrong=0)
    marks.append(time.process_time())
    variants = left_align_all(variants, store)
    marks.append(time.process_time())
    windower = VariantWindower(store, context)
    tokens = 0.0
    for first in range(0, len(variants), BATCH):
        pair = windower(variants[first : first + BATCH])
        begin = time.process_time()
        tokenizer.encode_codes(pair.reference)
        tokenizer.encode_codes(pair.alternative)
        tokens += time.process_time() - begin
    marks.append(time.process_time())
    read, check, align, windows = np.diff(marks)
    return {
        "read": read,
        "check_ref": check,
        "left_align": align,
        "windows": windows - tokens,
        "tokens": tokens,
        "cpu": marks[-1] - marks[0],
        "wall": time.perf_counter() - wall,
    }


def best_of(vcf: Path, store: Any, count: int, context: int, repeats: int) -> dict[str, Any]:
    """The run with the least CPU time, as variants per second and microseconds per stage."""
    runs = [measure(vcf, store, context) for _ in range(repeats)]
    best = min(runs, key=lambda run: run["cpu"])
    stages = [name for name in best if name not in ("cpu", "wall")]
    return {
        "variants_per_cpu_s": round(count / best["cpu"]),
        "variants_per_wall_s": round(count / min(run["wall"] for run in runs)),
        "cpu_us_per_variant": {name: round(best[name] / count * 1e6, 2) for name in stages},
    }


def run(count: int, bases: int, context: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Measure every case in `folder`."""
    from dnassm.data.store import build_store

    header = describe()
    genome = write_genome(folder / "g.fa", bases)
    store = build_store([folder / "g.fa"], folder / "g")
    plain = vcf_lines(genome, count, samples=0)
    shuffled = [plain[i] for i in np.random.default_rng(2).permutation(count)]
    cases = {
        "plain": ("v.vcf", plain, 0),
        "gzip": ("v.vcf.gz", plain, 0),
        "random order": ("r.vcf", shuffled, 0),
        f"{SAMPLES} samples": ("s.vcf", vcf_lines(genome, count, samples=SAMPLES), SAMPLES),
    }
    results = {}
    for name, (file, lines, samples) in cases.items():
        write_vcf_text(folder / file, lines, samples=samples)
        results[name] = best_of(folder / file, store, count, context, repeats)
    return header | {"variants": count, "bases": bases, "context": context, "cases": results}


def main() -> None:
    """Parse the command line and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=100_000)
    parser.add_argument("--bases", type=int, default=50_000_000)
    parser.add_argument("--context", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            arguments.variants,
            arguments.bases,
            arguments.context,
            arguments.repeats,
            Path(folder),
        )
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
