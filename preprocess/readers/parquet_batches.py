"""Read a row group of a Parquet file in batches of bounded size.

The problem: Arrow decodes a given number of rows, not bytes. A file of 3 KB can have 4,000 rows
that share one value of 1 MB, and decoding them at once would take 4 GB.

The idea: page headers bound the size of the rows (parquet_pages.py), and Arrow decodes at a time as
many rows as fit into DECODED_BYTES in the worst case. For values in a dictionary the worst case is
far too large, so their sizes are determined first: Arrow can also return a column as a dictionary
and one index per row, which takes little memory however large the rows are. A column of which all
values are in the dictionary is returned in this form.

Lists of values in a dictionary are measured in the same way. If only some of the values are in the
dictionary, the column is read twice.

The cost: the rows of a column whose values are in its dictionary are read twice. In text columns
these are usually about a thousand rows per row group, because writers stop using a dictionary when
it has 1 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError, shorten
from preprocess.inputs import input_files as inputs
from preprocess.inputs.input_files import InputFile
from preprocess.readers.parquet_metadata import Chunk, describe_chunks, open_file
from preprocess.readers.parquet_pages import (
    DICTIONARY_PAGE,
    Page,
    PageError,
    RowSizes,
    compute_row_sizes,
    count_dictionary_values,
    find_dictionary,
    read_page_headers,
)
from preprocess.readers.value_sizes import measure_values

DECODED_BYTES = 32 << 20
ROW_BYTES = 64  # a row takes at least this much memory, in Arrow and in the stages
INDEX_BYTES = 8  # at most, of the index of a value in a dictionary
MAX_DICTIONARY_BYTES = 64 << 20  # Arrow makes three copies of a dictionary that it returns
MAX_BLOCKS = 1 << 20  # of rows in a dictionary, the sizes of which are kept in memory
# One row may have all values of a column of lists, and all of them may be the longest value in the dictionary.
MAX_LIST_VALUES = 1 << 24  # in a row group; a message of a chat takes about 25 bytes in Arrow
MAX_LIST_BYTES = 256 << 20  # of a column, if all values had this length; otherwise the rows are measured
MEASURED_LIST_VALUES = 1 << 16  # at once
# A page is decompressed as a whole. Text is rarely more than ten times larger than its compressed form.
MAX_PAGE_BYTES = 1 << 30
MAX_COMPRESSION_RATIO = 16
MIN_PAGE_LIMIT_BYTES = 128 << 20
MAX_PAGES = 1 << 20  # of a column in a row group, whose headers are in memory; writers make pages of about 1 MB


@dataclass(frozen=True)
class OpenFile:
    """A Parquet file and its required columns."""

    input_file: InputFile
    parquet: Any  # pyarrow.parquet.ParquetFile
    raw: BinaryIO  # the same file, for its page headers
    names: list[str]  # of the required columns
    indices: list[int]  # of the required columns in a row group
    max_value_bytes: int  # the size of the longest record that is read

    def read_pages(self, chunk: Chunk) -> list[Page]:
        """Return the headers of the pages of `chunk`.

        Raises FolioError if a page is too large, or if there are too many.
        """
        pages = list(islice(read_page_headers(self.raw, chunk, self.input_file.size_bytes), MAX_PAGES + 1))
        if len(pages) > MAX_PAGES:
            raise FolioError(
                f"{self.input_file.path}: column {shorten(chunk.name)!r} has more than {MAX_PAGES:,} pages in a row "
                "group; write the file again with larger pages"
            )
        for page in pages:
            limit = min(MAX_PAGE_BYTES, MAX_COMPRESSION_RATIO * page.compressed_bytes)
            limit = max(limit, MIN_PAGE_LIMIT_BYTES, self.max_value_bytes)
            if page.uncompressed_bytes > limit:
                raise FolioError(
                    f"{self.input_file.path}: column {shorten(chunk.name)!r} has a page of "
                    f"{page.uncompressed_bytes:,} bytes (compressed to {page.compressed_bytes:,}), expected at most "
                    f"{limit:,}; write the file again with fewer rows per row group"
                )
        return pages


def read_row_group(opened: OpenFile, group: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group in batches of at most DECODED_BYTES, or of one row.

    A batch has the required columns and is not empty. Raises FolioError if a page is too large, and
    PageError or an exception of Arrow if the row group is damaged.
    """
    num_rows, dictionary_columns = _plan_batches(opened, group)
    parquet = opened.parquet
    if dictionary_columns:  # Arrow does not combine read_dictionary with binary_type
        parquet = open_file(opened.input_file.path, metadata=parquet.metadata, read_dictionary=dictionary_columns)
    num_read = 0
    for batch in parquet.iter_batches(num_rows, row_groups=[group], columns=opened.names, use_threads=False):
        num_read += batch.num_rows
        if batch.num_rows:
            yield batch
    num_expected = opened.parquet.metadata.row_group(group).num_rows
    if num_read != num_expected:  # Arrow ends a column at a page without values, without an error
        raise _make_row_error(group, num_read, num_expected)


