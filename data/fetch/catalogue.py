"""The catalogue of what can be fetched: data, in ``catalogue.toml``, read and checked here."""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dnassm.errors import FormatError, UnknownNameError
from dnassm.registry import did_you_mean

CATALOGUE = Path(__file__).resolve().parent / "catalogue.toml"
KINDS = ("genome", "benchmark")
LIST_FORMATS = ("md5sum", "hub")
_LOCAL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of an entry.

    Attributes:
        path: where it goes, relative to the folder of its entry. From the catalogue, never from
            a server.
        url: its address.
        checksums: address of the publisher's list of checksums, None where there is none.
        list_format: ``"md5sum"``, lines of digest and name, or ``"hub"``, the listing of a folder
            by the API of the Hugging Face hub.
        unpack: it is a tar or zip archive whose files are wanted.
    """

    path: str
    url: str
    checksums: str | None
    list_format: str
    unpack: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What one name stands for.

    Attributes:
        name: what a user types.
        kind: one of `KINDS`.
        about: what it is, in one line.
        source: page on which the publisher offers it.
        licence: as stated by the publisher; None when it is not stated or not known.
        untried: nobody has fetched it with this catalogue yet.
        files: what it consists of.
    """

    name: str
    kind: str
    about: str
    source: str
    licence: str | None
    untried: bool
    files: tuple[RemoteFile, ...]


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Everything that can be fetched: genomes, then benchmark sets, by name."""
    return read_catalogue(CATALOGUE)


def find(name: str) -> Entry:
    """The entry called `name`; case does not matter.

    Raises:
        UnknownNameError: there is none; the message has the nearest name.
    """
    for entry in entries():
        if entry.name.lower() == name.lower():
            return entry
    names = [entry.name for entry in entries()]
    hint = did_you_mean(name, names) or " `dnassm fetch --list` shows what there is."
    raise UnknownNameError(f"nothing called {name!r} in the catalogue.{hint}")


def read_catalogue(path: Path) -> tuple[Entry, ...]:
    """Read and check a catalogue.

    Raises:
        FormatError: an entry is incomplete, or has an address or a file name that is not allowed.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["entry"]
    found = [_entry(table) for table in tables]
    if len({entry.name.lower() for entry in found}) < len(found):
        raise FormatError(f"{path}: expected every name once")
    return tuple(sorted(found, key=lambda e: (KINDS.index(e.kind), e.name.lower())))


def _entry(table: dict[str, Any]) -> Entry:
    name = table["name"]
    if table["kind"] not in KINDS:
        raise FormatError(f"{name}: kind {table['kind']!r}, expected one of {', '.join(KINDS)}")
    files = tuple(file for part in table["part"] for file in _files(name, part))
    paths = [file.path for file in files]
    if not _LOCAL_NAME.fullmatch(name) or "/" in name or len(set(paths)) < len(paths):
        raise FormatError(f"{name}: expected a plain name, and every file once")
    return Entry(
        name=name,
        kind=table["kind"],
        about=table["about"],
        source=table["source"],
        licence=table.get("licence"),
        untried=table["untried"],
        files=files,
    )


def _files(name: str, part: dict[str, Any]) -> list[RemoteFile]:
    """The files of one part: those of each task, or the named ones."""
    wanted: dict[str, str] = part["files"]
    if "tasks" in part:
        wanted = {
            f"{task}/{local}": remote.replace("{task}", task)
            for task in part["tasks"]
            for local, remote in wanted.items()
        }
    folder = f"{part['folder']}/" if "folder" in part else ""
    return [_file(name, folder + local, remote, part) for local, remote in wanted.items()]


def _file(name: str, local: str, remote: str, part: dict[str, Any]) -> RemoteFile:
    checksums, form = part.get("checksums"), part.get("format", "md5sum")
    url = part["base"] + remote
    if form not in LIST_FORMATS:
        raise FormatError(f"{name}: list of format {form!r}, expected {', '.join(LIST_FORMATS)}")
    if not _LOCAL_NAME.fullmatch(local):
        raise FormatError(f"{name}: file {local!r}, expected plain names joined by '/'")
    if checksums is not None and form == "hub":  # the hub lists folder by folder
        checksums += remote.rpartition("/")[0]
    for address in (url, checksums):
        if address is not None and urlsplit(address).scheme != "https":
            raise FormatError(f"{name}: {address}, expected an address that begins with https://")
    return RemoteFile(local, url, checksums, form, bool(part.get("unpack", False)))
