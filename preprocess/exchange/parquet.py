"""Write a build to Parquet files of token ids, for `datasets.load_dataset("parquet", …)` of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.tokens import iter_records, name_languages, name_sources
from preprocess.shards.format import SPLITS, Build, Shard
from preprocess.shards.loss_mask import unpack_mask
from preprocess.shards.manifest import ShardEntry

GROUP_TOKENS, GROUP_DOCUMENTS = 1 << 20, 1 << 16  # a row group ends with the document that reaches one of them
NO_LABEL = -100  # of a token that a model is not trained to predict; the default of PyTorch's cross-entropy


def export_parquet(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write each shard of a build to a file such as `train-00000-of-00002.parquet`, and return the paths.

    A row is a document, with the columns `input_ids` (list of int32), `language`, `source` and
    `position` (the document's number in its source). A build with chats also has `labels`: the ids, or
    NO_LABEL for tokens that are not learnt. Raises MisuseError like `prepare_output`, and FolioError if
    the build is damaged.
    """
    shards = {
        output / f"{split}-{number:05}-of-{len(build.manifest.splits[split].shards):05}.parquet": entry
        for split in SPLITS
        for number, entry in enumerate(build.manifest.splits[split].shards)
    }
    prepare_output(output, shards, patterns=[f"{split}-*.parquet" for split in SPLITS], replace=replace)
    with write_together() as new, build.reading():
        for path, entry in shards.items():
            schema = _make_schema(has_labels=entry.mask_sha256 is not None)
            with new.open(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for batch in _iter_batches(build, entry, schema):
                    writer.write_batch(batch, row_group_size=len(batch))
                    del batch  # it may be a document of 60 MB, whose ids take 240 MB, and the next one, too
    return list(shards)


def _make_schema(*, has_labels: bool) -> pa.Schema:
    ids = pa.list_(pa.int32())
    labels = [pa.field("labels", ids)] if has_labels else []
    strings = pa.dictionary(pa.int32(), pa.string())
    metadata = [pa.field("language", strings), pa.field("source", strings), pa.field("position", pa.int64())]
    return pa.schema([pa.field("input_ids", ids), *labels, *metadata])


def _iter_batches(build: Build, entry: ShardEntry, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the documents of a shard in batches of about GROUP_TOKENS tokens or one long document."""
    shard, begin = build.map_shard(entry), 0
    for docs, ends in iter_records(build, entry):
        languages, names = name_languages(build, docs), name_sources(build, docs)
        first = 0
        while first < len(docs):
            last = int(np.searchsorted(ends, begin + GROUP_TOKENS)) + 1
            last = min(last, first + GROUP_DOCUMENTS, len(docs))
            offsets = np.concatenate([[begin], ends[first:last].astype(np.int64)])
            rest = {"language": languages[first:last], "source": names[first:last]}
            yield _make_batch(
                shard, offsets, rest | {"position": docs["position"][first:last].astype(np.int64)}, schema
            )
            first, begin = last, int(offsets[-1])


def _make_batch(shard: Shard, offsets: np.ndarray, metadata: dict[str, object], schema: pa.Schema) -> pa.RecordBatch:
    """Return the documents between `offsets`, (D + 1,), whose columns besides the ids are `metadata`."""
    columns = _make_ids(shard, offsets) | metadata
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, field.type)
        for field, values in ((field, columns[field.name]) for field in schema)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _make_ids(shard: Shard, offsets: np.ndarray) -> dict[str, object]:
    """Return the columns `input_ids` and `labels` of the documents between `offsets`, (D + 1,)."""
    begin, end = int(offsets[0]), int(offsets[-1])
    ids = shard.tokens[begin:end].astype(np.int32)
    relative = pa.array((offsets - begin).astype(np.int32))
    columns: dict[str, object] = {"input_ids": pa.ListArray.from_arrays(relative, pa.array(ids))}
    if shard.mask is not None:
        labels = np.where(unpack_mask(shard.mask, begin, end), ids, np.int32(NO_LABEL))
        columns["labels"] = pa.ListArray.from_arrays(relative, pa.array(labels))
    return columns
