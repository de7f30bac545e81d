"""Parquet → records, a few megabytes of text at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.errors import FolioError, MisuseError, first_line
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.records import Records, check_columns, needed_columns
from preprocess.recipes.columns import is_text_or_bytes
from preprocess.recipes.schema import Recipe

BATCH_BYTES = 8 << 20
# A whole row group is read at once where it is no larger: a third faster than batch by batch.
WHOLE_GROUP_BYTES = 32 << 20


@contextmanager
def _opened(source: InputFile) -> Iterator[Any]:
    source.check_unchanged()
    try:
        # binary_type: large offsets from the start. Not mapped: what is read of a mapped file counts as this process' memory.
        with pq.ParquetFile(source.path, memory_map=False, binary_type=pa.large_binary(), pre_buffer=False) as file:
            yield file
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError) as e:
        source.check_unchanged()
        raise FolioError(
            f"{source.path} cannot be read as Parquet ({first_line(e)}); it is damaged or cut short, copy it again"
        ) from e
    source.check_unchanged()


def row_group_bytes(source: InputFile, recipe: Recipe) -> list[int]:
    """About how many bytes the needed columns of each row group are. Raises MisuseError for a missing column or one that is no text."""
    with _opened(source) as file:
        needed = needed_columns(recipe)
        schema = file.schema_arrow
        check_columns(source, needed, schema.names)
        for name in needed.columns:
            _check_text(source, name, schema.field(name).type, is_strict=name == needed.strict)
        return [_group_bytes(file, group, set(needed.names)) for group in range(file.num_row_groups)]


def _group_bytes(file: Any, group: int, names: set[str]) -> int:
    entry = file.metadata.row_group(group)
    columns = (entry.column(i) for i in range(entry.num_columns))
    # A dot may be part of a column's name, or lead into one that is nested.
    return sum(c.total_uncompressed_size for c in columns if {c.path_in_schema, c.path_in_schema.split(".")[0]} & names)


def _check_text(source: InputFile, name: str, type_: pa.DataType, *, is_strict: bool) -> None:
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    is_spelled = pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_boolean(value)
    if not is_text_or_bytes(value) and (is_strict or not is_spelled):
        raise MisuseError(
            f"the column {name!r} of {source.path} is of type {type_}, wanted text; name another with --text-column or the like"
        )


def read_parquet(source: InputFile, span: Span, recipe: Recipe) -> Iterator[Records]:
    """The records of the row groups from `span.start` to `span.stop`."""
    needed = needed_columns(recipe)
    number = 0
    with _opened(source) as file:
        stop = file.num_row_groups if span.stop is None else span.stop
        for group in range(span.start, stop):
            for batch in _batches(file, group, needed.names):
                columns = {name: batch.column(name) for name in needed.columns}
                yield Records(columns, number, {name: batch.column(name) for name in needed.where})
                number += batch.num_rows


def _batches(file: Any, group: int, names: list[str]) -> Iterator[pa.RecordBatch]:
    num_rows = file.metadata.row_group(group).num_rows
    num_bytes = _group_bytes(file, group, set(names))
    rows = max(num_rows * BATCH_BYTES // max(num_bytes, 1), 1)
    if num_bytes <= WHOLE_GROUP_BYTES:
        table = file.read_row_group(group, columns=names, use_threads=False).combine_chunks()
        yield from (batch for batch in table.to_batches(max_chunksize=rows) if batch.num_rows)
    else:
        yield from (
            b
            for b in file.iter_batches(batch_size=rows, row_groups=[group], columns=names, use_threads=False)
            if b.num_rows
        )
