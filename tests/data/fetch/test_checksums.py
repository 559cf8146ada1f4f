"""What a download is held to: the publisher's checksums, and a lock file of the first one."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dnassm.data.fetch import web
from dnassm.data.fetch.lock import LOCK_NAME, add_record, read_lock, record
from dnassm.errors import ArtifactError, FetchError
from tests.data.fetch.toy import DATA, HOST, MD5, SHA256, entry, refused


@pytest.mark.parametrize(
    "line",
    [
        f"{MD5}  genome.fa",
        f"{MD5} *genome.fa",
        f"{MD5.upper()}  ./genome.fa",
        SHA256 + " genome.fa",
    ],
)
def test_the_publishers_checksum_is_found_and_held_to(bring, shelf, line):
    shelf.put("d/genome.fa", DATA)
    shelf.put("d/md5sum.txt", f"{'0' * 32}  other.fa\n{line}\n\n".encode())
    (found,) = bring(entry("genome.fa", checksums="md5sum.txt"))
    assert found.checked.endswith("of https://files.example.org/d/md5sum.txt")


def test_wrong_bytes_are_deleted_and_the_error_names_both_checksums(bring, shelf, target):
    wrong = DATA[:-1] + b"N"
    shelf.put("d/genome.fa", wrong)
    shelf.put("d/md5sum.txt", f"{MD5}  genome.fa\n".encode())
    said = refused(bring, "md5", entry("genome.fa", checksums="md5sum.txt"))
    assert MD5 in said
    assert hashlib.md5(wrong).hexdigest() in said
    assert "md5sum.txt" in said
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no list at all",
        "0" * 32 + "  genome.fa\n" + "1" * 32 + "  genome.fa\n",
        MD5 + "  a/genome.fa",
    ],
)
def test_a_list_without_one_checksum_of_the_file_is_an_error(bring, shelf, text):
    shelf.put("d/genome.fa", DATA)
    shelf.put("d/md5sum.txt", text.encode())
    what = entry("genome.fa", checksums="md5sum.txt")
    refused(bring, "expected one checksum of genome.fa, got [02].*--trust-first", what)
    (found,) = bring(what, trust_first=True)
    assert found.checked == "nothing"


def test_a_list_that_is_missing_or_a_web_page_or_cut_is_an_error(bring, shelf):
    shelf.put("d/genome.fa", DATA)
    what = entry("genome.fa", checksums="md5sum.txt")
    refused(bring, "md5sum.txt: expected the file, got 404.*--trust-first", what)
    shelf.put("d/md5sum.txt", b"<html>")
    refused(bring, "expected a list of checksums, got a web page", what)
    shelf.put("d/md5sum.txt", f"{MD5}  genome.fa\n".encode() * 9, cuts=[70] * 3)
    refused(bring, "expected 396 bytes, got 70", what)


def test_a_list_on_a_busy_server_is_asked_for_again(bring, shelf):
    shelf.put("d/genome.fa", DATA)
    shelf.put("d/md5sum.txt", f"{MD5}  genome.fa\n".encode(), failures=[503, 503])
    (found,) = bring(entry("genome.fa", checksums="md5sum.txt"))
    assert found.checked.startswith("md5")


def test_an_archive_is_checked_recorded_and_unpacked_once(bring, shelf, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("chr1.fa")
        info.size = len(DATA)
        tar.addfile(info, io.BytesIO(DATA))
    shelf.put("d/chromFa.tar.gz", packed.getvalue())
    what = entry("chromFa.tar.gz", unpack=True)
    for _ in range(2):
        (found,) = bring(what)
        assert (Path(found.path) / "chr1.fa").read_bytes() == DATA
        assert found.sha256 == hashlib.sha256(packed.getvalue()).hexdigest()
    assert len(shelf.seen) == 1


def test_a_list_is_read_once_for_all_files(bring, shelf):
    for name in ("a.fa", "b.fa"):
        shelf.put(f"d/{name}", DATA)
    shelf.put("d/md5sum.txt", f"{MD5}  a.fa\n{MD5}  b.fa\n".encode())
    bring(entry("a.fa", "b.fa", checksums="md5sum.txt"))
    assert len(shelf.seen) == 3


def test_the_hub_lists_sha256_of_large_files_and_gits_name_of_small_ones(bring, shelf):
    small = b"sequence,label\nACGT,1\n"
    oid = hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest()
    listing = [
        {"type": "file", "path": "d/large.fa", "oid": "f" * 40, "lfs": {"oid": SHA256}},
        {"type": "file", "path": "d/small.csv", "oid": oid},
    ]
    shelf.put("d/large.fa", DATA)
    shelf.put("d/small.csv", small)
    shelf.put("d/tree", json.dumps(listing).encode())
    what = entry("large.fa", "small.csv", checksums="tree", form="hub")
    assert [file.checked.split()[0] for file in bring(what)] == ["sha256", "git-sha1"]
    shelf.put("d/small.csv", small + b"x")
    refused(bring, f"expected git-sha1 {oid}", what, force=True)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "not json",
        "[1]",
        '[{"path": "d/genome.fa"}]',
        '[{"path": "d/genome.fa", "oid": "x"}]',
        "[" * 99999,
    ],
)
def test_a_hub_listing_that_is_none_is_an_error(bring, shelf, text):
    shelf.put("d/genome.fa", DATA)
    shelf.put("d/tree", text.encode())
    refused(bring, "expected", entry("genome.fa", checksums="tree", form="hub"))


def test_what_came_first_is_recorded_and_held_to(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    bring()
    target.unlink()
    shelf.put("d/genome.fa", DATA[:-1] + b"N", validator={"ETag": '"two"'})
    said = refused(bring, "recorded on .* in .*fetch.lock.json.*--force takes the new one")
    assert SHA256 in said
    assert not target.exists()
    (found,) = bring(force=True)
    assert found.sha256 != SHA256
    assert not bring()[0].new


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"format": "dnassm-fetch-lock", "version": 2, "files": {}}',
        "[]",
        '{"format": "dnassm-fetch-lock", "version": 1, "files": {"genome.fa": {"url": 1}}}',
    ],
)
def test_a_lock_file_that_is_damaged_or_newer_is_an_error(bring, shelf, target, text):
    target.parent.mkdir(parents=True)
    (target.parent / LOCK_NAME).write_text(text)
    refused(bring, LOCK_NAME, error=ArtifactError)


def test_a_file_of_somebody_else_is_not_taken_for_ours(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"mine")
    refused(bring, "move it away, or fetch it anew with --force", error=ArtifactError)
    assert target.read_bytes() == b"mine"
    bring(force=True)
    assert target.read_bytes() == DATA


def test_records_that_are_added_at_the_same_time_are_all_kept(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"ACGT")
    new = record("https://h/x", path, SHA256, "nothing")
    names = [f"{number}.fa" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: add_record(tmp_path, name, new), names))
    assert read_lock(tmp_path) == dict.fromkeys(names, new)


def test_a_list_that_is_too_long_is_refused(shelf, monkeypatch):
    monkeypatch.setattr(web, "_LARGEST_LIST", 100)
    shelf.put("d/md5sum.txt", b"x" * 101)
    with pytest.raises(FetchError, match="got more than 100 bytes"):
        web.read_text(f"{shelf.mirror}/{HOST}/d/md5sum.txt", plain=True)
