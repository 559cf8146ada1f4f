"""Devices, precision, and which of several processes acts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dnassm.errors import ConfigError, DnassmError

_STRATEGIES = ("auto", "ddp")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Where a run computes; changes speed, not the batches."""

    devices: int | str = "auto"
    """A number, or "auto" for all that there are (one process on CPU)."""
    strategy: str = "auto"
    """"auto" or "ddp": every device holds the whole model."""
    accelerator: str = "auto"
    """"auto", "cpu" or "cuda"."""


def launch(hardware: Hardware, precision: str) -> Fabric:
    """Start Fabric and, where there are several devices, one process for each.

    Lightning starts the same program once more for every further device: what comes after this
    call runs in all of them, and whatever writes belongs into `in_first_process`.

    Args:
        hardware: devices and strategy.
        precision: the setting ``training.precision``.

    Raises:
        ConfigError: no such device, or a strategy whose checkpoints would not be whole.
    """
    if hardware.strategy not in _STRATEGIES:
        raise ConfigError(
            f"--strategy: expected {' or '.join(_STRATEGIES)}, got {hardware.strategy!r}"
        )
    if hardware.devices != "auto" and not _is_count(hardware.devices):
        raise ConfigError(
            f"--devices: expected auto or a number of at least 1, got {hardware.devices!r}"
        )
    kind = "cuda" if hardware.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    word: Any = "bf16-mixed" if uses_bfloat16(precision, torch.device(kind)) else "32-true"
    try:
        fabric = Fabric(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            strategy=hardware.strategy,
            precision=word,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--devices {hardware.devices}: cannot start: {reason}; try --devices auto"
        ) from error
    fabric.launch()
    return fabric


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16 on `device` under a setting of training.precision."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16-mixed"


def in_first_process(fabric: Fabric, work: Callable[[], object]) -> None:
    """Run `work` in the first process while the others wait; its error ends them all."""
    failed: DnassmError | None = None
    if fabric.is_global_zero:
        try:
            work()
        except DnassmError as error:
            failed = error
    if fabric.world_size == 1:
        if failed is not None:
            raise failed
        return
    if fabric.broadcast(failed is not None):
        end_all(fabric, failed)


@contextlib.contextmanager
def said_once(fabric: Fabric) -> Iterator[None]:
    """Around what every process does alike: an error that all of them meet is reported by one."""
    try:
        yield
    except DnassmError as error:
        end_all(fabric, error)


def end_all(fabric: Fabric, error: DnassmError | None) -> None:
    """End a run for a reason that every process knows; the first one says it.

    They leave with code 0: Lightning kills the first process, message and all, when another fails.
    """
    if not fabric.is_global_zero:
        raise SystemExit(0)
    if error is not None:
        raise error


def _is_count(devices: int | str) -> bool:
    return isinstance(devices, int) and devices >= 1
