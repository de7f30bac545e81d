"""Read windows of one or more builds: tokens, documents and loss mask, as tensors on the device.

Shapes: B windows, T = block_size tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from preprocess.shards.mapped import MappedSplit
from preprocess.shards.windows import check_windows, number_documents
from train.config import Config
from train.core.targets import IGNORE_INDEX
from train.data.builds import Builds

# Inputs, targets and, with mask_documents, the number of each token's document: (B, T) int64 each.
# Targets outside of the loss mask are IGNORE_INDEX.
Batch = tuple[Tensor, Tensor, Tensor | None]
# Of each window: the index of its build, its shard in that build, and its first token in that
# shard: (B,) int64 each.
Locations = tuple[np.ndarray, np.ndarray, np.ndarray]
MASK_CHUNK = 1 << 20  # tokens whose bits in the loss mask are read at a time


class MixedSplit:
    """One split of one or more builds. The rows of a batch can come from any of them."""

    def __init__(self, builds: Builds, split: str, config: Config, *, device: torch.device) -> None:
        """Memory-map the shards of `split`, "train" or "val".

        Raises FolioError if the split of a build is shorter than one window, and ShardError if a
        build was replaced or, with mask_documents, has damaged document ends.
        """
        self.parts = [MappedSplit(build, split) for build in builds.builds]
        for part in self.parts:
            check_windows(part.lengths, config.block_size, split)
            if config.mask_documents:
                part.check_ends()
        self.has_mask = any(part.has_mask for part in self.parts)
        self.block_size, self._masks_documents, self._device = config.block_size, config.mask_documents, device
        self._dtype = np.result_type(np.uint16, *(part.build.dtype for part in self.parts))

    def batch(self, locations: Locations) -> Batch:
        """Return the windows at `locations`, in that order."""
        build_index, shard, start = locations
        if len(self.parts) == 1:  # no rows to merge, which would take a third of a small batch's time
            return self._to_batch(*self._read(self.parts[0], shard, start), self.read_mask(locations))
        tokens = np.empty((len(build_index), self.block_size + 1), self._dtype)  # (B, T + 1)
        documents = np.empty((len(build_index), self.block_size), np.int32) if self._masks_documents else None
        for index, part in enumerate(self.parts):
            rows = np.flatnonzero(build_index == index)
            if len(rows):
                tokens[rows], row_documents = self._read(part, shard[rows], start[rows])
                if documents is not None:
                    documents[rows] = row_documents
        return self._to_batch(tokens, documents, self.read_mask(locations))

    def read_mask(self, locations: Locations) -> np.ndarray | None:
        """Return which targets of the windows at `locations` count, (B, T) bool, or None if all do."""
        if not self.has_mask:
            return None
        build_index, shard, start = locations
        mask = np.empty((len(shard), self.block_size), bool)
        for index, part in enumerate(self.parts):
            rows = np.flatnonzero(build_index == index)
            mask[rows] = part.read_mask(shard[rows], start[rows] + 1, self.block_size)
        return mask

    def loss_fractions(self, locations: Locations) -> np.ndarray | None:
        """Return the fraction of the targets of each window that count, (B,) float64, or None if all do."""
        if not self.has_mask:
            return None
        fractions = np.empty(len(locations[0]))
        size = max(MASK_CHUNK // self.block_size, 1)
        for begin in range(0, len(fractions), size):
            build_index, shard, start = (column[begin : begin + size] for column in locations)
            mask = self.read_mask((build_index, shard, start))
            assert mask is not None
            fractions[begin : begin + size] = mask.mean(axis=1)
        return fractions

    def _read(self, part: MappedSplit, shard: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the tokens, (B, T + 1), and the number of each token's document, (B, T).

        Without mask_documents, the second value is None.
        """
        documents = number_documents(part.ends, shard, start, self.block_size) if self._masks_documents else None
        return part.read_windows(shard, start, self.block_size), documents

    def _to_batch(self, tokens: np.ndarray, documents: np.ndarray | None, mask: np.ndarray | None) -> Batch:
        windows = to_device(tokens, self._device)  # (B, T + 1)
        targets = windows[:, 1:]
        if mask is not None:
            targets = targets.masked_fill(to_device(~mask, self._device).bool(), IGNORE_INDEX)
        return windows[:, :-1], targets, None if documents is None else to_device(documents, self._device)


def to_device(tokens: np.ndarray, device: torch.device) -> Tensor:
    """Return `tokens`, an array of any shape, as an int64 tensor on `device`.

    `tokens` contains non-negative integers in a dtype of at most 32 bits. For a GPU, they are
    copied asynchronously from pinned memory in this dtype, and converted to int64 on the GPU.
    """
    if device.type != "cuda":
        return torch.from_numpy(tokens.astype(np.int64)).to(device)
    # Few torch kernels accept unsigned integers: send the same bits as signed ones and mask off the
    # sign extension.
    bits = 8 * tokens.dtype.itemsize
    narrow = torch.from_numpy(tokens.view(f"i{tokens.dtype.itemsize}")).pin_memory()
    return narrow.to(device, non_blocking=True).to(torch.int64) & ((1 << bits) - 1)
