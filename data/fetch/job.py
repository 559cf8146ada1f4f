"""Fetching what a name stands for: every file checked, recorded and, if an archive, unpacked."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from dnassm.artifact import check_target
from dnassm.console import Progress
from dnassm.data.fetch.catalogue import Entry, RemoteFile, find
from dnassm.data.fetch.digests import Digest, digest_of, from_list
from dnassm.data.fetch.download import (
    Transfer,
    claimed,
    download,
    finish,
    patiently,
    received,
)
from dnassm.data.fetch.lock import LOCK_NAME, Record, add_record, read_lock, record
from dnassm.data.fetch.unpack import unpack
from dnassm.data.fetch.web import mirrored, read_text
from dnassm.errors import ArtifactError, FetchError, UnknownNameError

UNCHECKED = "nothing"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """One file that is there.

    Attributes:
        path: the file, or the folder that an archive was unpacked to.
        sha256: checksum of the file as it was downloaded.
        size: its bytes.
        checked: what it was held to when it first came: the publisher's checksum, or "nothing".
        url: where it came from.
        new: this call brought it.
    """

    path: str
    sha256: str
    size: int
    checked: str
    url: str
    new: bool


def default_folder() -> Path:
    """Where fetched data goes: `DNASSM_CACHE`, else the user's cache folder."""
    if cache := os.environ.get("DNASSM_CACHE"):
        return Path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnassm"


def fetch_all(
    names: Sequence[str],
    out: Path,
    transfer: Transfer | None = None,
    *,
    only: str = "*",
    trust_first: bool = False,
    force: bool = False,
) -> list[Fetched]:
    """Fetch every entry of `names`, as `fetch` does; all names are looked up before the first."""
    found = []
    for entry in [find(name) for name in names]:
        if entry.untried:
            _log.warning("%s: nobody has tried its address yet; see %s", entry.name, entry.source)
        found += fetch(entry, out, transfer, only=only, trust_first=trust_first, force=force)
    return found


def fetch(
    entry: Entry,
    out: Path,
    transfer: Transfer | None = None,
    *,
    only: str = "*",
    trust_first: bool = False,
    force: bool = False,
) -> list[Fetched]:
    """Bring the files of `entry` into ``OUT/NAME``, or find them there and check them.

    Args:
        entry: what to fetch.
        out: folder in which every entry has one of its own.
        transfer: mirror, limits and patience.
        only: pattern of the files wanted, ``"prom_*/*"``.
        trust_first: do without the publisher's list of checksums where there is one.
        force: fetch anew, whatever is there and whatever the lock file says.

    Raises:
        UnknownNameError: no file fits `only`.
        FetchError: a file cannot be had, or is not what its publisher or the lock file says.
        ArtifactError: the disk is full, or the folder holds something else.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    wanted = [file for file in entry.files if fnmatch.fnmatchcase(file.path, only)]
    if not wanted:
        raise UnknownNameError(
            f"{entry.name} has no file like {only!r}; have {', '.join(_paths(entry))}"
        )
    job = _Job(out / entry.name, transfer or Transfer(), trust_first=trust_first, force=force)
    return [job.bring(file) for file in wanted]


def _paths(entry: Entry, most: int = 8) -> list[str]:
    paths = [file.path for file in entry.files]
    return paths[:most] + (["..."] if len(paths) > most else [])


class _Job:
    """The files of one entry: their folder, its lock file, and lists that were read already."""

    def __init__(self, folder: Path, transfer: Transfer, *, trust_first: bool, force: bool) -> None:
        check_target(folder, force=True)
        self._folder, self._transfer = folder, transfer
        self._trust_first, self._force = trust_first, force
        self._lists: dict[str, str] = {}

    def bring(self, file: RemoteFile) -> Fetched:
        """Make sure that a file is there and right; an archive is unpacked beside it."""
        target = self._folder / file.path
        known = read_lock(self._folder).get(file.path)
        new = self._force or not target.exists()
        if new:
            known = self._fetch(file, target, None if self._force else known)
        elif known is None:
            raise ArtifactError(
                f"{target}: expected a file of {LOCK_NAME}, got one that it does not have; move it "
                "away, or fetch it anew with --force"
            )
        else:
            why = f"recorded in {LOCK_NAME}: it changed on disk; fetch it anew with --force"
            _compare(target, target, Digest("sha256", known.sha256), why)
        place = self._unpack(target) if file.unpack else target
        return Fetched(str(place), known.sha256, known.size, known.checked, known.url, new)

    def _fetch(self, file: RemoteFile, target: Path, known: Record | None) -> Record:
        url = mirrored(file.url, self._transfer.mirror)
        published = self._published(file)
        with claimed(target) as stream:
            if self._force:
                stream.truncate(0)
            with Progress(None, "B", f"fetch {file.path}", start=received(target)) as bar:

                def show(done: int, total: int | None) -> None:
                    bar.total = total
                    bar.update(done)

                sure = published is not None or known is not None
                part = download(url, target, self._transfer, stream, sure=sure, progress=show)
            try:
                self._check(file, part, published, known)
            except FetchError:
                stream.truncate(0)  # a wrong part could only ever become a wrong file
                raise
            if known is None:
                checked = f"{published} of {file.checksums}" if published else UNCHECKED
                known = record(url, part, digest_of(part, "sha256").hex, checked)
            # First the lock, then the file: killed in between, the next call checks the part by it.
            add_record(self._folder, file.path, known)
            finish(target)
        return known

    def _check(
        self, file: RemoteFile, part: Path, published: Digest | None, known: Record | None
    ) -> None:
        """Hold a part to what its publisher and the lock file say."""
        if published is not None:
            why = f"by {file.checksums}: deleted; run it again, or with another --mirror"
            _compare(file.url, part, published, why)
        if known is not None:
            why = (
                f"recorded on {known.date} in {self._folder / LOCK_NAME}: the file there is "
                "another one now; --force takes the new one and records it"
            )
            _compare(file.url, part, Digest("sha256", known.sha256), why)

    def _published(self, file: RemoteFile) -> Digest | None:
        """What the publisher's list says of a file."""
        if file.checksums is None or self._trust_first:
            return None
        url = mirrored(file.checksums, self._transfer.mirror)
        if url not in self._lists:
            try:
                plain = self._transfer.mirror is not None
                self._lists[url] = patiently(lambda: read_text(url, plain=plain), self._transfer)
            except FetchError as error:
                raise FetchError(f"{error}. --trust-first fetches without this list") from error
        name = file.url.rpartition("/")[2]
        return from_list(self._lists[url], name, file.list_format, url=url)

    def _unpack(self, archive: Path) -> Path:
        folder = archive.with_name(archive.name.partition(".")[0])
        if self._force or not folder.exists():
            unpack(archive, folder, force=self._force)
        return folder


def _compare(where: str | Path, path: Path, expected: Digest, why: str) -> None:
    got = digest_of(path, expected.algorithm)
    if got != expected:
        raise FetchError(f"{where}: expected {expected}, got {got.hex}; {why}")
