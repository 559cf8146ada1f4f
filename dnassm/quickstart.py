"""The whole line in one call: genome, model, embeddings, classifier, variant scores, report.

Each stage leaves the artifact that the command of its name leaves, so that any of them can be
looked into, repeated with other options, or gone on from.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dnassm.artifact import check_target, read_json, write_json
from dnassm.baselines.markov import fit_mixture
from dnassm.config import RunConfig
from dnassm.console import Progress
from dnassm.data.annotation import BedRecord, label_windows, read_bed, read_gff
from dnassm.data.labelled import LabelledSequences, write_labelled
from dnassm.data.simulate import simulate_genome, write_simulation
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.variants import Variant, read_vcf
from dnassm.embedding import embed
from dnassm.errors import ArtifactError, ConfigError
from dnassm.finetuning import FinetuneOptions, finetune
from dnassm.metrics import auroc
from dnassm.provenance import write_run_json
from dnassm.report import build_report
from dnassm.runs import Run
from dnassm.training.evaluate import evaluate_run
from dnassm.training.pretrain import pretrain
from dnassm.variant_effects import SCORE_NAME, score_variants, score_with_markov

_WHOLE_MINUTES = 2.5  # below this, the genome and the number of variants shrink with the time
_GENOME_BP = 1_000_000
_LEAST_GENOME_BP = 120_000
_TRAINING_SHARE = 0.7  # of the minutes; the rest goes to loading, embedding and scoring
_VARIANTS = 400
_WINDOW_BP = 200
_PEER_ORDER = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """What the quickstart is run on.

    Attributes:
        out: folder for every artifact and report.html.
        genome: FASTA of one's own instead of the simulated genome; needs `annotation`.
        annotation: GFF3 with gene and CDS features of `genome`.
        minutes: about how long it may take on 2 cores; more trains longer.
        seed: of the simulation and the training.
        force: replace what an earlier quickstart left at `out`.
    """

    out: Path
    genome: Path | None = None
    annotation: Path | None = None
    minutes: float = _WHOLE_MINUTES
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 1000:
            raise ConfigError(f"--minutes: expected a number above 0, got {self.minutes}")
        if (self.genome is None) != (self.annotation is None):
            raise ConfigError(
                "--genome and --annotation go together: expected both, or neither for a "
                "simulated genome"
            )

    @property
    def scale(self) -> float:
        """How much of the whole genome and of the variants there is time for."""
        return min(1.0, self.minutes / _WHOLE_MINUTES)


def quickstart(options: QuickstartOptions) -> Path:
    """Run the whole line and return the path of ``report.html``.

    Raises:
        ArtifactError: `out` is taken by something else, or cannot be written.
        DnassmError: the genome or the annotation cannot be read.
    """
    out = options.out
    _check_out(out, force=options.force)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "quickstart.json", {"minutes": options.minutes, "seed": options.seed})
    with _stage("genome"):
        genome, windows, variants = _genome(options)
    with _stage("pretrain"):
        run = _pretrain(options, genome)
    with _stage("embed"):
        embed(run, genome=genome, intervals=windows, pool="mean+max").save(
            out / "embeddings.npy", force=True
        )
    with _stage("classify"):
        _classify(options, run, genome, windows)
    with _stage("score variants"):
        _score(out / "variants", run, genome, variants)
    paths = [out / name for name in ("genome", "pretraining", "embeddings.npy", "classification")]
    if variants:
        paths.append(out / "variants")
    return build_report(
        paths, out / "report.html", title="dnassm quickstart", words=_words(out), force=True
    )


def _check_out(out: Path, *, force: bool) -> None:
    """Only a folder that a quickstart made is replaced: --force never clears anything else."""
    check_target(out, force=force)
    if out.is_dir() and any(out.iterdir()) and not (out / "quickstart.json").is_file():
        raise ArtifactError(f"{out} was not made by quickstart; choose another --out")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"[quickstart] {name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def _genome(
    options: QuickstartOptions,
) -> tuple[GenomeStore, list[BedRecord], list[Variant]]:
    """Store, labelled windows and variants: simulated, or read from the user's own files."""
    out = options.out
    if options.genome is None or options.annotation is None:
        length = max(_LEAST_GENOME_BP, int(_GENOME_BP * options.scale))
        simulation = out / "simulation"
        write_simulation(simulate_genome(length=length, seed=options.seed), simulation, force=True)
        store = build_store([simulation / "genome.fa"], out / "genome", split="halves", force=True)
        variants = read_vcf(simulation / "variants.vcf")
        return store, read_bed(simulation / "labels.bed"), _sample(variants, options.scale)
    store = build_store([options.genome], out / "genome", split="halves", force=True)
    features = read_gff(options.annotation)
    windows = []
    for split in ("train", "test"):
        labelled = label_windows(
            store.splits[split], features, size=_WINDOW_BP, step=_WINDOW_BP // 2, seed=options.seed
        )
        windows += [
            BedRecord(interval, label=label, split=split)
            for interval, label in zip(labelled.intervals, labelled.labels, strict=True)
        ]
    return store, windows, []


