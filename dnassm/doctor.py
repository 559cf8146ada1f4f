"""What works here: the backends of every op, and a certificate that their results are right.

An op is a folder of kernels/ with ``BACKENDS``; it is checked through the `Subject` of its module
``checks``. The laws themselves are in dnassm/kernels/laws.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib
import importlib.metadata
import math
import pkgutil
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dnassm import kernels
from dnassm.artifact import check_target, write_json
from dnassm.console import Progress, table
from dnassm.errors import CheckError, ConfigError
from dnassm.kernels.laws import BATCH, SHORT, Bound, Error, Law, Probe, Subject, errors, laws
from dnassm.provenance import device_name, versions
from dnassm.registry import did_you_mean

_COMPILERS = ("triton", "llvmlite", "cuda-core", "cuda-bindings")
_ROOT = Path(__file__).resolve().parent.parent
_DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}
_CHANNELS = (256, 64, 32, 16, 8)
# Elements of x. Time goes into float64: seconds on two cores, and less on a GPU.
_MOST_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
_BYTES_PER_ELEMENT = 256
"""Of memory, for one in x: arguments, results and gradients in float32 and in float64."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One law, held or not."""

    op: str
    backend: str
    dtype: str
    name: str
    bound: Bound
    tensors: dict[str, Error]
    """Errors by name; empty if the computation itself failed."""
    problem: str | None
    """What stopped the computation."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every tensor is within the bound."""
        held = all(error.within(self.bound.of(name)) for name, error in self.tensors.items())
        return self.problem is None and bool(self.tensors) and held

    @property
    def nearest(self) -> tuple[str, Error]:
        """The tensor that comes nearest to its bound, or goes furthest beyond it."""
        nothing = ("-", Error(math.nan, math.nan))
        return max(self.tensors.items(), key=lambda item: self._share(*item), default=nothing)

    @property
    def tolerance(self) -> Bound:
        """The bound of that tensor."""
        return self.bound.of(self.nearest[0])

    def _share(self, name: str, error: Error) -> float:
        """Error over bound; where the bound is 0 the error itself says enough."""
        if math.isnan(error.rms) or math.isnan(error.worst):
            return math.inf
        bound = self.bound.of(name)
        return max(error.rms / (bound.rms or 1), error.worst / (bound.worst or 1))

    def to_json(self) -> dict[str, Any]:
        """JSON values; a figure that is no finite number is null."""
        name, error = self.nearest
        return {
            "op": self.op,
            "backend": self.backend,
            "dtype": self.dtype,
            "name": self.name,
            "passed": self.passed,
            "figure": {"tensor": name, **_finite(error)},
            "tolerance": {key: getattr(self.tolerance, key) for key in ("rms", "worst", "why")},
            "tensors": {n: _finite(e) for n, e in self.tensors.items()},
            "problem": self.problem,
            "seconds": round(self.seconds, 3),
        }

    def fault(self) -> str:
        """What is wrong, in one line."""
        where = f"{self.op} ({self.backend}, {self.dtype}): {self.name}"
        if self.problem is not None:
            return f"{where}: {self.problem}"
        name, error = self.nearest
        return (
            f"{where}: {name} is off by rms {error.rms:.2g}, worst {error.worst:.2g}; allowed "
            f"{self.tolerance.rms:.2g} and {self.tolerance.worst:.2g} ({self.bound.why})"
        )


