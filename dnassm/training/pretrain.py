"""Pretraining: an explicit loop on Lightning Fabric that resumes exactly where it was stopped.

Everything random in step k (windows, strands, masks, dropout) is a function of (seed, k), so a
checkpoint needs weights, optimiser moments and k, and nothing else. Fabric brings devices, precision
and distributed strategies; the loop stays in sight because the exactness is the point.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from dnassm.artifact import check_target, write_json
from dnassm.config import RunConfig
from dnassm.console import Progress as ProgressBar
from dnassm.data.sampler import SAMPLERS, splitmix64
from dnassm.data.store import GenomeStore
from dnassm.data.tokenizer import TOKENIZERS, Tokenizer
from dnassm.data.windows import WindowDataset, make_loader
from dnassm.errors import ArtifactError, ConfigError, Interrupted
from dnassm.model import DNAModel, read_run_config
from dnassm.provenance import write_run_json
from dnassm.runs import Run, load_run
from dnassm.task import TASKS, Objective, token_loss
from dnassm.training.checkpoint import Progress, checkpoints, load_checkpoint, save_checkpoint
from dnassm.training.evaluate import bits_per_base, held_out_split
from dnassm.training.metrics_log import MetricsLog
from dnassm.training.model_card import write_model_card
from dnassm.training.optimizer import build_optimizer, learning_rate


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Where a run computes; changes speed, not the batches."""

    devices: int | str = "auto"
    strategy: str = "auto"
    accelerator: str = "auto"


