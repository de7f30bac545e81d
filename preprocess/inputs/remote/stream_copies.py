"""Limit the disk space of the copies that streams make of remote files.

Beside such a copy is the empty file `<name>.streamed`. Its modification time is the time at which a
stream opened the copy last. Before another file is copied, the copies that were not opened for the
longest time are deleted until the rest has at most FOLIO_STREAM_CACHE_GB, and until the disk has
enough free space. Copies that a build has made or read have no mark and are never deleted.
"""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from preprocess.errors import MisuseError
from preprocess.inputs.remote.cache import count_missing_bytes, get_cached_path, get_mark_path, get_remote_folder
from preprocess.inputs.remote.remote_file import RemoteFile

VARIABLE = "FOLIO_STREAM_CACHE_GB"
DEFAULT_GB = 50.0
MIN_FREE_BYTES = 1 << 30  # that copies leave on the disk for checkpoints and other programs
FREED_SHARE = 0.1  # of the limit that is freed at once, because listing the copies takes time


@dataclass(frozen=True)
class _Copy:
    """A copy that a stream has made."""

    opened_at: float
    size_bytes: int
    path: Path


class StreamCopies:
    """The copies of all streams on this machine, as one process sees them."""

    def __init__(self) -> None:
        """Raises MisuseError if FOLIO_STREAM_CACHE_GB is not a positive number."""
        self._max_bytes = _read_limit()
        self._num_bytes: int | None = None  # of all copies, as far as this process knows
        self._lock = threading.Lock()

    def prepare(self, file: RemoteFile, in_use: frozenset[str]) -> None:
        """Make room for the copy of a file and mark it. Paths that are `in_use` are not deleted."""
        path = get_cached_path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._make_room(count_missing_bytes(file), in_use)
        get_mark_path(path).touch()

    def _make_room(self, num_bytes: int, in_use: frozenset[str]) -> None:
        folder = get_remote_folder()
        free_bytes = shutil.disk_usage(folder).free
        is_scarce = free_bytes < num_bytes + MIN_FREE_BYTES
        if self._num_bytes is None or is_scarce or self._num_bytes + num_bytes > self._max_bytes:
            copies = _list_copies(folder)
            self._num_bytes = sum(copy.size_bytes for copy in copies)
            max_bytes = self._max_bytes
            for copy in copies:
                if self._num_bytes + num_bytes <= max_bytes and free_bytes >= num_bytes + MIN_FREE_BYTES:
                    break
                if str(copy.path) not in in_use:
                    max_bytes = int(self._max_bytes * (1 - FREED_SHARE))
                    _delete(copy.path)
                    self._num_bytes -= copy.size_bytes
                    free_bytes += copy.size_bytes
        self._num_bytes += num_bytes


def note_opening(path: str) -> None:
    """Remember that a copy is read now, if a stream has made it."""
    with suppress(FileNotFoundError):
        os.utime(get_mark_path(Path(path)))


def _list_copies(folder: Path) -> list[_Copy]:
    """Return the whole copies that streams have made, those first that were not opened for the longest time."""
    copies = []
    for mark in folder.glob("*/*.streamed"):
        path = mark.with_suffix("")
        with suppress(FileNotFoundError):  # another process has deleted it, or is copying it
            copies.append(_Copy(mark.stat().st_mtime, path.stat().st_size, path))
    return sorted(copies, key=lambda copy: copy.opened_at)


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    get_mark_path(path).unlink(missing_ok=True)


def _read_limit() -> int:
    text = os.environ.get(VARIABLE) or str(DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < 1e9:
        raise MisuseError(f"{VARIABLE} must be a number of gigabytes above 0, got {text!r:.80}")
    return int(gigabytes * 1e9)
