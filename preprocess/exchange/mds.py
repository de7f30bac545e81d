"""Read and write the shards of MosaicML Streaming, MDS, which StreamingDataset and LLM Foundry read.

A folder has `index.json` and files `shard.00000.mds`. Such a file has the number of samples n, n + 1
offsets of samples in the file, the names and encodings of the columns as JSON, and the samples. The
numbers are uint32. A sample has the sizes of those columns that have no fixed size, uint32 each, and
then the columns. Here a sample is a document. Its column `tokens` is an array of int32, as in LLM
Foundry's converter, and for chats `labels` is one too: the ids, or NO_LABEL.

Layout: mosaicml/streaming, streaming/base/format/mds/writer.py and encodings.py.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.errors import FolioError
from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.parquet import NO_LABEL
from preprocess.exchange.tokens import iter_ends
from preprocess.shards.files import JsonObject
from preprocess.shards.format import SPLITS, Build
from preprocess.shards.loss_mask import unpack_mask

INDEX = "index.json"
TOKENS, LABELS = "tokens", "labels"
SHARD_BYTES = 1 << 26  # the default of MDSWriter; a longer document has a shard for itself
MAX_SHARD_BYTES = (1 << 32) - 1  # offsets are uint32
DIMENSION = 1 << 2  # in the first byte of an array: the number of dimensions; the rest: bytes of a length, as a power
LENGTH_DTYPES = ("<u1", "<u2", "<u4", "<u8")


def export_mds(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write each split of a build to a folder with `index.json` and shards of 64 MiB, and return all paths.

    Raises MisuseError like `prepare_output`, and FolioError if a document has no tokens or needs more
    than 4 GiB, or if the build is damaged.
    """
    columns = (LABELS, TOKENS) if build.has_masks else (TOKENS,)
    # The number of documents of each shard, by its path. The lengths are read again when a shard is written.
    plans = {
        split: {
            output / split / f"shard.{number:05}.mds": count
            for number, count in enumerate(_cut_shards(build, split, columns))
        }
        for split in SPLITS
    }
    plans = {split: shards for split, shards in plans.items() if shards}
    paths = [path for split, shards in plans.items() for path in (*shards, output / split / INDEX)]
    patterns = [f"{split}/{name}" for split in SPLITS for name in ("*.mds*", INDEX)]
    prepare_output(output, paths, patterns=patterns, replace=replace)
    with write_together() as new, build.reading():
        for split, shards in plans.items():
            lengths = itertools.chain.from_iterable(part.tolist() for part in _iter_lengths(build, split))
            documents, entries = _iter_documents(build, split), []
            for path, count in shards.items():
                sizes = _count_sample_bytes(np.fromiter(itertools.islice(lengths, count), np.int64, count), columns)
                with new.open(path) as file:
                    entries.append(_write_shard(file, path.name, columns, sizes, documents))
            with new.open(output / split / INDEX) as file:
                file.write(_dump({"version": 2, "shards": entries}))
    return paths


def _cut_shards(build: Build, split: str, columns: tuple[str, ...]) -> Iterator[int]:
    """Yield the number of documents of each shard, as MDSWriter cuts them."""
    header_bytes = 8 + len(_dump(_describe(columns)))
    lengths = np.empty(0, np.int64)
    for part in itertools.chain(_iter_lengths(build, split), [None]):
        lengths = lengths if part is None else np.concatenate([lengths, part])
        while len(lengths):
            ends = header_bytes + np.cumsum(_count_sample_bytes(lengths, columns) + 4)
            count = max(int(np.searchsorted(ends, SHARD_BYTES, side="right")), 1)
            if count == len(lengths) and part is not None:
                break  # the next documents may fit into the same shard
            if ends[count - 1] > MAX_SHARD_BYTES:
                raise FolioError(
                    f"{build.name} has a document of {int(lengths[0]):,} tokens, and a file of MDS has at most 4 GiB; "
                    "use another --format"
                )
            yield count
            lengths = lengths[count:]


