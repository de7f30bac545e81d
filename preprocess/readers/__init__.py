"""Readers turn input files of every format into records, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from preprocess.recipes.schema import TABLE_FORMATS

if TYPE_CHECKING:
    from preprocess.inputs.input_files import InputFile, Span
    from preprocess.readers.records import Records, Rejects
    from preprocess.recipes.schema import Recipe


def read_span(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Return an iterator over the records of `span` in file order.

    The columns of a record may be bytes that are not UTF-8; only JSON lines are checked here.
    `rejects` counts the records that cannot be read. Raises FolioError if the file cannot be read,
    or if a record is too long or a line of JSON is not UTF-8 and the recipe makes that an error.
    """
    records = read_records(input_file, span, recipe, rejects)
    if input_file.format not in TABLE_FORMATS:
        return records
    return divide_table(records, input_file, recipe, rejects)


def divide_table(
    batches: Iterator[Records], input_file: InputFile, recipe: Recipe, rejects: Rejects
) -> Iterator[Records]:
    """Divide the records of a table into batches that fit into memory, and join the columns of chats."""
    from preprocess.readers.record_sizes import split_records

    batches = split_records(batches, input_file, recipe, rejects)
    if recipe.chat_columns is None or input_file.format == "jsonl":  # the parser of JSON joins them
        return batches
    from preprocess.readers.chat_columns import join_chat_columns

    return join_chat_columns(batches, recipe)


def read_records(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Return the records of `span` as `read_span` does, but those of a table in batches of any size."""
    # Each reader imports the library of its format, so import only the reader that is needed.
    if input_file.format == "text":
        from preprocess.readers.text import read_text

        return read_text(input_file, span, recipe, rejects)
    if input_file.format == "html":
        from preprocess.readers.html import read_html

        return read_html(input_file, span, recipe, rejects)
    if input_file.format == "warc":
        from preprocess.readers.warc import read_warc

        return read_warc(input_file, recipe, rejects)
    if input_file.format == "parquet":
        from preprocess.readers.parquet import read_parquet

        return read_parquet(input_file, span, recipe)
    if input_file.format == "arrow":
        from preprocess.readers.arrow import read_arrow

        return read_arrow(input_file, span, recipe)
    if input_file.format == "jsonl":
        from preprocess.readers.json import read_jsonl

        return read_jsonl(input_file, span, recipe, rejects)
    from preprocess.readers.csv import read_csv

    return read_csv(input_file, recipe, rejects)
