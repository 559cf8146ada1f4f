"""Writing files and folders so that a reader sees the old one or the whole new one, never a part.

Everything is staged beside its target and renamed over it. A process killed in the middle leaves
only a hidden ``.NAME.partial-PID`` behind, which the next writer of the same target removes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnassm.errors import ArtifactError


def check_target(target: Path, *, force: bool) -> None:
    """Refuse to overwrite a file or a non-empty folder unless `force`.

    Raises:
        ArtifactError: the target exists, or its parent is not a folder.
    """
    parent = target.absolute().parent
    for ancestor in (parent, *parent.parents):
        if ancestor.exists():
            if not ancestor.is_dir():
                raise ArtifactError(f"{target}: {ancestor} is a file, expected a folder")
            break
    taken = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if taken and not force:
        raise ArtifactError(
            f"{target} exists already; pass --force to replace it, or another --out"
        )


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; it takes its place when the block ends well.

    Raises:
        ArtifactError: the disk is full or the place is not writable; the old file is untouched.
    """
    staging = _staging_path(target)
    try:
        with _storage_errors(target):
            yield staging
            _sync(staging)
            staging.replace(target)
            _sync(target.parent)
    finally:
        staging.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes the target's place when the block ends well.

    Raises:
        ArtifactError: the target is taken, the disk is full, or the place is not writable; what
            existed before is untouched.
    """
    check_target(target, force=force)
    staging = _staging_path(target)
    retired = staging.with_name(staging.name + "-old")
    try:
        with _storage_errors(target):
            staging.mkdir()
            yield staging
            for path in staging.rglob("*"):
                _sync(path)
            if target.exists():
                target.replace(retired)
            staging.replace(target)
            _sync(target.parent)
    except BaseException:
        if retired.exists() and not target.exists():
            retired.replace(target)
        raise
    finally:
        for leftover in (staging, retired):
            shutil.rmtree(leftover, ignore_errors=True)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused: it is not JSON."""
    with staged_file(target) as staging:
        staging.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; raises ArtifactError naming the file when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: expected JSON, got {error}; restore or rebuild it") from error


def _staging_path(target: Path) -> Path:
    parent = target.absolute().parent
    with _storage_errors(target):
        parent.mkdir(parents=True, exist_ok=True)
        for stale in parent.glob(f".{target.name}.partial-*"):
            _remove_if_dead(stale, target)
    return parent / f".{target.name}.partial-{os.getpid()}"


def _remove_if_dead(stale: Path, target: Path) -> None:
    """Clean what a killed process left; keep what a living one is still writing."""
    pid, _, old = stale.name.rpartition("partial-")[2].partition("-")
    if not pid.isdigit() or (int(pid) != os.getpid() and _alive(int(pid))):
        return
    if old and not target.exists():
        stale.replace(target)  # killed between the two renames: the old artifact comes back
    elif stale.is_dir():
        shutil.rmtree(stale, ignore_errors=True)
    else:
        stale.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    """Flush to disk: a rename must not become visible before the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ArtifactError):
            raise
        if error.errno == errno.ENOSPC:
            raise ArtifactError(
                f"{target}: the disk is full; nothing was changed. Free space, then run it again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ArtifactError(
                f"{target}: not writable ({error.strerror}); choose another --out"
            ) from error
        raise
