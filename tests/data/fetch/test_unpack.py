"""Archives: good ones come out as they are, hostile ones leave nothing behind."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from dnassm.data.fetch.unpack import Bounds, _Guard, unpack
from dnassm.errors import ArtifactError, FetchError

SMALL = Bounds(members=20, size=3 << 20, ratio=100)


def tar_of(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members:
            packed.writestr(name, data)
    return path


def special(kind: bytes, name: str = "x", target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def refused(archive: Path, match: str, bounds: Bounds = SMALL) -> None:
    folder = archive.parent / "inside" / "out"
    folder.parent.mkdir()
    before = set(archive.parent.rglob("*"))
    with pytest.raises(FetchError, match=match) as caught:
        unpack(archive, folder, bounds)
    assert "\n" not in str(caught.value)
    assert set(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_archive_is_unpacked_with_its_folders(tmp_path, make, suffix):
    members = [("chr1.fa", b">chr1\nACGT\n"), ("./more/chr2.fa", b">chr2\n"), ("more/e.fa", b"")]
    archive = make(tmp_path / f"a{suffix}", *members)
    unpack(archive, tmp_path / "out", SMALL)
    found = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*")}
    assert set(found) == {"chr1.fa", "more", "more/chr2.fa", "more/e.fa"}
    assert found["chr1.fa"].read_bytes() == b">chr1\nACGT\n"


def test_what_is_there_is_kept_unless_forced(tmp_path):
    archive = tar_of(tmp_path / "a.tar", ("new.fa", b">"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.fa").write_text("old")
    with pytest.raises(ArtifactError, match="exists already"):
        unpack(archive, tmp_path / "out")
    unpack(archive, tmp_path / "out", force=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new.fa"]


HOSTILE = [
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "a//b",
    "..",
    "a\\..\\evil",
    "C:evil",
    "d/" * 600 + "x",
    "n" * 300,
    "ä" * 200,
    "line\nbreak",
    ("d" * 100 + "/") * 20 + "x",
]


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, make, name):
    archive = make(tmp_path / "a", ("good.fa", b">"), (name, b"evil"))
    refused(archive, "expected plain files that stay in their folder, got the member")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_a_link_or_a_device_in_a_tar_is_refused(tmp_path, kind):
    archive = tar_of(tmp_path / "a.tar.gz", special(kind), ("x/passwd", b"evil"))
    refused(archive, "got a link, a device")


def test_a_link_in_a_zip_is_refused(tmp_path):
    link = zipfile.ZipInfo("x")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(zip_of(tmp_path / "a.zip", (link, b"/etc/passwd")), "got a link, a device")


def test_a_secret_member_of_a_zip_is_refused(tmp_path):
    archive = zip_of(tmp_path / "a.zip", ("x", b"data"))
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(bytes(data))
    refused(archive, "a secret")


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_bomb_is_refused_by_number_by_size_and_by_ratio(tmp_path, make):
    for place, members, bounds, match in (
        ("number", [(f"{i}", b"") for i in range(21)], SMALL, "too many members"),
        ("size", [("a", bytes(2 << 20)), ("b", bytes(2 << 20))], SMALL, "more than 3145728 bytes"),
        ("ratio", [("a", bytes(5 << 20))], Bounds(ratio=2), "more than 1048576 bytes"),
    ):
        folder = tmp_path / place
        folder.mkdir()
        ratio = Bounds(bounds.members, bounds.size, 10**6) if place != "ratio" else bounds
        refused(make(folder / "a.gz", *members), match, ratio)


def test_a_size_that_is_too_large_is_refused_before_the_member_is_read(tmp_path):
    info = tarfile.TarInfo("x")
    info.size = 1 << 40
    archive = tmp_path / "a.tar"
    archive.write_bytes(info.tobuf() + bytes(1024))
    refused(archive, "more than")


def test_what_comes_is_counted_whatever_was_announced(tmp_path):
    archive = tar_of(tmp_path / "a.tar", ("x", b""))
    guard = _Guard(archive, Bounds(size=1000))
    guard.place(tmp_path, "x", 0)
    with pytest.raises(FetchError, match="more than 1000 bytes"):
        guard.copy(io.BytesIO(bytes(1001)), io.BytesIO())


def test_a_sparse_file_is_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000"}
    refused(tar_of(tmp_path / "a.tar", info), "a sparse file")


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path):
    archive = zip_of(tmp_path / "a.zip", ("x", bytes(3 << 20)))
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(mark) + offset
        data[at : at + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(bytes(data))
    refused(archive, "damaged", Bounds(size=1 << 20))


def test_a_tar_header_that_would_fill_the_memory_is_refused(tmp_path):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT | 1) + bytes(1024)))
    refused(archive, "a header of 1099511627776 bytes")


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_two_members_with_one_path_are_refused(tmp_path, make, recwarn):
    refused(make(tmp_path / "a", ("x", b"1"), ("./x", b"2")), "two members with one path")


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_file_that_is_also_a_folder_is_refused(tmp_path, make):
    refused(make(tmp_path / "a", ("x", b"1"), ("x/y", b"2")), "two members with one path")


def test_what_the_libraries_stumble_on_is_one_line(tmp_path):
    """Found by mutating archives at random: a zip whose member lies before its beginning."""
    archive = zip_of(tmp_path / "a.zip", ("x", b"data"))
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x05\x06") + 16
    data[at : at + 4] = (10_000).to_bytes(4, "little")
    archive.write_bytes(bytes(data))
    refused(archive, "damaged")


@pytest.mark.parametrize(
    "data", [b"", b"no archive at all", b"\x1f\x8b\x08 broken", b"\x1f\x8b\x08", b"PK\x03\x04"]
)
def test_what_is_no_archive_is_one_line(tmp_path, data):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(data)
    refused(archive, "expected a tar or zip archive, got a damaged one")


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_an_archive_that_was_cut_is_refused(tmp_path, make):
    archive = make(tmp_path / "a.gz", ("x", bytes(range(256)) * 4000), ("y", b"more"))
    archive.write_bytes(archive.read_bytes()[:-900])
    refused(archive, "damaged")
