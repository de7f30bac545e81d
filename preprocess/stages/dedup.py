"""Hashes that identify the contents and the groups of documents.

The problem: duplicates can be anywhere in a corpus. For a billion documents, the texts do not fit
into memory, and comparing all pairs of texts would take too long.

The idea: two documents are duplicates if the 128-bit hashes of their cleaned UTF-8 bytes are equal.
The probability that n different texts contain a collision is about n² / 2¹²⁹: 10⁻²¹ for a billion
documents (with 64 bits it would be 3 %). The hashes are compared on disk, in buckets, after all
partitions are read (build/dedup_and_split.py).

A group is a set of documents that must be on one side of the split, such as the translations of one
sentence: if one of them is used for training, the validation loss of the other is too low. A group
is identified by a hash too. A document without a group is grouped by its content, so that equal
documents are on one side even if duplicates are kept.

The cost: 32 bytes per document, 16 for each hash.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

from preprocess.documents import get_text_buffers
from preprocess.recipes.schema import Recipe


def hash128(chunks: Iterable[bytes | memoryview], num_chunks: int) -> np.ndarray:
    """Return the 128-bit XXH3 hash of each chunk, in its canonical big-endian form.

    Returns (num_chunks, 16) uint8.
    """
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, chunks)), np.uint8).reshape(num_chunks, 16)


def hash_contents(texts: pa.LargeStringArray) -> np.ndarray:
    """Return the hash of each text's UTF-8 bytes: (D, 16) uint8, as stored in `.docs` files."""
    data, offsets = get_text_buffers(texts)
    view = np.ascontiguousarray(data).data
    return hash128((view[start:end] for start, end in itertools.pairwise(offsets.tolist())), len(texts))


def hash_group_names(groups: pa.StringArray, hashes: np.ndarray) -> np.ndarray:
    """Return the hash of each document's group name, (D, 16) uint8.

    A document without a group keeps its content hash from `hashes`, (D, 16).
    """
    group_hashes = hashes.copy()
    named = np.flatnonzero(groups.is_valid().to_numpy(zero_copy_only=False))
    if len(named):
        # With the prefix, the hash of a name differs from that of a document with the same text.
        names = groups.take(pa.array(named)).to_pylist()
        group_hashes[named] = hash128((b"group\0" + name.encode() for name in names), len(named))
    return group_hashes


def hash_groups(batch: pa.RecordBatch, hashes: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the hash of each document's group as `recipe.group_by` defines it: (D, 16) uint8.

    `hashes` are the content hashes of the documents, (D, 16).
    """
    if recipe.group_by == "position":
        positions = batch.column("position").to_pylist()
        return hash128((b"position\0%d" % position for position in positions), len(positions))
    return hash_group_names(batch.column("group"), hashes)


def to_uint64_halves(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the high and the low halves of hashes, (N, 16) uint8, as two arrays (N,) uint64.

    The pairs (high, low) sort in the order of the bytes.
    """
    halves = np.ascontiguousarray(hashes).view(">u8").reshape(-1, 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)
