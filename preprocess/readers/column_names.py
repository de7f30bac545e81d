"""List the columns of tables, to recognise chats, also beside the column that is read."""

from __future__ import annotations

from collections.abc import Iterable

from preprocess.inputs.input_files import InputFile
from preprocess.recipes.schema import TABLE_FORMATS, Recipe


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


def find_in_any(input_files: Iterable[InputFile], names: Iterable[str], recipe: Recipe) -> set[str]:
    """Return which of the columns `names` a table among the files has. All of them have been checked.

    A record of JSON may leave out a key, so JSON is read until all columns are found.
    """
    missing = set(names)
    for input_file in input_files:
        if not missing:
            break
        if input_file.format == "jsonl":
            from preprocess.readers.json_columns import find_columns

            missing -= find_columns(input_file, missing, recipe)
        elif input_file.format == "csv":
            from preprocess.readers.csv import check_csv

            missing -= set(check_csv(input_file, recipe) or [])
        elif input_file.format in TABLE_FORMATS:
            missing -= set(list_column_names(input_file))
    return set(names) - missing
