"""CSV with a header → records; every value is text. Rows with too many or too few values are kept aside and counted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from preprocess.errors import FolioError, MisuseError, first_line
from preprocess.inputs.input_files import InputFile
from preprocess.readers.decompress import BLOCK_BYTES, blocks, opened
from preprocess.readers.records import Records, Rejects, check_columns, needed_columns
from preprocess.recipes.schema import Recipe

MAX_HEADER_BYTES = 8 << 20
MAX_BLOCK_BYTES = (1 << 31) - 1  # what Arrow takes
NUMBER = r"\A[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\z"


def check_csv(source: InputFile, recipe: Recipe) -> None:
    """Raise MisuseError where the header of `source` lacks a column which the recipe needs, or names one twice; FolioError for none."""
    first = b"".join(
        itertools.islice(blocks(source, 0, None if source.compression else min(source.size_bytes, MAX_HEADER_BYTES)), 1)
    )
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(first[: first.rfind(b"\n") + 1] or first),
            parse_options=_parse_options(lambda row: "skip"),
            read_options=pa.csv.ReadOptions(use_threads=False),
        )
    except pa.ArrowInvalid as e:
        raise FolioError(f"{source.path} has no CSV header ({e}); its first line must name the columns") from e
    names: list[str] = table.column_names
    if len(set(names)) != len(names):
        raise MisuseError(f"{source.path} names a column twice in its header: {', '.join(names)[:200]}; rename one")
    check_columns(source, needed_columns(recipe), names)


def read_csv(source: InputFile, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """The records of the whole file: quotes may hold line feeds, so that no part of it can be read by itself."""
    needed = needed_columns(recipe)

    def refuse(row: Any) -> str:
        reason = f"{row.actual_columns} values, wanted {row.expected_columns}"
        rejects.refuse(source.name, f"row {row.number or 'of unknown number'}", reason, (row.text or "").encode())
        return "skip"

    read = pa.csv.ReadOptions(
        use_threads=False, block_size=min(max(BLOCK_BYTES, 2 * recipe.max_document_bytes), MAX_BLOCK_BYTES)
    )
    # Bytes, so that what is no UTF-8 meets the recipe's policy; nothing is taken for a null, a number or a date.
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(needed.names, pa.binary()),
        include_columns=needed.names,
        strings_can_be_null=False,
        check_utf8=False,
    )
    number = 0
    try:
        with opened(source) as stream, pa.csv.open_csv(stream, read, _parse_options(refuse), convert) as reader:
            for batch in reader:
                if batch.num_rows:
                    where = {
                        name: _as_kind(batch.column(name), kind, name, source) for name, kind in needed.where.items()
                    }
                    yield Records({name: batch.column(name) for name in needed.columns}, number, where)
                number += batch.num_rows
    except (pa.ArrowInvalid, OSError) as e:
        raise FolioError(
            f"{source.path} cannot be read as CSV behind row {number:,} ({first_line(e)}); mend it, or cut its longest row"
        ) from e


def _parse_options(handler: Any) -> Any:
    return pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=handler)


def _as_kind(values: pa.Array, kind: str, name: str, source: InputFile) -> pa.Array:
    if kind == "number":
        text = values.cast(pa.large_binary())
        is_number = pc.match_substring_regex(text, NUMBER)
        return pc.if_else(is_number, text, None).cast(pa.large_string()).cast(pa.float64())
    if kind in ("boolean", "mixed"):
        raise MisuseError(
            f"the condition compares {name} with {kind} values, in {source.path} every value is text; put it in quotes"
        )
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid as e:
        raise FolioError(f"{source.path}: the column {name} of the condition is not UTF-8; convert the file") from e
