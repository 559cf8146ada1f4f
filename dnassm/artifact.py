"""Writing files and folders so that a reader sees the old one or the whole new one, never a part.

Everything is staged beside its target and renamed over it. A process killed in the middle leaves
only a hidden ``.NAME.partial-PID`` behind, which the next writer of the same target removes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

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
    mode = _mode(target)
    if mode and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ArtifactError(f"{target} is neither a file nor a folder; choose another --out")
    if not force and (stat.S_ISREG(mode) or _holds_something(target)):
        raise ArtifactError(
            f"{target} exists already; pass --force to replace it, or another --out"
        )


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; it takes its place when the block ends well.

    Raises:
        ArtifactError: the target is a folder or a device, the disk is full or the place is not
            writable; the old file is untouched.
    """
    if target.exists() and not target.is_file():
        raise ArtifactError(f"{target} is no file and cannot become one; choose another --out")
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
    check_target(target, force=force)  # again: what a killed writer moved away may be back
    retired = staging.with_name(staging.name + "-old")
    try:
        with _storage_errors(target):
            staging.mkdir()
            yield staging
            for path in staging.rglob("*"):
                _sync(path)
            while not _took_place(staging, target):
                check_target(target, force=force)  # somebody else may have been faster
                _remove(retired)
                with contextlib.suppress(FileNotFoundError):  # ... in moving it away, too
                    target.replace(retired)
            _sync(target.parent)
    except BaseException:
        if retired.exists() and not target.exists():
            retired.replace(target)
        raise
    finally:
        for leftover in (staging, retired):
            _remove(leftover)


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
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise ArtifactError(f"{path}: expected JSON, got {error}; restore or rebuild it") from error


def _mode(path: Path) -> int:
    """What stands at `path`, 0 for nothing: one look, for another writer may be moving it."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # also when another writer has just moved it
        return False


def _staging_path(target: Path) -> Path:
    parent = target.absolute().parent
    with _storage_errors(target):
        parent.mkdir(parents=True, exist_ok=True)
        for stale in parent.glob(f".{glob.escape(target.name)}.partial-*"):
            _remove_if_dead(stale, target)
    return parent / f".{target.name}.partial-{os.getpid()}"


def _took_place(staging: Path, target: Path) -> bool:
    """Rename a folder over `target`; False if a file or a folder that is not empty stands there."""
    try:
        staging.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _remove_if_dead(stale: Path, target: Path) -> None:
    """Clean what a killed process left; keep what a living one is still writing."""
    pid, _, old = stale.name.rpartition("partial-")[2].partition("-")
    if not pid.isdigit() or (int(pid) != os.getpid() and _alive(int(pid))):
        return
    if old and not target.exists():
        # Killed between the two renames: the old artifact comes back, unless another writer that
        # looks at the same moment has brought it back already.
        with contextlib.suppress(FileNotFoundError):
            stale.replace(target)
    else:
        _remove(stale)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
    except (OSError, SafetensorError) as error:
        if isinstance(error, ArtifactError):
            raise
        number = _errno(error)
        if number not in _REASONS:
            raise
        raise ArtifactError(f"{target}: {_REASONS[number]}") from error


_NOT_WRITABLE = "not writable; choose another --out"
_REASONS = {
    errno.ENOSPC: "the disk is full; nothing was changed. Free space, then run it again",
    errno.EDQUOT: "the disk quota is used up; nothing was changed. Free space, then run it again",
    errno.ENOTEMPTY: "another process wrote it at the same time; its result was kept",
    errno.EACCES: _NOT_WRITABLE,
    errno.EROFS: _NOT_WRITABLE,
    errno.EPERM: _NOT_WRITABLE,
}


def _errno(error: OSError | SafetensorError) -> int | None:
    """Number of a system error; safetensors has it in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