def _finite(error: Error) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in error._asdict().items()}


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `examine` found."""

    facts: dict[str, Any]
    """Machine, versions, sizes and backends, as JSON values."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "format": "dnassm-certificate",
            "version": 1,
            "passed": self.passed,
            **self.facts,
            "checks": [check.to_json() for check in self.checks],
        }

    def render(self) -> str:
        """Backends and checks as two tables."""
        facts = self.facts
        named = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        backends = [
            (op, entry["name"], _word(entry), entry["reason"])
            for op, found in facts["backends"].items()
            for entry in found
        ]
        rows = [
            (c.op, c.backend, c.dtype, c.name, "pass" if c.passed else "FAIL", *_figures(c))
            for c in self.checks
        ]
        columns = ["op", "backend", "dtype", "check", "result", "rms", "allowed", "worst"]
        columns += ["allowed", "in"]
        return "\n".join(
            [
                f"device    {facts['device']}",
                f"versions  {named}",
                "",
                table(backends, ["op", "backend", "here", "why"]),
                "",
                table(rows, columns),
                "",
                f"length {facts['length']}, truth: {facts['truth']}",
                self._verdict(),
            ]
        )

    def _verdict(self) -> str:
        passed = sum(check.passed for check in self.checks)
        return f"{passed} of {len(self.checks)} checks pass in {self.facts['seconds']:.1f} s"

    def require(self) -> None:
        """Raise CheckError with one line that names what failed, if something did."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise CheckError(f"check failed: {failed[0].fault()}{more}")


def _word(entry: dict[str, Any]) -> str:
    if entry["chosen"]:
        return "chosen"
    return "usable" if entry["usable"] else "no"


def _figures(check: Check) -> tuple[object, ...]:
    name, error = check.nearest
    if check.problem is not None:
        return (None, None, None, None, check.problem)
    found = (error.rms, check.tolerance.rms, error.worst, check.tolerance.worst)
    return (*(f"{value:.1e}" for value in found), name)


def examine(
    *,
    length: int,
    ops: Sequence[str] = (),
    device: str = "auto",
    out: Path | None = None,
    force: bool = False,
) -> Certificate:
    """Check the backend that ``"auto"`` chooses for every op, and write the certificate to `out`.

    Args:
        length: L of the inputs, at least 8.
        ops: names of those to check; all where there is none.
        device: "cpu", "cuda" or "auto", which is a GPU where there is one.
        out: JSON file to write, also when a check fails.
        force: replace `out`.

    Raises:
        ConfigError: no such op, no such device here, or L is too short.
        ArtifactError: `out` is taken or cannot be written.
    """
    if length < 8:
        raise ConfigError(f"--length: expected at least 8, got {length}")
    if out is not None:
        check_target(out, force=force)
    began = time.monotonic()
    where = _device(device)
    channels = _fitting(length, where)
    probes = [
        Probe(subject, dtype, length, channels, where)
        for subject in _chosen(ops)
        for dtype in _DTYPES[where.type]
    ]
    backends: dict[str, list[dict[str, Any]]] = {}
    for probe in probes:
        backends.setdefault(probe.subject.backends.op, _backends(probe))
    checks = tuple(_checked(probes))
    facts = {
        "device": device_name() if where.type == "cuda" else _processor(),
        "versions": versions() | _compilers(),
        "commit": _commit(),
        "sources": {op: _digest(op) for op in backends},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "length": length,
        "batch": BATCH,
        "channels": channels,
        "truth": _truth(length),
        "backends": backends,
    }
    certificate = Certificate(facts, checks)
    if out is not None:
        write_json(out, certificate.to_json())
    return certificate


def _chosen(ops: Sequence[str]) -> list[Subject]:
    found = subjects()
    for op in ops:
        if op not in found:
            hint = did_you_mean(op, found)
            raise ConfigError(f"--op {op}: expected one of {', '.join(found)}.{hint}")
    return [subject for op, subject in found.items() if not ops or op in ops]


def subjects() -> dict[str, Subject]:
    """Op -> how it is checked: every folder of kernels/ that has backends."""
    found: dict[str, Subject] = {}
    for entry in pkgutil.iter_modules(kernels.__path__):
        if not entry.ispkg:
            continue
        name = f"{kernels.__name__}.{entry.name}"
        if hasattr(importlib.import_module(name), "BACKENDS"):
            found[entry.name] = importlib.import_module(f"{name}.checks").SUBJECT
    return found


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu")
    return torch.device(name)


def _fitting(length: int, device: torch.device) -> int:
    """Channels with which the checks take bearable time, and no more than half of the memory."""
    most = _MOST_ELEMENTS[device.type]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        most = min(most, free // 2 // _BYTES_PER_ELEMENT)
    return next((n for n in _CHANNELS if BATCH * length * n <= most), _CHANNELS[-1])


def _backends(probe: Probe) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "usable": reason is None,
            "chosen": name == probe.backend,
            "reason": None if reason is None else str(reason),
        }
        for name, reason in probe.reasons().items()
    ]


def _checked(probes: list[Probe]) -> Iterator[Check]:
    todo = [(probe, laws(probe)) for probe in probes]
    total = sum(len(found) for _, found in todo)
    done = 0
    with Progress(total, "checks", "doctor") as progress:
        for probe, found in todo:
            for law in found:
                yield _check(probe, law)
                done += 1
                progress.update(done, op=probe.subject.backends.op, check=law.name)
            probe.forget()


def _check(probe: Probe, law: Law) -> Check:
    """Try one law; a kernel that breaks down is a finding and no reason to stop."""
    began = time.monotonic()
    tensors: dict[str, Error] = {}
    problem = None
    try:
        tensors = errors(*law.compare(probe))
    except Exception as error:  # of a compiler, of a driver, out of memory, ...
        problem = f"{type(error).__name__}: {(str(error).splitlines() or ['?'])[0]}"
    return Check(
        op=probe.subject.backends.op,
        backend=probe.backend,
        dtype=str(probe.dtype).removeprefix("torch."),
        name=law.name,
        bound=law.bound(probe),
        tensors=tensors,
        problem=problem,
        seconds=time.monotonic() - began,
    )


def _truth(length: int) -> str:
    if length <= SHORT:
        return "the float64 reference, a loop over L"
    return (
        f"the portable backend in float64, itself checked against the float64 reference, a loop "
        f"over L, at length {SHORT}"
    )


def _processor() -> str:
    return f"cpu ({platform.machine()}), {torch.get_num_threads()} threads"


def _compilers() -> dict[str, str]:
    """Versions of what compiles kernels, and of the CUDA that torch is built for."""
    found = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    for name in _COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> str | None:
    """The commit of a checkout; None for an installed package, which has its version."""
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():
        return None
    words = [git, "describe", "--always", "--dirty"]
    done = subprocess.run(words, cwd=_ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _digest(op: str) -> str:
    """sha256 over the files of an op: what was checked, also without a commit."""
    folder = Path(next(iter(kernels.__path__))) / op
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
