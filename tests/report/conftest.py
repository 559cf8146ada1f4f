"""Artifacts as the other commands write them: small, deterministic, with noise that looks real."""

from __future__ import annotations

import csv
import hashlib
import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_run(folder: Path, command: str, *arguments: str, **config: object) -> None:
    record = {
        "command": command,
        "argv": ["/usr/bin/dnassm", command, *arguments],
        "config": config,
        "seed": 0,
        "versions": {"python": "3.11.9", "dnassm": "0.1.0", "torch": "2.13.0"},
        "inputs": {"genome.fa": hashlib.sha256(command.encode()).hexdigest()},
        "device": "cpu (x86_64)",
        "created": "2026-11-20T12:00:00+00:00",
    }
    write_json(folder / "run.json", record)


def write_store(folder: Path, contigs: dict[str, int], splits: dict | None = None) -> Path:
    rng = np.random.default_rng(1)
    rows = []
    for name, length in contigs.items():
        unknown = length // 200
        shares = rng.dirichlet([60, 62, 61, 59])
        counts = dict(zip("ACGT", map(int, shares * (length - unknown)), strict=True))
        counts |= {"N": length - sum(counts.values()), "iupac": 0, "soft_masked": length // 9}
        md5 = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
        rows.append({"name": name, "length": length, "counts": counts, "md5": md5})
    header = {"format": "dnassm-genome", "version": 1, "contigs": rows, "digest": "ab" * 32}
    header["splits"] = blocks(contigs) if splits is None else splits
    write_json(folder / "store.json", header)
    write_run(folder, "tokenize", "genome.fa", "--out", str(folder.name), split="blocks")
    return folder


def blocks(contigs: dict[str, int], size: int = 50_000) -> dict:
    parts: dict[str, list] = {"train": [], "valid": [], "test": []}
    for name, length in contigs.items():
        for number, start in enumerate(range(0, length, size)):
            part = {8: "valid", 9: "test"}.get(number % 10, "train")
            parts[part].append([name, start, min(start + size, length)])
    return {"rule": f"blocks:size={size},every=10,gap=0,valid=8,test=9", "gap": 0, **parts}


def write_pretraining(
    folder: Path, *, steps: int = 2000, bits: float | None = 1.9312, overfit: float = 0.0
) -> Path:
    rng = np.random.default_rng(2)
    config = {"pattern": "mmmm", "letters": {"m": {"name": "mamba"}}, "d_model": 128}
    write_json(folder / "config.json", {"model": config})
    with (folder / "metrics.csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(
            ["step", "tokens", "seconds", "train_bits", "valid_bits", "lr", "tokens_per_s"]
        )
        for step in range(10, steps + 1, 10):
            done = step / steps
            level = 1.93 + 0.9 * np.exp(-step / 40) + 0.06 * np.exp(-4 * done)
            lr = 2e-3 * min(step / (0.05 * steps), 0.05 + 0.95 * (0.5 + 0.5 * np.cos(np.pi * done)))
            valid = f"{level + 0.004 + overfit * done**3:.5f}" if step % 100 == 0 else ""
            train = level + rng.normal(0, 0.006) - 0.3 * overfit * done**2
            speed = "" if step == 10 else f"{41_000 + rng.normal(0, 600):.0f}"
            row = [
                step,
                step * 8192,
                f"{step * 0.2:.1f}",
                f"{train:.5f}",
                valid,
                f"{lr:.3e}",
                speed,
            ]
            log.writerow(row)
    if bits is not None:
        write_json(folder / "evaluation.json", evaluation(bits))
    weights = {"embed": {"dtype": "F32", "shape": [8, 128]}, "body": {"dtype": "F32"}}
    weights["body"] |= {"shape": [601, 1024]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **weights}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    write_run(folder, "pretrain", "--genome", "genome", "--model", "mamba-tiny", model=config)
    return folder


def evaluation(bits: float) -> dict:
    curve = [1.9987, 1.9866, 1.9794, 1.9731, 1.9643, 1.9527, 1.9422, 1.9351, 1.9433, 1.9751, 2.041]
    baselines: list[dict] = [
        {"name": f"Markov order {order}", "order": order, "bits_per_base": value}
        for order, value in enumerate(curve, 1)
    ]
    mixture = "Markov orders 0-11 interpolated"
    baselines.append({"name": mixture, "order": 11, "bits_per_base": 1.9342})
    return {"bits_per_base": bits, "split": "test", "bases": 450_000, "baselines": baselines}


def write_embeddings(path: Path, *, windows: int = 1200, labels: tuple[str, ...] = ()) -> Path:
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 1.0, (max(len(labels), 1), 64))
    which = rng.integers(0, max(len(labels), 1), windows)
    values = centres[which] * 0.6 + rng.normal(0, 1, (windows, 64)) * np.geomspace(2.5, 0.2, 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values.astype(np.float32))
    lines = ['# {"made_by": "dnassm embed", "pool": "mean", "layer": "last", "run": "ab12"}']
    lines.append("#chrom\tstart\tend\tname\tscore\tstrand\tlabel\tsplit")
    for index in range(windows):
        label = labels[which[index]] if labels else "."
        start = index * 800
        lines.append(f"chr1\t{start}\t{start + 800}\t.\t0\t+\t{label}\ttest")
    path.with_suffix(".bed").write_text("\n".join(lines) + "\n")
    return path


