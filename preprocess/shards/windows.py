"""Sample number → window of tokens.

A window is `block_size + 1` consecutive tokens of one shard. What a sample number means depends on the seed alone:
not on rank, worker, batch size or history, so resuming needs one integer (architecture law 7). NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocess.errors import MisuseError


def mix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

    `x`: any shape of uint64; returns the same shape, each value mapped by a bijection that looks random.
    """
    with np.errstate(over="ignore"):
        x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_hash(seed: int, values: np.ndarray) -> np.ndarray:
    """uint64 hashes of `values` (uint64, any shape) under `seed` (any non-negative int below 2**64)."""
    key = mix64(np.array([seed], dtype=np.uint64))[0]
    return mix64(mix64(values.astype(np.uint64) ^ key) ^ key)


def require_windows(lengths: Sequence[int], block_size: int, split: str) -> None:
    """Raise MisuseError unless some shard of `lengths` tokens holds a window of `block_size + 1`."""
    longest = max(lengths, default=0)
    if longest <= block_size:
        raise MisuseError(
            f"block_size {block_size} needs {block_size + 1} tokens in a row, the longest {split} shard has {longest}; "
            f"set --block_size={max(longest - 1, 1)} or less, or build from more text"
        )


class RandomWindows:
    """Windows drawn uniformly, with replacement, over every start in every shard."""

    def __init__(self, lengths: Sequence[int], block_size: int, *, seed: int) -> None:
        """`lengths`: tokens of each shard. A shard shorter than a window gives none."""
        starts = np.maximum(np.asarray(lengths, dtype=np.int64) - block_size, 0)
        self._edges = np.cumsum(starts)  # (S,) exclusive ends of each shard's starts in one long line
        self._first = self._edges - starts
        self._seed = seed
        if not len(starts) or not self._edges[-1]:
            raise ValueError("no shard holds a window: call require_windows first")

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`samples`: (B,) sample numbers. Returns the shard (B,) and the start in it (B,), both int64."""
        # The remainder's bias is total / 2**64: one part in ten million for a trillion tokens.
        place = (keyed_hash(self._seed, samples) % np.uint64(self._edges[-1])).astype(np.int64)
        shard = np.searchsorted(self._edges, place, side="right")
        return shard, place - self._first[shard]


def sequential_windows(lengths: Sequence[int], block_size: int, num_windows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Non-overlapping windows from each shard's start: shard (W,) and start (W,), int64; at most `num_windows`.

    Consecutive windows share one token, the last target of one being the first input of the next, so that every
    token but a shard's first is a target once.
    """
    counts = [max((n - 1) // block_size, 0) for n in lengths]
    shard = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    start = np.concatenate([np.arange(c, dtype=np.int64) * block_size for c in counts] or [np.empty(0, np.int64)])
    return shard[:num_windows], start[:num_windows]


def gather(tokens: Sequence[np.ndarray], shard: np.ndarray, start: np.ndarray, block_size: int) -> np.ndarray:
    """The windows at (`shard`, `start`), each (B,): (B, block_size + 1) of the shards' dtype, one fancy index a shard."""
    out = np.empty((len(shard), block_size + 1), tokens[0].dtype)
    for s in np.unique(shard):
        rows = shard == s
        out[rows] = np.lib.stride_tricks.sliding_window_view(tokens[s], block_size + 1)[start[rows]]
    return out
