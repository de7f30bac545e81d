"""Functions that all exporters share: check the output paths, and write the files atomically."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from preprocess.errors import MisuseError
from preprocess.shards.files import sync_folder
from preprocess.shards.format import check_no_build


def prepare_output(folder: Path, paths: Collection[Path], *, patterns: Iterable[str] = (), replace: bool) -> None:
    """Make the folders of the files `paths`, which an exporter writes to `folder` or its subfolders.

    `patterns`: globs, relative to `folder`, of the names that files of this format have. Raises
    MisuseError like `check_no_leftovers` and `check_output`, before a folder is made.
    """
    check_no_leftovers(folder, paths, patterns)
    check_output(folder, paths, replace=replace)
    for each in {folder, *(path.parent for path in paths)}:
        each.mkdir(parents=True, exist_ok=True)


def check_output(folder: Path, paths: Iterable[Path], *, replace: bool) -> None:
    """Raise MisuseError if an exporter must not write the files `paths` to `folder`.

    This is so if `folder` contains a build or is not a folder, if one of `paths` exists and is not
    a regular file, or if it exists and `replace` is false.
    """
    check_no_build(folder, "which must not contain other files")
    if os.path.lexists(folder) and not folder.is_dir():
        raise MisuseError(f"{folder} is not a folder; choose another --output")
    for path in paths:
        if os.path.lexists(path) and not path.is_file():
            raise MisuseError(f"{path} exists and is not a regular file; remove it, or choose another --output")
        if path.exists() and not replace:
            raise MisuseError(f"{path} exists already; pass --replace, or choose another --output")


def check_no_leftovers(folder: Path, paths: Iterable[Path], patterns: Iterable[str]) -> None:
    """Raise MisuseError if `folder` has a file that matches one of `patterns` and is not in `paths`.

    Such a file is of an earlier export. A reader would take it for a part of this one.
    """
    earlier = {path for pattern in patterns for path in folder.glob(pattern)}
    if others := sorted(earlier.difference(paths)):
        raise MisuseError(
            f"{others[0]} exists, and this export does not replace it; delete it, or choose another --output"
        )


class NewFiles:
    """Files of an export that get their names at the same time. `write_together` creates this object."""

    def __init__(self) -> None:
        self.temporary: dict[Path, Path] = {}  # by the name that the file gets

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """Open a temporary file for writing. After the block it is on the disk, but not yet called `path`."""
        self.temporary[path] = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with open(self.temporary[path], "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def write_together() -> Iterator[NewFiles]:
    """Yield an object that opens files for writing, and name them when the block ends without an exception.

    After an exception, e.g. because of a full disk or Ctrl-C, the old files are unchanged and no part
    of a new file remains.
    """
    files = NewFiles()
    try:
        yield files
        for path, temporary in files.temporary.items():
            os.replace(temporary, path)
        for folder in {path.parent for path in files.temporary}:
            sync_folder(folder)
    finally:
        for temporary in files.temporary.values():
            temporary.unlink(missing_ok=True)
