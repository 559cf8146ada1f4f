"""Optional dependencies: a missing one is an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from dnassm.errors import MissingExtraError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise MissingExtraError naming the extra that brings it.

    Args:
        module: dotted module name, for example ``"anndata"``.
        extra: name of the extra in pyproject.toml, for example ``"embed"``.
        purpose: what the user asked for, for example ``"writing .h5ad"``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module  # may be something that the module itself needs
        raise MissingExtraError(
            f"{purpose} needs {missing}, which is not installed; run: pip install 'dnassm[{extra}]'"
        ) from error
