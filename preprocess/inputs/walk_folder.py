"""List the files in a folder and below it that are read.

A system call for each file would take as long as reading a small one. The listing of a folder says
which entries are files, folders or links, so most files need no call of their own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from preprocess.errors import FolioError, shorten
from preprocess.inputs.detect import describes_data, detect_format_by_name, has_known_suffix
from preprocess.inputs.saved_dataset import INFO, STATE, check_saved_files, is_cache
from preprocess.recipes.schema import TABLE_FORMATS
from preprocess.shards.files import read_small_file
from preprocess.shards.format import MANIFEST, TOKENIZER_DIR
from preprocess.shards.manifest_file import FORMAT, MAX_FILE_BYTES


class FoundFile(NamedTuple):
    """A file that was found on the disk."""

    path: str
    is_read: bool  # its name is that of a file that is read
    is_link: bool  # to a file


def walk_folder(folder: str, recipe_format: str) -> Iterator[FoundFile]:
    """Yield the files below `folder`, except hidden files and those of builds.

    Links to folders are followed. A folder that several links lead to is listed once. Beside tables,
    files that describe a data set are left out, such as README.md and dataset_info.json. Beside the latter,
    caches of Hugging Face datasets are left out. Raises FolioError as `check_saved_files` does.
    """
    descriptions: list[FoundFile] = []
    has_tables = recipe_format in TABLE_FORMATS
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        folders, files = _list_folder(parent)
        status = os.stat(parent)
        if (identity := (status.st_dev, status.st_ino)) in seen or _is_build(parent, folders, files):
            continue
        seen.add(identity)
        if _contains(files, STATE):
            check_saved_files(parent, (entry.name for entry in files))
        waiting += [entry.path for entry in reversed(folders) if not entry.name.startswith(".")]
        has_caches = _contains(files, STATE) or _contains(files, INFO)
        for entry in files:
            if entry.name.startswith(".") or (has_caches and is_cache(entry.name)):
                continue
            found = FoundFile(entry.path, has_known_suffix(entry.name, recipe_format), entry.is_symlink())
            if describes_data(entry.name):
                descriptions.append(found)
                continue
            has_tables = has_tables or detect_format_by_name(entry.name) in TABLE_FORMATS
            if found.is_read and not entry.is_file(follow_symlinks=False):  # known without a system call
                check_is_file(found.path)
            yield found
    for found in descriptions if not has_tables else ():
        if found.is_read:
            check_is_file(found.path)
        yield found


def _list_folder(folder: str) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Return the folders in `folder`, links to folders included, and its other entries."""
    folders: list[os.DirEntry[str]] = []
    files: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if _is_folder(entry) else files).append(entry)
    except OSError as e:
        reject_unlisted(e)
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself, which is reported as a file
        return False


def _is_build(parent: str, folders: list[os.DirEntry[str]], files: list[os.DirEntry[str]]) -> bool:
    """Return whether `parent`, which contains `folders` and `files`, is a build.

    A data set of another program can have a file and a folder with the names of a build's, too.
    """
    if not _contains(files, MANIFEST) or not _contains(folders, TOKENIZER_DIR):
        return False
    try:
        manifest = read_small_file(Path(parent, MANIFEST), MAX_FILE_BYTES)
    except FolioError:  # not a regular file, or too large
        return False
    return f'"format": "{FORMAT}"'.encode() in manifest


def _contains(entries: list[os.DirEntry[str]], name: str) -> bool:
    return any(entry.name == name for entry in entries)


def check_is_file(path: str) -> None:
    """Raise FolioError if `path` is not a regular file, such as a link to a file that does not exist."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return
        problem = "is not a regular file"
    except OSError as e:
        problem = f"cannot be read ({e.strerror})"
        if isinstance(e, FileNotFoundError) and os.path.islink(path):
            problem = f"is a link to {shorten(repr(os.readlink(path)))}, which does not exist"
    raise FolioError(f"{path} {problem}; without it the build would be smaller: repair or remove it")


def reject_unlisted(error: OSError) -> NoReturn:
    """Raise FolioError for a folder that cannot be listed."""
    raise FolioError(
        f"the folder {error.filename} cannot be listed ({error.strerror}); change its permissions, or name other files"
    ) from error
