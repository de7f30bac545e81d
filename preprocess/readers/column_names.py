"""List the columns of a table, to recognise chats beside the column that is read."""

from __future__ import annotations

from preprocess.inputs.input_files import InputFile


def list_column_names(input_file: InputFile) -> list[str]:
    """Return the names of the columns of a Parquet or Arrow file that has been checked, from its metadata."""
    # Each reader imports the library of its format, so import only the reader that is needed.
    if input_file.format == "parquet":
        from preprocess.readers.parquet_metadata import open_file

        with open_file(input_file.path) as file:
            names: list[str] = file.schema_arrow.names
            return names
    from preprocess.readers.arrow_file import open_arrow

    with open_arrow(input_file.disk.path, set()) as arrow_file:
        return list(arrow_file.schema.names)
