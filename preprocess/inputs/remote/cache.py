"""The cache of remote files: `remote/` in the cache folder.

    remote/<key of address and version>/<name>            a whole file
    remote/<key of address and version>/<name>.partial    a file that is being copied
    remote/<key of address and version>/<name>.position   how many of its bytes are surely on the disk
    remote/<key of address and version>/<name>.streamed   marks a copy that a stream has made (stream_copies.py)
    remote/listings/<hash of a URL>.json                  the files that the URL meant when it was last resolved

Listings contain hashes of URLs and no credentials.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from pathlib import Path

from preprocess.errors import FolioError
from preprocess.inputs.download import get_cache_folder
from preprocess.inputs.remote.addresses import strip_login
from preprocess.inputs.remote.remote_file import RemoteFile, make_key
from preprocess.shards.files import canonical_json, parse_json, read_small_file, write_durable

UNSAFE_CHARACTERS = re.compile(r"[^\w.+=-]", re.ASCII)
MAX_NAME_CHARACTERS = 120


def get_remote_folder() -> Path:
    """Return the folder of all remote files."""
    return get_cache_folder() / "remote"


def get_cached_path(file: RemoteFile) -> Path:
    """Return the path that the copy of a file has, or will have."""
    # The end of the name is kept, because the suffixes tell the format.
    name = UNSAFE_CHARACTERS.sub("_", posixpath.basename(file.name))[-MAX_NAME_CHARACTERS:].lstrip(".")
    return get_remote_folder() / file.key / (name or "file")


def get_partial_path(file: RemoteFile) -> Path:
    """Return the path of a copy that is not whole."""
    path = get_cached_path(file)
    return path.with_name(f"{path.name}.partial")


def get_mark_path(path: Path) -> Path:
    """Return the path of the mark of a copy that a stream has made."""
    return path.with_name(f"{path.name}.streamed")


def keep_copy(file: RemoteFile) -> None:
    """Remove the mark of a stream: the copy is kept until the user deletes it."""
    get_mark_path(get_cached_path(file)).unlink(missing_ok=True)


def count_missing_bytes(file: RemoteFile) -> int:
    """Return how many bytes have still to be copied, as far as that is known."""
    partial = get_partial_path(file)
    return max((file.size_bytes or 0) - (partial.stat().st_size if partial.exists() else 0), 0)


def has_file(file: RemoteFile) -> bool:
    """Return whether the cache has the whole file."""
    path = get_cached_path(file)
    return path.is_file() and file.size_bytes in (None, path.stat().st_size)


def save_listing(url: str, recipe_format: str, files: list[RemoteFile]) -> None:
    """Remember the files that `url` means."""
    path = _get_listing_path(url, recipe_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {key: value for key, value in dataclasses.asdict(file).items() if key != "url"}  # it may contain credentials
        for file in files
    ]
    write_durable(path, canonical_json(rows))


def load_listing(url: str, recipe_format: str) -> list[RemoteFile] | None:
    """Return the files that `url` meant when it was last resolved, None if that is not known."""
    try:
        rows = parse_json(read_small_file(_get_listing_path(url, recipe_format)))
        files = [RemoteFile(**row) for row in rows]
    except (FileNotFoundError, FolioError, ValueError, TypeError):  # a damaged one will be written again
        return None
    is_valid = all(re.fullmatch(r"[0-9a-f]{32}", str(file.key)) and isinstance(file.name, str) for file in files)
    return files if files and is_valid else None


def _get_listing_path(url: str, recipe_format: str) -> Path:
    # Without the login, which could be guessed from a hash.
    return get_remote_folder() / "listings" / f"{make_key(strip_login(url), recipe_format)}.json"
