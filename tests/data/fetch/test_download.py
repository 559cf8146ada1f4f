"""One name from a server that cuts, lies, moves and is full; every fault is one line."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import shutil
import signal
import subprocess
import sys
import urllib.error
from email.message import Message
from pathlib import Path

import pytest

from dnassm.data.fetch import download, web
from dnassm.data.fetch.download import Transfer
from dnassm.data.fetch.job import fetch
from dnassm.errors import ArtifactError, FetchError, UnknownNameError
from tests.data.fetch.toy import DATA, HOST, MD5, SHA256, entry, only_the_file, refused

OTHER_NOTE = '{"url": "https://other.example/x", "validator": "\\"one\\"", "total": null}'


def test_a_file_comes_with_its_bytes_and_nothing_else(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    (found,) = bring()
    assert Path(found.path).read_bytes() == DATA
    assert (found.sha256, found.size, found.checked, found.new) == (
        SHA256,
        len(DATA),
        "nothing",
        True,
    )
    assert only_the_file(target)


def test_a_file_that_is_there_is_checked_and_not_asked_for_again(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    bring()
    shelf.seen.clear()
    (found,) = bring()
    assert not found.new
    assert shelf.seen == []
    target.write_bytes(DATA[:-1] + b"N")
    said = refused(bring, "changed on disk")
    assert SHA256 in said
    assert "--force" in said
    bring(force=True)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("validator", [{"ETag": '"one"'}, {"Last-Modified": "Sun, 1 Nov 2026"}])
def test_a_cut_connection_is_taken_up_where_it_was_cut(bring, shelf, target, validator):
    shelf.put("d/genome.fa", DATA, cuts=[300_000, 0, 300_000], validator=validator)
    bring()
    assert target.read_bytes() == DATA
    assert shelf.ranges() == [None, "bytes=300000-", "bytes=300000-", "bytes=600000-"]


@pytest.mark.parametrize("validator", [{}, {"ETag": 'W/"weak"'}])
def test_without_a_promise_that_the_file_is_the_same_it_begins_anew(
    bring, shelf, target, validator
):
    shelf.put("d/genome.fa", DATA, cuts=[300_000] * 3, validator=validator)
    refused(bring, "expected 1000006 bytes, got 300000")
    bring()
    assert target.read_bytes() == DATA
    assert "bytes=300000-" not in shelf.ranges()[3:]


def test_not_a_byte_of_a_short_answer_is_lost(bring, shelf, target):
    shelf.put("d/genome.fa", DATA, cuts=[100])
    bring()
    assert shelf.ranges() == [None, "bytes=100-"]
    assert target.read_bytes() == DATA


def test_a_server_that_ignores_ranges_sends_all_of_it_again(bring, shelf, target):
    shelf.put("d/genome.fa", DATA, cuts=[300_000], ranges=False)
    bring()
    assert target.read_bytes() == DATA


def test_a_server_that_answers_with_another_range_is_asked_anew(bring, shelf, target):
    shelf.put("d/genome.fa", DATA, cuts=[300_000], range_shift=7)
    bring()
    assert target.read_bytes() == DATA
    assert shelf.ranges() == [None, "bytes=300000-", None]


def test_a_server_that_never_finishes_is_given_up_and_the_next_call_goes_on(bring, shelf, target):
    page = shelf.put("d/genome.fa", DATA, cuts=[200_000, 0, 0, 0, 0, 0])
    said = refused(bring, "expected 1000006 bytes, got 200000")
    assert "run the same command again" in said
    assert len(shelf.seen) == 3
    page.cuts.clear()
    shelf.seen.clear()
    bring()
    assert shelf.ranges() == ["bytes=200000-"]
    assert target.read_bytes() == DATA


def test_a_server_that_stops_sending_is_left_and_asked_again(bring, shelf, target, monkeypatch):
    monkeypatch.setattr(web, "TIMEOUT_S", 0.3)
    shelf.put("d/genome.fa", DATA, stall_at=600_000)
    refused(bring, "expected more, got timed out", tries=1)
    kept = target.with_name("genome.fa.part").stat().st_size
    assert 0 < kept <= 600_000
    shelf.go.set()
    bring()
    assert shelf.ranges() == [None, f"bytes={kept}-"]
    assert target.read_bytes() == DATA


def test_a_server_that_always_cuts_and_has_no_ranges_is_given_up(bring, shelf):
    shelf.put("d/genome.fa", DATA, cuts=[500_000] * 50, range_shift=1)
    refused(bring, "expected")
    assert len(shelf.seen) < 10


def test_a_file_that_changed_meanwhile_is_fetched_anew(bring, shelf, target):
    page = shelf.put("d/genome.fa", DATA, cuts=[300_000, 0, 0])
    refused(bring, "cut")
    page.data, page.validator = DATA[::-1].replace(b"1rhc>", b"") + b"A", {"ETag": '"two"'}
    page.data = b">" + page.data
    bring()
    assert target.read_bytes() == page.data


def test_a_server_that_does_not_know_if_range_never_makes_a_file_of_two(bring, shelf, target):
    page = shelf.put("d/genome.fa", DATA, cuts=[300_000, 0, 0], knows_if_range=False)
    refused(bring, "cut")
    page.data, page.validator = b">" + DATA[:0:-1], {"ETag": '"two"'}
    assert len(page.data) == len(DATA)
    bring()
    assert target.read_bytes() == page.data


def test_a_part_of_a_file_that_was_not_asked_for_is_refused(bring, shelf):
    shelf.put("d/genome.fa", DATA, status=206)
    refused(bring, "expected 200 OK, got 206")


def test_a_whole_part_needs_its_name_only(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    bring()
    part = target.with_name("genome.fa.part")
    target.rename(part)
    note = {"url": f"{shelf.mirror}/{HOST}/d/genome.fa", "validator": '"one"', "total": len(DATA)}
    part.with_name("genome.fa.part.json").write_text(json.dumps(note))
    shelf.seen.clear()
    bring()
    assert shelf.seen == []
    assert only_the_file(target)


def test_a_part_that_is_too_long_begins_anew(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    target.parent.mkdir(parents=True)
    target.with_name("genome.fa.part").write_bytes(DATA + b"more")
    note = {"url": f"{shelf.mirror}/{HOST}/d/genome.fa", "validator": '"one"', "total": len(DATA)}
    target.with_name("genome.fa.part.json").write_text(json.dumps(note))
    bring()
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("note", ["", "[]", '{"validator": []}', '{"url": 3}', OTHER_NOTE])
def test_a_part_of_unknown_origin_is_dropped(bring, shelf, target, note):
    shelf.put("d/genome.fa", DATA)
    target.parent.mkdir(parents=True)
    target.with_name("genome.fa.part").write_bytes(b"something else")
    target.with_name("genome.fa.part.json").write_text(note)
    bring()
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_missing_page_is_one_line_with_the_address_and_what_to_do(bring, shelf, target, status):
    shelf.put("d/genome.fa", DATA, failures=[status])
    said = refused(bring, f"genome.fa: expected the file, got {status}")
    assert "dnassm fetch --list" in said
    assert list(target.parent.iterdir()) == []


def test_a_busy_server_is_asked_again(bring, shelf, target):
    shelf.put("d/genome.fa", DATA, failures=[503, 429])
    bring()
    assert target.read_bytes() == DATA
    shelf.put("d/genome.fa", DATA, failures=[503] * 9)
    refused(bring, "503.*try later or name a --mirror", force=True)


def test_no_server_at_all_is_one_line(tmp_path):
    transfer = Transfer(mirror="http://127.0.0.1:9", tries=1)
    with pytest.raises(FetchError, match=r"got no connection .*refused.*--mirror"):
        fetch(entry("genome.fa"), tmp_path, transfer)


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"\n<!DOCTYPE html><html>log in", {}),
        (b"<HTML>", {"Content-Type": "application/gzip"}),
        (b"please log in", {"Content-Type": "text/html; charset=utf-8"}),
    ],
)
def test_a_web_page_in_place_of_the_file_is_refused(bring, shelf, target, data, headers):
    shelf.put("d/genome.fa", data, headers=headers)
    refused(bring, r"expected a file like genome.fa, got a web page; .*browser")
    assert not target.exists()
    shelf.put("d/genome.fa", DATA)
    bring()
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("name", ["genome.fa", "genome.fa.gz", "t.parquet", "t.xlsx", "t.fna"])
def test_data_of_another_kind_is_refused(bring, shelf, name):
    shelf.put(f"d/{name}", b"\x7fELF and so on")
    refused(bring, f"expected a file like {name}, got data that begins with b'.x7fELF", entry(name))


def test_an_empty_answer_is_refused(bring, shelf):
    shelf.put("d/genome.fa", b"")
    refused(bring, "expected a file, got nothing")


def test_a_file_that_is_announced_as_too_long_is_refused_before_it_comes(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    refused(bring, r"expected at most 999 kB.*raise --max-gb", max_bytes=999_000)
    assert list(target.parent.iterdir()) == []


def test_more_than_the_limit_from_a_server_that_does_not_say_how_much_is_stopped(bring, shelf):
    shelf.put("d/genome.fa", DATA, length=False)
    shelf.put("d/md5sum.txt", f"{MD5}  genome.fa\n".encode())
    refused(bring, "expected at most", entry("genome.fa", checksums="md5sum.txt"), max_bytes=1000)


def test_more_than_announced_is_not_read(bring, shelf, target):
    page = shelf.put("d/genome.fa", DATA + b"and more", length=False)
    page.headers["Content-Length"] = str(len(DATA))
    bring()
    assert target.read_bytes() == DATA


def test_an_unknown_length_needs_a_checksum(bring, shelf, target):
    shelf.put("d/genome.fa", DATA, length=False)
    refused(bring, "expected its length or a checksum, got neither")
    shelf.put("d/md5sum.txt", f"{MD5}  genome.fa\n".encode())
    bring(entry("genome.fa", checksums="md5sum.txt"))
    assert target.read_bytes() == DATA


def test_a_compressed_transfer_is_refused_but_x_gzip_of_a_gz_file_is_the_file(bring, shelf):
    shelf.put("d/genome.fa", DATA, headers={"Content-Encoding": "gzip"})
    refused(bring, "expected the file as it is, got it in gzip")
    shelf.put("d/genome.fa.gz", b"\x1f\x8b rest", headers={"Content-Encoding": "x-gzip"})
    (found,) = bring(entry("genome.fa.gz"))
    assert Path(found.path).read_bytes() == b"\x1f\x8b rest"


@pytest.mark.parametrize("to", ["http://127.0.0.1:1/x", "file:///etc/passwd", "ftp://h/x"])
def test_a_redirect_to_anything_but_https_is_refused(bring, shelf, to):
    shelf.put("d/genome.fa", b"moved", status=302, headers={"Location": to})
    refused(bring, "expected the file or a redirect to https, got a redirect to")


def test_a_redirect_to_https_is_followed_with_the_range(monkeypatch):
    asked = []

    def ask(url, headers):
        asked.append((url, headers))
        if len(asked) == 3:
            return "the file"
        to = Message()
        to["Location"] = ["https://b.example/y", "/z"][len(asked) - 1]
        raise urllib.error.HTTPError(url, 302, "Found", to, io.BytesIO())

    monkeypatch.setattr(web, "_ask", ask)
    assert web.open_url("https://a.example/x", headers={"Range": "bytes=5-"}) == "the file"
    addresses = ["https://a.example/x", "https://b.example/y", "https://b.example/z"]
    assert asked == [(url, {"Range": "bytes=5-"}) for url in addresses]


def test_redirects_in_a_circle_end(monkeypatch):
    def ask(url, headers):
        to = Message()
        to["Location"] = "https://a.example/x"
        raise urllib.error.HTTPError(url, 302, "Found", to, io.BytesIO())

    monkeypatch.setattr(web, "_ask", ask)
    with pytest.raises(FetchError, match="got 10 redirects"):
        web.open_url("https://a.example/x")


@pytest.mark.parametrize("url", ["http://h/x", "file:///etc/passwd", "ftp://h/x", "x"])
def test_only_https_is_opened(url):
    with pytest.raises(FetchError, match="expected an address that begins with https"):
        web.open_url(url)


@pytest.mark.parametrize("mirror", ["file:///data", "here", "https:///x", ""])
def test_a_mirror_is_a_web_address(tmp_path, mirror):
    with pytest.raises(FetchError, match="expected an address like https://host/folder"):
        fetch(entry("genome.fa"), tmp_path, Transfer(mirror=mirror))


def test_only_the_files_that_fit_the_pattern_are_fetched(bring, shelf):
    for name in ("a/x.fa", "b/x.fa"):
        shelf.put(f"d/{name}", DATA)
    (found,) = bring(entry("a/x.fa", "b/x.fa"), only="b/*")
    assert found.path.endswith("toy/b/x.fa")
    refused(
        bring,
        "no file like 'c'; have a/x.fa, b/x.fa",
        entry("a/x.fa", "b/x.fa"),
        only="c",
        error=UnknownNameError,
    )


# The disk, other processes, signals


def test_a_full_disk_is_one_line_and_the_part_stays(bring, shelf, target, monkeypatch):
    shelf.put("d/genome.fa", DATA)
    blocks = download._blocks

    def until_full(response, url):
        yield next(blocks(response, url))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_blocks", until_full)
    refused(bring, "the disk is full; what was received is kept", error=ArtifactError)
    monkeypatch.undo()
    shelf.seen.clear()
    bring()
    assert shelf.ranges() == ["bytes=262144-"]
    assert target.read_bytes() == DATA


def test_a_disk_too_small_for_the_file_is_said_before_it_comes(bring, shelf, monkeypatch):
    shelf.put("d/genome.fa", DATA)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("", (), {"free": 10}))
    refused(bring, "expected 1 MB of free space, got 10 B", error=ArtifactError)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EROFS, errno.EIO])
def test_a_place_that_cannot_be_written_is_one_line(bring, shelf, monkeypatch, number):
    def refuse(*_, **options):
        raise OSError(number, "not here")

    shelf.put("d/genome.fa", DATA)
    monkeypatch.setattr(Path, "mkdir", refuse)
    refused(bring, r"cannot be written \(not here\); .*another --out", error=ArtifactError)


def test_a_file_where_the_folder_should_be_is_one_line(bring, shelf, tmp_path):
    shelf.put("d/genome.fa", DATA)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "toy").write_text("in the way")
    refused(bring, "a file", error=ArtifactError)
    assert (tmp_path / "out" / "toy").read_text() == "in the way"


def test_two_processes_do_not_write_one_part(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    target.parent.mkdir(parents=True)
    with target.with_name("genome.fa.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        refused(bring, "another process is fetching it", error=ArtifactError)
    bring()
    assert target.read_bytes() == DATA


def test_a_part_that_another_process_has_just_finished_is_not_written_to(
    bring, shelf, target, monkeypatch
):
    shelf.put("d/genome.fa", DATA)
    real = fcntl.flock

    def finish_first(stream, how):
        monkeypatch.undo()
        target.with_name("genome.fa.part").write_bytes(b"finished by another")
        target.with_name("genome.fa.part").rename(target.with_name("finished"))
        real(stream, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    bring()
    assert target.with_name("finished").read_bytes() == b"finished by another"
    assert target.read_bytes() == DATA


def test_force_does_not_touch_the_part_of_another_process(bring, shelf, target):
    shelf.put("d/genome.fa", DATA)
    target.parent.mkdir(parents=True)
    part = target.with_name("genome.fa.part")
    with part.open("ab") as other:
        other.write(b"received by another")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(bring, "another process is fetching it", force=True, error=ArtifactError)
        assert part.read_bytes() == b"received by another"


CATALOGUED = "goldenPath/hs1/bigZips/hs1.fa.gz"


def command(shelf, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "dnassm",
        "fetch",
        "hs1",
        "--mirror",
        shelf.mirror,
        "--out",
        str(out),
    ]


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)],
    ids=["kill", "ctrl-c"],
)
def test_a_killed_or_stopped_download_goes_on(shelf, tmp_path, sent, code):
    data = b"\x1f\x8b" + DATA
    shelf.put(CATALOGUED, data, host="hgdownload.soe.ucsc.edu", stall_at=600_000)
    first = subprocess.Popen(
        command(shelf, tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is born deaf to Ctrl-C; the tests may be such a job.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert shelf.stalled.wait(20)
    part = tmp_path / "hs1" / "hs1.fa.gz.part"
    for _ in range(200):
        if part.exists() and part.stat().st_size:
            break
        shelf.go.wait(0.05)
    first.send_signal(sent)
    said = first.communicate(timeout=20)[1]
    assert first.returncode == code
    assert "Traceback" not in said
    if sent == signal.SIGINT:
        assert "are kept in" in said
    kept = part.stat().st_size
    assert 0 < kept <= 600_000
    shelf.go.set()
    again = subprocess.run(
        command(shelf, tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 0, again.stderr
    assert Path(again.stdout.strip()).read_bytes() == data
    assert shelf.ranges() == [None, f"bytes={kept}-"]
    assert "nobody has tried" in again.stderr
