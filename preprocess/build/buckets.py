"""Divide rows into buckets by the upper bits of a hash, so that each bucket can be sorted in memory.

A row has a 64-bit hash. Different hashes are uniformly distributed, so all buckets have about the
same number of them, and the number of buckets is chosen such that each fits into memory. Every hash
in bucket i is smaller than every hash in bucket i + 1, so sorting one bucket after the other sorts
all rows. Equal hashes are in the same bucket, so duplicates are found within it. The rows are
written and read by a `Shuffle` (shuffle.py).

If many rows have the same hash, their bucket does not fit into memory. So a bucket is read in
pieces, and the reader keeps only one row of each hash from the pieces before. That is at most about
ROWS_PER_BUCKET rows. Without many equal hashes a bucket is a single piece.
"""

from __future__ import annotations

import math

import numpy as np

ROWS_PER_BUCKET = 1_000_000  # 24 MB of rows, and about four times that while they are sorted
MAX_BUCKETS = 4096
PIECE_MARGIN = 1.25  # buckets are not exactly equal; one with a few more rows should still be one piece


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
