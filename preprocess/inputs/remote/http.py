"""Files behind https:// and http://.

A file is opened with `Range: bytes=N-`. A server that does not know ranges sends the whole file
with status 200, and the copy begins again. ETag or Last-Modified of every answer are compared with
those of the first one, so a file is never put together from two versions. User name and password
come from ~/.netrc or the URL.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from preprocess.errors import FolioError, shorten
from preprocess.inputs.detect import detect_format_by_name
from preprocess.inputs.disk_file import InputChanged
from preprocess.inputs.download import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, explain_failure, redact_url
from preprocess.inputs.remote.addresses import name_url, show_url, strip_login
from preprocess.inputs.remote.remote_file import AccessDenied, Body, RemoteFile, TransferBroken, Unreachable, make_key

CHUNK_BYTES = 1 << 20
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class HttpService:
    """A web server."""

    def list_files(self, url: str, recipe_format: str) -> tuple[list[RemoteFile], list[str]]:
        """Return the file of `url`. Its first byte is requested, because not every server answers HEAD."""
        with request(url, 0, stop=0) as response:
            _reject_page(response, url)
            if response.status_code == 416:  # of an empty file
                size_bytes: int | None = 0
            else:
                size_bytes = _read_size(response)
            version = _read_version(response)
        key = make_key(strip_login(url), version)
        return [RemoteFile(name_url(url), key, size_bytes, version, origin=redact_url(url), url=url)], []

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Body]:
        """Open the file at byte `start`."""
        with request(file.url, start, stop=None if stop is None else stop - 1) as response:
            _reject_page(response, file.url)  # the first answer may have been the file
            if _read_version(response) != file.version:
                raise InputChanged(f"{show_url(file.url)} changed while it was downloaded")
            yield read_body(response, start, file)


@contextmanager
def request(url: str, start: int, *, stop: int | None = None, headers: dict[str, str] | None = None) -> Iterator[Any]:
    """Request a file from byte `start`, up to and with byte `stop`. Yields the response of `requests`.

    Its status is 200, 206 or 416. Raises TransferBroken, Unreachable or FolioError for all others.
    """
    import requests
    from urllib3.exceptions import HTTPError

    from preprocess.inputs.http_session import make_session

    sent = {"Accept-Encoding": "identity", **(headers or {})}
    if start or stop is not None:
        sent["Range"] = f"bytes={start}-{'' if stop is None else stop}"
    try:
        with (
            make_session() as session,
            session.get(url, headers=sent, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response,
        ):
            _check_status(response, url)
            yield response
    except requests.exceptions.SSLError as e:
        raise FolioError(
            f"{show_url(url)}: {explain_failure(e)}; set REQUESTS_CA_BUNDLE to a file with that of its issuer"
        ) from e
    except (requests.ConnectionError, requests.Timeout) as e:
        raise Unreachable(f"{show_url(url)}: {explain_failure(e)}; go online, or set PREPROCESS_MIRROR") from e
    except requests.RequestException as e:
        raise FolioError(f"{show_url(url)}: {explain_failure(e)}; check the address") from e
    except HTTPError as e:  # of the body, which is read without the help of requests
        raise TransferBroken("the connection was lost") from e


def read_body(response: Any, start: int, file: RemoteFile) -> Body:
    """Return the body of a response to a request from byte `start`.

    Raises InputChanged if the server now says another size than `file` has.
    """
    if response.status_code == 416:  # the file has no such byte: the copy is whole already, or the file became shorter
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or match[2] != str(start):
            raise InputChanged(f"{show_url(file.origin)} changed while it was downloaded")
        return Body(start, iter(()))
    size_bytes = _read_size(response)
    if file.size_bytes is not None and size_bytes not in (None, file.size_bytes):
        raise InputChanged(
            f"{show_url(file.origin)} changed while it was downloaded ({file.size_bytes:,} bytes, now {size_bytes:,})"
        )
    if response.status_code == 206:
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or match[1] is None or int(match[1]) > start:
            raise FolioError(
                f"{show_url(file.origin)} answered with another range than requested; download it yourself"
            )
        start = int(match[1])
    else:
        start = 0
    # Not decoded: a file that is stored compressed is sent by some servers as if only its transfer were.
    return Body(start, response.raw.stream(CHUNK_BYTES, decode_content=False))


def _read_size(response: Any) -> int | None:
    """Return the size of the whole file, None if the server does not say it."""
    if response.status_code == 206:
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        return int(match[2]) if match and match[2] != "*" else None
    length: str = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _read_version(response: Any) -> str:
    return shorten(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")


def _check_status(response: Any, url: str) -> None:
    status = response.status_code
    if status in (200, 206, 416):
        return
    answer = f"{show_url(url)} answered {status} {shorten(response.reason or '')}".rstrip()
    if status in RETRY_STATUSES:
        raise TransferBroken(answer, _read_wait_s(response.headers.get("Retry-After", "")))
    if status in (401, 403):
        raise AccessDenied(f"{answer}: it needs a login or a newer link; put user name and password into ~/.netrc")
    if status in (404, 410):
        advice = "a glob needs s3:// or hf://, name each file" if "*" in url else "check the address"
        raise FolioError(f"{answer}: the file does not exist; {advice}")
    raise FolioError(f"{answer}, expected the file; check the address")


def _read_wait_s(value: str) -> float | None:
    """Return the seconds in a Retry-After header: a number, or a time."""
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    moment = email.utils.parsedate_tz(value)
    return max(email.utils.mktime_tz(moment) - time.time(), 0.0) if moment else None


def _reject_page(response: Any, url: str) -> None:
    """Raise FolioError for an HTML page in place of a file: of a login, of an error, or of a code browser."""
    is_page = response.headers.get("Content-Type", "").lower().startswith("text/html")
    if is_page and detect_format_by_name(urlsplit(url).path) not in (None, "html"):
        raise FolioError(
            f"{show_url(url)} is an HTML page, not the file: perhaps a login or an error; use the address of the "
            "download itself (on GitHub: Raw)"
        )
