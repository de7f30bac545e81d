"""Obtain the files of a built-in corpus, and verify them by their sha256.

A file is looked for in this order:

1. the user's copy, `--source FILE` (if it is given, the others are not tried);
2. the mirror `PREPROCESS_MIRROR`, a folder or URL laid out as `<corpus>/<file name>`;
3. the cache;
4. the file's URL in the recipe.

The checksum must match whatever the origin of the file, so the origin never changes a build.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from preprocess.errors import FolioError, MisuseError
from preprocess.progress import Progress
from preprocess.recipes.schema import CorpusFile
from preprocess.shards.files import open_atomic, sha256_file

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 30
RETRIES = 2
RETRY_STATUSES = (429, 500, 502, 503, 504)
CHUNK_BYTES = 1 << 18


def get_cache_folder() -> Path:
    """Return `$FOLIO_CACHE` if it is set, otherwise the system's cache folder for this user."""
    import platformdirs

    return Path(os.environ.get("FOLIO_CACHE") or platformdirs.user_cache_dir("folio", appauthor=False))


class _DownloadError(Exception):
    """A download failed; another origin may still have the file. The message gives the reason."""


def find_file(corpus: str, file: CorpusFile, *, source: Path | None, progress: Progress) -> Path:
    """Return a local path whose content has the sha256 of `file`.

    Raises MisuseError if `source` is not a file, and FolioError if no origin has the file, if the
    file of an origin has another checksum, or if a download cannot be saved. A file in the cache
    with another checksum is ignored.
    """
    if source is not None:
        if not source.is_file():
            raise MisuseError(f"--source {source} is not a file; name a copy of {file.name}")
        _check_file(source, file)
        return source
    cached = get_cache_folder() / corpus / file.name
    failures: list[str] = []
    mirror = os.environ.get("PREPROCESS_MIRROR")
    if mirror and mirror.lower().startswith(("http://", "https://")):
        try:
            _download(f"{mirror.rstrip('/')}/{quote(corpus)}/{quote(file.name)}", file, cached, progress)
            return cached
        except _DownloadError as e:
            failures.append(str(e))
    elif mirror:
        path = Path(mirror) / corpus / file.name
        if path.is_file():
            _check_file(path, file)
            return path
        progress.warn(f"PREPROCESS_MIRROR has no {path}")
        failures.append(f"the mirror has no {path}")
    if cached.is_file():
        if sha256_file(cached) == file.sha256:
            return cached
        progress.warn(f"{cached} is damaged and is not used")
    if file.url:
        try:
            _download(file.url, file, cached, progress)
            return cached
        except _DownloadError as e:
            failures.append(str(e))
    else:
        failures.append("the recipe has no URL for it")
    advice = "go online, or pass --source FILE" if file.url else "pass --input with a folder of its files"
    raise FolioError(
        f"could not get {corpus}/{file.name}: {'; '.join(failures)}; {advice}, or set PREPROCESS_MIRROR to a folder "
        f"with {corpus}/{file.name}"
    )


def _check_file(path: Path, file: CorpusFile) -> None:
    _check_sha256(sha256_file(path), path.stat().st_size, file, origin=str(path))


def _check_sha256(sha256: str, size_bytes: int, file: CorpusFile, *, origin: str) -> None:
    if sha256 != file.sha256:
        raise FolioError(
            f"{origin} has sha256 {sha256} and {size_bytes:,} bytes, expected {file.sha256} and {file.bytes:,}; "
            f"this is not the {file.name} of the corpus: get another copy"
        )


def _download(url: str, file: CorpusFile, target: Path, progress: Progress) -> None:
    """Download `url` to `target`.

    Raises _DownloadError if the request fails, and FolioError if the content has another checksum
    than `file` or cannot be written.
    """
    import requests

    origin = redact_url(url)
    progress.log(f"downloading {origin}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1 + RETRIES):
            try:
                with (
                    _make_session() as session,
                    session.get(url, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response,
                ):
                    if response.status_code != requests.codes.ok:
                        raise _DownloadError(f"{origin} answered {response.status_code} {response.reason}")
                    _save(response, target, file, origin, progress)
                return
            except requests.exceptions.ChunkedEncodingError:
                # The session retries failed requests, but not a response that is cut short.
                if attempt == RETRIES:
                    raise
    except requests.RequestException as e:
        raise _DownloadError(f"{origin}: {explain_failure(e)}") from e
    except OSError as e:
        raise FolioError(
            f"cannot write {file.name} to {target.parent} ({e.strerror}); set FOLIO_CACHE to a folder with enough space"
        ) from e


def _save(response: Any, target: Path, file: CorpusFile, origin: str, progress: Progress) -> None:
    """Write the body of `response` to `target`. Raises FolioError if its checksum is wrong."""
    with progress.bar(f"download {file.name}", total=file.bytes, unit="B") as bar, open_atomic(target) as out:
        digest, size_bytes = hashlib.sha256(), 0
        for chunk in response.iter_content(CHUNK_BYTES):
            out.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
            bar.update(len(chunk))
            if size_bytes > file.bytes:
                break  # the checksum cannot match any more; an endless response must not fill the disk
        _check_sha256(digest.hexdigest(), size_bytes, file, origin=origin)


def _make_session() -> Any:
    from urllib3.util.retry import Retry

    from preprocess.inputs.http_session import make_session

    retry = Retry(
        total=RETRIES,
        backoff_factor=0.5,
        status_forcelist=RETRY_STATUSES,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    return make_session(retry)


def explain_failure(error: Exception) -> str:
    """Return a short description of a failed request.

    The messages of requests are not used because they contain the URL and with it its credentials.
    """
    import requests
    from urllib3.exceptions import ReadTimeoutError

    from preprocess.inputs.http_session import HeadTooLong

    reason = getattr(error.args[0], "reason", None) if error.args else None  # after retries: the last failure
    if isinstance(error, requests.Timeout) or isinstance(reason, ReadTimeoutError):
        return "timed out"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was lost"
    if isinstance(getattr(error.args[0], "args", [None])[-1] if error.args else None, HeadTooLong):
        return "the head of its answer is too long"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return "not a URL"
    return f"no usable response ({type(error).__name__})"


def redact_url(url: str) -> str:
    """Return `url` without user name, password, query and fragment, for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the given URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
