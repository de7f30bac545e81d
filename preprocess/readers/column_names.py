"""List the columns of a table, to recognise chats beside the column that is read."""

from __future__ import annotations

from preprocess.inputs.input_files import InputFile
from preprocess.recipes.schema import Recipe


def list_column_names(input_file: InputFile, recipe: Recipe) -> list[str]:
    """Return the names of the columns of a table that has been checked; of JSON, those of the first record.

    Files of other formats have none.
    """
    # Each reader imports the library of its format, so import only the reader that is needed.
    if input_file.format == "parquet":
        from preprocess.readers.parquet_metadata import open_file

        with open_file(input_file.path) as file:
            names: list[str] = file.schema_arrow.names
            return names
    if input_file.format == "arrow":
        from preprocess.readers.arrow_file import open_arrow

        with open_arrow(input_file.disk.path, set()) as file:
            return list(file.schema.names)
    if input_file.format == "csv":
        from preprocess.inputs.open_input import read_blocks
        from preprocess.readers.csv_header import read_header

        header = read_header(read_blocks(input_file, 0, None), input_file, recipe)
        return [] if header is None else list(header.names)
    if input_file.format == "jsonl":
        from preprocess.readers.json import read_head
        from preprocess.readers.json_columns import iter_head

        return list(next(iter_head(input_file, read_head(input_file), recipe), {}))
    return []
