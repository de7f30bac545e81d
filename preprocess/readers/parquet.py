"""Read Parquet files, a few megabytes of text at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError, first_line
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.parquet_batches import OpenFile, estimate_repetition, read_row_group
from preprocess.readers.parquet_metadata import describe_chunks, find_chunk_indices, open_file
from preprocess.readers.parquet_pages import PageError, reject_joined_files
from preprocess.readers.record_sizes import get_max_record_bytes
from preprocess.readers.records import Records, find_required_columns
from preprocess.readers.table_columns import check_schema, convert_views, take_column
from preprocess.recipes.schema import Recipe


@contextmanager
def _open_parquet(input_file: InputFile, recipe: Recipe) -> Iterator[OpenFile]:
    """Open a Parquet file, and convert errors in its content to FolioError."""
    names = find_required_columns(recipe).names
    input_file.check_unchanged()
    try:
        with (
            # binary_type: read strings with 64-bit offsets, which batches have, to avoid a conversion.
            open_file(input_file.path, binary_type=pa.large_binary()) as parquet,
            open(input_file.path, "rb", buffering=0) as raw,
        ):
            indices = find_chunk_indices(parquet, set(names))
            yield OpenFile(input_file, parquet, raw, names, indices, get_max_record_bytes(recipe))
    except UnicodeDecodeError as e:
        raise FolioError(f"{input_file.path} has a column whose name is not UTF-8; rename the column") from e
    except (pa.ArrowException, PageError, OSError, EOFError) as e:
        input_file.check_unchanged()
        raise FolioError(
            f"{input_file.path} cannot be read as Parquet ({first_line(e)}); it is damaged or truncated, copy it again"
        ) from e
    input_file.check_unchanged()


def get_row_group_bytes(input_file: InputFile, recipe: Recipe) -> list[int]:
    """Return the approximate size of the required columns of each row group, in bytes.

    The sizes are those after decoding, for progress bars and partitions. Raises MisuseError if a
    required column is missing, occurs twice or has a type that cannot be used as text, and
    FolioError if the file is damaged.
    """
    with _open_parquet(input_file, recipe) as opened:
        check_schema(input_file, opened.parquet.schema_arrow, recipe)
        reject_joined_files(opened.parquet, opened.raw, input_file.path)
        factors: list[float] = []
        sizes = []
        for group in range(opened.parquet.num_row_groups):
            chunks = describe_chunks(opened.parquet, group, opened.indices)
            if group == 0:
                factors = [estimate_repetition(opened, chunk) for chunk in chunks]
            sizes.append(sum(int(f * chunk.uncompressed_bytes) for f, chunk in zip(factors, chunks, strict=True)))
        return sizes


def read_parquet(input_file: InputFile, span: Span, recipe: Recipe) -> Iterator[Records]:
    """Yield the records of the row groups from `span.start` to `span.stop`, or to the last.

    Columns may be dictionary-encoded. Decoded as a whole, a column may be too large for memory (see
    split_records). Raises FolioError if the file is damaged or has changed.
    """
    required = find_required_columns(recipe)
    num_rows = 0
    with _open_parquet(input_file, recipe) as opened:
        stop = opened.parquet.num_row_groups if span.stop is None else span.stop
        first_row = sum(opened.parquet.metadata.row_group(group).num_rows for group in range(span.start))
        for group in range(span.start, stop):
            for batch in read_row_group(opened, group):
                columns = {name: convert_views(take_column(batch, name)) for name in required.of_documents}
                where = {name: take_column(batch, name) for name in required.where}
                row_numbers = first_row + num_rows + np.arange(batch.num_rows)  # from 0, as in Arrow
                yield Records(columns, num_rows, where, row_numbers=row_numbers)
                num_rows += batch.num_rows