def pretrain(
    config: RunConfig,
    genome: GenomeStore,
    out: Path,
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
        out: run folder; must be new, or an unfinished run with `resume`.
        resume: go on from the newest checkpoint of `out`, with the config that it was started with.
        force: replace what is at `out`.
        hardware: devices and strategy.
        tensorboard: also log for TensorBoard, under ``out/tensorboard``.
        minutes: stop training after so long; the learning rate follows the clock then, and the run
            cannot be repeated exactly.

    Returns:
        The finished run, loaded.

    Raises:
        ArtifactError: `out` is taken, or holds no run to resume, or one of another genome.
        ConfigError: the config contradicts itself (a next-token objective on a bidirectional model).
        Interrupted: Ctrl-C; a checkpoint was written.
    """
    hardware = hardware or Hardware()
    config = _resumed_config(out, genome) if resume else config
    tokenizer = TOKENIZERS[config.data.tokenizer]()
    config = _with_vocabulary(config, tokenizer)
    if not resume:
        _start_folder(out, config, tokenizer, genome, force=force)
    precision: Any = _precision(config, hardware)
    fabric = Fabric(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=hardware.strategy,
        precision=precision,
    )
    fabric.launch()
    trainer = _Trainer(fabric, config, tokenizer, genome, out, minutes=minutes)
    if tensorboard:
        trainer.log_to_tensorboard(out / "tensorboard")
    trainer.run()
    return load_run(out)


class _Trainer:
    """The loop and what it holds."""

    def __init__(
        self,
        fabric: Fabric,
        config: RunConfig,
        tokenizer: Tokenizer,
        genome: GenomeStore,
        out: Path,
        *,
        minutes: float | None,
    ) -> None:
        self.fabric, self.config, self.genome, self.out = fabric, config, genome, out
        self.tokenizer, self.limit_s = tokenizer, None if minutes is None else 60 * minutes
        self.objective: Objective = TASKS[config.objective.name](config.objective, tokenizer)
        torch.manual_seed(config.training.seed)
        self.model = DNAModel(config.model)
        if self.objective.needs_causal and not self.model.causal:
            raise ConfigError(
                "objective.name=next needs a causal model, got model.bidirectional=true; "
                "use objective.name=masked"
            )
        self.optimizer = build_optimizer(self.model, config.training)
        self.progress = Progress()
        self.held_out = held_out_split(genome)
        self.tensorboard: Any = None
        fabric.to_device(self.model)
        found = checkpoints(out / "checkpoints")
        if found:
            self.progress = load_checkpoint(found[-1], self.model, self.optimizer)
        self.wrapped, self.wrapped_optimizer = fabric.setup(self.model, self.optimizer)
        self.log = MetricsLog(out / "metrics.csv", after_step=self.progress.step)

    def log_to_tensorboard(self, folder: Path) -> None:
        """Also write the metrics as TensorBoard events."""
        from dnassm.extras import require

        require("tensorboard", "log", "logging for TensorBoard")
        from torch.utils.tensorboard import SummaryWriter

        self.tensorboard = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def run(self) -> None:
        """Train to the end, evaluate nothing, write the model; on Ctrl-C write a checkpoint."""
        training = self.config.training
        total = training.max_steps * training.batch_size * self.config.data.length
        logged = _Window()
        with (
            _stop_at_step_end() as stop,
            ProgressBar(total, "tokens", "pretrain", start=self.progress.tokens) as bar,
        ):
            for tokens in self._batches():
                began = time.perf_counter()
                loss = self._step(tokens)
                self.progress.step += 1
                self.progress.tokens += tokens.numel() * self.fabric.world_size
                logged.add(loss)
                self.progress.seconds += time.perf_counter() - began
                self._after_step(logged, bar)
                if stop.is_set():
                    self._checkpoint()
                    raise Interrupted(
                        f"stopped after step {self.progress.step} of {training.max_steps}; "
                        f"go on with: dnassm pretrain --resume --out {self.out}"
                    )
                if self._time_is_up():
                    break
        self._finish()

    def _batches(self) -> Iterator[Tensor]:
        data, training, world = self.config.data, self.config.training, self.fabric.world_size
        if training.batch_size % world:
            raise ConfigError(
                f"training.batch_size={training.batch_size} must be a multiple of {world} devices"
            )
        sampler_class: Any = SAMPLERS[data.sampler]
        sampler = sampler_class(
            self.genome, split="train", length=data.length, rc_probability=data.rc_probability
        )
        dataset = WindowDataset(self.genome, self.tokenizer, sampler, seed=training.seed)
        loader = make_loader(
            dataset,
            batch_size=training.batch_size // world,
            start_batch=self.progress.step,
            batches=training.max_steps - self.progress.step,
            workers=data.workers,
            rank=self.fabric.global_rank,
            world_size=world,
        )
        return iter(loader)

    def _step(self, tokens: Tensor) -> Tensor:
        """One optimiser step; returns the loss in nats."""
        training = self.config.training
        seed = splitmix64(training.seed, self.progress.step) >> 1  # torch wants 63 bits
        torch.manual_seed(seed + self.fabric.global_rank)
        generator = torch.Generator().manual_seed(seed ^ self.fabric.global_rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.model.train()
        inputs, targets = self.objective.prepare(self.fabric.to_device(tokens), generator)
        logits, _ = self.wrapped(inputs)
        loss = token_loss(logits, targets)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.wrapped, self.wrapped_optimizer, max_norm=training.clip)
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        return loss.detach()

    def _learning_rate(self) -> float:
        training = self.config.training
        if self.limit_s is None:
            return learning_rate(self.progress.step, training)
        share = min(1.0, self.progress.seconds / self.limit_s)
        return learning_rate(int(share * (training.max_steps - 1)), training)

    def _time_is_up(self) -> bool:
        return self.limit_s is not None and self.progress.seconds >= self.limit_s

    def _after_step(self, logged: _Window, bar: ProgressBar) -> None:
        training, step = self.config.training, self.progress.step
        last = step == training.max_steps or self._time_is_up()
        if step % training.log_every == 0 or last:
            valid = None
            if step % training.valid_every == 0 or last:
                valid = self._valid_bits()
            row = self._row(logged, valid)
            if self.fabric.is_global_zero:
                self.log.write(row)
                self._write_scalars(row)
            facts = {"bits/base": f"{row['train_bits']:.3f}"}
            if valid is not None:
                facts["held-out"] = f"{valid:.3f}"
            bar.update(self.progress.tokens, **facts)
        if step % training.checkpoint_every == 0 and not last:
            self._checkpoint()

    def _row(self, logged: _Window, valid: float | None) -> dict[str, Any]:
        bits, rate = logged.take(self.progress)
        if not math.isfinite(bits):
            raise ConfigError(
                f"{self.out}: the loss is {bits} at step {self.progress.step}; lower training.lr "
                f"(now {self.config.training.lr}) or training.clip, then start again"
            )
        return {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 3),
            "train_bits": round(bits, 6),
            "valid_bits": "" if valid is None else round(valid, 6),
            "lr": f"{self.optimizer.param_groups[0]['lr']:.3e}",
            "tokens_per_s": round(rate),
        }

    def _write_scalars(self, row: dict[str, Any]) -> None:
        if self.tensorboard is None:
            return
        for name in ("train_bits", "valid_bits", "lr", "tokens_per_s"):
            if row[name] != "":
                self.tensorboard.add_scalar(name, float(row[name]), row["step"])
        self.tensorboard.flush()

    def _valid_bits(self) -> float | None:
        windows = self.config.training.valid_windows
        if self.held_out is None or windows == 0:
            return None
        self.model.eval()
        bits, _ = bits_per_base(
            self.model,
            self.tokenizer,
            self.config,
            self.genome,
            split=self.held_out,
            windows=windows,
        )
        return bits

    def _checkpoint(self) -> None:
        if self.fabric.is_global_zero:
            save_checkpoint(
                self.out / "checkpoints",
                self.model,
                self.optimizer,
                self.progress,
                keep=self.config.training.keep_checkpoints,
            )
        self.fabric.barrier()

    def _finish(self) -> None:
        self._checkpoint()
        if self.fabric.is_global_zero:
            self.model.save_pretrained(self.out, self.config)
            write_model_card(self.out, self.model, self.config, self.genome, self.progress)
        if self.tensorboard is not None:
            self.tensorboard.close()
        self.fabric.barrier()


class _Window:
    """Losses since the last logged step, kept on the device: reading one waits for the device."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._since = (0, 0.0)

    def add(self, loss: Tensor) -> None:
        self._losses.append(loss)

    def take(self, progress: Progress) -> tuple[float, float]:
        """Mean bits per base, and tokens per second, since the last call."""
        bits = float(torch.stack(self._losses).mean()) / math.log(2)
        tokens, seconds = self._since
        rate = (progress.tokens - tokens) / max(progress.seconds - seconds, 1e-9)
        self._losses, self._since = [], (progress.tokens, progress.seconds)
        return bits, rate


@contextmanager
def _stop_at_step_end() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a flag: weights are never saved half-way through a step.

    The second Ctrl-C stops at once.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals belong to the main thread
        return

    def ask(number: int, frame: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _precision(config: RunConfig, hardware: Hardware) -> str:
    if config.training.precision != "auto":
        return config.training.precision
    on_gpu = hardware.accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def _with_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    model = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    return config.model_copy(update={"model": model})


def _start_folder(
    out: Path, config: RunConfig, tokenizer: Tokenizer, genome: GenomeStore, *, force: bool
) -> None:
    if not force and checkpoints(out / "checkpoints") and not (out / "model.safetensors").exists():
        raise ArtifactError(
            f"{out} holds an unfinished run; go on with --resume, or replace it with --force"
        )
    check_target(out, force=force)
    _remove_run(out)
    out.mkdir(parents=True, exist_ok=True)
    header = {"format": "dnassm-run", "version": 1, **config.model_dump(mode="json")}
    write_json(out / "config.json", header)
    tokenizer.save(out / "tokenizer.json")
    write_run_json(
        out,
        command="pretrain",
        config=config.model_dump(mode="json"),
        seed=config.training.seed,
        inputs={str(genome.path): genome.digest},
    )


def _remove_run(out: Path) -> None:
    """Clear an old run away, but nothing that a run did not write."""
    import shutil

    if not out.exists():
        return
    if any(out.iterdir()) and not (out / "config.json").is_file():
        raise ArtifactError(f"{out} is not a run folder; --force replaces runs only")
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("model.safetensors", "metrics.csv", "evaluation.json", "README.md"):
        (out / name).unlink(missing_ok=True)


def _resumed_config(out: Path, genome: GenomeStore) -> RunConfig:
    import json

    if not (out / "config.json").is_file():
        raise ArtifactError(f"{out} holds no run to resume; start one without --resume")
    inputs = json.loads((out / "run.json").read_text(encoding="utf-8"))["inputs"]
    if genome.digest not in inputs.values():
        raise ArtifactError(
            f"{out} was trained on another genome than {genome.path}; resume with the one in run.json"
        )
    return read_run_config(out)
