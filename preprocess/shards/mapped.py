"""One split of a build as training and torch_data.py read it: mapped, checked, and mapped anew where it is unpickled. NumPy only."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import SPLITS, Build, ShardError, read_manifest
from preprocess.shards.windows import gather


class MappedSplit:
    """The tokens and document ends of each shard of a split. A pickle of it holds the folder, no token."""

    def __init__(self, build: Build | str | Path, split: str) -> None:
        """`build`: an open one, its name, or its folder. Raises ShardError, and MisuseError where there is no such build or split."""
        if split not in SPLITS:
            raise MisuseError(f"no split {split!r}: a build has {' and '.join(SPLITS)}; name one of them")
        if not isinstance(build, Build | str | Path):
            raise MisuseError(
                f"a dataset cannot be made of {build!r:.80}; wanted a build: its name, its folder, or an open Build"
            )
        self.build = build if isinstance(build, Build) else Build(build)
        self.name = split
        shards = self.build.shards(split)
        # A memory map's subclass of ndarray costs microseconds at every slice; a plain view of it does not.
        self.tokens = [np.asarray(shard.tokens) for shard in shards]
        self.ends = [np.asarray(shard.ends) for shard in shards]
        self.lengths = [len(tokens) for tokens in self.tokens]

    def __reduce__(self) -> tuple[Any, ...]:
        """Raises FolioError where the build is gone or is another by now: a worker that is spawned would say so in its own traceback."""
        folder = self.build.folder.absolute()
        _check_same(read_manifest(folder)["build_id"], self.build.build_id, folder)
        return _reopen, (folder, self.name, self.build.build_id)

    def check_ends(self) -> None:
        """Raise ShardError unless the document ends of each shard rise to its number of tokens."""
        for tokens, ends, entry in zip(
            self.tokens, self.ends, self.build.manifest["splits"][self.name]["shards"], strict=True
        ):
            if len(ends) and (ends[-1] != len(tokens) or bool((ends[1:] < ends[:-1]).any())):
                path = (self.build.folder / entry["file"]).with_suffix(".ends")
                raise ShardError(
                    f"{path} does not rise to the shard's {len(tokens):,} tokens; copy the build again or rebuild it"
                )

    def windows(self, shard: np.ndarray, start: np.ndarray, block_size: int) -> np.ndarray:
        """The windows at (`shard`, `start`), each (B,) int64: (B, block_size + 1) of the build's dtype. Raises as `checked` does."""
        return self.checked(gather(self.tokens, shard, start, block_size))

    def document(self, shard: int, place: int, max_tokens: int | None) -> np.ndarray:
        """The first `max_tokens` ids of a shard's document: (L,) of the build's dtype. Raises FolioError as `checked` does."""
        begin = int(self.ends[shard][place - 1]) if place else 0
        end = int(self.ends[shard][place])
        return self.checked(self.tokens[shard][begin : end if max_tokens is None else min(end, begin + max_tokens)])

    def checked(self, ids: np.ndarray) -> np.ndarray:
        """`ids`, any shape. Raises FolioError where one is beyond the vocabulary.

        Opening a build reads no token: a flipped bit shows here, and on a GPU it would take the whole process with it.
        """
        if ids.max(initial=0) >= self.build.vocab_size:
            raise FolioError(
                f"{self.build.folder} holds id {ids.max()}, its vocabulary ends at {self.build.vocab_size - 1}; "
                "check it with `preprocess verify`"
            )
        return ids


def _reopen(folder: Path, split: str, build_id: str) -> MappedSplit:
    again = MappedSplit(folder, split)
    _check_same(again.build.build_id, build_id, folder)
    return again


def _check_same(now: str, then: str, folder: Path) -> None:
    if now != then:
        raise FolioError(
            f"{folder} has been replaced by another build since the dataset was made; make the dataset anew"
        )


def locate_items(edges: np.ndarray, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Items by number, negative ones counted from the end: the shard of each, and its number there, (B,) int64 each.

    `edges`: (S,) int64, exclusive ends of each shard's items. Raises IndexError for an item that is not there.
    """
    size = int(edges[-1])
    asked = np.array([operator.index(i) for i in indices], dtype=np.int64)
    outside = asked[(asked < -size) | (asked >= size)]
    if len(outside):
        raise IndexError(f"no item {outside[0]}: the dataset has {size:,}, counted from 0")
    numbers = np.where(asked < 0, asked + size, asked)
    shard = np.searchsorted(edges, numbers, side="right")
    return shard, numbers - np.concatenate([[0], edges])[shard]
