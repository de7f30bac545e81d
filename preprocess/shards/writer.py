"""Writes the shards of a split, hashing as it goes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from preprocess.errors import FolioError
from preprocess.shards.format import END_DTYPE, token_dtype

MAX_SHARDS = 100_000  # five digits in the name


class _HashedFile:
    """A file that is hashed while it is written, so that sealing reads nothing back."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 (closed by finish or abandon)
        self._digest = hashlib.sha256()

    def write(self, data: np.ndarray) -> None:
        view = np.ascontiguousarray(data).view(np.uint8).data
        try:
            self._file.write(view)
        except OSError as e:
            raise OSError(e.errno, e.strerror, self._file.name) from e  # a write's own error does not say which disk
        self._digest.update(view)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        self._file.close()


class ShardWriter:
    """Writes the shards of one split: tokens, ends and document table, hashed as they go.

    A context manager: leaving it by an exception closes the files and records nothing. `finish` returns the
    manifest's entry of the split. A shard ends at the first document's end at which it holds `shard_tokens` or more.
    """

    def __init__(self, folder: Path, split: str, *, vocab_size: int, shard_tokens: int) -> None:
        self._folder, self._split, self._vocab_size, self._shard_tokens = folder, split, vocab_size, shard_tokens
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._shards: list[dict[str, Any]] = []
        self._files: dict[str, _HashedFile] = {}
        self._text_bytes = self._tokens = self._documents = 0
        self._max_id = -1

    def append(self, ids: np.ndarray, ends: np.ndarray, docs: np.ndarray, *, text_bytes: int) -> None:
        """Add whole documents.

        `ids`: (N,) any unsigned dtype, flat. `ends`: (D,) exclusive end of each document in `ids`.
        `docs`: (D,) of DOC_DTYPE. `text_bytes`: UTF-8 bytes of the documents' cleaned text.
        Raises ValueError for an id outside the vocabulary, OSError when the disk is full, FolioError when there are too many shards.
        """
        if len(ends) != len(docs) or (len(ends) and int(ends[-1]) != len(ids)) or (not len(ends) and len(ids)):
            raise ValueError(f"{len(ids)} ids, {len(ends)} ends and {len(docs)} documents do not belong together")
        if len(ids) and int(ids.max()) >= self._vocab_size:
            raise ValueError(f"id {int(ids.max())} is outside the vocabulary of {self._vocab_size}")
        self._text_bytes += text_bytes
        first = 0
        while first < len(ends):
            begin = int(ends[first - 1]) if first else 0
            # The shard is full at the first end that takes it to shard_tokens: that document is its last.
            room = self._shard_tokens - self._tokens
            last = min(int(np.searchsorted(ends, begin + room, side="left")), len(ends) - 1)
            self._write(ids[begin : int(ends[last])], ends[first : last + 1] - begin, docs[first : last + 1])
            if self._tokens >= self._shard_tokens:
                self._close_shard()
            first = last + 1

    def _write(self, ids: np.ndarray, ends: np.ndarray, docs: np.ndarray) -> None:
        if not self._files:
            if len(self._shards) == MAX_SHARDS:
                raise FolioError(
                    f"{MAX_SHARDS:,} shards of {self._split} are full; pass a larger --shard-tokens than {self._shard_tokens:,}"
                )
            stem = f"{self._split}-{len(self._shards):05d}"
            for suffix in ("bin", "ends", "docs"):
                self._files[suffix] = _HashedFile(self._folder / f"{stem}.{suffix}")
        self._files["bin"].write(ids.astype(self._dtype, copy=False))
        self._files["ends"].write((ends.astype(END_DTYPE) + np.uint64(self._tokens)).astype(END_DTYPE))
        self._files["docs"].write(docs)
        self._tokens += len(ids)
        self._documents += len(ends)
        self._max_id = max(self._max_id, int(ids.max()) if len(ids) else -1)

    def _close_shard(self) -> None:
        hashes = {suffix: file.finish() for suffix, file in self._files.items()}
        self._shards.append(
            {
                "file": f"{self._split}-{len(self._shards):05d}.bin",
                "tokens": self._tokens,
                "documents": self._documents,
                "max_id": self._max_id,
                "bytes": self._tokens * self._dtype.itemsize,
                "sha256": hashes["bin"],
                "ends_sha256": hashes["ends"],
                "docs_sha256": hashes["docs"],
            }
        )
        self._files, self._tokens, self._documents, self._max_id = {}, 0, 0, -1

    def finish(self) -> dict[str, Any]:
        """Close the last shard and return `splits.<split>` of the manifest."""
        if self._files:
            self._close_shard()
        return {
            "tokens": sum(s["tokens"] for s in self._shards),
            "documents": sum(s["documents"] for s in self._shards),
            "text_bytes": self._text_bytes,
            "shards": self._shards,
        }

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.abandon()
