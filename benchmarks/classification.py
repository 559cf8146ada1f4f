"""Measure what a pretrained run is worth for classification: probe, full, random weights, k-mers.

Usage: ``python -m benchmarks.classification RUN [--task NAME] [--max-sequences N] [--out FILE]``.
Tasks, each runnable alone (results are merged into the file by task):

- ``coding``: windows of E. coli that are coding or intergenic on either strand, learnt on the first
  half of the chromosome, tested on the second.
- ``ecoli_promoters``: 81 bp around RegulonDB promoters against other sequence, 5-fold
  cross-validation.
- ``splice``: primate exon-intron, intron-exon and other sites of 60 bp, three classes, 10-fold
  cross-validation.
- ``promoters106``: the 106 E. coli promoter sequences of UCI, 57 bp, 10-fold cross-validation.

The real data are found through DNASSM_REAL_DATA (default ``../shared/data``). At most N sequences
of a task, drawn at random with the seed, are used: the file says how many there were.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, describe
from dnassm.artifact import write_json
from dnassm.data.alphabet import decode
from dnassm.data.annotation import label_windows, read_gff
from dnassm.data.labelled import read_labelled
from dnassm.data.store import build_store
from dnassm.finetuning import Examples, FinetuneOptions, FinetuneResult, Task, classify
from dnassm.finetuning.crossval import folds_of
from dnassm.finetuning.leakage import leakage_of_task
from dnassm.runs import Run, load_run

DATA = Path(os.environ.get("DNASSM_REAL_DATA", ROOT / ".." / "shared" / "data"))
WINDOW_BP, STEP_BP = 200, 100
Rows = list[tuple[str, str, str]]
"""(sequence, label, part) with part "train" or "test"; all "train" means cross-validation."""


def coding() -> Rows:
    """Windows of both halves of the E. coli chromosome."""
    folder = DATA / "ecoli_mg1655"
    features = read_gff(next(folder.glob("*.gff.gz")))
    rows: Rows = []
    with tempfile.TemporaryDirectory() as scratch:
        store = build_store([next(folder.glob("*.fna.gz"))], Path(scratch) / "g", split="halves")
        for part in ("train", "test"):
            found = label_windows(store.splits[part], features, size=WINDOW_BP, step=STEP_BP)
            rows += [
                (decode(store.fetch(interval)), label, part)
                for interval, label in zip(found.intervals, found.labels, strict=True)
            ]
    return rows


def ecoli_promoters() -> Rows:
    """The v9d3 set: 2860 promoters, 2860 other sequences."""
    data = read_labelled(DATA / "ecoli_promoters" / "v9d3.csv.gz")
    names = {"0": "other", "1": "promoter"}
    return [
        (s, names[label], "train") for s, label in zip(data.sequences, data.labels, strict=True)
    ]


def splice() -> Rows:
    """UCI splice junctions: EI, IE, N."""
    data = read_labelled(DATA / "uci_splice_promoter" / "splice.csv.gz")
    return [(s, label, "train") for s, label in zip(data.sequences, data.labels, strict=True)]


def promoters106() -> Rows:
    """UCI E. coli promoters; the file has no header: class, name, sequence."""
    text = (DATA / "uci_splice_promoter" / "promoters.data").read_text()
    rows = [
        [cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()
    ]
    names = {"+": "promoter", "-": "other"}
    return [(sequence, names[label], "train") for label, _, sequence in rows]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One task and how it is learnt."""

    rows: Callable[[], Rows]
    folds: int | None
    strand: str = "plus"
    source: str = ""


PLANS = {
    "coding": Plan(
        coding, None, "both", f"NC_000913.3 and its GFF3, windows of {WINDOW_BP} bp, halves"
    ),
    "ecoli_promoters": Plan(ecoli_promoters, 5, source="Nucleic-Transformer v9d3, RegulonDB v9"),
    "splice": Plan(splice, 10, source="UCI Molecular Biology (Splice-junction), CC BY 4.0"),
    "promoters106": Plan(promoters106, 10, source="UCI Molecular Biology (Promoter), CC BY 4.0"),
}


def build_task(name: str, limit: int, seed: int) -> tuple[Task, dict[str, int]]:
    """Return the task with at most `limit` sequences per part (0: all), and how many there were."""
    rows = PLANS[name].rows()
    parts = {part: [row for row in rows if row[2] == part] for part in ("train", "test")}
    sizes = {part: len(found) for part, found in parts.items() if found}
    rng = random.Random(seed)
    classes = tuple(sorted({label for _, label, _ in rows}))
    examples = {}
    for part in sizes:
        chosen = list(range(sizes[part]))
        if limit and limit < len(chosen):
            chosen = sorted(rng.sample(chosen, limit))
        examples[part] = _examples([parts[part][i] for i in chosen], chosen, classes)
    return Task(name, classes, examples["train"], None, examples.get("test"), {}), sizes


def _examples(rows: Rows, numbers: Sequence[int], classes: tuple[str, ...]) -> Examples:
    return Examples(
        tuple(sequence for sequence, _, _ in rows),
        tuple(classes.index(label) for _, label, _ in rows),
        tuple(f"{part}:{number + 1}" for (_, _, part), number in zip(rows, numbers, strict=True)),
    )


def measure(run: Run, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Probe and full fine-tuning of one task, each also from random weights, and the baselines."""
    plan = PLANS[name]
    task, sizes = build_task(name, arguments.max_sequences, arguments.seed)
    models: dict[str, dict[str, Any]] = {}
    result: FinetuneResult | None = None
    options = {}
    for mode in arguments.modes:
        options[mode] = FinetuneOptions(
            mode=mode,
            scratch=True,
            folds=plan.folds,
            strand=plan.strand,
            epochs=arguments.epochs,
            lr=arguments.lr,
            seed=arguments.seed,
        )
        result = classify(run, task, options[mode])
        for model in result.to_json()["models"]:
            models[model["name"]] = {k: v for k, v in model.items() if k not in ("roc", "pr")}
    if result is None:
        raise SystemExit("name at least one of --modes probe full")
    facts = result.to_json()
    return {
        "source": plan.source,
        "sequences_there": sizes,
        "sequences_used": {"train": facts["n_train"], "test": facts["n_test"]},
        **{key: facts[key] for key in ("classes", "folds", "duplicates", "leaks")},
        "leakage": leakage(task, plan, arguments.seed),
        "options": {mode: dataclasses.asdict(value) for mode, value in options.items()},
        "run": {
            "digest": run.digest,
            "parameters": run.model.parameter_count(),
            "model": run.config.model.model_dump(mode="json"),
        },
        **describe(),
        "models": list(models.values()),
    }


def leakage(task: Task, plan: Plan, seed: int) -> dict[str, Any]:
    """What the held-out sequences have in common with those that were learnt from."""
    return leakage_of_task(task, folds_of(task, plan.folds, seed=seed)).to_json()


def main() -> None:
    """Measure the tasks and merge them into the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--task", choices=PLANS, action="append", help="default: all")
    parser.add_argument("--modes", nargs="+", choices=["probe", "full"], default=["probe", "full"])
    parser.add_argument("--max-sequences", type=int, default=1000, help="per part; 0: all")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=FinetuneOptions().lr)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "classification.json"
    )
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    results = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.task or PLANS:
        results[name] = measure(run, name, arguments)
        write_json(arguments.out, results)
        for model in results[name]["models"]:
            words = [f"{metric['name']} {metric['value']}" for metric in model["metrics"]]
            print(f"{name}: {model['name']}: {', '.join(words)}, {model['seconds']} s")


if __name__ == "__main__":
    main()
