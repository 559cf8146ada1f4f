"""On what and with what a benchmark ran: the header of its JSON."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dnassm.provenance import versions

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Machine, load before the run, versions and commit."""
    module = Path(sys.argv[0]).stem
    return {
        "command": " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]]),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": versions(),
        "commit": _commit(),
    }


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