def _sample(variants: list[Variant], scale: float) -> list[Variant]:
    """Every k-th variant, so that all kinds stay in."""
    every = max(1, round(len(variants) / max(1.0, _VARIANTS * scale)))
    return variants[::every]


def _pretrain(options: QuickstartOptions, genome: GenomeStore) -> Run:
    config = RunConfig.preset("mamba-nano").override(
        [
            f"training.seed={options.seed}",
            # The clock ends the training; so many steps do not fit into it.
            "training.max_steps=1000000",
            "training.log_every=20",
            "training.valid_every=100",
            "training.valid_windows=100",
        ]
    )
    run = pretrain(
        config,
        genome,
        options.out / "pretraining",
        force=True,
        minutes=options.minutes * _TRAINING_SHARE,
    )
    evaluate_run(run, genome, split="test")
    return run


def _classify(
    options: QuickstartOptions, run: Run, genome: GenomeStore, windows: list[BedRecord]
) -> None:
    from dnassm.data.alphabet import decode

    table = options.out / "windows.csv"
    data = LabelledSequences(
        sequences=[decode(genome.fetch(window.interval)) for window in windows],
        labels=[str(window.label) for window in windows],
        split=[str(window.split) for window in windows],
    )
    write_labelled(table, data, force=True)
    settings = FinetuneOptions(mode="probe", strand="both", seed=options.seed)
    finetune(run, table, options.out / "classification", options=settings, force=True)


def _score(out: Path, run: Run, genome: GenomeStore, variants: list[Variant]) -> None:
    """variants.json: the model beside a Markov mixture trained on the same bases."""
    if not variants:
        return
    with Progress(len(variants), "variants", "score variants") as bar:
        scores = score_variants(run, genome, variants, report=bar.update)
    train = [genome.fetch(interval) for interval in genome.splits["train"]]
    peer = score_with_markov(fit_mixture(train, _PEER_ORDER), genome, variants)
    breaking = [variant.info.get("EFFECT") == "motif_breaking" for variant in variants]
    ours, theirs = auroc(breaking, scores), auroc(breaking, peer)
    record = {
        "score_name": SCORE_NAME,
        **_area(ours),
        "baseline": {"name": f"Markov orders 0-{_PEER_ORDER} interpolated", **_area(theirs)},
        "variants": [
            {
                "id": variant.id,
                "contig": variant.contig,
                "position": variant.position,
                "ref": variant.ref,
                "alt": variant.alt,
                "effect": variant.info.get("EFFECT"),
                "site": variant.info.get("SITE"),
                "score": float(score),
            }
            for variant, score in zip(variants, scores, strict=True)
        ],
    }
    out.mkdir(exist_ok=True)
    write_json(out / "variants.json", record)
    write_run_json(
        out,
        command="quickstart",
        config={"context": 256, "strands": "both"},
        seed=None,
        inputs={str(run.path): run.digest, str(genome.path): genome.digest},
    )


def _area(metric: Any) -> dict[str, Any]:
    return {"auroc": metric.value, "auroc_low": metric.low, "auroc_high": metric.high}


def _words(out: Path) -> list[str]:
    """What the user sees, in sentences; the sections below add the figures."""
    evaluation = read_json(out / "pretraining" / "evaluation.json")
    best = min(evaluation["baselines"], key=lambda row: row["bits_per_base"])
    ours = evaluation["bits_per_base"]
    verb = "fewer than" if ours < best["bits_per_base"] else "more than"
    words = [
        "Everything on this page was computed on this machine by one command, from a genome to "
        "scores; each section names the artifact that it was drawn from.",
        f"The model was trained on the first half of each contig and needs {ours:.3f} bits for a "
        f"base of the second half, {verb} the {best['bits_per_base']:.3f} of the best Markov model "
        f"({best['name']}); 2 bits would be guessing.",
    ]
    result = read_json(out / "classification" / "result.json")
    areas = {
        model["name"]: metric
        for model in result["models"]
        for metric in model["metrics"]
        if metric["name"].upper() == "AUROC" and metric["value"] is not None
    }
    words += [
        f"Coding against intergenic windows, {result['n_test']} of them unseen: {name} reaches "
        f"AUROC {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})."
        for name, area in areas.items()
        if name != "majority class"
    ]
    file = out / "variants" / "variants.json"
    if file.is_file():
        record = read_json(file)
        words.append(
            f"Of {len(record['variants'])} planted variants, those that break a motif get higher "
            f"scores than silent ones with AUROC {record['auroc']:.3f}; a Markov model reaches "
            f"{record['baseline']['auroc']:.3f}, chance 0.5."
        )
    return words
