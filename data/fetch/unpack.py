"""Archives from the network: unpacked only where every member is a plain file that stays inside.

Refused are paths that leave the folder, links, devices, encrypted and sparse members, two members
of one name, and bombs: too many members, too many bytes, or too many times the archive's size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Self

from dnassm.artifact import staged_folder
from dnassm.errors import DnassmError, FetchError

_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """How large the content of an archive may be.

    Attributes:
        members: files and folders.
        size: bytes in all.
        ratio: bytes in all over the bytes of the archive. Bases take a quarter of their letters,
            so that 100 is far beyond any genome.
    """

    members: int = 100_000
    size: int = 200 << 30
    ratio: int = 100


def unpack(
    archive: Path, folder: Path, bounds: Bounds | None = None, *, force: bool = False
) -> None:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive into a new `folder`, whole or not at all.

    Raises:
        FetchError: the archive is damaged or has a member that is refused; nothing is left.
        ArtifactError: the disk is full or `folder` holds something.
    """
    guard = _Guard(archive, bounds or Bounds())
    try:
        with staged_folder(folder, force=force) as staging:
            members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
            for name, size, stream in members(archive, guard):
                target = guard.place(staging, name, size)
                if stream is None:
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as out:
                        guard.copy(stream, out)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise guard.refusal("two members with one path") from error


class _Guard:
    """Counts what comes out of an archive, and refuses."""

    def __init__(self, archive: Path, bounds: Bounds) -> None:
        self._archive = archive
        self._most = min(bounds.size, max(archive.stat().st_size * bounds.ratio, _BLOCK))
        self._members_left = bounds.members
        self._bytes = 0

    def refusal(self, what: str) -> FetchError:
        return FetchError(
            f"{self._archive}: expected plain files that stay in their folder, got {what}; "
            "refused, nothing was unpacked. Do not use this archive, and tell its publisher"
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Make one error of all that tarfile and zipfile raise on a damaged archive."""
        try:
            yield
        except DnassmError:
            raise
        # Their own classes are the least of it: OSError, TypeError, IndexError, struct.error, ...
        except Exception as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise FetchError(
                f"{self._archive}: expected a tar or zip archive, got a damaged one ({words}); "
                "fetch it again with --force"
            ) from error

    def place(self, folder: Path, name: str, size: int) -> Path:
        """Where a member goes, once its path and its announced size are found harmless."""
        self._members_left -= 1
        if self._members_left < 0:
            raise self.refusal("too many members")
        if self._bytes + size > self._most:
            raise self.refusal(f"more than {self._most} bytes")
        parts = name.rstrip("/").split("/")
        parts = parts[1:] if parts[0] == "." and len(parts) > 1 else parts
        plain = name.isprintable() and not any(letter in name for letter in "\\:")
        # isprintable() leaves no lone surrogate, so that encode() cannot fail.
        if (
            not plain
            or len(name) > 1000
            or any(part in ("", "..") or len(part.encode()) > 200 for part in parts)
        ):
            raise self.refusal(f"the member {name[:200]!r}")
        return folder.joinpath(*parts)

    def copy(self, source: IO[bytes], target: BinaryIO) -> None:
        """Copy a member, whatever size was announced for it."""
        while True:
            with self.reading():
                block = source.read(_BLOCK)
            if not block:
                return
            self._bytes += len(block)
            if self._bytes > self._most:
                raise self.refusal(f"more than {self._most} bytes")
            target.write(block)


class _BoundedHeader(tarfile.TarInfo):
    """A header whose extension (long names, pax records) is read into memory: a bound for it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if not header.isreg() and header.size > _BLOCK:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


_Member = tuple[str, int, IO[bytes] | None]


def _tar_members(archive: Path, guard: _Guard) -> Iterator[_Member]:
    # As a stream: each header is seen, and refused, before anything that comes after it is read.
    with guard.reading(), tarfile.open(archive, "r|*", tarinfo=_BoundedHeader) as tar:
        for member in tar:
            if member.isdir():
                yield member.name, 0, None
            elif member.isreg() and not member.issparse():
                yield member.name, member.size, tar.extractfile(member)
            else:
                raise guard.refusal(f"a link, a device or a sparse file ({member.name[:200]!r})")


def _zip_members(archive: Path, guard: _Guard) -> Iterator[_Member]:
    with guard.reading(), zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or member.flag_bits & 1:
                raise guard.refusal(f"a link, a device or a secret ({member.filename[:200]!r})")
            if member.is_dir():
                yield member.filename, 0, None
            else:
                with contextlib.closing(packed.open(member)) as stream:
                    yield member.filename, member.file_size, stream
