"""Rows of numbers, of which a bounded number is kept while a file of any length is read."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import numpy as np

MAX_ROWS = 1 << 18  # kept of a curve; the width of a plot is a thousand points
BLOCK_ROWS = 1 << 16  # that are merged at once
Merge = Callable[[np.ndarray], np.ndarray]


class ThinRows:
    """Collects rows of C numbers in the order of the file.

    Fewer than MAX_ROWS rows are kept as they are. Of more rows, 2, 4, 8, … consecutive ones are merged, the
    same number everywhere. The last rows, fewer than BLOCK_ROWS, are not merged, and the very last is always
    kept. The first number of a row is its step, which identifies it.
    """

    def __init__(self, num_columns: int, merge: Merge) -> None:
        """`merge` makes R / 2 rows of R consecutive ones, (R, C) float64. R is a multiple of 4."""
        self._num_columns, self._merge = num_columns, merge
        self._times_halved = 0
        self._merged: list[np.ndarray] = []  # blocks, each (R, C)
        self._new = array("d")
        self._last: Sequence[float] = ()

    def add(self, row: Sequence[float]) -> None:
        self._last = row
        self._new.extend(row)
        if len(self._new) == self._num_columns * BLOCK_ROWS:
            self._add_block()

    def as_array(self) -> np.ndarray:
        """Return the rows that are left, (R, C) float64."""
        rows = [*self._merged, self._get_new()]
        if self._merged and not self._new and self._merged[-1][-1, 0] != self._last[0]:
            rows.append(np.array([self._last]))
        return np.concatenate(rows)

    def _get_new(self) -> np.ndarray:
        return np.frombuffer(self._new).reshape(-1, self._num_columns)

    def _add_block(self) -> None:
        block = self._get_new()
        while len(block) > max(BLOCK_ROWS >> self._times_halved, 2):
            block = self._merge(block)
        self._merged.append(block)
        self._new = array("d")
        if sum(map(len, self._merged)) >= MAX_ROWS:
            self._merged = [self._merge(np.concatenate(self._merged))]
            self._times_halved += 1


def keep_extremes(rows: np.ndarray) -> np.ndarray:
    """Return of each four of R rows (step, value) the two with the smallest and the largest value: (R / 2, 2)."""
    groups = rows.reshape(-1, 4, 2)
    values = groups[:, :, 1]
    kept = np.stack([values.argmin(1), 3 - values[:, ::-1].argmax(1)], axis=1)  # of equal values, the first and last
    return np.take_along_axis(groups, np.sort(kept, axis=1)[:, :, None], axis=1).reshape(-1, 2)
