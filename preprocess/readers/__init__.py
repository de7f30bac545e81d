"""Readers turn input files of every format into records, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preprocess.inputs.input_files import InputFile, Span
    from preprocess.readers.records import Records, Rejects
    from preprocess.recipes.schema import Recipe


def read_span(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of `span` in file order.

    The columns of a record may be bytes that are not UTF-8; only JSON lines are checked here.
    `rejects` counts the records that cannot be read. Raises FolioError if the file cannot be read,
    or if a record is too long or a line of JSON is not UTF-8 and the recipe makes that an error.
    """
    if input_file.format == "text":
        from preprocess.readers.text import read_text

        yield from read_text(input_file, span, recipe, rejects)
        return
    if input_file.format == "html":
        from preprocess.readers.html import read_html

        yield from read_html(input_file, span, recipe, rejects)
        return
    if input_file.format == "warc":
        from preprocess.readers.warc import read_warc

        yield from read_warc(input_file, recipe, rejects)
        return
    from preprocess.readers.record_sizes import split_records

    # Each reader imports the library of its format, so import only the reader that is needed.
    if input_file.format == "parquet":
        from preprocess.readers.parquet import read_parquet

        batches = read_parquet(input_file, span, recipe)
    elif input_file.format == "arrow":
        from preprocess.readers.arrow import read_arrow

        batches = read_arrow(input_file, span, recipe)
    elif input_file.format == "jsonl":
        from preprocess.readers.json import read_jsonl

        batches = read_jsonl(input_file, span, recipe, rejects)
    else:
        from preprocess.readers.csv import read_csv

        batches = read_csv(input_file, recipe, rejects)
    batches = split_records(batches, input_file, recipe, rejects)
    if recipe.chat_columns is not None and input_file.format != "jsonl":  # the parser of JSON joins them
        from preprocess.readers.chat_columns import join_chat_columns

        batches = join_chat_columns(batches, recipe, has_nulls=input_file.format != "csv")
    yield from batches
