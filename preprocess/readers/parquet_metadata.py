"""The parts of pyarrow that read the metadata of a Parquet file.

Some of them end the process if the metadata is damaged, so parquet_examiner.py calls all of them in
a child process first. They are in one module so that it calls the same ones as the reader.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow.parquet as pq


class Chunk(NamedTuple):
    """A column of one row group, as the metadata of the file describes it."""

    name: str  # its path in the schema
    physical_type: str
    value_bytes: int  # of a FIXED_LEN_BYTE_ARRAY
    is_repeated: bool  # a list may have any number of values in a row
    num_values: int
    offset: int  # of the first page in the file
    uncompressed_bytes: int
    has_dictionary: bool


def open_file(path: str, **options: Any) -> Any:
    """Return the ParquetFile of `path`, which reads its columns piece by piece."""
    # memory_map: the pages of a mapped file would count as memory of this process.
    # buffer_size: otherwise all of a column of a row group would be read at once.
    return pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=1 << 20, **options)


def find_chunk_indices(file: Any, names: set[str]) -> list[int]:
    """Return the indices of the columns, within a row group, that belong to the columns `names`."""
    # The path of a column "a.b" is either the column "a.b" or the field "b" of a nested column "a".
    paths = (file.schema.column(i).path for i in range(len(file.schema)))
    return [i for i, path in enumerate(paths) if {path, path.split(".")[0]} & names]


def describe_chunks(file: Any, group: int, indices: list[int]) -> list[Chunk]:
    """Return the columns `indices` of a row group."""
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
