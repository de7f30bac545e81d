"""Batches from the shards of a build: which windows, and how they reach the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from config import Config
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.shards.windows import RandomWindows, gather, require_windows, sequential_windows

Batch = tuple[Tensor, Tensor]  # inputs and targets, (B, T) int64 each


class Windows:
    """One split's shards, mapped once, and the windows of `block_size` tokens in them."""

    def __init__(self, build: Build, split: str, *, block_size: int) -> None:
        """Raises FolioError when no shard of the split holds a window."""
        # A memory map's subclass of ndarray costs microseconds at every slice; a plain view of it does not.
        self._tokens = [np.asarray(shard.tokens) for shard in build.shards(split)]
        self.lengths = [len(tokens) for tokens in self._tokens]
        self.block_size, self._name, self._vocab_size = block_size, build.name, build.vocab_size
        require_windows(self.lengths, block_size, split)

    def batch(self, shard: np.ndarray, start: np.ndarray, *, device: torch.device) -> Batch:
        """The windows at (`shard`, `start`), (B,) int64 each, on `device`."""
        tokens = gather(self._tokens, shard, start, self.block_size)  # (B, T + 1)
        # Opening a build reads no token: a flipped bit shows here, and on a GPU it would take the whole process with it.
        if tokens.max() >= self._vocab_size:
            raise FolioError(
                f"{self._name} holds id {tokens.max()}, its vocabulary ends at {self._vocab_size - 1}; check it with `preprocess verify`"
            )
        windows = to_device(tokens, device)
        return windows[:, :-1], windows[:, 1:]


class TrainingData:
    """The endless line of training batches. Batch `number` depends on nothing but the seed, so resuming needs one integer."""

    def __init__(self, build: Build, config: Config, *, device: torch.device) -> None:
        self._windows = Windows(build, "train", block_size=config.block_size)
        self._random = RandomWindows(self._windows.lengths, config.block_size, seed=config.seed)
        self._batch_size, self._device = config.batch_size, device
        self.num_tokens = sum(self._windows.lengths)

    def batch(self, number: int) -> Batch:
        """Micro-batch `number`, counted from 0 over the whole run: step × accumulation + micro."""
        samples = np.arange(number * self._batch_size, (number + 1) * self._batch_size, dtype=np.uint64)
        return self._windows.batch(*self._random.locate(samples), device=self._device)


class ValidationData:
    """The fixed windows that every evaluation of a run reads, in order."""

    def __init__(self, build: Build, config: Config, *, device: torch.device) -> None:
        self._windows = Windows(build, "val", block_size=config.block_size)
        wanted = None if config.eval_tokens is None else config.eval_tokens // config.block_size
        self._shard, self._start = sequential_windows(self._windows.lengths, config.block_size, wanted)
        self._batch_size, self._device = config.batch_size, device
        split = build.manifest["splits"]["val"]
        self.split_tokens: int = split["tokens"]
        self.split_text_bytes: int = split["text_bytes"]

    @property
    def num_windows(self) -> int:
        return len(self._shard)

    def __iter__(self) -> Iterator[Batch]:
        """Every window, batch_size at a time, fewer in the last batch."""
        for first in range(0, self.num_windows, self._batch_size):
            rows = slice(first, first + self._batch_size)
            yield self._windows.batch(self._shard[rows], self._start[rows], device=self._device)


def to_device(tokens: np.ndarray, device: torch.device) -> Tensor:
    """`tokens`, unsigned, any shape, as int64 on `device`. To a GPU they travel narrow and widen there."""
    if device.type != "cuda":
        return torch.from_numpy(tokens.astype(np.int64)).to(device)
    # Few of torch's kernels take unsigned integers: the same bits travel signed, and the mask takes the sign away.
    bits = 8 * tokens.dtype.itemsize
    narrow = torch.from_numpy(tokens.view(f"i{tokens.dtype.itemsize}")).pin_memory()
    return narrow.to(device, non_blocking=True).to(torch.int64) & ((1 << bits) - 1)
