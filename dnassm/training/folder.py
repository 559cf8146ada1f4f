"""The run folder before training: may it be written, what is in it, is it this run's?"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnassm.artifact import check_target, read_json
from dnassm.config import RunConfig
from dnassm.errors import ArtifactError, ConfigError
from dnassm.model import read_run_config, write_run_config
from dnassm.provenance import write_run_json
from dnassm.training.job import Job

_FREE = frozenset({"data.workers"})
"""Settings that a resumed run may change: they decide nothing that it computes."""
_FOLDERS = ("checkpoints", "tensorboard")
_FILES = ("model.safetensors", "metrics.csv", "evaluation.json", "README.md")


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a place that a new run must not take.

    Raises:
        ArtifactError: a run is there and `force` is off, or something that is no run.
    """
    if out.is_file():
        raise ArtifactError(f"{out} is a file, expected a folder to write; choose another --out")
    if not _holds_anything(out):
        check_target(out, force=True)
        return
    try:
        read_run_config(out)
    except (ArtifactError, ConfigError) as error:
        raise ArtifactError(
            f"{out} is not empty and not a run of this dnassm ({error}); --force replaces runs "
            "only: choose another --out"
        ) from error
    if force:
        return
    if is_finished(out):
        raise ArtifactError(
            f"{out} holds a finished run; pass --force to replace it, or another --out"
        )
    raise ArtifactError(
        f"{out} holds an unfinished run; go on with --resume, or replace it with --force"
    )


def is_finished(out: Path) -> bool:
    """Whether the run in `out` came to its end: its model is what it writes last."""
    return (out / "model.safetensors").is_file()


def start_folder(job: Job, *, force: bool) -> None:
    """Write what a run folder holds before its first step; clear an old run away with `force`.

    Raises:
        ArtifactError: see `check_out`; or the place is not writable.
    """
    out = job.out
    check_out(out, force=force)
    # Only what a run writes: notes and tables that were put beside it stay.
    for name in _FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    write_run_config(out, job.config)
    job.tokenizer.save(out / "tokenizer.json")
    config = job.config.model_dump(mode="json")
    write_run_json(
        out,
        command="pretrain",
        config={**config, "minutes": job.minutes},
        seed=job.config.training.seed,
        inputs=job.inputs,
    )


def resume_job(job: Job) -> Job:
    """The job as the run in ``job.out`` was started; what is asked for now must agree with it.

    Raises:
        ArtifactError: no run, a damaged one, or one of another genome or of other files.
        ConfigError: a setting differs.
    """
    stored = stored_config(job.out)
    record = read_record(job.out)
    if job.genome.digest not in record["inputs"].values():
        raise ArtifactError(
            f"{job.out} was trained on another genome than {job.genome.path}; resume with "
            f"{next(iter(record['inputs']), 'the one in run.json')}"
        )
    problems = differences(stored, job.config)
    minutes = record["config"].get("minutes", job.minutes)  # older runs did not write it down
    if job.minutes not in (None, minutes):
        problems.append(f"minutes={minutes}, asked for {job.minutes}")
    if problems:
        raise ConfigError(
            f"{job.out} was started with {'; '.join(problems)}. --resume changes nothing: leave "
            "the option out, or start a new run with another --out or --force"
        )
    for path, digest in list(job.inputs.items())[1:]:
        if record["inputs"].get(path) != digest:
            raise ArtifactError(
                f"{path} has changed since the run {job.out} began: its batches would be others; "
                "restore it, or start a new run with another --out or --force"
            )
    data = stored.data.model_copy(update={"workers": job.config.data.workers})
    return dataclasses.replace(
        job, config=stored.model_copy(update={"data": data}), minutes=minutes
    )


def stored_config(out: Path) -> RunConfig:
    """Config of the run to resume.

    Raises:
        ArtifactError: there is no run.
    """
    if not (out / "config.json").is_file():
        raise ArtifactError(f"{out} holds no run to resume; start one without --resume")
    return read_run_config(out)


def read_record(out: Path) -> dict[str, Any]:
    """run.json of a run, its "inputs" and "config" checked.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    record = read_json(out / "run.json")
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), dict) for key in ("inputs", "config")
    ):
        raise ArtifactError(
            f"{out / 'run.json'}: expected inputs and config; the file is damaged: restore it, or "
            "start the run again with --force"
        )
    return record


def differences(stored: RunConfig, asked: RunConfig) -> list[str]:
    """Settings that differ and must not, as ``training.lr=0.002, asked for 0.001``."""
    old, new = (_flat(config.model_dump(mode="json")) for config in (stored, asked))
    return [
        f"{key}={old.get(key)}, asked for {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if key not in _FREE and old.get(key) != new.get(key)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _holds_anything(out: Path) -> bool:
    """Whether `out` has content, other than what a killed process was staging."""
    return out.is_dir() and any(".partial-" not in path.name for path in out.iterdir())
