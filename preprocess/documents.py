"""The batch of documents: what flows from stage to stage.

Columns, not objects: a stage that looks at a million documents makes no million Python objects.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

UNKNOWN, TRAIN, VAL, HELD_OUT = -1, 0, 1, 2  # `side`

SCHEMA = pa.schema(
    [
        ("text", pa.large_string()),
        ("author", pa.string()),
        ("city", pa.string()),
        ("year", pa.int32()),
        ("lang", pa.string()),
        ("group", pa.string()),  # documents of one group go to one side of the split; null: the content decides
        ("source", pa.uint32()),  # which input, in the order of the manifest's `sources`
        ("position", pa.uint64()),  # the document's number within its source, from 0
    ]
)


def make_batch(columns: dict[str, Any], num_documents: int) -> pa.RecordBatch:
    """A batch of `num_documents`; a column not given is null, one given as a single value is repeated."""
    arrays = []
    for field in SCHEMA:
        value = columns.get(field.name)
        if isinstance(value, pa.Array):
            arrays.append(value.cast(field.type))
        elif isinstance(value, list | np.ndarray):
            arrays.append(pa.array(value, field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), num_documents))
    return pa.record_batch(arrays, schema=SCHEMA)


def replace_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """`batch` with another column `name`."""
    return batch.set_column(batch.schema.get_field_index(name), SCHEMA.field(name), values)


def text_buffers(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of all texts, (N,) uint8, and their boundaries in it, (D + 1,) int64 from 0; no copy."""
    offsets = (
        np.frombuffer(texts.buffers()[1], np.int64, count=len(texts) + 1, offset=texts.offset * 8)
        if len(texts)
        else np.zeros(1, np.int64)
    )
    buffer = texts.buffers()[2]
    data = np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else np.empty(0, np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]


def text_bytes(texts: pa.LargeStringArray) -> np.ndarray:
    """UTF-8 bytes of each text: (D,) int64."""
    return np.diff(text_buffers(texts)[1])
