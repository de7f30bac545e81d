"""Sorts more rows than fit into memory, by distributing them to files by the upper bits of a hash.

A row has a 64-bit hash. Hashes are uniformly distributed, so all buckets have about the same size,
and the number of buckets is chosen such that each fits into memory. Every hash in bucket i is
smaller than every hash in bucket i + 1, so sorting one bucket after the other sorts all rows. Equal
hashes are in the same bucket, so duplicates are found within it. The cost is to write each row once
and to read it once per pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROWS_PER_BUCKET = 4_000_000  # about 100 MB of rows, and twice that while they are sorted
MAX_BUCKETS = 512


class Buckets:
    """The buckets of one sort, as files that are deleted when the context ends."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype, num_rows: int) -> None:
        """`num_rows`: the expected number. `dtype`: its field `h` is the hash, u8."""
        self._num_buckets = min(max(-(-num_rows // ROWS_PER_BUCKET), 1), MAX_BUCKETS)
        self._paths = [directory / f"{name}-{i:03d}.bucket" for i in range(self._num_buckets)]
        self._dtype = dtype
        for path in self._paths:
            path.write_bytes(b"")

    def __enter__(self) -> Buckets:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)

    def append(self, rows: np.ndarray) -> None:
        """Write (N,) rows to their buckets. Rows of the same bucket stay in order."""
        # floor(h / 2**64 * num_buckets), with the upper 32 bits of h so that it cannot overflow
        index = (rows["h"] >> np.uint64(32)) * np.uint64(self._num_buckets) >> np.uint64(32)
        for i, path in enumerate(self._paths):
            with open(path, "ab") as file:
                file.write((rows[index == i] if self._num_buckets > 1 else rows).data)

    def read(self, index: int) -> np.ndarray:
        """Return the rows of one bucket, in the order in which they were appended."""
        return np.fromfile(self._paths[index], self._dtype)

    def __len__(self) -> int:
        return self._num_buckets

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the rows of each bucket, in ascending order of the hash."""
        return map(self.read, range(len(self)))
