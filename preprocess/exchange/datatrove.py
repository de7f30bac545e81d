"""Read and write the tokenized files of datatrove, which nanotron and DatatroveFolderDataset read.

`.ds` has the tokens without a header, and `.ds.index` the exclusive end of each document in tokens.
A build with chats also gets `.ds.loss`: one byte per token, 1 if a model is trained to predict it.

Layout: datatrove, src/datatrove/pipeline/tokens/tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.errors import FolioError
from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.read_tokens import ADVICE, open_values, read_documents
from preprocess.exchange.tokens import CHUNK_DOCUMENTS, CHUNK_TOKENS, write_array
from preprocess.inputs.token_files import TokenBatch, TokenFile, TokenIds, TokenNames
from preprocess.shards.format import END_DTYPE, SPLITS, Build, Shard
from preprocess.shards.loss_mask import unpack_mask
from preprocess.shards.manifest import ShardEntry

INDEX, LOSS, METADATA = ".index", ".loss", ".metadata"


def export_datatrove(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write each shard of a build to a file such as `train/00000.ds` in the folder `output`, and its companions.

    Returns the paths of all files. A token takes 2 bytes, or 4 if the vocabulary has more than 65,536
    ids. Raises MisuseError like `prepare_output`, and FolioError if the build is damaged.
    """
    shards = {
        output / split / f"{number:05}.ds": entry
        for split in SPLITS
        for number, entry in enumerate(build.manifest.splits[split].shards)
    }
    paths = [_with_suffix(path, suffix) for path, entry in shards.items() for suffix in ("", *_list_companions(entry))]
    patterns = [f"{split}/{name}" for split in SPLITS for name in ("*.ds", "*.ds.*")]
    prepare_output(output, paths, patterns=patterns, replace=replace)
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


def check_sizes(file: TokenFile) -> None:
    """Raise FolioError if the sizes of a `.ds` file and its companions do not fit together."""
    num_tokens, _ = _find_dtype(file)
    loss = file.companions.get(LOSS)
    if loss is not None and loss.size_bytes != num_tokens:
        raise FolioError(
            f"{loss.path} has {loss.size_bytes:,} bytes, expected one for each of {num_tokens:,} tokens; {ADVICE}"
        )


NAMES = TokenNames(".ds", (INDEX,), (LOSS,), replaces_suffix=False, check_sizes=check_sizes)


def read_datatrove(files: list[TokenFile], ids: TokenIds) -> Iterator[TokenBatch]:
    """Yield the documents of `.ds` files, with the loss mask if they have `.ds.loss`.

    The size of a token, 2 or 4 bytes, follows from the size of the file. Raises FolioError if a file is
    damaged or a document is too long. `files` have the sizes that `check_sizes` expects.
    """
    for file in files:
        _, dtype = _find_dtype(file)
        batches = read_documents(file, dtype, _iter_lengths(file))
        if (loss := file.companions.get(LOSS)) is None:
            yield from batches
            continue
        with open_values(Path(loss.path), "u1") as values:
            for batch in batches:
                mask = values.read(len(batch.ids))
                if len(mask) and mask.max() > 1:
                    raise FolioError(f"{loss.path} has the byte {mask.max()}, expected only 0 and 1; {ADVICE}")
                yield replace(batch, mask=mask.view(bool))


def _find_dtype(file: TokenFile) -> tuple[int, str]:
    """Return the number of tokens of a file, and their dtype."""
    index, item_bytes = file.companions[INDEX], END_DTYPE.itemsize
    if index.size_bytes % item_bytes:
        raise FolioError(
            f"{index.path} has {index.size_bytes:,} bytes, expected {item_bytes} for each document; {ADVICE}"
        )
    num_tokens = 0
    if index.size_bytes:
        with open_values(Path(index.path), "<u8", offset=index.size_bytes - item_bytes) as values:
            num_tokens = int(values.read(1)[0])
    for dtype in ("<u2", "<u4"):
        if file.tokens.size_bytes == num_tokens * np.dtype(dtype).itemsize:
            return num_tokens, dtype
    raise FolioError(
        f"{file.path} has {file.tokens.size_bytes:,} bytes, expected 2 or 4 for each of the {num_tokens:,} tokens in "
        f"{Path(index.path).name}; {ADVICE}"
    )


def _iter_lengths(file: TokenFile) -> Iterator[np.ndarray]:
    """Yield the lengths of the documents of a file: arrays (D,) int64."""
    index = file.companions[INDEX]
    num_left, last = index.size_bytes // END_DTYPE.itemsize, 0
    with open_values(Path(index.path), "<u8") as values:
        while num_left:
            ends = values.read(min(num_left, CHUNK_DOCUMENTS))
            if int(ends.max()) > file.tokens.size_bytes:
                raise FolioError(f"{index.path} has the end {int(ends.max()):,}, which is not in the file; {ADVICE}")
            num_left -= len(ends)
            yield np.diff(ends.astype(np.int64), prepend=last)
            last = int(ends[-1])