def write_classification(
    folder: Path, *, ours: float = 1.9, theirs: float = 1.75, tests: int = 800, leaks: int = 0
) -> Path:
    models = [
        model("probe", ours, tests, 12.3),
        model("full", ours + 0.25, tests, 95.0),
        model("k-mer logistic regression", theirs, tests, 3.1),
        majority(tests),
    ]
    write_json(
        folder / "result.json",
        {
            "task": "coding against intergenic windows",
            "classes": ["intergenic", "coding"],
            "n_train": 2400,
            "n_test": tests,
            "n_dev": 0,
            "duplicates": {"exact": 5, "reverse_complement": 1},
            "leaks": {"exact": leaks, "reverse_complement": 0},
            "folds": None,
            "models": models,
        },
    )
    write_run(folder, "finetune", "run", "--data", "windows.tsv", mode="probe")
    return folder


def model(name: str, separation: float, tests: int, seconds: float) -> dict:
    from sklearn import metrics as sk

    rng = np.random.default_rng(int(separation * 100))
    labels = (np.arange(tests) % 5 < 2).astype(int)
    scores = rng.normal(0, 1, tests) + separation * labels
    predicted = (scores > separation / 2).astype(int)
    fpr, tpr, _ = sk.roc_curve(labels, scores)
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    values = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "auroc": sk.roc_auc_score(labels, scores),
        "auprc": sk.average_precision_score(labels, scores),
    }
    return {
        "name": name,
        "metrics": [
            {"name": n, "value": float(v), "low": float(v - 0.014), "high": float(v + 0.012)}
            for n, v in values.items()
        ],
        "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
        "pr": {"recall": recall.tolist(), "precision": precision.tolist()},
        "confusion": sk.confusion_matrix(labels, predicted).tolist(),
        "seconds": seconds,
    }


def majority(tests: int) -> dict:
    metrics = [
        {"name": "accuracy", "value": 0.6, "low": 0.6, "high": 0.6},
        {"name": "macro_f1", "value": 0.375, "low": 0.375, "high": 0.375},
        {"name": "mcc", "value": 0.0, "low": 0.0, "high": 0.0},
        {"name": "auroc", "value": 0.5, "low": 0.5, "high": 0.5},
        {"name": "auprc", "value": 0.4, "low": 0.4, "high": 0.4},
    ]
    positives = int(tests * 0.4)
    confusion = [[tests - positives, 0], [positives, 0]]
    return {
        "name": "majority class",
        "metrics": metrics,
        "roc": {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]},
        "pr": {"recall": [1.0, 0.0], "precision": [0.4, 1.0]},
        "confusion": confusion,
        "seconds": 0.0,
    }


def write_variants(
    folder: Path, *, effects: tuple[str, ...] = ("silent", "motif-breaking")
) -> Path:
    rng = np.random.default_rng(4)
    variants = []
    for index in range(240):
        effect = effects[index % len(effects)] if effects else None
        shift = -1.4 * effects.index(effect) if effect else 0.0
        ref, alt = rng.choice(list("ACGT"), 2, replace=False)
        variants.append(
            {
                "id": f"var{index}",
                "contig": "chr1",
                "position": int(rng.integers(0, 1_000_000)),
                "ref": str(ref),
                "alt": str(alt),
                "effect": effect,
                "score": float(rng.gamma(2, 0.3) * (1 if index % 2 else -1) * 0.4 + shift),
            }
        )
    record: dict = {"variants": variants, "score_name": "log-likelihood ratio", "auroc": None}
    if len(effects) == 2:
        record |= {"auroc": 0.912, "auroc_low": 0.874, "auroc_high": 0.944}
        area = {"auroc": 0.634, "auroc_low": 0.562, "auroc_high": 0.701}
        record["baseline"] = {"name": "order-7 Markov", **area}
    write_json(folder / "variants.json", record)
    write_run(folder, "variants", "run", "--vcf", "variants.vcf")
    return folder


@pytest.fixture(scope="session")
def write() -> SimpleNamespace:
    """The writers above: test modules cannot import a conftest."""
    return SimpleNamespace(
        json=write_json,
        store=write_store,
        pretraining=write_pretraining,
        evaluation=evaluation,
        embeddings=write_embeddings,
        classification=write_classification,
        variants=write_variants,
    )


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each, in a folder as the quickstart leaves it."""
    folder = tmp_path_factory.mktemp("line")
    write_store(folder / "genome", {"chr1": 812_344, "chr2": 240_118, "plasmid": 21_907})
    write_pretraining(folder / "run")
    write_embeddings(folder / "windows.npy", labels=("intergenic", "coding"))
    write_classification(folder / "classifier")
    write_variants(folder / "variants")
    return folder
