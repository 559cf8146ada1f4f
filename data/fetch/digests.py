"""Checksums: the lists that publishers put beside their files, and how a file compares."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from dnassm.errors import FetchError

_BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256"}
_LINE = re.compile(r"(?P<hex>[0-9a-fA-F]{32,64})\s+\*?(?:\./)?(?P<name>\S+)\s*")
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Digest:
    """A checksum: md5, sha1, sha256, or git-sha1, which is git's name of a file's content."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm} {self.hex}"


def digest_of(path: Path, algorithm: str) -> Digest:
    """The checksum of a file.

    >>> import tempfile; name = Path(tempfile.mkdtemp(), "empty"); _ = name.write_bytes(b"")
    >>> str(digest_of(name, "md5")), digest_of(name, "git-sha1").hex[:6]
    ('md5 d41d8cd98f00b204e9800998ecf8427e', 'e69de2')
    """
    state = hashlib.new(algorithm.removeprefix("git-"), usedforsecurity=False)
    if algorithm == "git-sha1":
        state.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            state.update(block)
    return Digest(algorithm, state.hexdigest())


def from_list(text: str, name: str, form: str, *, url: str) -> Digest:
    """The checksum that a publisher's list gives for the file `name`.

    Args:
        text: the list.
        name: last part of the file's address.
        form: ``"md5sum"`` or ``"hub"``.
        url: where the list came from, for the message.

    Raises:
        FetchError: the list is none, or does not have the file exactly once.
    """
    found = _from_hub(text, name, url) if form == "hub" else _from_lines(text, name)
    if len(found) != 1:
        raise FetchError(
            f"{url}: expected one checksum of {name}, got {len(found)}; look at the list. "
            "--trust-first fetches without it and records what comes"
        )
    return found.pop()


def _from_lines(text: str, name: str) -> set[Digest]:
    found = set()
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match and match["name"] == name and len(match["hex"]) in _BY_LENGTH:
            found.add(Digest(_BY_LENGTH[len(match["hex"])], match["hex"].lower()))
    return found


def _from_hub(text: str, name: str, url: str) -> set[Digest]:
    """Large files are listed with their sha256, small ones with git's name of their content."""
    try:
        listed = [item for item in json.loads(text) if item["path"].rpartition("/")[2] == name]
        found = set()
        for item in listed:
            large = item.get("lfs")
            digest = Digest("sha256", large["oid"]) if large else Digest("git-sha1", item["oid"])
            if not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", digest.hex):
                raise ValueError(digest)
            found.add(digest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FetchError(
            f"{url}: expected the hub's listing of a folder as JSON, got something else "
            f"({type(error).__name__}); try later. --trust-first fetches without it"
        ) from error
    return found
