"""Read builds that are replaced meanwhile, by `preprocess build --replace`.

Replacing a build renames two directories (files.py), so a reader that opens several files can find
some of the old build and some of the new one, and for a moment none. Locks would not work on every
file system, and readers often may not write. Instead a reader notes the version of the manifest
file before it reads, and compares it afterwards. If it has changed, what was read may be a mixture,
and the reader starts again. Uses only the standard library.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from preprocess.shards.files import REPLACED_SUFFIX
from preprocess.shards.manifest_file import MANIFEST, ShardError

MAX_READS = 5
MAX_WAIT_S = 1.0  # for the second rename, which follows the first at once
Result = TypeVar("Result")
Version = tuple[int, ...] | None


class ReplacedError(ShardError):
    """A build was replaced by another one while it was read."""


def read_version(folder: Path) -> Version:
    """Return what identifies the manifest file in `folder`: inode, times and size; None without one."""
    try:
        status = (folder / MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A copy can keep the time of modification and get the inode of a deleted file, but not its ctime.
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def read_unreplaced(folder: Path, read: Callable[[], Result]) -> Result:
    """Return the result of `read`, which reads the build in `folder`.

    If the build was replaced meanwhile, the result or the error of `read` is dropped and it is
    called again. Raises ReplacedError if the build was replaced MAX_READS times.
    """
    for _ in range(MAX_READS):
        wait_for_manifest(folder)
        version = read_version(folder)
        try:
            result = read()
        except ReplacedError:
            continue
        except (ShardError, OSError):
            if read_version(folder) == version:
                raise
            continue
        if read_version(folder) == version:
            return result
    raise ReplacedError(
        f"{folder} was replaced {MAX_READS} times while it was read; run the command again when the builds are finished"
    )


def wait_for_manifest(folder: Path) -> bool:
    """Return whether `folder` has a manifest. If its build is being replaced, wait for the new one."""
    deadline = time.monotonic() + MAX_WAIT_S
    while not (folder / MANIFEST).is_file():
        is_replacing = any(folder.parent.glob(f".{glob.escape(folder.name)}.*{REPLACED_SUFFIX}"))
        if not is_replacing or time.monotonic() > deadline:
            return (folder / MANIFEST).is_file()
        time.sleep(0.005)
    return True
