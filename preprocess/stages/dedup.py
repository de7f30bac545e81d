"""Hashes of what documents and groups are, by which equal ones are known."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

from preprocess.documents import text_buffers
from preprocess.recipes.schema import Recipe


def hash128(chunks: Iterable[bytes | memoryview], num_chunks: int) -> np.ndarray:
    """XXH3's 128-bit hash of each chunk, big-endian as its specification prints it: (num_chunks, 16) uint8."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, chunks)), np.uint8).reshape(num_chunks, 16)


def content_hashes(texts: pa.LargeStringArray) -> np.ndarray:
    """The hash of each cleaned text's UTF-8 bytes: (D, 16) uint8, as `.docs` stores it."""
    data, boundaries = text_buffers(texts)
    view = np.ascontiguousarray(data).data
    edges = boundaries.tolist()
    return hash128((view[a:b] for a, b in itertools.pairwise(edges)), len(texts))


def group_hashes(groups: pa.StringArray, hashes: np.ndarray) -> np.ndarray:
    """What the split goes by: the hash of each document's group, or of its content where it has none: (D, 16) uint8."""
    keys = hashes.copy()
    named = np.flatnonzero(groups.is_valid().to_numpy(zero_copy_only=False))
    if len(named):
        # A group's name never equals a content hash by being some document's text: it is hashed under a prefix.
        names = groups.take(pa.array(named)).to_pylist()
        keys[named] = hash128((b"group\0" + name.encode() for name in names), len(named))
    return keys


def groups_of(batch: pa.RecordBatch, hashes: np.ndarray, recipe: Recipe) -> np.ndarray:
    """What may not straddle the split, as (D, 16) uint8: the hash of each document's group. `hashes`: of their contents, (D, 16)."""
    if recipe.group_by == "position":
        positions = batch.column("position").to_pylist()
        return hash128((b"position\0%d" % position for position in positions), len(positions))
    return group_hashes(batch.column("group"), hashes)


def two_halves(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 16) uint8 as two (N,) u8 that order as the bytes do."""
    halves = np.ascontiguousarray(hashes).view(">u8").reshape(-1, 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)
