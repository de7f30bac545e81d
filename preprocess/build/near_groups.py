"""Join groups of documents that contain nearly equal documents, so that all are on one side of the split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from preprocess.build.forest import Forest
from preprocess.stages.dedup import to_uint64_halves


@dataclass(frozen=True)
class NearGroups:
    """The groups that are joined with others, and what identifies the joined group of each.

    A group is known by the upper half of its hash. Two different groups with the same upper half
    would only be kept on one side together. The memory is 16 bytes for each of the G groups.
    """

    keys: np.ndarray  # (G,) uint64, ascending
    joined: np.ndarray  # (G,) uint64, the smallest key of the joined group

    def apply(self, hashes: np.ndarray) -> np.ndarray:
        """Return the hashes of groups, (D, 16) uint8, with those of joined groups replaced."""
        if not len(self.keys):
            return hashes
        keys, _ = to_uint64_halves(hashes)
        positions = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        rows = np.flatnonzero(self.keys[positions] == keys)
        replaced = hashes.copy()
        halves = self.joined[positions[rows]].astype(">u8")
        replaced[rows] = np.stack([halves, halves], axis=1).view(np.uint8)
        return replaced


def join_groups(edges: Iterable[tuple[np.ndarray, np.ndarray]]) -> NearGroups:
    """Return the connected components of groups. `edges`: pairs of keys, (E,) uint64 and (E,) uint64."""
    pairs = [np.empty((0, 2), np.uint64), *(np.stack(edge, axis=1) for edge in edges)]
    keys, numbers = np.unique(np.concatenate(pairs), return_inverse=True)
    a, b = numbers.reshape(-1, 2).T
    forest = Forest(np.arange(len(keys)))
    forest.join(a, b)
    return NearGroups(keys, keys[forest.find_first(np.arange(len(keys)))])
