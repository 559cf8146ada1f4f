"""Which backend runs an op: the one asked for, or the first that can; one that cannot says why."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from dnassm.errors import BackendError


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which matmul keeps its dtype: a kernel chooses its own precision.

    Under bf16 autocast the sums over states would be rounded to 8 bits, forward and backward.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


class Backends:
    """The backends of one op: the modules of its folder that define ``supports``.

    A backend is a file with ``PRIORITY`` (higher is preferred), ``supports(tensors) -> str | None``
    (the reason why it cannot run on these tensors, or None) and the op's function. A fast kernel
    joins by being put into the folder.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self._modules: dict[str, ModuleType] = {}

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

    def choose(self, name: str, tensors: Sequence[Tensor]) -> ModuleType:
        """Return the backend called `name`, or for ``"auto"`` the preferred one that can run.

        Raises:
            BackendError: no such backend, or it cannot run here; the message says why.
        """
        if name != "auto":
            if name not in self.all():
                raise BackendError(
                    f"{self.package}: no backend {name!r}; have auto, {', '.join(self.all())}"
                )
            reason = self.all()[name].supports(tensors)
            if reason is not None:
                raise BackendError(f"{self.package}: backend {name!r} cannot run here: {reason}")
            return self.all()[name]
        reasons = []
        for candidate, module in self.all().items():
            reason = module.supports(tensors)
            if reason is None:
                return module
            reasons.append(f"{candidate}: {reason}")
        raise BackendError(f"{self.package}: no backend can run here ({'; '.join(reasons)})")
