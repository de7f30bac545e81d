"""Rows sorted into buckets on disk by a 64-bit hash, so that each bucket fits into memory whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROWS_PER_BUCKET = 4_000_000  # about 100 MB of rows, and twice that while they are sorted
MAX_BUCKETS = 512  # open files


class Buckets:
    """Append rows, then go over the buckets, in rising order of hash; within a bucket rows stay in the order they came."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, num_rows: int) -> None:
        """`num_rows`: about how many there will be. `dtype`: its field `h` is the hash, u8."""
        self._count = min(max(-(-num_rows // ROWS_PER_BUCKET), 1), MAX_BUCKETS)
        self._paths = [folder / f"{name}-{i:03d}.bucket" for i in range(self._count)]
        self._dtype = dtype
        for path in self._paths:
            path.write_bytes(b"")

    def append(self, rows: np.ndarray) -> None:
        """Add rows of the dtype."""
        bucket = (rows["h"] >> np.uint64(32)) * np.uint64(self._count) >> np.uint64(32)
        for i in range(self._count):
            with open(self._paths[i], "ab") as file:
                file.write((rows[bucket == i] if self._count > 1 else rows).data)

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self._paths:
            yield np.fromfile(path, self._dtype)

    def delete(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)
