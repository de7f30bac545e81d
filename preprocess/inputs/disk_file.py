"""Files on the disk as they were when a build was planned, and the check that they have not changed.

Sizes, times and checksums are recorded when a build is planned. Readers check sizes and times
again, so a file that changes in the meantime raises an error instead of being read as a mixture of
two versions.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

from preprocess.errors import FolioError
from preprocess.shards.files import sha256_file

NO_SHA256 = "none"  # the sha256 of a file that was not hashed
NOT_COPIED = -1  # the modification time of a remote file that a stream has not reached yet


class InputChanged(FolioError):
    """An input file changed after the build was planned. `reason` describes the change."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)  # not the message: a worker sends the arguments, from which the error is made again
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}; wait until no program writes to the file, then run the same command again"


class DiskFile(NamedTuple):
    """A file on the disk, as it was when the build was planned."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int  # of the last change of content or attributes; the time of creation on Windows
    sha256: str

    @property
    def is_copied(self) -> bool:
        """Whether the file is on the disk, and not a remote file that a stream has not reached yet."""
        return self.mtime_ns != NOT_COPIED

    def is_current(self) -> bool:
        """Return whether the file is on the disk with the same size and modification time."""
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.mtime_ns)

    def check_unchanged(self) -> None:
        """Raise InputChanged if the file has changed, FolioError if it was removed.

        A file that is changed can keep its size and its modification time. Therefore a file that
        was hashed is hashed again if its ctime differs. The ctime alone is not enough: new
        permissions or another hard link also change it.
        """
        try:
            stat = os.stat(self.path)
        except FileNotFoundError as e:
            raise FolioError(
                f"{self.path} was removed while it was read; restore it and run the same command again"
            ) from e
        if stat.st_size != self.size_bytes:
            raise InputChanged(
                f"{self.path} changed while it was read ({self.size_bytes:,} bytes, now {stat.st_size:,})"
            )
        if stat.st_mtime_ns != self.mtime_ns:
            raise InputChanged(f"{self.path} changed while it was read (it has a new modification time)")
        may_differ = stat.st_ctime_ns != self.ctime_ns and self.sha256 != NO_SHA256
        if may_differ and _hash_version(self.path, stat.st_ctime_ns) != self.sha256:
            raise InputChanged(f"{self.path} changed while it was read (it has another sha256)")


@functools.lru_cache(maxsize=1024)
def _hash_version(path: str, ctime_ns: int) -> str:
    """Return the SHA-256 of a file. `ctime_ns` is part of the cache's key: a changed file is hashed again."""
    return sha256_file(Path(path))
