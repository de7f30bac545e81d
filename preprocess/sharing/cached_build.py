"""Builds at URLs that a run trains on: copied to the cache first, or read while they arrive.

    builds/<build_id>/                the whole build, each file checked
    builds/.<build_id>.pull/          one that is being copied, see publish.py
    builds/.<build_id>.stream/        one that is read while it arrives, see streamed_build.py
    builds/addresses/<hash of a URL>  the build that the URL meant when it was last read

The manifest is read from the URL each time, so a run trains on what the URL means now. Nothing else
is copied if the cache has that build. If the service cannot be reached, the build that the URL meant
last time is used, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.download import get_cache_folder, redact_url
from preprocess.inputs.remote.addresses import show_url
from preprocess.inputs.remote.fetch import explain_cache_errors
from preprocess.inputs.remote.remote_file import Unreachable
from preprocess.progress import Progress
from preprocess.shards.files import sha256_bytes, write_durable
from preprocess.shards.format import Build
from preprocess.shards.manifest import Manifest
from preprocess.sharing.publish import has_build
from preprocess.sharing.pull import copy_build, open_build_source
from preprocess.sharing.sources import Source
from preprocess.sharing.streamed_build import open_streamed_build, take_over_files

BUILD_ID = re.compile(r"[0-9a-f]{64}")
ADVICE = "delete this folder of the cache, and run the same command"


def get_cached_build(url: str, *, is_streamed: bool, progress: Progress) -> Build:
    """Return the build at a URL, which is copied to the cache if it is not there.

    With `is_streamed`, a build that is not in the cache is returned at once, and its tokens arrive
    when they are needed. Raises MisuseError for a URL with credentials, and FolioError if the build
    cannot be read, does not match its manifest, or does not fit on the disk.
    """
    if redact_url(url) != url:
        raise MisuseError(
            f"data is {show_url(url)} with a password or a query, which a run would store; use ~/.netrc, or copy the "
            "build by `preprocess pull` and name it"
        )
    with explain_cache_errors():
        try:
            source, manifest_data, manifest = open_build_source(url)
        except Unreachable as e:
            return _find_last(url, e, progress.warn)
        target = _get_folder() / manifest.build_id
        target.parent.mkdir(parents=True, exist_ok=True)
        if not has_build(target, manifest.build_id, replace=False, advice=ADVICE):
            if is_streamed and (streamed := open_streamed_build(source, manifest_data, manifest, target, progress)):
                return streamed
            _copy(source, manifest_data, manifest, target, progress)
        address = _get_address_path(url)
        address.parent.mkdir(exist_ok=True)
        write_durable(address, manifest.build_id.encode())
    return Build(target)


def _copy(source: Source, manifest_data: bytes, manifest: Manifest, target: Path, progress: Progress) -> None:
    """Copy a build to the cache. Files that a streamed run has received are taken over, and hashed again."""
    take_over_files(target, manifest.build_id)
    copy_build(source, manifest_data, manifest, target, replace=False, progress=progress)


def _find_last(url: str, error: Unreachable, warn: Callable[[str], None]) -> Build:
    """Return the build that a URL meant when it was last read. Raises `error` if the cache does not have it."""
    try:
        build_id = _get_address_path(url).read_text()
    except (OSError, UnicodeDecodeError):
        raise error from None
    folder = _get_folder() / build_id
    if not BUILD_ID.fullmatch(build_id) or not folder.is_dir():
        raise error
    try:
        build = Build(folder)
    except FolioError:
        raise error from None
    warn(f"{str(error).split(';')[0]}; the build in the cache is read ({build_id[:12]})")
    return build


def _get_folder() -> Path:
    return get_cache_folder() / "builds"


def _get_address_path(url: str) -> Path:
    return _get_folder() / "addresses" / sha256_bytes(url.encode("utf-8", "surrogatepass"))[:32]
