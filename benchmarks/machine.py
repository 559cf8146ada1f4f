"""On what and with what a benchmark ran: the header of its JSON."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from dnassm.provenance import device_name, versions

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Command, machine, load before the run, versions and commit."""
    module = Path(sys.argv[0]).stem
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "command": " ".join(["python -m", f"benchmarks.{module}", *words]),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "cores_used": len(os.sched_getaffinity(0)),
            "device": device_name(),
            **_threads(),
            "system": f"{platform.system()} {platform.machine()}",
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": versions(),
        "commit": _commit(),
    }


def _threads() -> dict[str, int]:
    """Threads of torch where a benchmark loaded it: tokenizing must not."""
    torch = sys.modules.get("torch")
    return {} if torch is None else {"torch_threads": torch.get_num_threads()}


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