def _make_row_error(group: int, num_read: int, num_expected: int) -> PageError:
    return PageError(f"{num_read:,} of {num_expected:,} rows can be read from row group {group}")


def _plan_batches(opened: OpenFile, group: int) -> tuple[int, list[str]]:
    """Return the number of rows per batch, and the columns that Arrow returns as dictionaries."""
    num_rows = opened.parquet.metadata.row_group(group).num_rows
    sizes, dictionary_columns = [], []
    for chunk in describe_chunks(opened.parquet, group, opened.indices):
        if chunk.num_values != num_rows and not chunk.is_repeated:
            raise PageError(f"column {chunk.name!r} has {chunk.num_values:,} values in {num_rows:,} rows")
        if chunk.is_repeated and chunk.num_values > MAX_LIST_VALUES:
            raise FolioError(
                f"{opened.input_file.path}: the lists of column {shorten(chunk.name)!r} have {chunk.num_values:,} "
                f"values in a row group, expected at most {MAX_LIST_VALUES:,}; write the file again with fewer rows "
                "per row group"
            )
        pages = opened.read_pages(chunk)
        bounds = compute_row_sizes(chunk, pages, num_rows)
        if bounds.max_bytes_of_rows(num_rows) > DECODED_BYTES and _can_read_dictionary(opened, chunk, pages):
            num_in_dictionary = count_dictionary_values(pages)
            if num_in_dictionary == num_rows:
                dictionary_columns.append(chunk.name)
                bounds = RowSizes.uniform(num_rows, INDEX_BYTES)
            elif num_in_dictionary:
                measured = _measure_dictionary_rows(opened, group, chunk, num_in_dictionary)
                bounds = RowSizes.concatenate([*measured, bounds.after(num_in_dictionary)])
        elif chunk.is_repeated and _has_small_dictionary(chunk, pages):
            longest = _find_longest_in_dictionary(opened, group, chunk)
            bounds = compute_row_sizes(chunk, pages, num_rows, longest)
            if longest is not None and longest * chunk.num_values > MAX_LIST_BYTES:
                if count_dictionary_values(pages) == chunk.num_values:
                    dictionary_columns.append(chunk.name)
                    bounds = compute_row_sizes(chunk, pages, num_rows, INDEX_BYTES)
                else:
                    bounds = _measure_list_rows(opened, group, chunk)
        sizes.append(bounds)
    num_rows = max(min(num_rows, DECODED_BYTES // ROW_BYTES), 1)
    while num_rows > 1 and sum(s.max_bytes_of_rows(num_rows) for s in sizes) + ROW_BYTES * num_rows > DECODED_BYTES:
        num_rows //= 2
    return num_rows, dictionary_columns


def _can_read_dictionary(opened: OpenFile, chunk: Chunk, pages: list[Page]) -> bool:
    is_top_level = chunk.name in opened.parquet.schema_arrow.names
    return is_top_level and not chunk.is_repeated and _has_small_dictionary(chunk, pages)


def _has_small_dictionary(chunk: Chunk, pages: list[Page]) -> bool:
    dictionary = find_dictionary(pages)
    is_small = dictionary is not None and dictionary.uncompressed_bytes <= MAX_DICTIONARY_BYTES
    return chunk.physical_type == "BYTE_ARRAY" and is_small


def _find_longest_in_dictionary(opened: OpenFile, group: int, chunk: Chunk) -> int | None:
    """Return the size of the longest value in the dictionary of a column of lists, None if it is not found.

    The first row has the whole dictionary, unless its list is empty.
    """
    parquet = open_file(opened.input_file.path, metadata=opened.parquet.metadata, read_dictionary=[chunk.name])
    batches = parquet.iter_batches(1, row_groups=[group], columns=[chunk.name], use_threads=False)
    if (batch := next(batches, None)) is None:
        raise _make_row_error(group, 0, opened.parquet.metadata.row_group(group).num_rows)
    column = batch.column(0)
    while pa.types.is_struct(column.type) or pa.types.is_list(column.type):
        column = column.field(0) if pa.types.is_struct(column.type) else column.values
    if not pa.types.is_dictionary(column.type) or not len(column.dictionary):
        return None
    return int(measure_values(column.dictionary).max())


def _measure_list_rows(opened: OpenFile, group: int, chunk: Chunk) -> RowSizes:
    """Return the sizes of the rows of a column of lists, some of whose values are in its dictionary.

    Raises FolioError if a row is longer than the longest record that is read, as Arrow would decode it.
    """
    parquet = open_file(opened.input_file.path, metadata=opened.parquet.metadata, read_dictionary=[chunk.name])
    measured = []
    num_rows = max(parquet.metadata.row_group(group).num_rows * MEASURED_LIST_VALUES // chunk.num_values, 1)
    for batch in parquet.iter_batches(num_rows, row_groups=[group], columns=[chunk.name], use_threads=False):
        if batch.num_rows:
            measured.append(measure_values(batch.column(0)))
    sizes = np.concatenate(measured)
    if (longest := int(sizes.max())) > opened.max_value_bytes:
        raise FolioError(
            f"{opened.input_file.path}: a list of column {shorten(chunk.name)!r} has {longest:,} bytes in row "
            f"{int(sizes.argmax()):,} of row group {group}, expected at most {opened.max_value_bytes:,}; remove the row"
        )
    return RowSizes.measured(sizes, -(-len(sizes) // MAX_BLOCKS))


def _measure_dictionary_rows(opened: OpenFile, group: int, chunk: Chunk, num_rows: int) -> list[RowSizes]:
    """Return the sizes of the first `num_rows` rows of a column, all of which have values in its dictionary."""
    num_reads = -(-num_rows // MAX_BLOCKS)
    read_rows = num_rows // num_reads
    num_unread = num_rows - read_rows * num_reads  # a batch must not contain rows that are not in the dictionary
    parquet = open_file(opened.input_file.path, metadata=opened.parquet.metadata, read_dictionary=[chunk.name])
    batches = parquet.iter_batches(read_rows, row_groups=[group], columns=[chunk.name], use_threads=False)
    measured: list[RowSizes] = []
    max_bytes = num_read = 0
    while num_read < num_rows - num_unread:
        if (batch := next(batches, None)) is None:
            raise _make_row_error(group, num_read, num_rows)
        column = batch.column(0)
        max_bytes = max(max_bytes, int(measure_values(column.dictionary).max(initial=0)))
        measured.append(RowSizes.measured(measure_values(column), num_reads))
        num_read += len(column)
    if num_unread:
        measured.append(RowSizes.uniform(num_unread, max_bytes))
    return measured


def estimate_repetition(opened: OpenFile, chunk: Chunk) -> float:
    """Estimate the decoded size of a column divided by its uncompressed size in the file.

    Returns 1.0 unless all values are in a dictionary and their decoded size is at least
    PARTITION_BYTES.
    """
    if chunk.physical_type != "BYTE_ARRAY" or not chunk.has_dictionary or not chunk.num_values:
        return 1.0
    page = next(read_page_headers(opened.raw, chunk, opened.input_file.size_bytes))
    has_only_indices = chunk.uncompressed_bytes - page.uncompressed_bytes < INDEX_BYTES // 2 * chunk.num_values
    if page.type != DICTIONARY_PAGE or not page.num_values or not has_only_indices:
        return 1.0
    decoded_bytes = chunk.num_values * (page.uncompressed_bytes / page.num_values)
    return decoded_bytes / chunk.uncompressed_bytes if decoded_bytes >= inputs.PARTITION_BYTES else 1.0
