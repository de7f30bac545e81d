"""Read builds that `preprocess build --replace` may replace while they are read.

Replacing a build renames two directories (files.py), so a reader that opens several files can find
some of the old build and some of the new one, or for a moment no file at all. Locks do not work on
all file systems, and readers often have no write permission. So a reader gets the version of the
manifest file (inode, times and size) before and after it reads. If the two differ, the files may be
a mixture of two builds, and the reader starts again. Uses only the standard library.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from preprocess.shards.files import REPLACED_SUFFIX, FileVersion, read_version
from preprocess.shards.manifest_file import MANIFEST, ShardError

MAX_READS = 5
MAX_WAIT_S = 1.0  # for the second rename, which follows the first immediately
Result = TypeVar("Result")


class ReplacedError(ShardError):
    """A build was replaced by another one while it was read."""


def read_manifest_version(folder: Path) -> FileVersion:
    """Return the version of the manifest file in `folder`, or None if it has none."""
    return read_version(folder / MANIFEST)


def read_unreplaced(folder: Path, read: Callable[[], Result]) -> Result:
    """Return the result of `read`, which reads the build in `folder`.

    If the build was replaced during the call, its result or error is dropped and `read` is called
    again. Raises ReplacedError if the build was replaced during MAX_READS calls.
    """
    for _ in range(MAX_READS):
        wait_for_manifest(folder)
        version = read_manifest_version(folder)
        try:
            result = read()
        except ReplacedError:
            continue
        except (ShardError, OSError):
            if read_manifest_version(folder) == version:
                raise
            continue
        if read_manifest_version(folder) == version:
            return result
    raise ReplacedError(
        f"{folder} was replaced {MAX_READS} times while it was read; run the command again when the builds are finished"
    )


def wait_for_manifest(folder: Path) -> bool:
    """Return whether `folder` has a manifest. If it is being replaced, wait up to MAX_WAIT_S."""
    deadline = time.monotonic() + MAX_WAIT_S
    while not (folder / MANIFEST).is_file():
        is_replacing = any(folder.parent.glob(f".{glob.escape(folder.name)}.*{REPLACED_SUFFIX}"))
        if not is_replacing or time.monotonic() > deadline:
            return (folder / MANIFEST).is_file()
        time.sleep(0.005)
    return True
