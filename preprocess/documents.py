"""The Arrow schema of a batch of documents, which every stage takes and returns.

Stages work on columns, so a batch of many documents does not need a Python object per document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

# Side of the split. HELD_OUT: in the test split that the input defines.
UNKNOWN, TRAIN, VAL, HELD_OUT = -1, 0, 1, 2

SCHEMA = pa.schema(
    [
        ("text", pa.large_string()),
        ("author", pa.string()),
        ("city", pa.string()),
        ("year", pa.int32()),
        ("lang", pa.string()),
        ("group", pa.string()),  # all documents of a group go to one side of the split; null: grouped by content
        ("source", pa.uint32()),  # index of the input file in the manifest's `sources`
        ("position", pa.uint64()),  # index of the document in its input file, from 0
    ]
)


def make_batch(columns: dict[str, Any], num_documents: int) -> pa.RecordBatch:
    """Return a batch of `num_documents` documents with the columns of SCHEMA.

    `columns` maps the name of a column to an Arrow array, a NumPy array or a list with one value
    per document, or to a single value for all documents. Values are cast to the type in SCHEMA. A
    missing column is null.
    """
    arrays = []
    for field in SCHEMA:
        value = columns.get(field.name)
        if isinstance(value, pa.Array):
            arrays.append(value if value.type == field.type else value.cast(field.type))
        elif value is None:
            arrays.append(pa.nulls(num_documents, field.type))
        elif isinstance(value, list | np.ndarray):
            arrays.append(pa.array(value, field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), num_documents))
    return pa.record_batch(arrays, schema=SCHEMA)


def replace_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """Return `batch` with the column `name` replaced by `values`."""
    return batch.set_column(batch.schema.get_field_index(name), SCHEMA.field(name), values)


def get_text_buffers(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the UTF-8 bytes of D texts, (N,) uint8, and the offsets of the texts, (D + 1,) int64.

    Text i is `data[offsets[i] : offsets[i + 1]]`. The bytes are a view of Arrow's buffer, not a
    copy.
    """
    offsets = (
        np.frombuffer(texts.buffers()[1], np.int64, count=len(texts) + 1, offset=texts.offset * 8)
        if len(texts)
        else np.zeros(1, np.int64)
    )
    buffer = texts.buffers()[2]
    data = np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else np.empty(0, np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]  # a sliced Arrow array need not begin at byte 0


def view_text(texts: pa.LargeStringArray, row: int) -> pa.Buffer:
    """Return the UTF-8 bytes of one text. A scalar of Arrow would copy them."""
    start, end = np.frombuffer(texts.buffers()[1], np.int64, count=2, offset=(texts.offset + row) * 8).tolist()
    data = texts.buffers()[2]
    return data.slice(start, end - start) if end > start else pa.py_buffer(b"")


def count_text_bytes(texts: pa.LargeStringArray) -> np.ndarray:
    """Return the number of UTF-8 bytes of each text: (D,) int64."""
    return np.diff(get_text_buffers(texts)[1])


def divide_texts(texts: pa.LargeStringArray, max_bytes: int) -> Iterator[pa.LargeStringArray]:
    """Yield consecutive parts of D texts. A part has at most `max_bytes`, or is a single text."""
    boundaries = get_text_buffers(texts)[1]
    begin = 0
    while begin < len(texts):
        end = max(begin + 1, int(np.searchsorted(boundaries, boundaries[begin] + max_bytes, side="right")) - 1)
        yield texts.slice(begin, end - begin)
        begin = end
