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

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.record_blocks import IS_LONG_CHAT, MAX_CHAT_BYTES, reject_oversized
from preprocess.readers.records import CHAT_TEXT, Records, Rejects, find_required_columns
from preprocess.readers.reject_reasons import RejectReason
from preprocess.readers.value_sizes import measure_values
from preprocess.recipes.columns import decode_dictionary
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
        is_too_long, is_long_chat = sizes > max_bytes, _find_long_chats(records, recipe)
        for row in np.flatnonzero(is_too_long | is_long_chat).tolist():
            record = f"{input_file.path}: {records.describe_record(row)}"
            if is_long_chat[row]:
                reject_oversized(record, recipe, rejects, IS_LONG_CHAT)
            else:
                reject_long_record(record, recipe, rejects)
        # A filter would copy the records, and Arrow cannot filter all types.
        is_kept = ~(is_too_long | is_long_chat)
        runs = np.flatnonzero(np.diff(is_kept, prepend=False, append=False)).reshape(-1, 2)
        for first, last in runs.tolist():
            for start, stop in find_batches(sizes[first:last] + ROW_BYTES):
                yield _slice_and_decode(records, first + start, first + stop, num_yielded)
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


def _find_long_chats(records: Records, recipe: Recipe) -> np.ndarray:
    """Return which records have a chat that is too long to be converted to Python objects, (R,) bool.

    In JSON, the columns of the chats are joined already.
    """
    sizes = np.zeros(records.num_records, np.int64)
    for name in find_required_columns(recipe).chat:
        if CHAT_TEXT not in records.columns:
            sizes += measure_values(records.columns[name])
    is_long: np.ndarray = sizes > MAX_CHAT_BYTES
    return is_long


def find_batches(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive rows with at most BATCH_BYTES in total, or of one larger row."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(ends):
        max_end = (ends[start - 1] if start else 0) + BATCH_BYTES
        stop = max(int(np.searchsorted(ends, max_end, side="right")), start + 1)
        yield start, stop
        start = stop


def _slice_and_decode(records: Records, start: int, stop: int, first: int) -> Records:
    columns = {name: decode_dictionary(column.slice(start, stop - start)) for name, column in records.columns.items()}
    where = {name: decode_dictionary(column.slice(start, stop - start)) for name, column in records.where.items()}
    return Records(columns, first, where, **_take_numbers(records, slice(start, stop)))


def _take_numbers(records: Records, rows: slice) -> dict[str, Any]:
    arrays = {name: getattr(records, name) for name in ("offsets", "row_numbers", "files", "positions")}
    return {name: None if array is None else array[rows] for name, array in arrays.items()}
