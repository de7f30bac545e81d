"""Divide the records of a table into batches whose documents fit into memory.

The problem: the size of a document is not that of its values in the file. A template may join a
long value that many rows share, or use a column several times, and a column of Parquet may be
encoded with a dictionary.

The idea: the sizes of all values are known before a text is joined, so the records are divided
where their documents reach BATCH_BYTES, and only then are the values looked up in dictionaries.

The cost: about 20 ns per record and column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.records import Records, Rejects
from preprocess.readers.reject_reasons import RejectReason
from preprocess.recipes.columns import decode_dictionary, is_text_or_bytes
from preprocess.recipes.schema import Recipe
from preprocess.recipes.templates import parse_template

BATCH_BYTES = 8 << 20
ROW_BYTES = 64  # that a document takes besides its text


def split_records(
    batches: Iterator[Records], input_file: InputFile, recipe: Recipe, rejects: Rejects
) -> Iterator[Records]:
    """Yield the records in batches whose documents have at most BATCH_BYTES, or of one record.

    Columns with a dictionary are decoded. A record that is too long for memory is left out or, with
    `oversized = "error"`, raises FolioError.
    """
    max_bytes = get_max_record_bytes(recipe)
    num_yielded = 0
    for records in batches:
        sizes = _measure_records(records, recipe)
        is_too_long = sizes > max_bytes
        for row in np.flatnonzero(is_too_long).tolist():
            reject_long_record(f"{input_file.path}: {records.describe_record(row)}", recipe, rejects)
        if is_too_long.any():
            records, sizes = _filter(records, ~is_too_long), sizes[~is_too_long]
        for start, stop in find_batches(sizes + ROW_BYTES):
            yield _slice_and_decode(records, start, stop, num_yielded)
            num_yielded += stop - start
        del records  # it may be one record of 128 MB


def get_max_record_bytes(recipe: Recipe) -> int:
    """Return the maximum size of a record in bytes.

    A record may be cut into several documents, so it is twice `max_document_bytes` (of the recipe,
    or the default if that is larger).
    """
    return 2 * max(recipe.max_document_bytes, Recipe.max_document_bytes)


def reject_long_record(record: str, recipe: Recipe, rejects: Rejects, *, advice: str = "shorten it") -> None:
    """Raise FolioError for a record that is too long for memory, or count it as left out.

    `recipe.oversized` decides which. `record` names the file and the record in the message.
    """
    if recipe.oversized == "error":
        max_bytes = get_max_record_bytes(recipe)
        raise FolioError(
            f"{record} has more than {max_bytes:,} bytes; {advice}, set max_document_bytes to at least half of its "
            "size, or pass --oversized skip to leave it out"
        )
    path, _, place = record.rpartition(": ")
    rejects.add(RejectReason("oversized", "longer than the longest record that is read", 1, path, place))


def _measure_records(records: Records, recipe: Recipe) -> np.ndarray:
    """Return the number of bytes of each document with its metadata and the columns of the condition, (R,) int64."""
    template = parse_template(recipe.template) if recipe.template is not None else None
    num_uses = Counter(template.fields if template is not None else ())
    literal_bytes = sum(len(literal.encode()) for literal in template.literals) if template is not None else 0
    sizes = np.full(records.num_records, literal_bytes, np.int64)
    for name, column in {**records.where, **records.columns}.items():
        sizes += max(num_uses[name], 1) * measure_values(column)
    return sizes


def measure_values(column: pa.Array) -> np.ndarray:
    """Return the size of each value in bytes, (R,) int64.

    A null of a text or dictionary column has size 0. The values of a column of another type all
    have their mean size.
    """
    if pa.types.is_dictionary(column.type):
        sizes = np.append(measure_values(column.dictionary), 0)  # the last one is for null
        rows: np.ndarray = sizes[column.indices.fill_null(len(sizes) - 1).to_numpy(zero_copy_only=False)]
        return rows
    if is_text_or_bytes(column.type):
        return pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.full(len(column), column.nbytes // max(len(column), 1), np.int64)


def find_batches(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive rows with at most BATCH_BYTES in total, or of one larger row."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(ends):
        max_end = (ends[start - 1] if start else 0) + BATCH_BYTES
        stop = max(int(np.searchsorted(ends, max_end, side="right")), start + 1)
        yield start, stop
        start = stop


def _filter(records: Records, keep: np.ndarray) -> Records:
    mask = pa.array(keep)
    columns = {name: column.filter(mask) for name, column in records.columns.items()}
    where = {name: column.filter(mask) for name, column in records.where.items()}
    return Records(columns, records.first, where, **_take_numbers(records, keep))


def _slice_and_decode(records: Records, start: int, stop: int, first: int) -> Records:
    columns = {name: decode_dictionary(column.slice(start, stop - start)) for name, column in records.columns.items()}
    where = {name: decode_dictionary(column.slice(start, stop - start)) for name, column in records.where.items()}
    return Records(columns, first, where, **_take_numbers(records, slice(start, stop)))


def _take_numbers(records: Records, rows: np.ndarray | slice) -> dict[str, Any]:
    arrays = {name: getattr(records, name) for name in ("offsets", "row_numbers", "files", "positions")}
    return {name: None if array is None else array[rows] for name, array in arrays.items()}
