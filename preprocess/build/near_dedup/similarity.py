"""The similarity of sets of shingles: Jaccard's measure |A ∩ B| / |A ∪ B|.

A shingle is a hash of a sequence of words. Many pairs of small sets are compared at once, in arrays. Two
documents of 64 MB may have 64 million shingles, so the sets of such a pair are compared one range of
values after another. Shingles are hashes, so ranges of equal width contain about the same number of
distinct shingles, and the memory is bounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PART_SHINGLES = 1 << 22  # of both sets, in one range
CHUNK_SHINGLES = 1 << 20  # read at once
SHINGLE_DTYPE = np.dtype("<u4")


def compute_similarities(keys_a: np.ndarray, keys_b: np.ndarray, num_pairs: int) -> np.ndarray:
    """Return the Jaccard similarity of each pair of sets, |A ∩ B| / |A ∪ B|: (num_pairs,) float64.

    `keys_a`, `keys_b`: uint64 in ascending order without repetitions, the number of the pair in
    the upper 32 bits and an element in the lower 32. No set may be empty.
    """
    positions = np.searchsorted(keys_b, keys_a)
    is_common = keys_b[np.minimum(positions, len(keys_b) - 1)] == keys_a
    num_a, num_b, num_common = (
        np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=num_pairs)
        for keys in (keys_a, keys_b, keys_a[is_common])
    )
    similarities: np.ndarray = num_common / (num_a + num_b - num_common)
    return similarities


@dataclass(frozen=True)
class ShingleFile:
    """The shingles of a document in a file of uint32."""

    path: Path
    start: int  # index of the first one
    end: int

    @property
    def num_shingles(self) -> int:
        """The number of shingles, repetitions included."""
        return self.end - self.start

    def read_range(self, first: int, last: int) -> np.ndarray:
        """Return the distinct shingles from `first` to `last`, both included: (N,) uint32 in ascending order."""
        return _sort_different(
            np.concatenate(
                [
                    _sort_different(chunk[(chunk >= np.uint32(first)) & (chunk <= np.uint32(last))])
                    for chunk in self._read_chunks()
                ]
            )
        )

    def _read_chunks(self) -> Iterator[np.ndarray]:
        # The file is not mapped, because all mapped pages that were read would stay in memory.
        for start in range(self.start, self.end, CHUNK_SHINGLES):
            count = min(CHUNK_SHINGLES, self.end - start)
            yield np.fromfile(self.path, SHINGLE_DTYPE, count, offset=start * SHINGLE_DTYPE.itemsize)


def compute_large_similarity(a: ShingleFile, b: ShingleFile) -> float:
    """Return the similarity of two documents, from 0 to 1. Neither may be empty.

    About PART_SHINGLES shingles are in memory at a time. The shingles of both documents are read once
    for every PART_SHINGLES of them.
    """
    num_parts = -(-(a.num_shingles + b.num_shingles) // PART_SHINGLES)
    edges = [(part << 32) // num_parts for part in range(num_parts + 1)]
    num_common = num_different = 0
    for first, end in itertools.pairwise(edges):
        both = np.concatenate([a.read_range(first, end - 1), b.read_range(first, end - 1)])
        num_of_part = len(_sort_different(both))
        num_different += num_of_part
        num_common += len(both) - num_of_part
    return num_common / num_different


def _sort_different(values: np.ndarray) -> np.ndarray:
    """Return the distinct values of (N,) integers in ascending order."""
    ordered = np.sort(values)
    is_new = np.ones(len(ordered), bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_new]
