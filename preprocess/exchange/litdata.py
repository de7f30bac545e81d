"""Write the chunks of LitData, which `StreamingDataset(…, item_loader=TokensLoader(block_size=…))` reads.

A folder has `index.json` and files `chunk-0-0.bin`. Such a file has the number of items n, n + 1 offsets
of items in the file, and the items. The numbers are uint32. Here an item is a document: its ids without a
header. TokensLoader does not read the offsets. It cuts the ids of a chunk into blocks of equal length, and
leaves out the rest of the last one.

Layout: Lightning-AI/litData, streaming/writer.py, streaming/item_loader.py and constants.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.errors import MisuseError
from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.tokens import CHUNK_DOCUMENTS, write_array
from preprocess.shards.files import JsonObject
from preprocess.shards.format import SPLITS, Build
from preprocess.shards.manifest import ShardEntry

INDEX = "index.json"
MAX_CHUNK_BYTES = (1 << 32) - 1  # offsets are uint32
DTYPE_CODES = {"<u2": 20, "<u4": 16}  # torch.uint16 and torch.int32 (ids are below 2³¹)
LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'  # how PyTorch describes an item that is a tensor


def export_litdata(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write each split of a build to a folder with `index.json` and a chunk for each shard, and return all paths.

    Raises MisuseError if a shard needs more than 4 GiB, or like `prepare_output`, and FolioError if the
    build is damaged.
    """
    chunks = {
        split: {
            output / split / f"chunk-0-{number}.bin": entry
            for number, entry in enumerate(build.manifest.splits[split].shards)
        }
        for split in SPLITS
    }
    chunks = {split: entries for split, entries in chunks.items() if entries}
    for entry in (entry for entries in chunks.values() for entry in entries.values()):
        if _count_bytes(build, entry) > MAX_CHUNK_BYTES:
            raise MisuseError(
                f"{entry.file} of {build.name} has {entry.tokens:,} tokens, and a chunk of LitData has at most 4 GiB; "
                "build it again with a smaller --shard-tokens"
            )
    paths = [path for split, entries in chunks.items() for path in (*entries, output / split / INDEX)]
    patterns = [f"{split}/{name}" for split in SPLITS for name in ("chunk-*.bin", INDEX)]
    prepare_output(output, paths, patterns=patterns, replace=replace)
    with write_together() as new, build.reading():
        for split, entries in chunks.items():
            for path, entry in entries.items():
                with new.open(path) as file:
                    _write_chunk(file, build, entry)
            with new.open(output / split / INDEX) as file:
                file.write(json.dumps(_make_index(build, entries), sort_keys=True).encode())
    return paths


def _count_header_bytes(entry: ShardEntry) -> int:
    return 4 * (1 + entry.documents + 1)


def _count_bytes(build: Build, entry: ShardEntry) -> int:
    return _count_header_bytes(entry) + entry.tokens * build.dtype.itemsize


def _write_chunk(file: BinaryIO, build: Build, entry: ShardEntry) -> None:
    shard, first = build.map_shard(entry), _count_header_bytes(entry)
    file.write(np.array([entry.documents, first], "<u4").tobytes())
    for start in range(0, entry.documents, CHUNK_DOCUMENTS):
        ends = shard.ends[start : start + CHUNK_DOCUMENTS].astype(np.int64)
        file.write((first + ends * build.dtype.itemsize).astype("<u4").tobytes())
    write_array(file, shard.tokens)


def _make_index(build: Build, chunks: dict[Path, ShardEntry]) -> JsonObject:
    entries = [
        {
            "filename": path.name,
            "chunk_size": entry.documents,
            "chunk_bytes": _count_bytes(build, entry),
            "dim": entry.tokens,
        }
        for path, entry in chunks.items()
    ]
    config = {
        "compression": None,
        "chunk_size": None,
        "chunk_bytes": max(_count_bytes(build, entry) for entry in chunks.values()),
        "data_format": [f"no_header_tensor:{DTYPE_CODES[build.dtype.str]}"],
        "data_spec": LEAF,
        "encryption": None,
        "item_loader": "TokensLoader",
    }
    return {"chunks": entries, "config": config}
