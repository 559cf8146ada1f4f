"""run.json: which command, code and input an artifact came from."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnassm.artifact import write_json

_PACKAGES = ("dnassm", "numpy")
# Only named when the run loaded them: writing provenance must not import seconds of libraries.
_HEAVY_PACKAGES = ("torch", "triton", "lightning")


def write_run_json(
    folder: Path,
    *,
    command: str,
    config: Mapping[str, Any],
    seed: int | None,
    inputs: Mapping[str, str],
) -> None:
    """Write ``folder/run.json``: command, argv, config, seed, versions, inputs, device, time.

    Args:
        folder: the artifact's folder; must exist.
        command: name of the command or Python function that made the artifact.
        config: every setting as it was used, defaults resolved; JSON values only.
        seed: the one seed of the run, None where nothing is random.
        inputs: path of each input as the user gave it -> sha256 of its bytes.

    Raises:
        ArtifactError: the disk is full or the folder is not writable.
    """
    record = {
        "command": command,
        "argv": list(sys.argv),
        "config": dict(config),
        "seed": seed,
        "versions": versions(),
        "inputs": dict(inputs),
        "device": device_name(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / "run.json", record)


def versions() -> dict[str, str]:
    """Version of Python, of dnassm and of each numerical library that this process has loaded."""
    packages = [*_PACKAGES, *(name for name in _HEAVY_PACKAGES if name in sys.modules)]
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"  # run from a source tree that nobody installed
    return found


def device_name() -> str:
    """Name of the accelerator if torch is loaded and sees one, else ``"cpu"`` and its kind."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()})"
