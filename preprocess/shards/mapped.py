"""Read one split of a build through memory-mapped arrays. Training and torch_dataset.py use this.

Shards are never read into memory as a whole. A memory map reads a page (4 kB) from the disk when it
is first used, and the operating system caches it for all processes on the machine. So a build may
be larger than memory, and many processes share one copy. A pickled array, however, would contain
every token. A pickled `MappedSplit` therefore contains only the path and the id of the build, and
the process that receives it maps the shards again, after checking that the build is the same.

Opening a build reads no token data, so it does not notice damaged tokens. On a GPU, an id outside
the vocabulary ends the process without an explanation. Therefore the ids of every batch are checked
when they are read. Uses NumPy only.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import Build, Shard, find_build
from preprocess.shards.loss_mask import gather_mask
from preprocess.shards.manifest import SPLITS
from preprocess.shards.manifest_file import ADVICE, ShardError, read_manifest
from preprocess.shards.packing import PackedRows
from preprocess.shards.replaced import ReplacedError, read_manifest_version, read_unreplaced
from preprocess.shards.windows import gather_windows

ENDS_CHUNK = 1 << 20  # document ends that are checked at a time


class MappedSplit:
    """The tokens, document ends and loss mask of each shard of a split."""

    def __init__(self, build: Build | str | Path, split: str) -> None:
        """`build`: an open build, its name, or its folder. `split`: "train" or "val".

        Raises MisuseError if one of them does not exist, ShardError if the build is damaged.
        """
        if split not in SPLITS:
            raise MisuseError(f"no split {split!r}: a build has {' and '.join(SPLITS)}; name one of them")
        if not isinstance(build, Build | str | Path):
            raise MisuseError(
                f"a dataset cannot be made from {build!r:.80}; expected a build: its name, its folder, or an open Build"
            )
        self.name = split
        self.build, shards = _map_shards(build, split)
        # Slicing np.memmap, a subclass of ndarray, takes microseconds longer than slicing a plain
        # view of it.
        self.tokens = [np.asarray(shard.tokens) for shard in shards]
        self.ends = [np.asarray(shard.ends) for shard in shards]
        self.masks = [None if shard.mask is None else np.asarray(shard.mask) for shard in shards]
        self.has_mask = any(mask is not None for mask in self.masks)
        self.lengths = [len(tokens) for tokens in self.tokens]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder and the build_id.

        Raises FolioError if the build is gone or was replaced.
        """
        # _reopen checks this too, but an error in a spawned worker would print a traceback.
        folder = self.build.folder.absolute()
        _check_build_id(read_manifest(folder).build_id, self.build.build_id, folder)
        return _reopen, (folder, self.name, self.build.build_id)

    def check_ends(self) -> None:
        """Raise ShardError unless the document ends of each shard ascend to its token count.

        This reads all document ends, 8 bytes per document.
        """
        entries = self.build.manifest.splits[self.name].shards
        for tokens, ends, entry in zip(self.tokens, self.ends, entries, strict=True):
            if not has_valid_ends(ends, num_tokens=len(tokens)):
                path = (self.build.folder / entry.file).with_suffix(".ends")
                raise ShardError(
                    f"{path} does not ascend to the shard's {len(tokens):,} tokens; copy the build again or rebuild it"
                )

    def read_windows(self, shard: np.ndarray, start: np.ndarray, block_size: int) -> np.ndarray:
        """Return the windows at (`shard`, `start`), each (B,) int64.

        Returns (B, block_size + 1) of the build's dtype. Raises FolioError for an id outside the
        vocabulary.
        """
        if self.build.is_streamed:
            self.build.wait_for_tokens(self.name, shard, start, start + block_size + 1)
        return self.build.check_ids(gather_windows(self.tokens, shard, start, block_size))

    def read_mask(self, shard: np.ndarray, start: np.ndarray, num_tokens: int) -> np.ndarray:
        """Return whether a model is trained to predict each of `num_tokens` tokens from (`shard`, `start`) on.

        `shard`, `start`: (B,) int64. Returns (B, num_tokens) bool.
        """
        return gather_mask(self.masks, shard, start, num_tokens)

    def read_rows(self, rows: PackedRows, row: np.ndarray, epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets, (B, 2 T), and documents, (B, T), of packed rows of this split.

        `row`, `epoch`: (B,) int64. Raises FolioError for an id outside the vocabulary.
        """
        if self.build.is_streamed:
            items = rows.list_items(row, epoch)
            self.build.wait_for_tokens(self.name, items.shard, items.start, items.start + items.length + 1)
        tokens, documents = rows.read_tokens(self.tokens, row, epoch)
        return self.build.check_ids(tokens), documents

    def read_document(self, shard: int, index: int, max_tokens: int | None) -> np.ndarray:
        """Return the ids of document `index` of shard number `shard`: (L,) of the build's dtype.

        A document that is longer than `max_tokens` is truncated, unless that is None. Raises
        FolioError for an id outside the vocabulary.
        """
        begin = int(self.ends[shard][index - 1]) if index else 0
        end = int(self.ends[shard][index])
        end = end if max_tokens is None else min(end, begin + max_tokens)
        if self.build.is_streamed:
            self.build.wait_for_tokens(self.name, *np.array([[shard], [begin], [end]]))
        return self.build.check_ids(self.tokens[shard][begin:end])


def has_valid_ends(ends: np.ndarray, *, num_tokens: int) -> bool:
    """Return whether `ends`, (D,) uint64, never decrease and the last one is `num_tokens`."""
    if not len(ends):
        return num_tokens == 0
    chunks = (ends[i : i + ENDS_CHUNK + 1] for i in range(0, len(ends), ENDS_CHUNK))
    return bool(ends[-1] == num_tokens) and not any((chunk[1:] < chunk[:-1]).any() for chunk in chunks)


def _map_shards(build: Build | str | Path, split: str) -> tuple[Build, list[Shard]]:
    """Return the build and its mapped shards, after checking that they belong to the build."""
    if not isinstance(build, Build):
        folder = build if isinstance(build, Path) else find_build(build)
        return read_unreplaced(folder, lambda: _map_shards(Build(folder), split))
    version = read_manifest_version(build.folder)
    try:
        shards = build.shards(split)
    except FileNotFoundError as e:
        if read_manifest_version(build.folder) != version:
            raise ReplacedError(f"{build.folder} was replaced while it was read; run the command again") from e
        build.check_unreplaced()
        raise ShardError(f"{e.filename} is missing; {ADVICE}") from e
    build.check_unreplaced()
    return build, shards


def _reopen(folder: Path, split: str, build_id: str) -> MappedSplit:
    mapped = MappedSplit(folder, split)
    _check_build_id(mapped.build.build_id, build_id, folder)
    return mapped


def _check_build_id(build_id: str, expected: str, folder: Path) -> None:
    if build_id != expected:
        raise FolioError(
            f"{folder} has been replaced by another build since the dataset was made; create the dataset again"
        )


def locate_items(edges: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the shard (B,) and the index in it (B,), both int64, of the items at `indices`.

    `edges`: (S,) int64, the exclusive end of each shard's items. Negative indices count from the
    end. Raises IndexError for an index out of range.
    """
    size = int(edges[-1])
    index = np.array([operator.index(i) for i in indices], dtype=np.int64)
    out_of_range = index[(index < -size) | (index >= size)]
    if len(out_of_range):
        raise IndexError(f"no item {out_of_range[0]}: the dataset has {size:,}, counted from 0")
    index = np.where(index < 0, index + size, index)
    shard = np.searchsorted(edges, index, side="right")
    return shard, index - np.concatenate([[0], edges])[shard]
