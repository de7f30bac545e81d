"""The checks that every exporter makes before it writes, and how it writes its files."""

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
    """Check that `paths` can be written into `folder`.

    Raises MisuseError if `folder` is a build or not a folder, if a path is anything but a regular
    file, or if it exists and `replace` is not set.
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
    """Open all `paths` for writing; they appear when the block ends without an exception.

    All files are on the disk before the first one gets its name. So an exception, such as a full
    disk or Ctrl-C, leaves the old files, and no part of a new one.
    """
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(open_atomic(path)) for path in paths}
        yield files
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
