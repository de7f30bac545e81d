"""Sorts more rows than fit into memory, by distributing them to files by the upper bits of a hash.

A row has a 64-bit hash. Different hashes are uniformly distributed, so all buckets have about the
same number of them, and the number of buckets is chosen such that each fits into memory. Every hash
in bucket i is smaller than every hash in bucket i + 1, so sorting one bucket after the other sorts
all rows. Equal hashes are in the same bucket, so duplicates are found within it. The cost is to
write each row once and to read it once per pass.

If many rows have the same hash, their bucket does not fit into memory. So a bucket is read in
pieces, and the reader keeps only one row of each hash from the pieces before. That is at most about
ROWS_PER_BUCKET rows. Without many equal hashes a bucket is a single piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROWS_PER_BUCKET = 1_000_000  # 24 MB of rows, and about four times that while they are sorted
MAX_BUCKETS = 4096
PIECE_MARGIN = 1.25  # buckets are not exactly equal; one with a few more rows should still be one piece
BUFFER_ROWS = 1 << 19  # collected before they are distributed, so that each write is not too small


def count_buckets(num_rows: int) -> int:
    """Return how many buckets `num_rows` rows need."""
    return min(max(-(-num_rows // ROWS_PER_BUCKET), 1), MAX_BUCKETS)


def choose_buckets(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    """Return the bucket of each of (N,) hashes: (N,) uint16, in the order of the hashes."""
    # floor(h / 2**64 * num_buckets), with the upper 32 bits of h so that it cannot overflow
    buckets: np.ndarray = (hashes >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)
    return buckets.astype(np.uint16)


def get_max_piece_rows() -> int:
    """Return how many rows of a bucket are read at once."""
    return math.ceil(ROWS_PER_BUCKET * PIECE_MARGIN)


class Buckets:
    """The buckets of one sort, as files that are deleted when the context ends."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype, num_rows: int) -> None:
        """`num_rows`: the expected number of rows. `dtype`: of a row; field `h` is the hash, u8."""
        self._num_buckets = count_buckets(num_rows)
        self._paths = [directory / f"{name}-{i:04d}.bucket" for i in range(self._num_buckets)]
        self._dtype = dtype
        self._buffer: list[np.ndarray] = []
        self._num_buffered = 0
        for path in self._paths:
            path.write_bytes(b"")

    def __enter__(self) -> Buckets:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)

    def append(self, rows: np.ndarray) -> None:
        """Append (N,) rows to their buckets. Rows of the same bucket stay in order."""
        self._buffer.append(rows)
        self._num_buffered += len(rows)
        if self._num_buffered >= BUFFER_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Write the rows in the buffer to their buckets."""
        if not self._buffer:
            return
        rows = np.concatenate(self._buffer)
        self._buffer, self._num_buffered = [], 0
        index = choose_buckets(rows["h"], self._num_buckets)
        rows = rows[np.argsort(index, kind="stable")]  # a radix sort, because the index has 16 bits
        first = 0
        for path, count in zip(self._paths, np.bincount(index, minlength=self._num_buckets).tolist(), strict=True):
            if count:
                with open(path, "ab") as file:
                    file.write(rows[first : first + count].data)
            first += count

    def read(self, index: int) -> Iterator[np.ndarray]:
        """Yield the rows of bucket `index` in pieces, in the order in which they were appended.

        A piece is an array (N,) of at least one and at most `get_max_piece_rows()` rows.
        """
        self._flush()
        num_left = self._paths[index].stat().st_size // self._dtype.itemsize
        with open(self._paths[index], "rb") as file:
            while num_left:
                rows = np.fromfile(file, self._dtype, min(num_left, get_max_piece_rows()))
                num_left -= len(rows)
                yield rows

    def __len__(self) -> int:
        return self._num_buckets

    def __iter__(self) -> Iterator[Iterator[np.ndarray]]:
        """Yield an iterator over the pieces of each bucket, in ascending order of the hash."""
        return map(self.read, range(len(self)))


def sort_distinct(rows: np.ndarray, ties: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Sort (N,) rows by the field `h`, and rows with equal `h` by the fields `ties`.

    Returns (order, starts). `order`, (N,) int64, has the indices of the rows in sorted order; equal
    rows keep their order. `starts`, (G,) int64, has the indices into `order` of the first row of
    each of the G distinct keys.
    """
    order = np.argsort(rows["h"], kind="stable")
    is_new = _differs_from_previous(rows["h"][order])
    repeated = np.flatnonzero(~is_new)
    # Different rows hardly ever share 64 bits, and sorting by several fields takes much longer.
    if any(bool((rows[name][order[repeated]] != rows[name][order[repeated - 1]]).any()) for name in ties):
        order = np.lexsort([rows[name] for name in (*reversed(ties), "h")])
        is_new = np.logical_or.reduce([_differs_from_previous(rows[name][order]) for name in ("h", *ties)])
    return order, np.flatnonzero(is_new)


def _differs_from_previous(values: np.ndarray) -> np.ndarray:
    """Return which of (N,) values differ from the previous one: (N,) bool, with True at index 0."""
    differs = np.ones(len(values), bool)
    differs[1:] = values[1:] != values[:-1]
    return differs
