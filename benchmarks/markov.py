"""Bits per base of Markov models on E. coli K-12 MG1655 with every tenth 50-kb block held out.

    python -m benchmarks.markov [FASTA] [--out benchmarks/results/markov_ecoli.json]

Trains on nine of every ten blocks, both strands counted, and scores the tenth on its plus strand:
the numbers that a language model trained on the same split has to beat.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.baselines.markov import (
    MAX_ORDER,
    MarkovModel,
    MixtureModel,
    bits_per_base,
    fit_markov,
    fit_mixture,
)
from dnassm.data.alphabet import Codes
from dnassm.data.store import build_store

HERE = Path(__file__).resolve().parent
REAL_DATA = Path(os.environ.get("DNASSM_REAL_DATA", HERE.parents[1] / "shared/data"))
FASTA = REAL_DATA / "ecoli_mg1655" / "GCF_000005845.2_ASM584v2_genomic.fna.gz"
SPLIT = "blocks:size=50000,every=10"
MIXTURE_ORDERS = (7, 8, 9, 10, 11)
BACK_OFF_PSEUDO_COUNTS = (8, 16, 32, 64)


class BackOff:
    """P_k = (n(c, b) + a P_{k-1}) / (n(c) + a): one pseudo-count `a` spread by the order below."""

    def __init__(self, models: Sequence[MarkovModel], pseudo_count: float) -> None:
        self.order = models[-1].order
        table = np.full((1, 4), 0.25)
        for model in models:
            below = np.tile(table, (4 if model.order else 1, 1))  # drops the oldest base
            total = model.counts.sum(axis=1, keepdims=True)
            table = (model.counts + pseudo_count * below) / (total + pseudo_count)
        # A table of probabilities scores as counts do, with no smoothing and contexts adding to 1.
        self.bits = MarkovModel(table, order=self.order, alpha=0.0).bits


def measure(name: str, build: Any, test: Sequence[Codes]) -> dict[str, Any]:
    """Fit, score and time one model."""
    start = time.perf_counter()
    model = build()
    fitted = time.perf_counter()
    result = bits_per_base(model, test)
    row = {
        "model": name,
        "order": model.order,
        "bits_per_base": round(result.value, 5),
        "scored": result.scored,
        "skipped": result.skipped,
        "fit_s": round(fitted - start, 2),
        "score_s": round(time.perf_counter() - fitted, 2),
    }
    click.echo(f"{name:32} {row['bits_per_base']:.5f}  {row['fit_s']} s", err=True)
    return row


def models(train: Sequence[Codes]) -> list[tuple[str, Any]]:
    """Name and constructor of every model of the table."""

    def add_one(order: int) -> MarkovModel:
        return fit_markov(train, order)

    def mixture(order: int) -> MixtureModel:
        return fit_mixture(train, order)

    def back_off(pseudo_count: float) -> BackOff:
        return BackOff([fit_markov(train, k) for k in range(8)], pseudo_count)

    return [
        *((f"add-one order {k}", lambda k=k: add_one(k)) for k in range(1, MAX_ORDER + 1)),
        *((f"mixture of orders 0..{k}", lambda k=k: mixture(k)) for k in MIXTURE_ORDERS),
        *(
            (f"back-off 0..7, {a} pseudo-counts", lambda a=a: back_off(a))
            for a in BACK_OFF_PSEUDO_COUNTS
        ),
    ]


@click.command()
@click.argument("fasta", type=click.Path(path_type=Path), default=FASTA)
@click.option(
    "--out", type=click.Path(path_type=Path), default=HERE / "results" / "markov_ecoli.json"
)
def main(fasta: Path, out: Path) -> None:
    """Measure every model on FASTA and write the table as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        store = build_store([fasta], Path(folder) / "store", split=SPLIT)
        train, test = ([store.fetch(i) for i in store.splits[part]] for part in ("train", "test"))
        rows = [measure(name, build, test) for name, build in models(train)]
        digest = store.digest
    write_json(
        out,
        {
            "genome": fasta.name,
            "digest": digest,
            "split": SPLIT,
            "train_bases": sum(map(len, train)),
            "test_bases": sum(map(len, test)),
            "counted": "both strands of the training blocks",
            "scored": "plus strand of the test blocks, each alone, without its first `order` bases",
            "results": rows,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **describe(),
        },
    )


if __name__ == "__main__":
    main()
