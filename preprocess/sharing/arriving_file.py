"""A file of a build that arrives in blocks, in any order, while other blocks of it are read.

The file has its final size from the start. The note .NAME.blocks beside it has one byte for each
block, which says whether the block has arrived and was flushed to the disk. The note is deleted when
the file is whole and has the right hash, so a file without a note is whole.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from preprocess.shards.files import sha256_file, sync_file, write_durable
from preprocess.sharing.build_files import BuildFile

BLOCK_BYTES = 256 << 10
SAVE_INTERVAL_S = 5.0


class ArrivingFile:
    """A file with its blocks. Several threads may write different parts of it."""

    def __init__(self, folder: Path, file: BuildFile) -> None:
        """Continue with the blocks that an earlier run has received."""
        assert file.size_bytes is not None
        self.file, self.size_bytes = file, file.size_bytes
        self.path = folder / file.name
        self._note = get_note_path(self.path)
        self._lock = threading.Lock()
        self._saved_at = time.monotonic()
        num_blocks = -(-self.size_bytes // BLOCK_BYTES)
        has_size = self.path.is_file() and self.path.stat().st_size == self.size_bytes
        if has_size and not self._note.exists():
            self.is_whole, self._has = True, np.ones(num_blocks, bool)
            return
        self.is_whole, self._has = False, self._read_note(num_blocks) if has_size else np.zeros(num_blocks, bool)
        if not has_size:
            write_durable(self._note, self._has.tobytes())  # first: without it the file would look whole
            with open(self.path, "wb") as out:
                out.truncate(self.size_bytes)

    def _read_note(self, num_blocks: int) -> np.ndarray:
        data = np.frombuffer(self._note.read_bytes()[: num_blocks + 1], np.uint8)
        return data.astype(bool) if len(data) == num_blocks else np.zeros(num_blocks, bool)

    @property
    def num_missing_bytes(self) -> int:
        return int(np.count_nonzero(~self._has)) * BLOCK_BYTES

    @property
    def has_all_blocks(self) -> bool:
        return bool(self._has.all())

    def find_missing(self, begin: np.ndarray, end: np.ndarray) -> list[tuple[int, int]]:
        """Return the missing parts among the bytes `begin` to `end` − 1, (B,) int64 each, as ranges of bytes."""
        first, last = begin // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        width = int((last - first).max(initial=0)) + 1
        wanted = np.unique(np.minimum(first[:, None] + np.arange(width), last[:, None]))
        return self._make_ranges(wanted[~self._has[wanted]])

    def list_missing(self, max_bytes: int) -> list[tuple[int, int]]:
        """Return all missing parts, in order, as ranges of at most `max_bytes`."""
        return [
            (first, min(first + max_bytes, last))
            for begin, last in self._make_ranges(np.flatnonzero(~self._has))
            for first in range(begin, last, max_bytes)
        ]

    def _make_ranges(self, blocks: np.ndarray) -> list[tuple[int, int]]:
        parts = np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1) if len(blocks) else []
        return [(int(p[0]) * BLOCK_BYTES, min((int(p[-1]) + 1) * BLOCK_BYTES, self.size_bytes)) for p in parts]

    def find_first_missing(self, begin: int, end: int) -> int:
        """Return the position of the first missing byte among `begin` to `end` − 1, `end` if all have arrived."""
        missing = self.find_missing(np.array([begin]), np.array([end])) if begin < end else []
        return max(missing[0][0], begin) if missing else end

    def write(self, position: int, data: bytes | memoryview) -> None:
        """Write bytes at `position`. Their blocks are not marked yet."""
        with open(self.path, "r+b", buffering=0) as out:
            out.seek(position)
            view = memoryview(data)
            while len(view):  # a file without a buffer may write a part only
                view = view[out.write(view) :]

    def mark(self, begin: int, end: int) -> None:
        """Note that the bytes `begin` to `end` − 1 are written. Only whole blocks count."""
        first = -(-begin // BLOCK_BYTES)
        last = len(self._has) if end == self.size_bytes else end // BLOCK_BYTES
        self._has[first:last] = True

    def save(self, *, is_due: bool = False) -> None:
        """Flush the blocks that have arrived, and then note them. With `is_due`, at most every few seconds."""
        with self._lock:
            if self.is_whole or (is_due and time.monotonic() - self._saved_at < SAVE_INTERVAL_S):
                return
            arrived = self._has.tobytes()
            sync_file(self.path)
            write_durable(self._note, arrived)
            self._saved_at = time.monotonic()

    def finish(self) -> bool:
        """Check the hash of the file, all of whose blocks are there. If it is wrong, all of it is missing again."""
        with self._lock:
            if self.is_whole:
                return True
            sync_file(self.path)
            self.is_whole = sha256_file(self.path) == self.file.sha256
            if not self.is_whole:
                self._has[:] = False
                write_durable(self._note, self._has.tobytes())
            else:
                self._note.unlink(missing_ok=True)
            return self.is_whole


def get_note_path(path: Path) -> Path:
    """Return the path of the note of the blocks of a file."""
    return path.with_name(f".{path.name}.blocks")
