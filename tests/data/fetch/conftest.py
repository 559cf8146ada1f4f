"""A web server on this machine that can misbehave in every way that servers do."""

from __future__ import annotations

import dataclasses
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnassm.data.fetch.catalogue import Entry
from dnassm.data.fetch.download import Transfer
from dnassm.data.fetch.job import fetch
from tests.data.fetch.toy import HOST, entry


@dataclasses.dataclass
class Page:
    """One address of the server, and what is wrong with it."""

    data: bytes
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    validator: dict[str, str] = dataclasses.field(default_factory=lambda: {"ETag": '"one"'})
    cuts: list[int] = dataclasses.field(default_factory=list)  # bytes until each cut, in turn
    ranges: bool = True
    range_shift: int = 0
    knows_if_range: bool = True
    length: bool = True
    stall_at: int | None = None  # sends so much, then nothing more, until `go` is set
    failures: list[int] = dataclasses.field(default_factory=list)  # statuses to answer first


class Shelf:
    """The pages of a server by path, and the requests that it saw."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.seen: list[tuple[str, str | None]] = []
        self.go = threading.Event()
        self.stalled = threading.Event()
        self.mirror = ""

    def put(self, path: str, data: bytes, host: str = HOST, **faults) -> Page:
        self.pages[f"/{host}/{path}"] = page = Page(data, **faults)
        return page

    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.seen]


class Handler(http.server.BaseHTTPRequestHandler):
    shelf: Shelf

    def do_GET(self) -> None:
        page = self.shelf.pages.get(self.path)
        self.shelf.seen.append((self.path, self.headers["Range"]))
        if page is None or page.failures:
            self.send_error(404 if page is None else page.failures.pop(0))
            return
        start = self.begin(page)
        body = page.data[start:]
        cut = page.cuts.pop(0) if page.cuts else len(body)
        if page.stall_at is not None and not self.shelf.go.is_set():
            self.wfile.write(body[: page.stall_at])
            self.wfile.flush()
            self.shelf.stalled.set()
            self.shelf.go.wait(20)
            return
        self.wfile.write(body[:cut])

    def begin(self, page: Page) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        same = not page.knows_if_range or self.headers["If-Range"] in page.validator.values()
        start = int(asked[1]) if asked and page.ranges and same else 0
        if asked and page.ranges and same and start >= len(page.data):
            self.send_error(416)
            return len(page.data)
        self.send_response(206 if start else page.status)
        if start:
            said = f"bytes {start + page.range_shift}-{len(page.data) - 1}/{len(page.data)}"
            self.send_header("Content-Range", said)
        if page.length:
            self.send_header("Content-Length", str(len(page.data) - start))
        for name, value in (page.headers | page.validator).items():
            self.send_header(name, value)
        self.end_headers()
        return start

    def log_message(self, *_: object) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away, which is what the tests are about."""


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    handler = type("Bound", (Handler,), {"shelf": shelf})
    server = QuietServer(("127.0.0.1", 0), handler)
    shelf.mirror = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield shelf
    shelf.go.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bring(shelf, tmp_path):
    def call(what: Entry | None = None, *, max_bytes: int = 10_000_000, tries: int = 3, **options):
        transfer = Transfer(mirror=shelf.mirror, max_bytes=max_bytes, tries=tries, pause_s=0.01)
        return fetch(what or entry("genome.fa"), tmp_path / "out", transfer, **options)

    return call


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "out" / "toy" / "genome.fa"
