"""The window of tokens of each training sample, as a pure function of the sample's number.

A window is `block_size + 1` consecutive tokens of one shard: the inputs and targets of a sample.
Most data loaders draw windows from a random generator, so the result depends on the batch size and
on the number of processes, and resuming needs the generator's state. Here sample i is computed only
from (seed, i). Resuming needs one integer, and each process computes its share of the samples
without communication, so the number of GPUs changes no sample. There are two data orders:

- "random" (RandomWindows): a hash of (seed, i) selects any start in any shard, with replacement.
  Windows overlap. After as many samples as an epoch has, 37 % of the tokens are still unread.
- "epochs" (EpochWindows): each shard is cut into windows that do not overlap, n windows in total.
  Sample i belongs to epoch i // n. A keyed permutation of 0 … n − 1 (permutation.py) maps i mod n
  to the number of its window; the key depends on (seed, epoch). The first window of a shard begins
  at an offset that is a hash of (seed, epoch, shard), so the shards are cut at other places in each
  epoch.

Locating B samples takes O(B) time and memory, for any number of tokens: 65 µs for a batch of 64.
The only tables have one number per shard. Uses NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.permutation import hash_with_key, keyed_hash, make_hash_key, mix64, permute


def check_windows(lengths: Sequence[int], block_size: int, split: str) -> None:
    """Raise MisuseError if no shard has a window. `lengths`: the number of tokens of each shard."""
    longest = max(lengths, default=0)
    if longest <= block_size:
        raise MisuseError(
            f"block_size {block_size} needs {block_size + 1} consecutive tokens, but the longest {split} shard has "
            f"{longest}; set block_size={max(longest - 1, 1)} or less, or build from more text"
        )


class RandomWindows:
    """Windows drawn uniformly, with replacement, from all possible starts in all shards."""

    windows_per_epoch: int  # that have as many inputs as there are tokens, although some tokens are in none of them

    def __init__(self, lengths: Sequence[int], block_size: int, *, seed: int) -> None:
        """`lengths`: the number of tokens of each shard; shards shorter than a window are not used.

        Raises MisuseError for a seed outside 0 to 2**64 - 1, ValueError if no shard has a window.
        """
        num_starts = np.maximum(np.asarray(lengths, dtype=np.int64) - block_size, 0)  # (S,)
        # All starts are numbered, shard after shard. Those of shard s are first[s] … edges[s] − 1.
        self._edges = np.cumsum(num_starts)  # (S,)
        self._first = self._edges - num_starts  # (S,)
        self.windows_per_epoch = max(sum(lengths) // block_size, 1)
        self._key, self._total = make_hash_key(seed), np.uint64(self._edges[-1] if len(num_starts) else 0)
        if not len(num_starts) or not self._edges[-1]:
            raise ValueError("no shard has a window: call check_windows first")

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard (B,) and the start in it (B,), both int64, of each sample.

        `samples`: (B,), sample numbers.
        """
        # The modulo is biased by total / 2**64: one part in ten million for a trillion tokens.
        number = (hash_with_key(self._key, samples) % self._total).astype(np.int64)
        shard = np.searchsorted(self._edges, number, side="right")
        return shard, number - self._first[shard]


