"""The folder PREPROCESS_MIRROR, which is asked before the network.

It is laid out as the names of files: `<scheme>/<host or bucket>/<path>`, for example
`https/example.org/data/a.jsonl`, `s3/bucket/a.parquet` and `hf/datasets/OWNER/NAME/a.parquet`.
A URL with a revision is looked for in `hf/datasets/OWNER/NAME@REVISION`, and a URL with a query is
not looked for, because the mirror cannot have the file of every query.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from preprocess.errors import MisuseError
from preprocess.inputs.expand_glob import expand_glob, is_glob
from preprocess.inputs.remote.addresses import get_scheme, name_url
from preprocess.inputs.remote.folder_selection import select_data
from preprocess.inputs.remote.hub import HubAddress, name_hub_file, parse_hub_url
from preprocess.inputs.remote.hub_selection import select_files


def find_in_mirror(url: str, recipe_format: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (name, path) of the files that `url` means in the mirror, and the names of those that are skipped.

    There are none of either if the mirror is not a folder.
    """
    mirror = os.environ.get("PREPROCESS_MIRROR", "")
    if not os.path.isdir(mirror):
        return [], []
    if get_scheme(url) == "hf":
        return _find_in_dataset(mirror, parse_hub_url(url), recipe_format)
    if urlsplit(url).query:
        return [], []
    name = name_url(url)
    if any(part in ("", ".", "..") for part in name.rstrip("/").split("/")):
        return [], []  # it may lead out of the mirror
    path = os.path.join(mirror, *name.rstrip("/").split("/"))
    if os.path.isfile(path):
        return [(name, path)], []
    skipped: list[str] = []
    if os.path.isdir(path):
        data, skipped = select_data(_walk(path), recipe_format)
        found = [os.path.join(path, name) for name in data]
    else:
        found = [path for path in expand_glob(path) if os.path.isfile(path)] if is_glob(name) else []
    return sorted((os.path.relpath(path, mirror).replace(os.sep, "/"), path) for path in found), skipped


def _find_in_dataset(mirror: str, address: HubAddress, recipe_format: str) -> tuple[list[tuple[str, str]], list[str]]:
    owner, name = address.repo.split("/")
    revision = f"@{address.revision.replace('/', '%2F')}" if address.revision else ""
    folder = os.path.join(mirror, "hf", "datasets", owner, name + revision)
    try:
        selected, skipped = select_files(_walk(folder), address.path, recipe_format)
    except MisuseError:
        return [], []
    found = [(name_hub_file(address.repo, path), os.path.join(folder, *path.split("/"))) for path in selected]
    return found, skipped


def _walk(folder: str) -> Iterator[str]:
    """Yield the files below `folder` that are not hidden, as relative paths with `/`."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
