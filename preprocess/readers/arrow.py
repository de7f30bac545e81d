"""Read Arrow IPC files and streams, a few megabytes of text at a time.

The file is mapped into memory, so a record batch may be larger than memory, unless it is compressed. The
pages that were read count as memory of this process, so they are released from time to time.
Its rows are checked and converted in slices, as nothing in a file can be trusted: an offset that is
not checked could point to any byte of this process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError, first_line
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.arrow_file import ArrowFile, open_arrow
from preprocess.readers.record_sizes import find_batches
from preprocess.readers.records import Records, find_required_columns
from preprocess.readers.table_columns import check_schema, convert_views, take_column
from preprocess.readers.value_sizes import VIEW_TYPES, measure_values
from preprocess.recipes.columns import view_as_bytes
from preprocess.recipes.schema import Recipe

SLICE_ROWS = 1 << 14
RELEASE_BYTES = 64 << 20  # of the columns that are read, after which the pages of the file are released


@contextmanager
def _open(input_file: InputFile, recipe: Recipe) -> Iterator[ArrowFile]:
    """Open an Arrow file, and convert errors in its content to FolioError."""
    input_file.check_unchanged()
    try:
        with open_arrow(input_file.disk.path, set(find_required_columns(recipe).names)) as file:
            yield file
    except (pa.ArrowException, OSError, EOFError, struct.error) as e:
        input_file.check_unchanged()
        raise FolioError(
            f"{input_file.path} cannot be read as Arrow IPC ({first_line(e)}); it is damaged or truncated, copy it "
            "again"
        ) from e
    input_file.check_unchanged()


def count_record_batches(input_file: InputFile, recipe: Recipe) -> int:
    """Return the number of record batches of a file, or 1 for a stream, which can only be read as a whole.

    Raises MisuseError if a required column is missing, is there twice, or does not contain text.
    """
    with _open(input_file, recipe) as file:
        check_schema(input_file, file.schema, recipe)
        return 1 if file.is_stream else file.count_batches()


def read_arrow(input_file: InputFile, span: Span, recipe: Recipe) -> Iterator[Records]:
    """Yield the records of the record batches from `span.start` to `span.stop`, or to the last.

    The columns may be dictionary-encoded.
    """
    required = find_required_columns(recipe)
    num_rows = num_bytes = 0
    with _open(input_file, recipe) as file:
        for batch in file.iter_batches(span.start, span.stop):
            for rows in _slice(batch, required.names):
                columns = {name: _read_bytes(take_column(rows, name)) for name in required.of_documents}
                where = {name: take_column(rows, name) for name in required.where}
                for column in where.values():
                    column.validate(full=True)
                # In a later span, the rows of all batches before it would have to be counted.
                row_numbers = None if span.start else num_rows + np.arange(rows.num_rows)  # from 0, as in Arrow
                yield Records(columns, num_rows, where, row_numbers=row_numbers)
                num_rows += rows.num_rows
                num_bytes += sum(column.nbytes for column in (*columns.values(), *where.values()))
                if num_bytes >= RELEASE_BYTES:
                    file.release_pages()
                    num_bytes = 0


def _slice(batch: pa.RecordBatch, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a batch in slices, whose views have at most a few megabytes of text or are one row."""
    for first in range(0, batch.num_rows, SLICE_ROWS):
        rows = batch.slice(first, SLICE_ROWS)
        sizes = np.zeros(rows.num_rows, np.int64)
        for name in names:
            column = take_column(rows, name)
            if column.type in VIEW_TYPES:
                column.view(pa.binary_view()).validate(full=True)
                sizes += measure_values(column)
        for start, stop in find_batches(sizes):
            yield rows.slice(start, stop - start)


def _read_bytes(column: pa.Array) -> pa.Array:
    """Return a column whose offsets and indices have been checked, with text as bytes."""
    column = view_as_bytes(column)  # may be not UTF-8, which the recipe has a rule for
    column.validate(full=True)
    return column.cast(pa.large_binary()) if column.type == pa.binary() else convert_views(column)
