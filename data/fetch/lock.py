"""The lock file of an entry: what came at the first download, which every later one must equal."""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import os
from pathlib import Path
from typing import Any

from dnassm.artifact import read_json, write_json
from dnassm.errors import ArtifactError

LOCK_NAME = "fetch.lock.json"
_FORMAT = {"format": "dnassm-fetch-lock", "version": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is known of one file that was fetched.

    Attributes:
        url: where it came from.
        size: its bytes.
        sha256: its checksum.
        checked: what it was held to at the first download: the publisher's checksum and list, or
            ``"nothing"``.
        date: day of the first download.
    """

    url: str
    size: int
    sha256: str
    checked: str
    date: str


def record(url: str, path: Path, sha256: str, checked: str) -> Record:
    """What to write down about a file that has just come, today."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Record(url, path.stat().st_size, sha256, checked, today)


def read_lock(folder: Path) -> dict[str, Record]:
    """The records of an entry's folder by file; none before its first download.

    Raises:
        ArtifactError: the lock file is damaged or newer than this version of dnassm.
    """
    path = folder / LOCK_NAME
    if not path.exists():
        return {}
    header: Any = read_json(path)
    try:
        if {key: header[key] for key in _FORMAT} != _FORMAT:
            raise ValueError(header.get("version"))
        return {name: Record(**fields) for name, fields in header["files"].items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: expected a lock file of version {_FORMAT['version']}, got something else; "
            "restore it, or delete it to fetch and record everything anew"
        ) from error


def add_record(folder: Path, name: str, new: Record) -> None:
    """Add a record to the lock file of `folder`, also while others add theirs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        records = {**read_lock(folder), name: new}
        files = {key: dataclasses.asdict(records[key]) for key in sorted(records)}
        write_json(folder / LOCK_NAME, {**_FORMAT, "files": files})
    finally:
        os.close(descriptor)
