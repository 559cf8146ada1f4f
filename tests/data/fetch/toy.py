"""A file that the server of conftest.py has, its catalogue entry, and what is said of refusals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dnassm.data.fetch.catalogue import Entry, RemoteFile
from dnassm.data.fetch.lock import LOCK_NAME
from dnassm.errors import DnassmError, FetchError

HOST = "files.example.org"
LETTERS = np.frombuffer(b"ACGT\n", np.uint8)
DATA = b">chr1\n" + LETTERS[np.random.default_rng(0).integers(0, 5, 1_000_000)].tobytes()
MD5 = hashlib.md5(DATA).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()


def entry(*names: str, checksums: str | None = None, form: str = "md5sum", **more) -> Entry:
    url = f"https://{HOST}/d/"
    listed = None if checksums is None else url + checksums
    files = tuple(
        RemoteFile(name, url + name, listed, form, more.get("unpack", False)) for name in names
    )
    return Entry("toy", "genome", "a toy", url, None, True, files)


def only_the_file(target: Path) -> bool:
    return {path.name for path in target.parent.iterdir()} == {target.name, LOCK_NAME}


def refused(
    bring: Callable[..., object],
    match: str,
    *arguments: object,
    error: type[Exception] = FetchError,
    **options: object,
) -> str:
    """The one line in which a call is refused."""
    with pytest.raises(error, match=match) as caught:
        bring(*arguments, **options)
    assert isinstance(caught.value, DnassmError)
    assert "\n" not in str(caught.value)
    return str(caught.value)
