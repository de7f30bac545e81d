"""Content hashes, and which of several equal documents stays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

from preprocess.documents import text_buffers


def hash128(chunks: Iterable[bytes | memoryview], num_chunks: int) -> np.ndarray:
    """XXH3's 128-bit hash of each chunk, big-endian as its specification prints it: (num_chunks, 16) uint8."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, chunks)), np.uint8).reshape(num_chunks, 16)


def content_hashes(texts: pa.LargeStringArray) -> np.ndarray:
    """The hash of each cleaned text's UTF-8 bytes: (D, 16) uint8, as `.docs` stores it."""
    data, borders = text_buffers(texts)
    view = np.ascontiguousarray(data).data
    edges = borders.tolist()
    return hash128((view[a:b] for a, b in itertools.pairwise(edges)), len(texts))


def group_keys(groups: pa.StringArray, hashes: np.ndarray) -> np.ndarray:
    """What the split goes by: the hash of each document's group, or of its content where it has none: (D, 2) uint64."""
    keys = hashes.copy()
    named = np.flatnonzero(groups.is_valid().to_numpy(zero_copy_only=False))
    if len(named):
        # A group's name never equals a content hash by being some document's text: it is hashed under a prefix.
        names = groups.take(pa.array(named)).to_pylist()
        keys[named] = hash128((b"group\0" + name.encode() for name in names), len(named))
    return np.ascontiguousarray(keys).view(">u8").astype(np.uint64)


def first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """True where no earlier row has the same hash: (D,) bool for (D, 16) uint8."""
    pairs = np.ascontiguousarray(hashes).view(np.uint64)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: equal hashes stay in order of position
    ranked = pairs[order]
    first = np.ones(len(hashes), bool)
    first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    keep = np.empty(len(hashes), bool)
    keep[order] = first
    return keep
