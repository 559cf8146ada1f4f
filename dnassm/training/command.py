"""What `dnassm pretrain` asks for, turned into a run: genome, config, training, evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from dnassm.artifact import read_json
from dnassm.config import RunConfig
from dnassm.console import Progress, table
from dnassm.data.split import parse_split
from dnassm.data.store import GenomeStore, build_store, input_bytes
from dnassm.errors import ArtifactError, ConfigError
from dnassm.runs import Run
from dnassm.training.evaluate import evaluate_run, held_out_split
from dnassm.training.folder import check_out, read_record, resume_job, stored_config
from dnassm.training.hardware import Hardware, in_first_process, launch, said_once
from dnassm.training.job import make_job
from dnassm.training.pretrain import train_on

DEFAULT_PRESET = "mamba-tiny"
DEFAULT_SPLIT = "blocks:size=50000,every=10"
_MAX_STEPS = "training.max_steps="
_STEPS_WITHOUT_END = 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command, in its words; None where the user said nothing."""

    out: Path
    genome: Path | None = None
    preset: str | None = None
    config: Path | None = None
    settings: tuple[str, ...] = ()
    max_tokens: int | None = None
    minutes: float | None = None
    split: str | None = None
    resume: bool = False
    devices: str = "auto"
    strategy: str = "auto"
    tensorboard: bool = False
    evaluate: bool = True
    force: bool = False


def run_pretrain(request: Request, *, as_json: bool = False) -> str:
    """Pretrain as asked and describe the result, as a table or as JSON.

    Returns:
        What to print; nothing in the further processes of a run on several devices.

    Raises:
        ConfigError: the options contradict each other or name no genome.
    """
    if request.resume and request.force:
        raise ConfigError("--resume goes on with a run, --force replaces it; give one of them")
    if not request.resume:
        check_out(request.out, force=request.force)
    config = requested_config(request)
    devices = int(request.devices) if request.devices.isdecimal() else request.devices
    hardware = Hardware(devices=devices, strategy=request.strategy)
    fabric = launch(hardware, config.training.precision)
    with said_once(fabric):
        genome = _genome(request, fabric)
        job = make_job(config, genome, request.out, minutes=request.minutes)
        if request.resume:
            job = resume_job(job)
    run = train_on(
        fabric, job, resume=request.resume, force=request.force, tensorboard=request.tensorboard
    )
    if not fabric.is_global_zero:
        return ""
    evaluation = _evaluation(run, genome) if request.evaluate else None
    return _describe(run, evaluation, as_json=as_json)


def requested_config(request: Request) -> RunConfig:
    """The config that the options describe; without a preset or a file, that of the run to resume.

    Raises:
        ConfigError: options contradict each other, or a value is wrong.
    """
    if request.config is not None and request.preset is not None:
        raise ConfigError("--config and --model both describe the model; give one of them")
    if request.config is not None:
        base = RunConfig.from_toml(request.config)
    elif request.resume and request.preset is None:
        base = stored_config(request.out)
    else:
        base = RunConfig.preset(request.preset or DEFAULT_PRESET)
    return base.override([*request.settings, *_length_of_run(request, base)])


def _length_of_run(request: Request, base: RunConfig) -> list[str]:
    """--max-tokens and --minutes as a setting of training.max_steps."""
    limited = any(setting.strip().startswith(_MAX_STEPS) for setting in request.settings)
    if request.max_tokens is not None:
        if limited:
            raise ConfigError("--max-tokens and --max-steps say the same thing; give one of them")
        if request.max_tokens < 1:
            raise ConfigError(f"--max-tokens: expected at least 1, got {request.max_tokens}")
        config = base.override(request.settings)
        per_step = config.data.length * config.training.batch_size
        return [f"{_MAX_STEPS}{max(1, request.max_tokens // per_step)}"]
    in_file = request.config is not None and "max_steps" in base.training.model_fields_set
    of_run = request.resume and request.preset is None
    if request.minutes is None or limited or in_file or of_run:
        return []
    return [f"{_MAX_STEPS}{_STEPS_WITHOUT_END}"]  # the clock alone ends the run


def _genome(request: Request, fabric: Fabric) -> GenomeStore:
    path = request.genome
    if path is None and request.resume:
        path = Path(next(iter(read_record(request.out)["inputs"]), ""))
        if not path.is_dir():
            raise ArtifactError(f"{request.out}: its genome {path} is gone; name it with --genome")
    if path is None:
        raise ConfigError(
            "--genome is missing: expected a store made by `dnassm tokenize`, or a FASTA file"
        )
    if path.is_dir():
        if request.split is not None:
            raise ConfigError(
                f"--split is for FASTA files, the store {path} has its own; tokenize again to "
                "change it"
            )
        return GenomeStore.open(path)
    store = request.out.with_name(request.out.name + ".genome")
    in_first_process(fabric, lambda: _tokenize(path, store, request))
    return GenomeStore.open(store)


def _tokenize(fasta: Path, store: Path, request: Request) -> None:
    """Make the store of a FASTA file beside the run, unless it is there already."""
    size = input_bytes([fasta])
    split = request.split or DEFAULT_SPLIT
    if store.is_dir() and any(store.iterdir()):
        if _is_store_of(fasta, size, split, GenomeStore.open(store)):
            return
        if not request.force:
            raise ArtifactError(
                f"{store} was made from another file or with another split; use it with --genome "
                f"{store}, pass --force to build it again, or choose another --out"
            )
    with Progress(size, "B", "tokenize") as bar:
        build_store([fasta], store, split=split, force=request.force, progress=bar.update)


def _is_store_of(fasta: Path, size: int, split: str, store: GenomeStore) -> bool:
    """Whether a store came from this file, unchanged since then, by this split."""
    same = [(source["path"], source["bytes"]) for source in store.sources] == [(str(fasta), size)]
    newer = fasta.stat().st_mtime_ns <= (store.path / "store.json").stat().st_mtime_ns
    return same and newer and store.split_rule == parse_split(split).text


def _evaluation(run: Run, genome: GenomeStore) -> dict[str, Any] | None:
    """Measure the run on what was held out, or read what an earlier session measured."""
    if held_out_split(genome) is None:
        return None
    written = run.path / "evaluation.json"
    if written.is_file():
        evaluation: dict[str, Any] = read_json(written)
        return evaluation
    return evaluate_run(run, genome)


def _describe(run: Run, evaluation: dict[str, Any] | None, *, as_json: bool) -> str:
    parameters = run.model.parameter_count()
    if as_json:
        facts = {"run": str(run.path), "parameters": parameters, "evaluation": evaluation}
        return json.dumps(facts, indent=2)
    lines = [f"{run.path}: {parameters:,} parameters"]
    if evaluation is not None:
        ours = ("this model", f"{evaluation['bits_per_base']:.4f}")
        rest = [(row["name"], f"{row['bits_per_base']:.4f}") for row in evaluation["baselines"]]
        lines += ["", table([ours, *rest], ["model", "bits per base"]), ""]
        lines.append(
            f"on {evaluation['bases']:,} bases of the {evaluation['split']!r} split, "
            "never seen in training"
        )
    return "\n".join(lines)
