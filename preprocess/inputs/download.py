"""The files of a corpus: from a mirror, the user's cache, or the network, vouched for by their sha256.

Asked in this order: `--source FILE`, which ends the search; `PREPROCESS_MIRROR`, a folder or URL laid out as
`<corpus>/<file name>`; the cache; the file's own URL. Where a file came from changes no byte of a build.
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
from preprocess.shards.files import sha256_file, written_aside

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 30
RETRIES = 2
RETRY_STATUSES = (429, 500, 502, 503, 504)
CHUNK_BYTES = 1 << 18


def cache_folder() -> Path:
    """`$FOLIO_CACHE`, else the system's cache folder of this user."""
    import platformdirs

    return Path(os.environ.get("FOLIO_CACHE") or platformdirs.user_cache_dir("folio", appauthor=False))


def find_file(corpus: str, file: CorpusFile, *, source: Path | None, progress: Progress) -> Path:
    """A local path whose content has the sha256 of `file`.

    Raises MisuseError where `source` is no file, FolioError where nothing has the file or what has it has another.
    """
    if source is not None:
        if not source.is_file():
            raise MisuseError(f"--source {source} is not a file; name a copy of {file.name}")
        _check_file(source, file)
        return source
    failures: list[str] = []
    target = cache_folder() / corpus / file.name
    mirror = os.environ.get("PREPROCESS_MIRROR")
    if mirror and (found := _from_mirror(mirror, corpus, file, target, failures, progress)):
        return found
    if target.is_file():
        if sha256_file(target) == file.sha256:
            return target
        progress.warn(f"{target} is damaged and is fetched again")
    if not file.url:
        failures.append("no address of it is known")
    elif _fetch(file.url, file, target, failures, progress):
        return target
    how = "go online, or pass --source FILE" if file.url else "pass --input with a folder of its files"
    raise FolioError(
        f"could not get {corpus}/{file.name}: {'; '.join(failures)}; {how}, or set PREPROCESS_MIRROR to a folder with {corpus}/{file.name}"
    )


def _from_mirror(
    mirror: str, corpus: str, file: CorpusFile, target: Path, failures: list[str], progress: Progress
) -> Path | None:
    if mirror.lower().startswith(("http://", "https://")):
        url = f"{mirror.rstrip('/')}/{quote(corpus)}/{quote(file.name)}"
        return target if _fetch(url, file, target, failures, progress) else None
    path = Path(mirror) / corpus / file.name
    if not path.is_file():
        progress.warn(f"PREPROCESS_MIRROR has no {path}")
        failures.append(f"the mirror has no {path}")
        return None
    _check_file(path, file)
    return path


def _check(sha256: str, size_bytes: int, file: CorpusFile, *, where: str) -> None:
    if sha256 != file.sha256:
        raise FolioError(
            f"{where} has sha256 {sha256} and {size_bytes:,} bytes, wanted {file.sha256} and {file.bytes:,}; "
            f"this is not the {file.name} the corpus is made of: get another copy"
        )


def _check_file(path: Path, file: CorpusFile) -> None:
    _check(sha256_file(path), path.stat().st_size, file, where=str(path))


def _fetch(url: str, file: CorpusFile, target: Path, failures: list[str], progress: Progress) -> bool:
    """Download `url` onto `target`; a failure is told in `failures`, a file of another content is an error."""
    import requests

    shown = safe_url(url)
    progress.say(f"fetching {shown}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1 + RETRIES):
            try:
                with (
                    _session() as session,
                    session.get(url, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response,
                ):
                    if response.status_code != requests.codes.ok:
                        failures.append(f"{shown} answered {response.status_code} {response.reason}")
                        return False
                    _save(response, target, file, shown, progress)
                return True
            except (
                requests.exceptions.ChunkedEncodingError
            ) as e:  # the session retries a request, not an answer that breaks off
                if attempt == RETRIES:
                    failures.append(f"{shown}: {_why(e)}")
    except requests.RequestException as e:
        failures.append(f"{shown}: {_why(e)}")
    except OSError as e:
        raise FolioError(
            f"cannot keep {file.name} in {target.parent} ({e.strerror}); set FOLIO_CACHE to a folder with room"
        ) from e
    return False


def _save(response: Any, target: Path, file: CorpusFile, shown: str, progress: Progress) -> None:
    with progress.bar(f"download {file.name}", total=file.bytes, unit="B") as bar, written_aside(target) as out:
        digest, size_bytes = hashlib.sha256(), 0
        for chunk in response.iter_content(CHUNK_BYTES):
            out.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
            bar.update(len(chunk))
            if size_bytes > file.bytes:
                break  # the checksum cannot fit any more; a mirror that never ends must not fill the disk
        _check(digest.hexdigest(), size_bytes, file, where=shown)


def _session():  # type: ignore[no-untyped-def]
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    session = requests.Session()
    retry = Retry(
        total=RETRIES,
        backoff_factor=0.5,
        status_forcelist=RETRY_STATUSES,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _why(error: Exception) -> str:
    """The kind of failure in two words: requests' own messages repeat the URL, credentials and all."""
    import requests
    from urllib3.exceptions import ReadTimeoutError

    reason = getattr(error.args[0], "reason", None) if error.args else None  # what the last of several tries met
    if isinstance(error, requests.Timeout) or isinstance(reason, ReadTimeoutError):
        return "timed out"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return "not a URL"
    return f"no usable answer ({type(error).__name__})"


def safe_url(url: str) -> str:
    """`url` without user name, password, query and fragment: fit to be printed or stored."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the given URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
