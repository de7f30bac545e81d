"""Files of every format → records: `read_span` gives a span's records a few megabytes at a time, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preprocess.inputs.input_files import InputFile, Span
    from preprocess.readers.records import Records, Rejects
    from preprocess.recipes.schema import Recipe


def read_span(source: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """The records of `span` in order. What cannot be read is counted in `rejects`, or ends the build with a FolioError."""
    if source.format == "parquet":
        from preprocess.readers.parquet import read_parquet

        yield from read_parquet(source, span, recipe)
    elif source.format == "jsonl":
        from preprocess.readers.json import read_jsonl

        yield from read_jsonl(source, span, recipe, rejects)
    elif source.format == "csv":
        from preprocess.readers.csv import read_csv

        yield from read_csv(source, recipe, rejects)
    else:
        from preprocess.readers.text import read_text

        yield from read_text(source, span, recipe, rejects)


def check_input_file(source: InputFile, recipe: Recipe) -> None:
    """Raise MisuseError where `source` visibly lacks what the recipe needs, before any work is done."""
    if source.format == "jsonl":
        from preprocess.readers.json import check_jsonl

        check_jsonl(source, recipe)
    elif source.format == "csv":
        from preprocess.readers.csv import check_csv

        check_csv(source, recipe)
