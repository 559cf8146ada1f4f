"""What `dnassm pretrain` asks for, turned into a run: genome, config, training, evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dnassm.artifact import read_json
from dnassm.config import RunConfig
from dnassm.console import table
from dnassm.data.store import GenomeStore, build_store
from dnassm.errors import ArtifactError, ConfigError
from dnassm.model import read_run_config
from dnassm.runs import Run
from dnassm.training.evaluate import evaluate_run, held_out_split
from dnassm.training.pretrain import Hardware, pretrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command, in its words."""

    out: Path
    genome: Path | None = None
    preset: str = "mamba-tiny"
    config: Path | None = None
    settings: tuple[str, ...] = ()
    max_tokens: int | None = None
    minutes: float | None = None
    split: str = "blocks:size=50000,every=10"
    resume: bool = False
    devices: str = "auto"
    strategy: str = "auto"
    tensorboard: bool = False
    evaluate: bool = True
    force: bool = False


def run_pretrain(request: Request, *, as_json: bool = False) -> str:
    """Pretrain as asked and describe the result, as a table or as JSON.

    Raises:
        ConfigError: the options contradict each other or name no genome.
    """
    config = read_run_config(request.out) if request.resume else _config(request)
    genome = _genome(request)
    run = pretrain(
        config,
        genome,
        request.out,
        resume=request.resume,
        force=request.force,
        hardware=Hardware(
            devices=int(request.devices) if request.devices.isdigit() else request.devices,
            strategy=request.strategy,
        ),
        tensorboard=request.tensorboard,
        minutes=request.minutes,
    )
    evaluation = None
    if request.evaluate and held_out_split(genome) is not None:
        evaluation = evaluate_run(run, genome)
    return _describe(run, evaluation, as_json=as_json)


def _config(request: Request) -> RunConfig:
    config = (
        RunConfig.from_toml(request.config) if request.config else RunConfig.preset(request.preset)
    )
    settings = list(request.settings)
    if request.minutes is not None and not request.minutes > 0:
        raise ConfigError(f"--minutes: expected more than 0, got {request.minutes}")
    if request.max_tokens is not None:
        if any(setting.startswith("training.max_steps=") for setting in settings):
            raise ConfigError("--max-tokens and --max-steps say the same thing; give one of them")
        changed = config.override(settings)
        per_step = changed.data.length * changed.training.batch_size
        settings.append(f"training.max_steps={max(1, request.max_tokens // per_step)}")
    return config.override(settings)


def _genome(request: Request) -> GenomeStore:
    path = request.genome
    if path is None and request.resume:
        inputs = read_json(request.out / "run.json").get("inputs", {})
        path = Path(next(iter(inputs), ""))
        if not path.is_dir():
            raise ArtifactError(f"{request.out}: its genome {path} is gone; name it with --genome")
    if path is None:
        raise ConfigError(
            "--genome is missing: expected a store made by `dnassm tokenize`, or a FASTA file"
        )
    if path.is_dir():
        return GenomeStore.open(path)
    store = request.out.with_name(request.out.name + ".genome")
    if store.is_dir() and not request.force:
        raise ArtifactError(
            f"{store} exists already; use it with --genome {store}, or pass --force to build it again"
        )
    return build_store([path], store, split=request.split, force=request.force)


def _describe(run: Run, evaluation: dict[str, Any] | None, *, as_json: bool) -> str:
    facts = {
        "run": str(run.path),
        "parameters": run.model.parameter_count(),
        "evaluation": evaluation,
    }
    if as_json:
        return json.dumps(facts, indent=2)
    lines = [f"{run.path}: {run.model.parameter_count():,} parameters"]
    if evaluation is not None:
        ours = ("this model", f"{evaluation['bits_per_base']:.4f}")
        rest = [(row["name"], f"{row['bits_per_base']:.4f}") for row in evaluation["baselines"]]
        lines += ["", table([ours, *rest], ["model", "bits per base"]), ""]
        lines.append(
            f"on {evaluation['bases']:,} bases of the {evaluation['split']!r} split, never seen in training"
        )
    return "\n".join(lines)
