"""Export a build to the tokenized files of datatrove, which nanotron and DatatroveFolderDataset read.

`.ds` has the tokens without a header, and `.ds.index` the exclusive end of each document in tokens.
A build with chats also gets `.ds.loss`: one byte per token, 1 if a model is trained to predict it.

Layout: datatrove, src/datatrove/pipeline/tokens/tokenizer.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.exchange.output import check_no_leftovers, check_output, write_together
from preprocess.exchange.tokens import CHUNK_TOKENS, write_array
from preprocess.shards.format import SPLITS, Build, Shard
from preprocess.shards.loss_mask import unpack_mask
from preprocess.shards.manifest import ShardEntry

INDEX, LOSS, METADATA = ".index", ".loss", ".metadata"


def export_datatrove(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write each shard of a build to a file such as `train/00000.ds` in the folder `output`, and its companions.

    Returns the paths of all files. A token takes 2 bytes, or 4 if the vocabulary has more than 65,536
    ids. Raises MisuseError like `check_output`, and FolioError if the build is damaged.
    """
    shards = {
        output / split / f"{number:05}.ds": entry
        for split in SPLITS
        for number, entry in enumerate(build.manifest.splits[split].shards)
    }
    paths = [_with_suffix(path, suffix) for path, entry in shards.items() for suffix in ("", *_list_companions(entry))]
    for split in SPLITS:
        check_no_leftovers(output / split, paths, ["*.ds", "*.ds.*"])
    check_output(output, paths, replace=replace)
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    with write_together() as new, build.reading():
        for path, entry in shards.items():
            shard = build.map_shard(entry)
            with new.open(path) as file:
                write_array(file, shard.tokens)
            with new.open(_with_suffix(path, INDEX)) as file:
                write_array(file, shard.ends)
            if entry.mask_sha256 is not None:
                with new.open(_with_suffix(path, LOSS)) as file:
                    _write_loss(file, shard)
            with new.open(_with_suffix(path, METADATA)) as file:
                file.write(_make_metadata(build, entry).encode())
    return paths


def _list_companions(entry: ShardEntry) -> tuple[str, ...]:
    return (INDEX, METADATA) if entry.mask_sha256 is None else (INDEX, LOSS, METADATA)


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _write_loss(file: BinaryIO, shard: Shard) -> None:
    assert shard.mask is not None
    for start in range(0, len(shard.tokens), CHUNK_TOKENS):
        end = min(start + CHUNK_TOKENS, len(shard.tokens))
        file.write(unpack_mask(shard.mask, start, end).astype(np.uint8).data)


def _make_metadata(build: Build, entry: ShardEntry) -> str:
    """Return the lines of `.ds.metadata`: tokenizer and bytes of a token, tokens, and tokens for people."""
    millions = f"{entry.tokens / 1e6:.1f} M tokens"
    return f"{build.manifest.tokenizer.kind}|{build.dtype.itemsize}\n{entry.tokens}\n{millions}"
