"""Operations on spans of bytes and on consecutive elements of documents, without a Python loop over them.

A span here is the range of bytes of a word, line or paragraph in a group of texts. Equal spans have
equal hashes. A hash has 64 bits, so different spans of one document have different hashes with a
probability of almost 1.
"""

from __future__ import annotations

import numpy as np

from preprocess.shards.permutation import mix64

PREFIX_MASKS = np.array(
    [(1 << (8 * n)) - 1 for n in range(9)], np.uint64
)  # of the first n bytes of a little-endian uint64
MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)  # 2**64 / golden ratio, odd
INDEX_BITS = 20  # a hash and an index below 2**20 are sorted as one number
CHUNK_PARTS = 1 << 20  # of eight bytes that are hashed at once


def hash_spans(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return a hash of each of S spans of `data`, (N,) uint8: (S,) uint64.

    A span is read in parts of eight bytes. The hash is the sum of the mixed values of the parts and their indices.
    """
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    eight_bytes = np.ndarray((len(data) + 1,), "<u8", padded.data, strides=(1,))  # from each byte on
    hashes = mix64((eight_bytes[starts] & PREFIX_MASKS[np.minimum(lengths, 8)]) + lengths.astype(np.uint64))
    rows = np.flatnonzero(lengths > 8)
    num_parts = (lengths[rows] - 1) // 8  # besides the first
    ends = np.cumsum(num_parts)
    first = 0
    while first < len(rows):
        if num_parts[first] > CHUNK_PARTS:
            hashes[rows[first : first + 1]] += _sum_parts(data, int(starts[rows[first]]), int(lengths[rows[first]]))
            first += 1
            continue
        done = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, done + CHUNK_PARTS)), first + 1)
        n = num_parts[first:last]
        edges = np.cumsum(n) - n
        numbers = np.arange(int(n.sum())) - np.repeat(edges, n) + 1
        offsets = np.repeat(starts[rows[first:last]], n) + 8 * numbers
        rest = np.minimum(np.repeat(lengths[rows[first:last]], n) - 8 * numbers, 8)
        parts = mix64((eight_bytes[offsets] & PREFIX_MASKS[rest]) + numbers.astype(np.uint64) * MULTIPLIER)
        hashes[rows[first:last]] += np.add.reduceat(parts, edges)
        first = last
    return hashes


def _sum_parts(data: np.ndarray, start: int, length: int) -> np.ndarray:
    """Return the sum of the mixed parts of one long span, besides the first part: (1,) uint64."""
    total = np.zeros(1, np.uint64)
    for first in range(1, (length - 1) // 8 + 1, CHUNK_PARTS):
        span = data[start + 8 * first : start + min(8 * (first + CHUNK_PARTS), length)]
        parts = np.concatenate([span, np.zeros(-len(span) % 8, np.uint8)]).view("<u8")
        numbers = np.arange(first, first + len(parts), dtype=np.uint64)
        total += mix64(parts + numbers * MULTIPLIER).sum(dtype=np.uint64)
    return total


def sum_between(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the sums of `values`, (N,), between consecutive `edges`, (D + 1,) indices from 0 to N: (D,) int64."""
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    between: np.ndarray = np.diff(sums[edges])
    return between


class EqualElements:
    """Groups of equal elements of the same document. Elements are given by their hashes."""

    def __init__(self, hashes: np.ndarray, documents: np.ndarray) -> None:
        """`hashes`: (N,) uint64. `documents`: (N,), the document of each element, ascending."""
        mixed = mix64(hashes)
        if len(hashes) <= 1 << INDEX_BITS:
            # Sorting numbers that contain the index is much faster than sorting indices by a number. Only a group that
            # consists of one document has more elements, so the compared bits depend on the document only.
            keys = mixed >> np.uint64(INDEX_BITS) << np.uint64(INDEX_BITS) | np.arange(len(hashes), dtype=np.uint64)
            keys.sort()
            self.order = (keys & np.uint64((1 << INDEX_BITS) - 1)).astype(np.int32)
            keys >>= np.uint64(INDEX_BITS)
        else:
            self.order = np.argsort(mixed, kind="stable").astype(np.int32)
            keys = mixed[self.order]
            del mixed
        sorted_documents = documents[self.order]
        is_first = np.ones(len(keys), bool)
        is_first[1:] = (keys[1:] != keys[:-1]) | (sorted_documents[1:] != sorted_documents[:-1])
        self.starts = np.flatnonzero(is_first)  # (G,) of the groups, in `order`
        self.sizes = np.diff(self.starts, append=len(keys))  # (G,)
        self.firsts = self.order[self.starts]  # (G,) the first element of each group
        self._is_first = is_first

    def find_repeated(self) -> np.ndarray:
        """Return the elements that are equal to an earlier one of their document, in any order: (R,) int64."""
        repeated: np.ndarray = self.order[~self._is_first]
        return repeated

    def number_large_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the elements of groups of two or more, ascending, and the number of the group of each: (M,) both."""
        numbers = np.flatnonzero(self.sizes > 1)
        is_large = np.repeat(self.sizes > 1, self.sizes)
        elements, groups = self.order[is_large], np.repeat(numbers, self.sizes[numbers])
        by_position = np.argsort(elements)
        return elements[by_position], groups[by_position]
