"""Pretraining: an explicit loop on Lightning Fabric that resumes exactly where it was stopped.

Everything random in step k (windows, strands, masks, dropout) is a function of (seed, k), so a
checkpoint needs weights, optimiser moments and k, and nothing else. Fabric brings devices,
precision and distributed strategies; the loop stays in sight because the exactness is the point.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.fabric import Fabric

from dnassm.config import RunConfig
from dnassm.data.store import GenomeStore
from dnassm.runs import Run, load_run
from dnassm.training.folder import check_out, is_finished, resume_job, start_folder
from dnassm.training.hardware import Hardware, in_first_process, launch, said_once
from dnassm.training.job import Job, make_job
from dnassm.training.metrics_log import require_tensorboard
from dnassm.training.trainer import Trainer

__all__ = ["Hardware", "pretrain", "train_on"]


def pretrain(
    config: RunConfig,
    genome: GenomeStore,
    out: Path | str,
    *,
    resume: bool = False,
    force: bool = False,
    hardware: Hardware | None = None,
    tensorboard: bool = False,
    minutes: float | None = None,
) -> Run:
    """Train a model on the "train" split of `genome` and leave a run folder at `out`.

    Args:
        config: model, data, objective and training.
        genome: the store; its "valid" (else "test") split is watched during training.
        out: run folder; must be new, or a run of this config and genome with `resume`.
        resume: go on from the newest checkpoint of `out`. A finished run is returned as it is.
        force: replace the run that is at `out`.
        hardware: devices and strategy.
        tensorboard: also log for TensorBoard, under ``out/tensorboard``.
        minutes: stop after so much training; the learning rate follows the clock then, and the run
            cannot be repeated exactly. A run that is resumed keeps its limit.

    Returns:
        The finished run, loaded.

    Raises:
        ArtifactError: `out` is taken, or holds no run to resume, or one of another genome.
        ConfigError: settings contradict each other, or the run to resume.
        Interrupted: Ctrl-C; a checkpoint was written.
    """
    out = Path(out)
    job = make_job(config, genome, out, minutes=minutes)
    if resume:
        job = resume_job(job)
    else:
        check_out(out, force=force)
    fabric = launch(hardware or Hardware(), job.config.training.precision)
    return train_on(fabric, job, resume=resume, force=force, tensorboard=tensorboard)


def train_on(fabric: Fabric, job: Job, *, resume: bool, force: bool, tensorboard: bool) -> Run:
    """Do what `pretrain` describes on devices that were launched, in every process.

    `job` is checked: by `resume_job` if it is to be resumed, else by `check_out`.
    """
    if resume and is_finished(job.out):
        if fabric.is_global_zero:
            print(f"dnassm: {job.out} is finished; nothing to resume", file=sys.stderr)
        return load_run(job.out)
    with said_once(fabric):
        if tensorboard:
            require_tensorboard()
        trainer = Trainer(fabric, job)
        if resume:
            trainer.restore()
    if not resume:
        in_first_process(fabric, lambda: start_folder(job, force=force))
    _warn(trainer)
    trainer.run(tensorboard=tensorboard)
    return load_run(job.out)


def _warn(trainer: Trainer) -> None:
    objective, model = trainer.learner.objective, trainer.learner.model
    if trainer.fabric.is_global_zero and objective.reads_both_sides and model.causal:
        name = trainer.job.config.objective.name
        print(
            f"dnassm: warning: objective {name!r} hides bases to be read back from both sides, and "
            "this model sees only the left one; use a bidirectional model (as the preset "
            "mamba-masked-tiny), or objective.name=next",
            file=sys.stderr,
        )
