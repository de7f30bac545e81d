"""Pairs of documents of which one was dropped because it is equal or nearly equal to the other.

They are the first duplicates of the corpus, at most one for each document that was kept, so they depend on
the documents and their order only. The cost: for each bucket of hashes that has duplicates, a partial sort
of their numbers and at most MAX_PAIRS passes over its hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_PAIRS = 5
MAX_CANDIDATES = 64  # duplicates of a bucket; if they have fewer than MAX_PAIRS different texts, there are fewer pairs


class Pair(NamedTuple):
    """Two documents, numbered across partitions in reading order."""

    dropped: int
    kept: int


def add_pairs(pairs: Sequence[Pair], found: Sequence[Pair]) -> list[Pair]:
    """Return the pairs of both lists with the lowest dropped documents, one for each kept document."""
    chosen: dict[int, Pair] = {}
    for pair in sorted([*pairs, *found]):
        chosen.setdefault(pair.kept, pair)
    return list(chosen.values())[:MAX_PAIRS]


def find_pairs(rows: np.ndarray, is_duplicate: np.ndarray) -> list[Pair]:
    """Return pairs of the first duplicates of a bucket.

    `rows`: (N,) with the fields h, low and index. `is_duplicate`, (N,) bool: which rows have the h and low of an
    earlier one.
    """
    candidates = np.flatnonzero(is_duplicate)
    if len(candidates) > MAX_CANDIDATES:
        candidates = candidates[np.argpartition(rows["index"][candidates], MAX_CANDIDATES)[:MAX_CANDIDATES]]
    candidates = candidates[np.argsort(rows["index"][candidates])]
    pairs: dict[tuple[int, int], Pair] = {}
    for row in candidates.tolist():
        text = int(rows["h"][row]), int(rows["low"][row])
        if text in pairs or len(pairs) == MAX_PAIRS:
            continue
        is_equal = (rows["h"] == rows["h"][row]) & (rows["low"] == rows["low"][row]) & ~is_duplicate
        pairs[text] = Pair(int(rows["index"][row]), int(rows["index"][np.flatnonzero(is_equal)[0]]))
    return list(pairs.values())
