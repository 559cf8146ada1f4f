"""The loop: batches in, steps, rows, checkpoints, and a model at its end."""

from __future__ import annotations

import io
import math
import shlex
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from dnassm.console import Progress as ProgressBar
from dnassm.data.batch import Batch
from dnassm.data.packing import PackedDataset
from dnassm.data.windows import WindowDataset, make_loader
from dnassm.errors import ConfigError, Interrupted
from dnassm.training.checkpoint import (
    Progress,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    writing,
)
from dnassm.training.evaluate import bits_per_base, held_out_split
from dnassm.training.hardware import end_all, in_first_process
from dnassm.training.interrupt import stop_at_step_end
from dnassm.training.job import Job
from dnassm.training.learner import Learner
from dnassm.training.metrics_log import MetricsLog, TensorBoardLog
from dnassm.training.model_card import write_model_card
from dnassm.training.optimizer import learning_rate
from dnassm.training.rows import training_rows


class Trainer:
    """Runs a job; nothing is written before `run`, and everything that can be refused is by then.

    Raises:
        ConfigError: settings contradict each other, or the batch does not divide by the devices.
        GenomeError: the genome has no window of that length to train on.
    """

    def __init__(self, fabric: Fabric, job: Job) -> None:
        self.fabric, self.job, self.training = fabric, job, job.config.training
        self.learner = Learner(fabric, job.config, job.tokenizer)
        self.dataset = self._rows()
        self.held_out = held_out_split(job.genome)
        self.progress = Progress()
        self._losses: list[Tensor] = []
        """Since the last row, kept on the device: reading one waits for it."""
        self._logs: list[MetricsLog | TensorBoardLog] = []
        self._clock = 0.0
        """When training was last seen to go on; see `_tick`."""
        self._agreed_s = 0.0
        """Training time that all processes agree on: the learning rate may follow it."""
        self._row_began = (0, 0.0)
        """Tokens and seconds at the last row."""
        self._unit = "bits/base" if job.tokenizer.told().max() == 1 else "bits/token"

    def restore(self) -> None:
        """Take up the newest checkpoint; without one the run starts at its beginning.

        Raises:
            ArtifactError: the checkpoint is damaged.
        """
        found = checkpoints(self.job.checkpoints)
        if found:
            self.progress = load_checkpoint(found[-1], self.learner.model, self.learner.optimizer)
            self._losses = list(torch.tensor(self.progress.losses, device=self.fabric.device))

    def run(self, *, tensorboard: bool) -> None:
        """Train to the end and write the model; on Ctrl-C write a checkpoint.

        Raises:
            Interrupted: Ctrl-C or SIGTERM came.
            ConfigError: the loss is not finite.
            ArtifactError: a checkpoint or a row cannot be written.
        """
        self.learner.wrap()
        in_first_process(self.fabric, lambda: self._open_logs(tensorboard=tensorboard))
        self._agreed_s = self.progress.seconds
        self._row_began = (self.progress.tokens, self.progress.seconds)
        with stop_at_step_end() as stop, self._progress_bar() as bar:
            self._clock = time.perf_counter()
            for batch in self._batches():
                self._step(batch)
                asked = self._agree(asked=stop.is_set())
                last = self._share() >= 1
                self._after_step(bar, last=last)
                if last:
                    break
                if asked:
                    self._interrupt()
        self._finish()

    def _rows(self) -> WindowDataset | PackedDataset:
        job, world = self.job, self.fabric.world_size
        if self.training.batch_size % world:
            raise ConfigError(
                f"training.batch_size={self.training.batch_size} must be a multiple of {world} "
                "devices; change it or --devices"
            )
        return training_rows(job.config.data, job.tokenizer, job.genome, seed=self.training.seed)

    def _batches(self) -> Iterator[Batch]:
        loader = make_loader(
            self.dataset,
            batch_size=self.training.batch_size // self.fabric.world_size,
            start_batch=self.progress.step,
            batches=self.training.max_steps - self.progress.step if self._share() < 1 else 0,
            workers=self.job.config.data.workers,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        return iter(loader)

    def _step(self, batch: Batch) -> None:
        progress = self.progress
        loss = self.learner.step(batch, number=progress.step, rate=self._rate())
        self._losses.append(loss)
        progress.step += 1
        progress.tokens += batch.tokens.numel() * self.fabric.world_size
        self._tick()

    def _tick(self) -> None:
        """Count the time since the last tick as training: the wait for batches too."""
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self._clock = now

    def _share(self) -> float:
        """Share of the run that is done, by its steps or by its clock, whichever is further."""
        steps = self.progress.step / self.training.max_steps
        return max(steps, self._agreed_s / self.job.limit_s)

    def _rate(self) -> float:
        if self.job.minutes is None:
            return learning_rate(self.progress.step, self.training)
        done = min(1.0, self._share())
        return learning_rate(int(done * (self.training.max_steps - 1)), self.training)

    def _agree(self, *, asked: bool) -> bool:
        """Whether any process was asked to stop; with a clock to follow, also agree on the time.

        Processes that left the loop in different steps would wait for each other for ever.
        """
        if self.fabric.world_size == 1:
            self._agreed_s = self.progress.seconds
            return asked
        if self.job.minutes is None and self.progress.step % self.training.log_every:
            return False  # the exchange waits for the device: now and then is often enough
        mine = torch.tensor([float(asked), self.progress.seconds], dtype=torch.float64)
        agreed: Any = self.fabric.all_reduce(self.fabric.to_device(mine), reduce_op="max")
        self._agreed_s = float(agreed[1])
        return bool(agreed[0] > 0)

    def _after_step(self, bar: ProgressBar, *, last: bool) -> None:
        step, training = self.progress.step, self.training
        if last or step % training.log_every == 0:
            bits = self._finite_losses().mean().item() / math.log(2)
            self._tick()  # the device has caught up only now
            due = last or step % training.valid_every == 0
            self._log(bits, self._valid_bits() if due else None, bar)
        if step % training.checkpoint_every == 0 and not last:
            self._checkpoint()
        self._clock = time.perf_counter()

    def _finite_losses(self) -> Tensor:
        """Losses since the last row, mean over the devices; a run that has diverged ends here."""
        losses = torch.stack(self._losses)
        if self.fabric.world_size > 1:
            losses = self.fabric.all_reduce(losses)  # type: ignore[assignment]
        if not losses.isfinite().all():
            error = ConfigError(
                f"{self.job.out}: loss or gradient is not finite at or before step "
                f"{self.progress.step}; lower training.lr (now {self.training.lr}) or "
                "training.clip and start again with --force; the last checkpoint is from before"
            )
            end_all(self.fabric, error)
        return losses

    def _log(self, bits: float, valid: float | None, bar: ProgressBar) -> None:
        progress = self.progress
        tokens, seconds = self._row_began
        rate = (progress.tokens - tokens) / max(progress.seconds - seconds, 1e-9)
        row = {
            "step": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            "train_bits": round(bits, 6),
            "valid_bits": "" if valid is None else round(valid, 6),
            "lr": f"{self.learner.optimizer.param_groups[0]['lr']:.3e}",
            "tokens_per_s": round(rate),
        }
        in_first_process(self.fabric, lambda: [log.write(row) for log in self._logs])
        self._losses, self._row_began = [], (progress.tokens, progress.seconds)
        facts = {self._unit: f"{bits:.3f}"}
        if valid is not None:
            facts["held-out"] = f"{valid:.3f}"
        bar.total = self._expected_tokens()
        bar.update(progress.tokens, **facts)

    def _expected_tokens(self) -> float | None:
        """Tokens of the whole run: what percentage and time left are of."""
        if self.job.minutes is None:
            return self.training.max_steps * self.training.batch_size * self.job.config.data.length
        share = self._share()
        return self.progress.tokens / min(1.0, share) if share else None

    def _progress_bar(self) -> ProgressBar:
        # Only one process may write on the terminal.
        quiet = None if self.fabric.is_global_zero else io.StringIO()
        return ProgressBar(
            self._expected_tokens(), "tokens", "pretrain", start=self.progress.tokens, stream=quiet
        )

    def _open_logs(self, *, tensorboard: bool) -> None:
        out, step = self.job.out, self.progress.step
        self._logs.append(MetricsLog(out / "metrics.csv", after_step=step))
        if tensorboard:
            self._logs.append(TensorBoardLog(out / "tensorboard", after_step=step))

    def _valid_bits(self) -> float | None:
        windows = self.training.valid_windows
        if self.held_out is None or windows == 0:
            return None
        job = self.job
        self.learner.model.eval()
        bits, _ = bits_per_base(
            self.learner.model,
            job.tokenizer,
            job.config,
            job.genome,
            split=self.held_out,
            windows=windows,
        )
        return bits

    def _checkpoint(self) -> None:
        self.progress.losses = self._finite_losses().tolist() if self._losses else []
        keep, model, optimizer = (
            self.training.keep_checkpoints,
            self.learner.model,
            self.learner.optimizer,
        )
        in_first_process(
            self.fabric,
            lambda: save_checkpoint(
                self.job.checkpoints, model, optimizer, self.progress, keep=keep
            ),
        )

    def _interrupt(self) -> None:
        self._checkpoint()
        step, job = self.progress.step, self.job
        done = f"step {step} of {self.training.max_steps}"
        if job.minutes is not None:
            done = f"{self.progress.seconds / 60:.1f} of {job.minutes:g} minutes, step {step}"
        end_all(
            self.fabric,
            Interrupted(
                f"stopped after {done}; go on with: "
                f"dnassm pretrain --resume --out {shlex.quote(str(job.out))}"
            ),
        )

    def _finish(self) -> None:
        self._checkpoint()
        in_first_process(self.fabric, self._write_model)

    def _write_model(self) -> None:
        job, model = self.job, self.learner.model
        for log in self._logs:
            if isinstance(log, TensorBoardLog):
                log.close()
        with writing(job.out / "model.safetensors"):
            write_model_card(job.out, model, job.config, job.genome, self.progress)
            model.save_pretrained(job.out, job.config)  # last: it says that the run is finished
