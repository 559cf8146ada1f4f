"""Which backend runs an op: the one asked for, or the first that can; one that cannot says why."""

from __future__ import annotations

import contextlib
import importlib
import logging
import pkgutil
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from dnassm.errors import BackendError

LOGGER = logging.getLogger("dnassm.kernels")


class Arguments(Protocol):
    """What an op was called with, as its backends take it; x says on which device it runs."""

    @property
    def x(self) -> Tensor:
        """The main input."""


class Elsewhere(str):
    """A reason that surprises nobody: the backend is made for another device or another dtype.

    Any other reason (a package is missing, a size is above a limit) makes a fall-back a warning.
    """

    __slots__ = ()


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which matmul keeps its dtype: a kernel chooses its own precision.

    Under bf16 autocast the sums over states would be rounded to 8 bits, forward and backward.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


class Backends:
    """The backends of one op: the modules of its folder that define ``supports``.

    A backend is a file with ``PRIORITY`` (higher is preferred), ``supports(arguments)`` (None, or
    the reason why it cannot run on these arguments; `Elsewhere` for a reason that everybody
    expects) and the op's functions. A fast kernel joins by being put into the folder. ``supports``
    reads devices, dtypes and sizes, never data: it is asked about fake tensors as well.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.op = package.rpartition(".")[2]
        self._modules: dict[str, ModuleType] = {}
        self._said: set[tuple[str, ...]] = set()

    def all(self) -> dict[str, ModuleType]:
        """Name -> module, the preferred first."""
        if not self._modules:
            folder = importlib.import_module(self.package)
            found = [
                importlib.import_module(f"{self.package}.{entry.name}")
                for entry in pkgutil.iter_modules(folder.__path__)
            ]
            backends = [module for module in found if hasattr(module, "supports")]
            backends.sort(key=lambda module: -module.PRIORITY)
            self._modules = {module.__name__.rpartition(".")[2]: module for module in backends}
        return self._modules

    def choose(self, name: str, arguments: Arguments) -> Any:
        """Return the backend called `name`, or for ``"auto"`` the preferred one that can run.

        What ``"auto"`` takes is logged once per device, with the reason of every preferred backend
        that cannot run: as a warning if one of the reasons is not `Elsewhere`.

        Raises:
            BackendError: no such backend, or it cannot run here; the message says why.
        """
        if name != "auto":
            return self._named(name, arguments)
        reasons: dict[str, str] = {}
        for candidate, module in self.all().items():
            reason = module.supports(arguments)
            if reason is None:
                self._say(candidate, arguments.x.device.type, reasons)
                return module
            reasons[candidate] = reason
        raise BackendError(f"{self.op}: no backend can run here ({_listed(reasons)})")

    def _named(self, name: str, arguments: Arguments) -> ModuleType:
        if name not in self.all():
            raise BackendError(
                f"{self.op}: no backend {name!r}; have auto, {', '.join(self.all())}"
            )
        module = self.all()[name]
        reason = module.supports(arguments)
        if reason is not None:
            raise BackendError(f"{self.op}: backend {name!r} cannot run here: {reason}")
        return module

    def _say(self, chosen: str, device: str, reasons: dict[str, str]) -> None:
        unexpected = [n for n, reason in reasons.items() if not isinstance(reason, Elsewhere)]
        key = (device, chosen, *unexpected)
        if key in self._said:
            return
        self._said.add(key)
        why = f" ({_listed(reasons)})" if reasons else ""
        level = logging.WARNING if unexpected else logging.INFO
        LOGGER.log(level, "%s on %s: backend %s%s", self.op, device, chosen, why)


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
