"""Read windows or packed rows of one or more builds: tokens, documents and loss mask, as tensors on the device.

Shapes: B windows or rows, T = block_size tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from preprocess.shards.mapped import MappedSplit
from preprocess.shards.packing import PackedRows
from preprocess.shards.permutation import keyed_hash
from preprocess.shards.windows import check_windows, number_documents
from train.config import DOCUMENTS, Config
from train.core.targets import IGNORE_INDEX
from train.data.builds import Builds

# Inputs, targets and, with mask_documents, the number of each token's document: (B, T) int64 each.
# Targets outside of the loss mask, and those of padding, are IGNORE_INDEX.
Batch = tuple[Tensor, Tensor, Tensor | None]
# Of each window: the index of its build, its shard in that build, and its first token in that
# shard. Of each packed row: the index of its build, its number, and its epoch. (B,) int64 each.
Locations = tuple[np.ndarray, np.ndarray, np.ndarray]
MASK_CHUNK = 1 << 20  # tokens whose bits in the loss mask are read at a time
BUILD_KEY = 0xB01D  # combined with the seed, so that its uses are independent of each other


class MixedSplit:
    """One split of one or more builds. The rows of a batch can come from any of them."""

    def __init__(self, builds: Builds, split: str, config: Config, *, seed: int, device: torch.device) -> None:
        """Memory-map the shards of `split`, "train" or "val". `seed`: of the order of packed rows.

        Raises FolioError if the split of a build is shorter than one window, and ShardError if a
        build was replaced or, with mask_documents, has damaged document ends.
        """
        self.parts = [MappedSplit(build, split) for build in builds.builds]
        is_packed = config.data_order == DOCUMENTS
        for part in self.parts:
            if not is_packed:
                check_windows(part.lengths, config.block_size, split)
            if config.mask_documents:
                part.check_ends()
        self.has_mask = any(part.has_mask for part in self.parts)
        self.counts_all_targets = not self.has_mask and not is_packed
        # The rows of each part with data_order "documents", else empty.
        self.rows = [
            PackedRows(part.ends, config.block_size, seed=build_seed(seed, index), split=split)
            for index, part in enumerate(self.parts if is_packed else [])
        ]
        self.block_size, self._masks_documents, self._device = config.block_size, config.mask_documents, device
        self._dtype = np.result_type(np.uint16, *(part.build.dtype for part in self.parts))

    def batch(self, locations: Locations, mask: np.ndarray | None) -> Batch:
        """Return the windows at `locations`, in that order. `mask`: what `read_mask` returns for them."""
        build_index, first, second = locations
        if len(self.parts) == 1:  # no rows to merge, which would take a third of a small batch's time
            return self._to_batch(*self._read(0, first, second), mask)
        width = 2 * self.block_size if self.rows else self.block_size + 1
        tokens = np.empty((len(build_index), width), self._dtype)
        documents = np.empty((len(build_index), self.block_size), np.int32) if self._masks_documents else None
        for index in range(len(self.parts)):
            rows = np.flatnonzero(build_index == index)
            if len(rows):
                tokens[rows], row_documents = self._read(index, first[rows], second[rows])
                if documents is not None:
                    documents[rows] = row_documents
        return self._to_batch(tokens, documents, mask)

    def read_mask(self, locations: Locations) -> np.ndarray | None:
        """Return which targets of the windows at `locations` count, (B, T) bool, or None if all do."""
        if self.counts_all_targets:
            return None
        build_index, first, second = locations
        mask = np.empty((len(first), self.block_size), bool)
        for index, part in enumerate(self.parts):
            rows = np.flatnonzero(build_index == index)
            if self.rows:
                mask[rows] = self.rows[index].read_mask(part.masks, first[rows], second[rows])
            else:
                mask[rows] = part.read_mask(first[rows], second[rows] + 1, self.block_size)
        return mask

    def loss_fractions(self, locations: Locations) -> np.ndarray | None:
        """Return the fraction of the targets of each window that count, (B,) float64, or None if all do."""
        if self.counts_all_targets:
            return None
        fractions = np.empty(len(locations[0]))
        size = max(MASK_CHUNK // self.block_size, 1)
        for begin in range(0, len(fractions), size):
            build_index, first, second = (column[begin : begin + size] for column in locations)
            mask = self.read_mask((build_index, first, second))
            assert mask is not None
            fractions[begin : begin + size] = mask.mean(axis=1)
        return fractions

    def _read(self, index: int, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the tokens, (B, T + 1), and the number of each token's document, (B, T), in part `index`.

        Those of packed rows are (B, 2 T): inputs and targets. Without mask_documents, the second
        value is None.
        """
        part = self.parts[index]
        if self.rows:
            return part.read_rows(self.rows[index], first, second)
        shard, start = first, second
        documents = number_documents(part.ends, shard, start, self.block_size) if self._masks_documents else None
        return part.read_windows(shard, start, self.block_size), documents

    def _to_batch(self, tokens: np.ndarray, documents: np.ndarray | None, mask: np.ndarray | None) -> Batch:
        windows = to_device(tokens, self._device)  # (B, T + 1) or (B, 2 T)
        targets = windows[:, -self.block_size :]
        if mask is not None:
            targets = targets.masked_fill(to_device(~mask, self._device).bool(), IGNORE_INDEX)
        ids = windows[:, : self.block_size]
        return ids, targets, None if documents is None else to_device(documents, self._device)


def build_seed(seed: int, index: int) -> int:
    """Return the seed of the data order of build number `index`.

    Build 0 has `seed` itself, so that its order is the same alone and as the first of several
    builds.
    """
    return seed if index == 0 else int(keyed_hash(seed ^ BUILD_KEY, np.array([index], np.uint64))[0])


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
