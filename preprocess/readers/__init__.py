"""Files of every format → records: `read_piece` gives a piece's records a few megabytes at a time, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preprocess.inputs.input_files import Piece, Source
    from preprocess.readers.records import Losses, Records
    from preprocess.recipes.schema import Recipe


def read_piece(source: Source, piece: Piece, recipe: Recipe, losses: Losses) -> Iterator[Records]:
    """The records of `piece` in order. What cannot be read is counted in `losses`, or ends the build with a FolioError."""
    if source.format == "parquet":
        from preprocess.readers.parquet import read_parquet

        yield from read_parquet(source, piece, recipe)
    elif source.format == "jsonl":
        from preprocess.readers.json import read_jsonl

        yield from read_jsonl(source, piece, recipe, losses)
    elif source.format == "csv":
        from preprocess.readers.csv import read_csv

        yield from read_csv(source, recipe, losses)
    else:
        from preprocess.readers.text import read_text

        yield from read_text(source, piece, recipe, losses)


def check_source(source: Source, recipe: Recipe) -> None:
    """Raise MisuseError where `source` visibly lacks what the recipe needs, before any work is done."""
    if source.format == "jsonl":
        from preprocess.readers.json import check_jsonl

        check_jsonl(source, recipe)
    elif source.format == "csv":
        from preprocess.readers.csv import check_csv

        check_csv(source, recipe)
