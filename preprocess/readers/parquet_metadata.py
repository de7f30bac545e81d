"""Read the metadata of a Parquet file with pyarrow.

If the metadata is damaged, pyarrow can end the process. examiner.py therefore calls these
functions in a child process before the reader calls them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow.parquet as pq


class Chunk(NamedTuple):
    """A column chunk, i.e. one column of one row group, as the metadata of the file describes it."""

    name: str  # path of the column in the schema
    physical_type: str
    value_bytes: int  # size of a value of a FIXED_LEN_BYTE_ARRAY; 0 for other types
    is_repeated: bool  # whether a row may have any number of values, as in a list
    num_values: int
    offset: int  # of the first page, from the start of the file
    uncompressed_bytes: int
    has_dictionary: bool


def open_file(path: str, **options: Any) -> Any:
    """Return a pyarrow.parquet.ParquetFile that does not read whole columns into memory.

    `options` are further arguments of ParquetFile. Raises an exception of Arrow, or OSError, if the
    file cannot be opened.
    """
    # memory_map: the pages of a mapped file would count as memory of this process.
    # buffer_size: otherwise all of a column of a row group would be read at once.
    return pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=1 << 20, **options)


def find_chunk_indices(file: Any, names: set[str]) -> list[int]:
    """Return the indices in a row group of the column chunks that belong to the columns `names`."""
    # The path "a.b" is either that of the column "a.b" or of the field "b" of a nested column "a". If "a.b" is a list,
    # its values have longer paths, such as "a.b.list.element".
    prefixes = tuple(f"{name}." for name in names)
    paths = (file.schema.column(i).path for i in range(len(file.schema)))
    return [i for i, path in enumerate(paths) if path in names or path.startswith(prefixes)]


def describe_chunks(file: Any, group: int, indices: list[int]) -> list[Chunk]:
    """Return the column chunks `indices` of row group `group`."""
    row_group = file.metadata.row_group(group)
    chunks = []
    for i in indices:
        column, schema = row_group.column(i), file.schema.column(i)
        offset, dictionary_offset = column.data_page_offset, column.dictionary_page_offset
        if dictionary_offset is not None and 0 < dictionary_offset < offset:
            offset = dictionary_offset
        chunks.append(
            Chunk(
                column.path_in_schema,
                column.physical_type,
                max(schema.length, 0) if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0,
                schema.max_repetition_level > 0,
                column.num_values,
                offset,
                column.total_uncompressed_size,
                column.has_dictionary_page,
            )
        )
    return chunks
