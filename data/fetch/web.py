"""HTTP as the downloads need it: https only, redirects only to https, errors in one line.

Plain http is spoken only with a mirror that the user has named, and only with that host.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import quote, unquote, urljoin, urlsplit

from dnassm.errors import FetchError

TIMEOUT_S = 60.0
_AGENT = "dnassm-fetch"
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_LARGEST_LIST = 32 << 20


class TransientError(FetchError):
    """What may go better at the next try: a cut, a time-out, a server that is busy."""


class RangeError(FetchError):
    """The server has no such range: the file there is not the one that was begun."""


def mirrored(url: str, mirror: str | None) -> str:
    """The address of `url` below `mirror`: its host and its path, as `wget --mirror` lays them out.

    Raises:
        FetchError: `mirror` is no http or https address.

    >>> mirrored("https://example.org/a/b.gz", "http://localhost:8000/genomes")
    'http://localhost:8000/genomes/example.org/a/b.gz'
    """
    if mirror is None:
        return url
    if urlsplit(mirror).scheme not in ("http", "https") or not urlsplit(mirror).netloc:
        raise FetchError(f"--mirror {mirror}: expected an address like https://host/folder")
    parts = urlsplit(url)
    return f"{mirror.rstrip('/')}/{parts.netloc}{quote(unquote(parts.path))}"


def open_url(
    url: str, *, headers: Mapping[str, str] | None = None, plain: bool = False
) -> http.client.HTTPResponse:
    """Open `url`; the caller closes the response.

    Args:
        url: https address, or http where `plain`.
        headers: request headers to add.
        plain: http is allowed: the address lies on a mirror that the user named.

    Raises:
        TransientError: the connection failed or the server is busy.
        FetchError: the address or the answer is refused.
    """
    allowed = ("https", "http") if plain else ("https",)
    if urlsplit(url).scheme not in allowed:
        raise FetchError(f"{url}: expected an address that begins with https://; refused")
    at = url
    for _ in range(_MOST_REDIRECTS):
        try:
            return _ask(at, headers or {})
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _REDIRECTS:
                    raise _refused(url, error) from error
                at = _next_address(at, error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise TransientError(
                f"{at}: expected an answer, got no connection ({reason}); look at the network and "
                "the proxy, or name a --mirror"
            ) from error
    raise FetchError(f"{url}: expected the file, got {_MOST_REDIRECTS} redirects; try later")


def _ask(url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **headers}
    request = urllib.request.Request(url, headers=sent)  # noqa: S310  the caller checks the scheme
    opener = urllib.request.build_opener(_NoRedirects())
    response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
    return response


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error here, so that `open_url` sees each one."""

    def redirect_request(self, *_: object) -> None:
        return None


def _next_address(url: str, error: urllib.error.HTTPError) -> str:
    """Where a redirect leads: to https alone, however the first address began."""
    to = urljoin(url, error.headers.get("Location", ""))
    if urlsplit(to).scheme != "https":
        raise FetchError(
            f"{url}: expected the file or a redirect to https, got a redirect to {to!r}; refused. "
            "Name another --mirror"
        )
    return to


def read_text(url: str, *, plain: bool = False) -> str:
    """Read a small text, such as a list of checksums.

    Raises:
        FetchError: it cannot be read, or is a web page or longer than any such list.
    """
    with open_url(url, plain=plain) as response:
        try:
            data = response.read(_LARGEST_LIST + 1)
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"{url}: the connection was cut; run it again") from error
        length = response.headers.get("Content-Length", "")
    if length.isdigit() and len(data) < min(int(length), _LARGEST_LIST):
        raise TransientError(
            f"{url}: expected {length} bytes, got {len(data)}: the connection was cut; run it again"
        )
    if len(data) > _LARGEST_LIST or looks_like_html(data):
        what = "a web page" if looks_like_html(data) else f"more than {_LARGEST_LIST} bytes"
        raise FetchError(f"{url}: expected a list of checksums, got {what}; {_WHAT_NOW}")
    return data.decode("utf-8", errors="replace")


def looks_like_html(head: bytes) -> bool:
    r"""Whether the first bytes are those of a web page.

    >>> looks_like_html(b"\r\n<!DOCTYPE html>"), looks_like_html(b">chr1\nACGT\n")
    (True, False)
    """
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


_WHAT_NOW = "the publisher may have moved it: look at its page (`dnassm fetch --list --json`)"


def _refused(url: str, error: urllib.error.HTTPError) -> FetchError:
    got = f"{url}: expected the file, got {error.code} {error.reason}"
    if error.code in _RETRIED:
        return TransientError(f"{got}; the server is busy, try later or name a --mirror")
    if error.code == 416:
        return RangeError(f"{got}; run it again to begin anew")
    return FetchError(f"{got}; {_WHAT_NOW}")
