"""Bring the files that URLs mean to this machine.

For each URL, in this order:

1. the mirror, a folder, if it has files for the URL;
2. the listing in the cache, if the URL names a commit and so never changes its meaning;
3. the service: it is asked once which files in which versions the URL means;
4. the listing in the cache, with a warning, if the service cannot be reached.

Then the files that the cache has not are copied to it, several at once.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from preprocess.errors import FolioError, MisuseError, explain_os_error, format_quantity, shorten
from preprocess.inputs.disk_file import NO_SHA256
from preprocess.inputs.input_files import InputFile, Origin
from preprocess.inputs.remote.addresses import find_hub_address, get_scheme, show_url, strip_login
from preprocess.inputs.remote.cache import (
    count_missing_bytes,
    get_cached_path,
    get_remote_folder,
    has_file,
    keep_copy,
    load_listing,
    save_listing,
)
from preprocess.inputs.remote.http import HttpService
from preprocess.inputs.remote.hub import HubService, find_in_hub_cache, parse_hub_url
from preprocess.inputs.remote.mirror import find_in_mirror
from preprocess.inputs.remote.object_store import ObjectStore
from preprocess.inputs.remote.remote_file import RemoteFile, Service, Unreachable
from preprocess.inputs.remote.transfer import Transfers
from preprocess.progress import Progress
from preprocess.shards.files import check_free_space

NUM_TRANSFERS = 8  # at once
Result = TypeVar("Result")


@dataclass(frozen=True)
class FetchedFile:
    """A remote file that is now on this machine."""

    name: str
    path: str
    origin: Origin | None = None  # None if it comes from the mirror, which does not know its version
    sha256: str = ""  # that it must have, if the service says it


@dataclass(frozen=True)
class ListedFile:
    """A remote file, and the service that sends it. The service is None if the file is on this machine."""

    file: RemoteFile
    service: Service | None


@dataclass(frozen=True)
class Listing:
    """The files that URLs mean, each once: those of the mirror, and those that may have to be copied."""

    mirrored: list[FetchedFile]
    remote: list[ListedFile]
    skipped: list[str]  # names of files in folders that are not read because of their suffix


def fetch_inputs(urls: list[str], recipe_format: str, progress: Progress) -> list[FetchedFile]:
    """Return the files that `urls` mean, each once. They are copied to the cache if necessary.

    `recipe_format` decides which files of a folder are read. Raises MisuseError or FolioError if a
    file cannot be obtained.
    """
    listing = list_inputs(urls, recipe_format, progress)
    return sorted(listing.mirrored + copy_files(listing.remote, progress), key=lambda file: file.name)


def list_inputs(urls: list[str], recipe_format: str, progress: Progress) -> Listing:
    """Return the files that `urls` mean, without copying them. Arguments and errors as for `fetch_inputs`."""
    with explain_cache_errors():
        return _list(urls, recipe_format, progress)


def copy_files(listed: list[ListedFile], progress: Progress) -> list[FetchedFile]:
    """Copy files to the cache, except those that are on this machine. Raises FolioError if one cannot be obtained."""
    with explain_cache_errors():
        paths = _copy_all(listed, progress)
    return [make_fetched(item.file, paths[item.file.name]) for item in listed]


def make_fetched(file: RemoteFile, path: Path) -> FetchedFile:
    """Return what is known of a copied file."""
    sha256 = file.digest.removeprefix("sha256:") if file.digest.startswith("sha256:") else ""
    return FetchedFile(file.name, str(path), Origin(file.origin, file.version), sha256)


@contextmanager
def explain_cache_errors() -> Iterator[None]:
    """Raise the errors of the operating system as FolioError."""
    try:
        yield
    except OSError as e:
        raise FolioError(f"{explain_os_error(e)}; FOLIO_CACHE chooses the folder of the cache") from e


def add_origins(files: list[InputFile], fetched: list[FetchedFile]) -> list[InputFile]:
    """Return `files` with the origins of those that were fetched.

    Raises FolioError if one of them was hashed and has not the SHA-256 that its service says.
    """
    by_path = {file.path: file for file in fetched}
    for file in files if by_path else ():
        source = by_path.get(file.disk.path)
        if source is not None and source.sha256 and file.disk.sha256 not in (source.sha256, NO_SHA256):
            raise FolioError(f"{file.disk.path} is not what {source.name} should be; delete it, and run again")
    return [
        file._replace(origin=by_path[file.disk.path].origin) if file.disk.path in by_path else file for file in files
    ]


def _list(urls: list[str], recipe_format: str, progress: Progress) -> Listing:
    mirrored: dict[str, FetchedFile] = {}
    remote: list[str] = []
    skipped: list[str] = []
    for url in dict.fromkeys(find_hub_address(url) or url for url in urls):
        strip_login(url)  # raises MisuseError for what is not a URL
        found, skipped_here = find_in_mirror(url, recipe_format)
        if found:
            progress.log(f"reading {format_quantity(len(found), 'file')} of {show_url(url)} from the mirror")
            mirrored |= {name: FetchedFile(name, path) for name, path in found}
            skipped += skipped_here
        else:
            remote.append(url)
    listed: dict[str, ListedFile] = {}
    for service, files, skipped_there in _resolve_all(remote, recipe_format, progress):
        skipped += skipped_there
        for file in files:
            if file.name in listed and listed[file.name].file.key != file.key:
                raise MisuseError(
                    f"two of the inputs mean different files named {shorten(file.name)}; download them yourself, and "
                    "name the copies"
                )
            listed[file.name] = ListedFile(file, service)
    return Listing(
        [file for name, file in sorted(mirrored.items()) if name not in listed],
        [file for _, file in sorted(listed.items())],
        skipped,
    )


def _resolve_all(
    urls: list[str], recipe_format: str, progress: Progress
) -> list[tuple[Service | None, list[RemoteFile], list[str]]]:
    """Return for each URL what `_resolve` returns."""
    with several_at_once(lambda num_bytes: None) as (transfers, submit):
        return get_results(
            [submit(functools.partial(_resolve, url, recipe_format, transfers, progress)) for url in urls]
        )


def _resolve(
    url: str, recipe_format: str, transfers: Transfers, progress: Progress
) -> tuple[Service | None, list[RemoteFile], list[str]]:
    """Return the service of a URL, None if it is not needed, the files that the URL means, and skipped names."""
    known = load_listing(url, recipe_format)
    is_whole = known is not None and all(find_copy(file) is not None for file in known)
    if known is not None and is_whole and get_scheme(url) == "hf" and parse_hub_url(url).is_pinned:
        return None, known, []
    service = make_service(url)
    try:
        files, skipped = transfers.try_again(lambda: service.list_files(url, recipe_format), shown=show_url(url))
    except Unreachable as e:
        if known is None or not is_whole:
            raise
        reason = str(e).split(";")[0]
        progress.warn(f"{reason}; the copies in the cache are read (version {known[0].version or 'unknown'})")
        return None, known, []
    save_listing(url, recipe_format, files)
    if isinstance(service, HttpService) and files[0].size_bytes is None:
        progress.warn(
            f"{show_url(url)}: the server does not say the size of the file, so a copy that ends too early may not be "
            "noticed; compare it with the original"
        )
    return service, files, skipped


def find_copy(file: RemoteFile) -> Path | None:
    """Return the path of a whole copy that is on this machine."""
    if has_file(file):
        return get_cached_path(file)
    return find_in_hub_cache(file) if file.name.startswith("hf/") else None


def make_service(url: str) -> Service:
    """Return the service that has the files of a URL."""
    scheme = get_scheme(url)
    if scheme in ("https", "http"):
        return HttpService()
    return HubService() if scheme == "hf" else ObjectStore(scheme)


def _copy_all(listed: list[ListedFile], progress: Progress) -> dict[str, Path]:
    """Return the path of a copy of each file, by name."""
    paths: dict[str, Path] = {}
    missing: dict[str, tuple[RemoteFile, Service]] = {}
    for item in listed:
        keep_copy(item.file)
        copy = find_copy(item.file)
        if copy is not None and (item.service is None or item.file.version):
            paths[item.file.name] = copy
        elif item.service is not None:
            missing[item.file.name] = item.file, item.service
    if not missing:
        return paths
    folder = get_remote_folder()
    folder.mkdir(parents=True, exist_ok=True)
    check_space(sum(count_missing_bytes(file) for file, _ in missing.values()), folder)
    total = sum(file.size_bytes or 0 for file, _ in missing.values())
    progress.log(f"copying {format_quantity(len(missing), 'remote file')} ({total:,} bytes) to {folder}")
    with progress.bar("copy", total=total, unit="B") as bar, several_at_once(bar.update) as (transfers, submit):
        copies = get_results([submit(functools.partial(transfers.fetch, *item)) for item in missing.values()])
    return paths | dict(zip(missing, copies, strict=True))


@contextmanager
def several_at_once(
    report: Callable[[int], None], num_transfers: int = NUM_TRANSFERS
) -> Iterator[tuple[Transfers, Callable[[Callable[[], Result]], Future[Result]]]]:
    """Yield the shared state of transfers, and a function that runs another one in one of `num_transfers` threads.

    An exception, such as that of Ctrl-C, ends all transfers at their next block.
    """
    lock = threading.Lock()

    def report_in_turn(num_bytes: int) -> None:
        with lock:
            report(num_bytes)

    transfers = Transfers(threading.Event(), report_in_turn)
    pool = ThreadPoolExecutor(num_transfers)
    try:
        yield transfers, pool.submit
    except BaseException:
        transfers.is_cancelled.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def get_results(futures: list[Future[Result]]) -> list[Result]:
    """Return the results in order. Raises the first exception as soon as there is one."""
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future.done() and (error := future.exception()) is not None:
            raise error
    return [future.result() for future in futures]


def check_space(num_bytes: int, folder: Path) -> None:
    """Raise FolioError if the disk of `folder`, which is in the cache, has less than `num_bytes` free."""
    advice = "set FOLIO_CACHE to a folder on another disk"
    check_free_space(folder, num_bytes, needed_by="the remote files have", advice=advice)
