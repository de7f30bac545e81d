"""Read Parquet files, a few megabytes of text at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.errors import FolioError, MisuseError, first_line
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.records import Records, check_columns, find_required_columns
from preprocess.recipes.columns import is_text_or_bytes
from preprocess.recipes.schema import Recipe

BATCH_BYTES = 8 << 20
# A row group up to this size is read at once, which is a third faster than batch by batch.
WHOLE_GROUP_BYTES = 32 << 20


@contextmanager
def _open_parquet(input_file: InputFile) -> Iterator[Any]:
    input_file.check_unchanged()
    try:
        # binary_type: read strings with 64-bit offsets, which batches have, to avoid a conversion.
        # memory_map: the pages of a mapped file would count as memory of this process.
        with pq.ParquetFile(input_file.path, memory_map=False, binary_type=pa.large_binary(), pre_buffer=False) as file:
            yield file
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError) as e:
        input_file.check_unchanged()
        raise FolioError(
            f"{input_file.path} cannot be read as Parquet ({first_line(e)}); it is damaged or truncated, copy it again"
        ) from e
    input_file.check_unchanged()


def get_row_group_bytes(input_file: InputFile, recipe: Recipe) -> list[int]:
    """Return the approximate size of the required columns of each row group, in bytes.

    Raises MisuseError if a required column is missing or does not contain text.
    """
    with _open_parquet(input_file) as file:
        required = find_required_columns(recipe)
        schema = file.schema_arrow
        check_columns(input_file, required, schema.names)
        for name in required.columns:
            _check_type(input_file, name, schema.field(name).type, text_only=name == required.text_only)
        return [_count_group_bytes(file, group, set(required.names)) for group in range(file.num_row_groups)]


def _count_group_bytes(file: Any, group: int, names: set[str]) -> int:
    metadata = file.metadata.row_group(group)
    columns = (metadata.column(i) for i in range(metadata.num_columns))
    # The path of a column "a.b" is either the column "a.b" or the field "b" of a nested column "a".
    return sum(c.total_uncompressed_size for c in columns if {c.path_in_schema, c.path_in_schema.split(".")[0]} & names)


def _check_type(input_file: InputFile, name: str, type_: pa.DataType, *, text_only: bool) -> None:
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    is_formattable = pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_boolean(value)
    if not is_text_or_bytes(value) and (text_only or not is_formattable):
        raise MisuseError(
            f"column {name!r} of {input_file.path} has type {type_}, expected text; "
            "choose another with --text-column, --template, --author-column or similar"
        )


def read_parquet(input_file: InputFile, span: Span, recipe: Recipe) -> Iterator[Records]:
    """Yield the records of the row groups from `span.start` to `span.stop`, or to the last."""
    required = find_required_columns(recipe)
    num_rows = 0
    with _open_parquet(input_file) as file:
        stop = file.num_row_groups if span.stop is None else span.stop
        for group in range(span.start, stop):
            for batch in _read_batches(file, group, required.names):
                columns = {name: batch.column(name) for name in required.columns}
                yield Records(columns, num_rows, {name: batch.column(name) for name in required.where})
                num_rows += batch.num_rows


def _read_batches(file: Any, group: int, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the non-empty batches of a row group, of about BATCH_BYTES each."""
    group_bytes = _count_group_bytes(file, group, set(names))
    rows_per_batch = max(file.metadata.row_group(group).num_rows * BATCH_BYTES // max(group_bytes, 1), 1)
    if group_bytes <= WHOLE_GROUP_BYTES:
        table = file.read_row_group(group, columns=names, use_threads=False).combine_chunks()
        batches = iter(table.to_batches(max_chunksize=rows_per_batch))
    else:
        batches = file.iter_batches(batch_size=rows_per_batch, row_groups=[group], columns=names, use_threads=False)
    yield from (batch for batch in batches if batch.num_rows)
