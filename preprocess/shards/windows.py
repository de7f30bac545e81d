"""Sample number → window of tokens.

A window is `block_size + 1` consecutive tokens of one shard. What a sample number means depends on the seed alone:
not on rank, worker, batch size or history, so resuming needs one integer (architecture law 7). NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.permutation import hash_key, hash_under, keyed_hash, mix64, permute


def check_windows(lengths: Sequence[int], block_size: int, split: str) -> None:
    """Raise MisuseError unless some shard of `lengths` tokens holds a window of `block_size + 1`."""
    longest = max(lengths, default=0)
    if longest <= block_size:
        raise MisuseError(
            f"block_size {block_size} needs {block_size + 1} tokens in a row, the longest {split} shard has {longest}; "
            f"set block_size={max(longest - 1, 1)} or less, or build from more text"
        )


class RandomWindows:
    """Windows drawn uniformly, with replacement, over every start in every shard."""

    def __init__(self, lengths: Sequence[int], block_size: int, *, seed: int) -> None:
        """`lengths`: tokens of each shard. A shard shorter than a window gives none. Raises MisuseError for a seed beyond 64 bits."""
        starts = np.maximum(np.asarray(lengths, dtype=np.int64) - block_size, 0)
        self._edges = np.cumsum(starts)  # (S,) exclusive ends of each shard's starts in one long line
        self._first = self._edges - starts
        self._key, self._total = hash_key(seed), np.uint64(self._edges[-1] if len(starts) else 0)
        if not len(starts) or not self._edges[-1]:
            raise ValueError("no shard holds a window: call check_windows first")

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`samples`: (B,) sample numbers. Returns the shard (B,) and the start in it (B,), both int64."""
        # The remainder's bias is total / 2**64: one part in ten million for a trillion tokens.
        place = (hash_under(self._key, samples) % self._total).astype(np.int64)
        shard = np.searchsorted(self._edges, place, side="right")
        return shard, place - self._first[shard]


class EpochWindows:
    """Non-overlapping windows that cover every shard once an epoch, in another order and from other starts each epoch.

    Sample i lies in epoch i // `windows_per_epoch`. In an epoch each shard is cut as by `sequential_windows`, but from an
    offset of its own, drawn among those that leave as many windows as offset 0 does.
    """

    windows_per_epoch: int
    num_unvisited: (
        int  # tokens in no window, the same number every epoch: at most `block_size` a shard, at its head and tail
    )

    def __init__(self, lengths: Sequence[int], block_size: int, *, seed: int) -> None:
        """`lengths`: tokens of each shard. A shard shorter than a window gives none. Raises MisuseError for a seed beyond 64 bits."""
        tokens = np.asarray(lengths, dtype=np.int64)
        counts = np.maximum(tokens - 1, 0) // block_size  # (S,) windows of each shard
        self._edges = np.cumsum(counts)  # (S,) exclusive ends of each shard's windows in one long line
        self._first = self._edges - counts
        self._offsets = (np.maximum(tokens - 1, 0) % block_size + 1).astype(np.uint64)  # (S,) how many to draw from
        self._shard_keys = mix64(np.arange(len(tokens), dtype=np.uint64))
        self._key = keyed_hash(seed, np.frombuffer(b"epochwin", dtype="<u8"))
        self._block_size = block_size
        if not len(counts) or not self._edges[-1]:
            raise ValueError("no shard holds a window: call check_windows first")
        self.windows_per_epoch = int(self._edges[-1])
        self.num_unvisited = int((tokens - counts * block_size - (counts > 0)).sum())

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`samples`: (B,) sample numbers, of any epochs. Returns the shard (B,) and the start in it (B,), both int64."""
        epoch, index = np.divmod(samples.astype(np.uint64), np.uint64(self.windows_per_epoch))
        epoch_key = mix64(epoch ^ self._key)
        window = permute(index, self.windows_per_epoch, epoch_key).astype(np.int64)
        shard = np.searchsorted(self._edges, window, side="right")
        offset = mix64(epoch_key ^ self._shard_keys[shard]) % self._offsets[shard]
        return shard, (window - self._first[shard]) * self._block_size + offset.astype(np.int64)

    def num_epochs(self, num_samples: int) -> float:
        """How many epochs the first `num_samples` samples are."""
        return num_samples / self.windows_per_epoch


ORDERS: dict[str, type[EpochWindows] | type[RandomWindows]] = {"epochs": EpochWindows, "random": RandomWindows}


def sequential_windows(
    lengths: Sequence[int], block_size: int, num_windows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
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
    if len(tokens) == 1:
        return _every_window(tokens[0], block_size)[start]
    out = np.empty((len(shard), block_size + 1), tokens[0].dtype)
    for s in np.unique(shard):
        rows = shard == s
        out[rows] = _every_window(tokens[s], block_size)[start[rows]]
    return out


def _every_window(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """A view, (N - block_size, block_size + 1), of a shard's (N,) contiguous tokens, N at least block_size: row i starts at token i.

    What NumPy's sliding_window_view returns, in a tenth of its 9 µs, which are a quarter of a small batch. To be read only: rows overlap.
    """
    return np.ndarray((len(tokens) - block_size, block_size + 1), tokens.dtype, tokens, strides=tokens.strides * 2)


def document_numbers(ends: Sequence[np.ndarray], shard: np.ndarray, start: np.ndarray, block_size: int) -> np.ndarray:
    """Which document each input of the windows at (`shard`, `start`), each (B,) int64, belongs to: (B, block_size) int32.

    Counted in each window from 0, one more at every token that opens a document. `ends`: each shard's exclusive document
    ends, uint64, ascending. A batch reads two binary searches a window and the ends inside it, no more.
    """
    opens = np.zeros((len(shard), block_size), np.int8)
    for s in np.unique(shard):
        rows = np.flatnonzero(shard == s)
        # Against int64 the search would turn all the ends into float64: a copy of the whole file.
        begin = start[rows].astype(np.uint64)
        low = np.searchsorted(ends[s], begin, side="right")
        counts = np.searchsorted(ends[s], begin + np.uint64(block_size), side="left") - low
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = ends[s][np.repeat(low, counts) + within] - np.repeat(begin, counts)
        opens[np.repeat(rows, counts), columns] = 1
    return np.cumsum(opens, axis=1, dtype=np.int32)
