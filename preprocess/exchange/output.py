"""Functions that all exporters share: check the output paths, and write the files atomically."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from preprocess.errors import FULL_DISK, MisuseError, name_file_in_errors
from preprocess.shards.files import (
    REPLACED_SUFFIX,
    FileVersion,
    check_output_file,
    check_version,
    make_partial_path,
    read_version,
    sync_folder,
)
from preprocess.shards.format import check_no_build


def prepare_output(folder: Path, paths: Collection[Path], *, patterns: Iterable[str] = (), replace: bool) -> None:
    """Check that an exporter may write the files `paths` to `folder` or its subfolders.

    `patterns`: globs, relative to `folder`, of the names that files of this format have. Raises
    MisuseError like `check_no_leftovers` and `check_output`.
    """
    check_no_leftovers(folder, paths, patterns)
    check_output(folder, paths, replace=replace)


def check_output(folder: Path, paths: Iterable[Path], *, replace: bool) -> None:
    """Raise MisuseError if an exporter must not write the files `paths` to `folder`.

    This is so if `folder` contains a build or is not a folder, if one of `paths` exists and is not
    a regular file, or if it exists and `replace` is false.
    """
    check_no_build(folder, "which must not contain other files")
    if os.path.lexists(folder) and not folder.is_dir():
        raise MisuseError(f"{folder} is not a folder; choose another --output")
    for path in paths:
        check_output_file(path, replace=replace)


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
        self.versions: dict[Path, FileVersion] = {}  # of the old files with these names
        self.folders: list[Path] = []  # that were made for the files, each after the one that contains it

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """Open a temporary file for writing, and make its folder.

        After the block it is on the disk, but not yet called `path`.
        """
        missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self.folders.append(folder)
        self.versions[path] = read_version(path)
        self.temporary[path] = make_partial_path(path)
        with name_file_in_errors(str(path), only=FULL_DISK), open(self.temporary[path], "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def write_together() -> Iterator[NewFiles]:
    """Yield an object that opens files for writing, and name them when the block ends without an exception.

    After an exception, e.g. because of a full disk or Ctrl-C, the old files are what they were, and no
    part of a new file and no new folder remains. Raises FolioError if another program wrote one of the files
    during the block: the folder would get files of two exports.
    """
    files = NewFiles()
    try:
        yield files
        for path, version in files.versions.items():
            check_version(path, version)  # another export to this folder may have ended meanwhile
        _rename_all(files.temporary)
    except BaseException:
        for temporary in files.temporary.values():
            temporary.unlink(missing_ok=True)
        for folder in reversed(files.folders):
            with contextlib.suppress(OSError):  # somebody else has put a file there
                folder.rmdir()
        raise


def _rename_all(temporary: dict[Path, Path]) -> None:
    """Give all new files their names. An exception between two of them gives the old files theirs back.

    Old files have the name `.NAME.PID.replaced` until all new ones have theirs, so they are not lost
    if the process is killed in between.
    """
    old_paths: dict[Path, Path] = {}
    renamed: list[Path] = []
    try:
        for path, new in temporary.items():
            if path.exists():
                old = path.with_name(f".{path.name}.{os.getpid()}{REPLACED_SUFFIX}")
                os.replace(path, old)
                old_paths[path] = old
            os.replace(new, path)
            renamed.append(path)
    except BaseException:
        for path in renamed:
            path.unlink()
        for path, old in old_paths.items():
            os.replace(old, path)
        raise
    for folder in {path.parent for path in temporary}:
        sync_folder(folder)
    for old in old_paths.values():
        old.unlink()
