"""Write shards: files of their final size, which several processes fill at known offsets.

A build knows the length of every document before it writes the first token, so it knows in which
shard and at which offset each document goes. `create_shard` creates the files at full size, and
workers then write their documents into the same files without locks and in any order, each at its
offset (`write_documents`). The bytes do not depend on the order. Because the space is reserved
first, a disk that is too small is noticed before the documents are written.

The manifest needs a hash of each file. Hashing after the last write would read every byte again
from the disk. So `ShardSealer` hashes the complete part of a file while workers write the rest and
its bytes are still in the operating system's cache. It also flushes the file to the disk in the
background, so that little is left to hash or flush at the end. The cost is one sequential read of
cached files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.errors import FolioError
from preprocess.shards.files import HASH_CHUNK_BYTES
from preprocess.shards.format import END_DTYPE, file_sizes, token_dtype
from preprocess.shards.loss_mask import UNPACKED_SUFFIX, pack_mask
from preprocess.shards.manifest import ShardEntry

MAX_SHARDS = 100_000  # file names have five digits
MIN_FLUSH_BYTES = 16 << 20  # written since the last flush in the background


@dataclass(frozen=True)
class ShardPlan:
    """The name and the final size of a shard that is to be written."""

    split: str
    number: int
    num_tokens: int
    num_documents: int
    has_mask: bool = False  # whether it has a loss mask

    def path(self, folder: Path, suffix: str) -> Path:
        """Return the path of the shard's file with `suffix`, such as "bin", in `folder`."""
        return folder / f"{self.split}-{self.number:05d}.{suffix}"

    def sizes(self, vocab_size: int) -> dict[str, int]:
        """Return the size in bytes of each file, by suffix."""
        dtype = np.dtype(token_dtype(vocab_size))
        return file_sizes(self.num_tokens, self.num_documents, dtype, has_mask=self.has_mask)

    def sizes_while_written(self, vocab_size: int) -> dict[str, int]:
        """Return the size in bytes of each file that `write_documents` fills, by suffix."""
        dtype = np.dtype(token_dtype(vocab_size))
        sizes = file_sizes(self.num_tokens, self.num_documents, dtype)
        return sizes | {UNPACKED_SUFFIX: self.num_tokens} if self.has_mask else sizes


def cut_shards(lengths: np.ndarray, num_tokens: int, shard_tokens: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (first, last, is_full) for each shard: it gets the documents first … last − 1 of D.

    A shard is full after the first document with which it has `shard_tokens` or more tokens; the
    last shard may not be full. `lengths`: (D,), tokens of each document. `num_tokens`: the number
    of tokens that the first shard already has.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    first = 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, begin + shard_tokens - num_tokens, side="left")) + 1
        yield first, min(last, len(ends)), last <= len(ends)
        first, num_tokens = last, 0


def create_shard(folder: Path, plan: ShardPlan, *, vocab_size: int) -> None:
    """Create the files of a shard at their final size, filled with zeros.

    Raises FolioError if the number of the shard has more than five digits, and OSError if the disk
    is too small (on systems without `os.posix_fallocate`, only a later write notices that).
    """
    if plan.number >= MAX_SHARDS:
        raise FolioError(
            f"the {plan.split} split needs more than {MAX_SHARDS:,} shards, the maximum; pass a larger --shard-tokens"
        )
    for suffix, size_bytes in plan.sizes_while_written(vocab_size).items():
        with open(plan.path(folder, suffix), "wb") as file:
            if hasattr(os, "posix_fallocate") and size_bytes:
                os.posix_fallocate(file.fileno(), 0, size_bytes)  # fails now if the disk is too small
            file.truncate(size_bytes)


@dataclass(frozen=True)
class EncodedDocuments:
    """D complete documents with N tokens in total."""

    ids: np.ndarray  # (N,) of any unsigned dtype
    ends: np.ndarray  # (D,), exclusive end of each document in `ids`
    docs: np.ndarray  # (D,) of DOC_DTYPE
    mask: np.ndarray | None = None  # (N,) bool, the loss mask, if the shard has one


@dataclass(frozen=True)
class WriteOffset:
    """A position in a shard, as the number of tokens and documents before it."""

    num_tokens: int
    num_documents: int


