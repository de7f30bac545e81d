"""Find the texts that are in both splits of a build, which would make the validation loss too low.

The documents of a build are identified by the hash of their text in `.docs`, so no token is read.

The problem: the hashes of a large build do not fit into memory.

The idea: hashes are uniformly distributed, so they are divided into ranges such that the distinct
validation hashes of one range fit into memory. For each range, the hashes of the validation
documents are collected and sorted, and those of the training documents are looked up in them.

The cost: one pass over the `.docs` files per range. A validation split of up to MAX_HASHES
documents has one range. Uses NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.shards.format import Build

MAX_HASHES = 2_000_000  # hashes of validation documents that are in memory at once, 16 bytes each
CHUNK_DOCUMENTS = 1 << 17  # read at once
MAX_EXAMPLES = 5
# The halves of a content hash, as big-endian numbers, which sort like the bytes.
HASH_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8")])


@dataclass(frozen=True)
class Location:
    """The location of a document, the first one of its split with a certain text."""

    split: str
    shard: str  # the name of its .bin file
    document: int  # its number in the split, as `Build.document` counts


@dataclass(frozen=True)
class Leaks:
    """The texts that are in both splits of a build."""

    num_texts: int  # distinct texts
    examples: list[tuple[Location, Location]]  # of up to MAX_EXAMPLES texts: the location in train and in val


def count_leaks(build: Build) -> Leaks:
    """Return how many distinct texts are in both splits of `build`, with examples.

    Reads every `.docs` file, 32 bytes per document. Needs about 150 MB of memory for a build of any
    size.
    """
    num_ranges = -(-build.manifest.splits["val"].documents // MAX_HASHES)
    num_texts, examples = 0, np.empty(0, HASH_DTYPE)
    for number in range(num_ranges):
        leaked = _find_leaked(build, number, num_ranges)
        num_texts += len(leaked)
        examples = np.concatenate([examples, leaked[: MAX_EXAMPLES - len(examples)]])
    locations = [_locate(build, split, examples) for split in ("train", "val")]
    return Leaks(num_texts, list(zip(*locations, strict=True)))


def _find_leaked(build: Build, number: int, num_ranges: int) -> np.ndarray:
    """Return the hashes in range `number` that are in both splits: (L,) of HASH_DTYPE, sorted."""
    val = np.empty(0, HASH_DTYPE)
    pending: list[np.ndarray] = []
    for _, _, hashes in _read_hashes(build, "val"):
        pending.append(hashes[_number_ranges(hashes, num_ranges) == number])
        if sum(map(len, pending)) >= MAX_HASHES:  # remove repeated hashes: a text may occur any number of times
            val, pending = _sort_distinct(np.concatenate([val, *pending])), []
    val = _sort_distinct(np.concatenate([val, *pending]))
    is_leaked = np.zeros(len(val), bool)
    for _, _, hashes in _read_hashes(build, "train") if len(val) else ():
        indices = _find(val, hashes)
        is_leaked[indices[indices >= 0]] = True
    return val[is_leaked]


def _number_ranges(hashes: np.ndarray, num_ranges: int) -> np.ndarray:
    """Return the number of the range that each of (D,) hashes is in: (D,) uint64."""
    number: np.ndarray = (hashes["high"] >> np.uint64(32)) * np.uint64(num_ranges) >> np.uint64(32)
    return number


def _read_hashes(build: Build, split: str) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield the hashes of all documents of `split` in chunks, as (shard, first, hashes).

    `shard` is the name of the shard's .bin file, `first` the number of the chunk's first document
    in the split, `hashes` is (D,) of HASH_DTYPE.
    """
    first = 0
    for entry in build.manifest.splits[split].shards:
        for docs in build.iter_docs(entry, CHUNK_DOCUMENTS):
            halves = np.ascontiguousarray(docs["hash"]).view(">u8").reshape(-1, 2)
            hashes = np.empty(len(docs), HASH_DTYPE)
            hashes["high"], hashes["low"] = halves[:, 0], halves[:, 1]
            yield entry.file, first, hashes
            first += len(docs)


def _sort_distinct(hashes: np.ndarray) -> np.ndarray:
    """Return the distinct values of `hashes`, (N,) of HASH_DTYPE, in ascending order."""
    hashes = hashes[np.lexsort((hashes["low"], hashes["high"]))]
    is_new = np.ones(len(hashes), bool)
    is_new[1:] = hashes[1:] != hashes[:-1]
    return hashes[is_new]


def _find(sorted_hashes: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return the index of each of (D,) hashes in (N,) distinct sorted hashes: (D,) int64.

    It is -1 if the hash is missing.
    """
    highs = np.ascontiguousarray(sorted_hashes["high"])
    indices = np.searchsorted(highs, hashes["high"])
    # Different texts hardly ever share the upper 64 bits. If they do, try the next entries for the lower 64 bits.
    while True:
        is_inside = indices < len(highs)
        found = sorted_hashes[np.where(is_inside, indices, 0)]
        has_other_low = is_inside & (found["high"] == hashes["high"]) & (found["low"] != hashes["low"])
        if not has_other_low.any():
            return np.where(is_inside & (found == hashes), indices, -1)
        indices += has_other_low


def _locate(build: Build, split: str, wanted: np.ndarray) -> list[Location]:
    """Return the first document of `split` with each of the hashes `wanted`. All must occur there."""
    locations: dict[int, Location] = {}  # by index in `wanted`; -1 is any other hash
    for shard, first, hashes in _read_hashes(build, split) if len(wanted) else ():
        found, rows = np.unique(_find(wanted, hashes), return_index=True)
        for index, row in zip(found.tolist(), rows.tolist(), strict=True):
            locations.setdefault(index, Location(split, shard, first + row))
        if all(index in locations for index in range(len(wanted))):
            break
    return [locations[index] for index in range(len(wanted))]