def _iter_lengths(build: Build, split: str) -> Iterator[np.ndarray]:
    """Yield the lengths of the documents of a split: arrays (D,) int64. Raises FolioError if one is empty."""
    last = 0
    for ends in iter_ends(build, split):
        lengths = np.diff(ends, prepend=last)
        if len(lengths) and lengths.min() <= 0:
            raise FolioError(f"{build.name} has a document without tokens, which MDS cannot store; build it again")
        yield lengths
        last = int(ends[-1]) if len(ends) else last


def _count_sample_bytes(lengths: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
    """Return the size of the sample of each document with one of the `lengths`, (D,) int64."""
    length_bytes = np.select([lengths < 1 << 8, lengths < 1 << 16, lengths < 1 << 32], [1, 2, 4], 8)
    return np.asarray(len(columns) * (4 + 1 + length_bytes + 4 * lengths))


def _iter_documents(build: Build, split: str) -> Iterator[list[np.ndarray]]:
    """Yield the columns of each document of a split: arrays (L,) int32, `labels` before `tokens`."""
    for entry in build.manifest.splits[split].shards:
        shard, begin = build.map_shard(entry), 0
        for end in map(int, shard.ends):
            ids = shard.tokens[begin:end].astype("<i4")
            if not build.has_masks:
                yield [ids]
            else:
                counts = np.ones(len(ids), bool) if shard.mask is None else unpack_mask(shard.mask, begin, end)
                yield [np.where(counts, ids, np.int32(NO_LABEL)).astype("<i4"), ids]
            begin = end


def _write_shard(
    file: BinaryIO, name: str, columns: tuple[str, ...], sizes: np.ndarray, documents: Iterator[list[np.ndarray]]
) -> JsonObject:
    """Write a shard with samples of these `sizes` in bytes, (D,), and return its entry in the index."""
    description = _describe(columns)
    config = _dump(description)
    first = 4 + 4 * (len(sizes) + 1) + len(config)
    offsets = first + np.cumsum(np.concatenate([[0], sizes]))
    header = np.array([len(sizes)], "<u4").tobytes() + offsets.astype("<u4").tobytes() + config
    samples = map(_encode_sample, itertools.islice(documents, len(sizes)))
    digest, num_bytes = hashlib.sha256(), 0
    for part in itertools.chain([header], itertools.chain.from_iterable(samples)):
        digest.update(part)
        num_bytes += file.write(part)
    assert num_bytes == offsets[-1]
    raw = {"basename": name, "bytes": num_bytes, "hashes": {"sha256": digest.hexdigest()}}
    return description | {"samples": len(sizes), "raw_data": raw, "zip_data": None}


def _encode_sample(columns: list[np.ndarray]) -> Iterator[bytes | memoryview]:
    """Yield the parts of a sample. A document may be long, so its ids are not copied."""
    headers = [_encode_header(len(column)) for column in columns]
    yield np.array([len(each) + column.nbytes for each, column in zip(headers, columns, strict=True)], "<u4").tobytes()
    for header, column in zip(headers, columns, strict=True):
        yield header
        yield column.data


def _encode_header(length: int) -> bytes:
    """Return what precedes the values of an array (`length`,): its number of dimensions and its length."""
    code = next(i for i, dtype in enumerate(LENGTH_DTYPES) if length < 1 << (8 * np.dtype(dtype).itemsize))
    return bytes([DIMENSION | code]) + np.array([length], LENGTH_DTYPES[code]).tobytes()


def _describe(columns: tuple[str, ...]) -> JsonObject:
    return {
        "version": 2, "format": "mds", "compression": None, "hashes": ["sha256"], "size_limit": SHARD_BYTES,
        "column_names": [*columns], "column_encodings": ["ndarray:int32"] * len(columns),
        "column_sizes": [None] * len(columns),
    }  # fmt: skip


def _dump(value: JsonObject) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