def write_documents(
    folder: Path, plan: ShardPlan, offset: WriteOffset, documents: EncodedDocuments, *, vocab_size: int
) -> int:
    """Write complete documents at `offset`, and return their largest id, −1 if there are no tokens.

    Raises ValueError for an id outside the vocabulary and for arrays whose lengths do not match, and
    OSError with the path if writing fails.
    """
    ids, ends, docs, mask = documents.ids, documents.ends, documents.docs, documents.mask
    if len(ends) != len(docs) or (len(ends) and int(ends[-1]) != len(ids)) or (not len(ends) and len(ids)):
        raise ValueError(f"the lengths of {len(ids)} ids, {len(ends)} ends and {len(docs)} documents do not match")
    if (len(mask) if mask is not None else None) != (len(ids) if plan.has_mask else None):
        raise ValueError(f"the loss mask does not match {len(ids)} ids")
    max_id = int(ids.max()) if len(ids) else -1
    if max_id >= vocab_size:
        raise ValueError(f"id {max_id} is outside the vocabulary of {vocab_size}")
    columns = {
        "bin": (ids.astype(token_dtype(vocab_size), copy=False), offset.num_tokens),
        "ends": (ends.astype(END_DTYPE) + np.asarray(offset.num_tokens, END_DTYPE), offset.num_documents),
        "docs": (docs, offset.num_documents),
    }
    if mask is not None:
        columns[UNPACKED_SUFFIX] = (mask, offset.num_tokens)
    for suffix, (array, num_before) in columns.items():
        path = plan.path(folder, suffix)
        try:
            with open(path, "r+b") as file:
                file.seek(num_before * array.dtype.itemsize)
                file.write(np.ascontiguousarray(array).view(np.uint8).data)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(path)) from e  # the error of a write has no file name
    return max_id


class ShardSealer:
    """Hashes a shard's files while they are being written and flushes them to the disk.

    `finish` returns the shard's entry in the manifest.
    """

    def __init__(self, folder: Path, plan: ShardPlan, *, vocab_size: int) -> None:
        self._folder, self._plan, self._dtype = folder, plan, np.dtype(token_dtype(vocab_size))
        self._paths = {suffix: plan.path(folder, suffix) for suffix in ("bin", "ends", "docs")}
        self._digests = {suffix: hashlib.sha256() for suffix in self._paths}
        self._num_hashed = dict.fromkeys(self._paths, 0)  # bytes
        self._num_flushed = 0  # bytes of .bin
        self._flusher = ThreadPoolExecutor(len(self._paths))
        self._flushing: Future[None] | None = None

    def advance(self, num_tokens: int, num_documents: int) -> None:
        """Hash the first `num_tokens` tokens and `num_documents` documents, which must be written.

        The part that an earlier call has hashed is not read again.
        """
        for suffix, end in file_sizes(num_tokens, num_documents, self._dtype).items():
            with open(self._paths[suffix], "rb") as file:
                file.seek(self._num_hashed[suffix])
                while (num_left := end - self._num_hashed[suffix]) > 0 and (
                    chunk := file.read(min(HASH_CHUNK_BYTES, num_left))
                ):
                    self._digests[suffix].update(chunk)
                    self._num_hashed[suffix] += len(chunk)
        is_flushing = self._flushing is not None and not self._flushing.done()
        if not is_flushing and self._num_hashed["bin"] - self._num_flushed >= MIN_FLUSH_BYTES:
            self._check_flushing()
            self._num_flushed = self._num_hashed["bin"]
            self._flushing = self._flusher.submit(_sync, self._paths["bin"])

    def finish(self, max_id: int) -> ShardEntry:
        """Hash the rest, flush the files, and return the shard's entry in the manifest.

        `max_id`: the largest id that was written to the shard, −1 if it has no tokens.
        """
        self.advance(self._plan.num_tokens, self._plan.num_documents)
        with self._flusher:
            list(self._flusher.map(_sync, self._paths.values()))  # at once: the disk commits them together
        self._check_flushing()
        mask_sha256, loss_tokens = None, None
        if self._plan.has_mask:
            unpacked, packed = self._plan.path(self._folder, UNPACKED_SUFFIX), self._plan.path(self._folder, "mask")
            mask_sha256, loss_tokens = pack_mask(unpacked, packed)
        return ShardEntry(
            file=self._paths["bin"].name,
            tokens=self._plan.num_tokens,
            documents=self._plan.num_documents,
            max_id=max_id,
            bytes=self._plan.num_tokens * self._dtype.itemsize,
            sha256=self._digests["bin"].hexdigest(),
            ends_sha256=self._digests["ends"].hexdigest(),
            docs_sha256=self._digests["docs"].hexdigest(),
            mask_sha256=mask_sha256,
            loss_tokens=loss_tokens,
        )

    def _check_flushing(self) -> None:
        """Raise the error of the last flush in the background. The system reports an error of the disk only once."""
        if self._flushing is not None:
            self._flushing.result()


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
