"""Join groups of documents that contain nearly equal documents, so that all are on one side of the split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.build.forest import Forest
from preprocess.shards.files import open_atomic
from preprocess.stages.dedup import to_uint64_halves

KEY_DTYPE = np.dtype("<u8")


@dataclass(frozen=True)
class NearGroups:
    """The groups that are joined with others, and what identifies the joined group of each.

    A group is known by the upper half of its hash. Two different groups with the same upper half
    would only be kept on one side together. The table is in a file, which tasks map: as a part of
    each task, millions of groups would be sent to every worker again and again.
    """

    path: Path  # (2, G) uint64: the keys of G groups, ascending, and the smallest key of the joined group of each
    num_groups: int

    def apply(self, hashes: np.ndarray) -> np.ndarray:
        """Return the hashes of groups, (D, 16) uint8, with those of joined groups replaced."""
        if not self.num_groups:
            return hashes
        known, joined = np.asarray(np.memmap(self.path, KEY_DTYPE, "r", shape=(2, self.num_groups)))
        keys, _ = to_uint64_halves(hashes)
        positions = np.minimum(np.searchsorted(known, keys), self.num_groups - 1)
        rows = np.flatnonzero(known[positions] == keys)
        replaced = hashes.copy()
        halves = joined[positions[rows]].astype(">u8")
        replaced[rows] = np.stack([halves, halves], axis=1).view(np.uint8)
        return replaced


def join_groups(edges: Iterable[tuple[np.ndarray, np.ndarray]], path: Path) -> NearGroups:
    """Write the connected components of groups to `path`. `edges`: pairs of keys, (E,) uint64 and (E,) uint64."""
    pairs = [np.empty((0, 2), np.uint64), *(np.stack(edge, axis=1) for edge in edges)]
    keys, numbers = np.unique(np.concatenate(pairs), return_inverse=True)
    a, b = numbers.reshape(-1, 2).T
    forest = Forest(np.arange(len(keys)))
    forest.join(a, b)
    with open_atomic(path) as file:
        file.write(keys.astype(KEY_DTYPE).data)
        file.write(keys[forest.find_first(np.arange(len(keys)))].astype(KEY_DTYPE).data)
    return NearGroups(path, len(keys))