class EpochWindows:
    """Windows that cover each shard once per epoch, in a new order each epoch.

    The inputs of two windows never overlap. The last target of a window is the first input of the
    next one.
    """

    windows_per_epoch: int
    num_unvisited: int  # tokens outside of all windows in an epoch; at most block_size per shard, at its ends

    def __init__(self, lengths: Sequence[int], block_size: int, *, seed: int) -> None:
        """`lengths`: the number of tokens of each shard; shards shorter than a window are not used.

        Raises MisuseError for a seed outside 0 to 2**64 - 1, ValueError if no shard has a window.
        """
        tokens = np.asarray(lengths, dtype=np.int64)  # (S,)
        counts = np.maximum(tokens - 1, 0) // block_size  # (S,) windows of each shard
        # All windows are numbered, shard after shard. Those of shard s are first[s] … edges[s] − 1.
        self._edges = np.cumsum(counts)  # (S,)
        self._first = self._edges - counts  # (S,)
        # The first window may begin at offsets 0 … num_offsets − 1 without reducing the number of windows.
        self._num_offsets = (np.maximum(tokens - 1, 0) % block_size + 1).astype(np.uint64)  # (S,)
        self._shard_keys = mix64(np.arange(len(tokens), dtype=np.uint64))  # (S,)
        self._key = keyed_hash(seed, np.frombuffer(b"epochwin", dtype="<u8"))  # (1,)
        self._block_size = block_size
        if not len(counts) or not self._edges[-1]:
            raise ValueError("no shard has a window: call check_windows first")
        self.windows_per_epoch = int(self._edges[-1])
        self.num_unvisited = int((tokens - counts * block_size - (counts > 0)).sum())

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard (B,) and the start in it (B,), both int64, of each sample.

        `samples`: (B,), sample numbers.
        """
        epoch, index = np.divmod(samples.astype(np.uint64), np.uint64(self.windows_per_epoch))
        epoch_key = mix64(epoch ^ self._key)
        window = permute(index, self.windows_per_epoch, epoch_key).astype(np.int64)
        shard = np.searchsorted(self._edges, window, side="right")
        offset = mix64(epoch_key ^ self._shard_keys[shard]) % self._num_offsets[shard]
        return shard, (window - self._first[shard]) * self._block_size + offset.astype(np.int64)

    def num_epochs(self, num_samples: int) -> float:
        """Return the number of epochs in the first `num_samples` samples."""
        return num_samples / self.windows_per_epoch


ORDERS: dict[str, type[EpochWindows] | type[RandomWindows]] = {"epochs": EpochWindows, "random": RandomWindows}


def list_sequential_windows(
    lengths: Sequence[int], block_size: int, max_windows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the shard (W,) and the start in it (W,), both int64, of consecutive windows.

    There are at most `max_windows`, if that is given. A window begins at the last token of the
    window before it. So every token of a shard is a target exactly once, except the first token and
    those of an incomplete window at the end, which is left out.
    """
    counts = [max((n - 1) // block_size, 0) for n in lengths]
    shard = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    start = np.concatenate([np.arange(c, dtype=np.int64) * block_size for c in counts] or [np.empty(0, np.int64)])
    return shard[:max_windows], start[:max_windows]


def gather_windows(tokens: Sequence[np.ndarray], shard: np.ndarray, start: np.ndarray, block_size: int) -> np.ndarray:
    """Return the windows that begin at `start` in `shard`: (B, block_size + 1), dtype of `tokens`.

    `tokens`: the tokens of each shard, one-dimensional arrays of the same dtype. `shard`, `start`:
    (B,) int64. A batch takes one indexing operation for each shard in it.
    """
    if len(tokens) == 1:
        return _view_windows(tokens[0], block_size)[start]
    out = np.empty((len(shard), block_size + 1), tokens[0].dtype)
    for s in np.unique(shard):
        rows = shard == s
        out[rows] = _view_windows(tokens[s], block_size)[start[rows]]
    return out


def _view_windows(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """Return all windows of contiguous tokens (N,) as a view (N - block_size, block_size + 1).

    It equals NumPy's sliding_window_view, which takes 9 µs, a quarter of the time of a small batch;
    this takes a tenth of that. Rows overlap, so the view must not be written to.
    """
    return np.ndarray((len(tokens) - block_size, block_size + 1), tokens.dtype, tokens, strides=tokens.strides * 2)


def number_documents(ends: Sequence[np.ndarray], shard: np.ndarray, start: np.ndarray, block_size: int) -> np.ndarray:
    """Return which document of its window each input token belongs to: (B, block_size) int32.

    The documents of a window are numbered from 0. `ends`: the exclusive document ends of each
    shard, uint64, ascending. `shard`, `start`: (B,) int64, of the windows. Only the ends inside the
    windows are read; two binary searches per window find them.
    """
    is_first = np.zeros((len(shard), block_size), np.int8)  # 1 at the first token of a document, except column 0
    for s in np.unique(shard):
        rows = np.flatnonzero(shard == s)
        # Searching uint64 ends for int64 values would convert all ends to float64: a copy of the
        # whole file.
        begin = start[rows].astype(np.uint64)
        low = np.searchsorted(ends[s], begin, side="right")
        counts = np.searchsorted(ends[s], begin + np.uint64(block_size), side="left") - low
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = ends[s][np.repeat(low, counts) + within] - np.repeat(begin, counts)
        is_first[np.repeat(rows, counts), columns] = 1
    return np.cumsum(is_first, axis=1, dtype=np.int32)
