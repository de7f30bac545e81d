"""Functions that all exporters share: check the output paths, and write the files atomically."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from preprocess.errors import MisuseError
from preprocess.shards.files import open_atomic
from preprocess.shards.format import check_no_build


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


@contextlib.contextmanager
def open_files(paths: Iterable[Path]) -> Iterator[dict[Path, BinaryIO]]:
    """Open all `paths` for writing, and yield the binary files by path.

    The files get their names when the block ends without an exception, and only after all of them
    are on the disk. After an exception, e.g. because of a full disk or Ctrl-C, the old files are
    unchanged and no part of a new file remains.
    """
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(open_atomic(path)) for path in paths}
        yield files
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
