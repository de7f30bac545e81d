"""Expand glob patterns, in time that is linear in the number of directory entries.

The problem: `glob.iglob(pattern, recursive=True)` follows symbolic links below `**`. If a folder
contains two links to itself, it finds 2**40 paths, all of the same files: Linux follows up to 40
links in a path.

The idea: a pattern is expanded one component at a time to a list of folders, and a list contains
each real folder once. No file is lost, because the files that the rest of the pattern matches in a
folder do not depend on the path by which the folder was reached.

A name that looks like a pattern, such as the folder `[data]`, is found if the pattern itself
matches nothing.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath

MAGIC = re.compile(r"[*?\[]")
RECURSIVE = "**"  # any number of folders, as a component of its own
MAX_COMPONENT_CHARACTERS = 4_096  # no file system has longer names


def is_glob(text: str) -> bool:
    """Return whether `text` contains a character that has a meaning in a pattern."""
    return MAGIC.search(text) is not None


def expand_glob(pattern: str) -> Iterator[str]:
    """Yield the paths that match `pattern`, in no particular order.

    `*`, `?`, `[…]` and the component `**` have the meaning that they have in `glob.glob` with
    `recursive=True`: only a component that begins with a dot matches hidden names. Of several paths
    to the same file through symbolic links, at least one is yielded. Raises OSError if a folder
    cannot be listed: skipping it would lose its files.
    """
    path = PurePath(pattern)
    components = path.parts[1:] if path.anchor else path.parts
    if not components or max(map(len, components)) > MAX_COMPONENT_CHARACTERS or "\0" in pattern:
        return
    folders = [path.anchor]  # "" is the current directory
    for component in components[:-1]:
        folders = _expand_folders(folders, component)
    last = components[-1]
    if last == RECURSIVE:
        folders, last = _expand_folders(folders, RECURSIVE), "*"
    yield from _match(folders, last)


def _expand_folders(folders: list[str], component: str) -> list[str]:
    """Return the folders that `component` matches in `folders`, each real folder once."""
    seen: set[tuple[int, int]] = set()
    if component != RECURSIVE:
        return list(_drop_repeated(_match(folders, component), seen))
    found = list(_drop_repeated(folders, seen))
    for folder in found:  # the list grows while it is read
        found.extend(_drop_repeated(_match([folder], "*"), seen))
    return found


def _drop_repeated(paths: Iterable[str], seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the folders among `paths` that are not in `seen`, and add them to it."""
    for path in paths:
        if not os.path.isdir(path or os.curdir):
            continue
        status = os.stat(path or os.curdir)
        if (identity := (status.st_dev, status.st_ino)) not in seen:
            seen.add(identity)
            yield path


def _match(folders: Iterable[str], component: str) -> Iterator[str]:
    """Yield the entries of `folders` whose name `component` matches."""
    if not is_glob(component):
        yield from (path for folder in folders if os.path.lexists(path := os.path.join(folder, component)))
        return
    literal_matches, is_matched = [], False
    for folder in folders:
        names = os.listdir(folder or os.curdir)
        for name in fnmatch.filter(names, component):
            if not name.startswith(".") or component.startswith("."):
                is_matched = True
                yield os.path.join(folder, name)
        if component in names:
            literal_matches.append(os.path.join(folder, component))
    if not is_matched:
        yield from literal_matches
