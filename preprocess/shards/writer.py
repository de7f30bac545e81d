"""Writes shards: at their full size from the start, so that several processes may fill one, each in its own places.

The size of every shard is known before the first token is written, as the lengths of all documents are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.errors import FolioError
from preprocess.shards.files import HASH_CHUNK_BYTES
from preprocess.shards.format import END_DTYPE, file_sizes, token_dtype

MAX_SHARDS = 100_000  # five digits in the name


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: which one, and how large."""

    split: str
    number: int
    num_tokens: int
    num_documents: int

    def path(self, folder: Path, suffix: str) -> Path:
        return folder / f"{self.split}-{self.number:05d}.{suffix}"

    def sizes(self, vocab_size: int) -> dict[str, int]:
        """Bytes of its files, by suffix."""
        return file_sizes(self.num_tokens, self.num_documents, np.dtype(token_dtype(vocab_size)))


def cut_shards(lengths: np.ndarray, fill: int, shard_tokens: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of documents, first and exclusive last, that go to one shard, and whether they fill it.

    `lengths`: (D,) tokens of each document. `fill`: tokens in the shard already. A shard ends at the first document's end at which it
    holds `shard_tokens` or more.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    first = 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, begin + shard_tokens - fill, side="left")) + 1
        yield first, min(last, len(ends)), last <= len(ends)
        first, fill = last, 0


def create_shard(folder: Path, plan: ShardPlan, *, vocab_size: int) -> None:
    """Make the files of a shard at their full size. Raises FolioError where there are more than names for them."""
    if plan.number >= MAX_SHARDS:
        raise FolioError(f"{MAX_SHARDS:,} shards of {plan.split} are full; pass a larger --shard-tokens")
    for suffix, size_bytes in plan.sizes(vocab_size).items():
        with open(plan.path(folder, suffix), "wb") as file:
            if hasattr(os, "posix_fallocate") and size_bytes:
                os.posix_fallocate(file.fileno(), 0, size_bytes)  # a disk that is too small shows now, not half-way
            file.truncate(size_bytes)


@dataclass(frozen=True)
class WriteOffset:
    """Where in a shard something is to be written: so many tokens and documents come before it."""

    num_tokens: int
    num_documents: int


def write_documents(
    folder: Path,
    plan: ShardPlan,
    place: WriteOffset,
    ids: np.ndarray,
    ends: np.ndarray,
    docs: np.ndarray,
    *,
    vocab_size: int,
) -> int:
    """Write whole documents at their place, and return their largest id, −1 for none.

    `ids`: (N,) any unsigned dtype, flat. `ends`: (D,) exclusive end of each document in `ids`. `docs`: (D,) of DOC_DTYPE.
    Raises ValueError for an id outside the vocabulary, or for what does not belong together, OSError when the disk is full.
    """
    if len(ends) != len(docs) or (len(ends) and int(ends[-1]) != len(ids)) or (not len(ends) and len(ids)):
        raise ValueError(f"{len(ids)} ids, {len(ends)} ends and {len(docs)} documents do not belong together")
    max_id = int(ids.max()) if len(ids) else -1
    if max_id >= vocab_size:
        raise ValueError(f"id {max_id} is outside the vocabulary of {vocab_size}")
    columns = {
        "bin": (ids.astype(token_dtype(vocab_size), copy=False), place.num_tokens),
        "ends": (ends.astype(END_DTYPE) + np.asarray(place.num_tokens, END_DTYPE), place.num_documents),
        "docs": (docs, place.num_documents),
    }
    for suffix, (array, offset) in columns.items():
        path = plan.path(folder, suffix)
        try:
            with open(path, "r+b") as file:
                file.seek(offset * array.dtype.itemsize)
                file.write(np.ascontiguousarray(array).view(np.uint8).data)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(path)) from e  # a write's own error does not say which disk
    return max_id


class ShardSealer:
    """Hashes a shard's files, as far as they are written, and makes them durable; `finish` gives the manifest's entry."""

    def __init__(self, folder: Path, plan: ShardPlan, *, vocab_size: int) -> None:
        self._plan, self._dtype = plan, np.dtype(token_dtype(vocab_size))
        self._paths = {suffix: plan.path(folder, suffix) for suffix in plan.sizes(vocab_size)}
        self._digests = {suffix: hashlib.sha256() for suffix in self._paths}
        self._done = dict.fromkeys(self._paths, 0)
        # The disk is kept busy while segments are still being written: at the end there is little left to wait for.
        self._flusher = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None

    def advance(self, num_tokens: int, num_documents: int) -> None:
        """Hash up to so many tokens and documents, which are written."""
        for suffix, upto in file_sizes(num_tokens, num_documents, self._dtype).items():
            with open(self._paths[suffix], "rb") as file:
                file.seek(self._done[suffix])
                while self._done[suffix] < upto and (
                    chunk := file.read(min(HASH_CHUNK_BYTES, upto - self._done[suffix]))
                ):
                    self._digests[suffix].update(chunk)
                    self._done[suffix] += len(chunk)
        if self._flushing is None or self._flushing.done():
            self._flushing = self._flusher.submit(_sync, self._paths["bin"])

    def finish(self, max_id: int) -> dict[str, Any]:
        """Hash the rest, sync all, and return the shard's entry in the manifest. `max_id`: of all that was written."""
        self.advance(self._plan.num_tokens, self._plan.num_documents)
        self._flusher.shutdown()
        for path in self._paths.values():
            _sync(path)
        return {
            "file": self._paths["bin"].name,
            "tokens": self._plan.num_tokens,
            "documents": self._plan.num_documents,
            "max_id": max_id,
            "bytes": self._plan.num_tokens * self._dtype.itemsize,
            "sha256": self._digests["bin"].hexdigest(),
            "ends_sha256": self._digests["ends"].hexdigest(),
            "docs_sha256": self._digests["docs"].hexdigest(),
        }


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
