"""Read CSV files with a header.

All values are text. A row with more or fewer values than the header is rejected.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from preprocess.errors import FolioError, MisuseError, first_line
from preprocess.inputs.input_files import InputFile
from preprocess.readers.decompress import BLOCK_BYTES, open_stream, read_blocks
from preprocess.readers.records import Records, Rejects, check_columns, find_required_columns
from preprocess.recipes.schema import Recipe

MAX_HEADER_BYTES = 8 << 20
MAX_BLOCK_BYTES = (1 << 31) - 1  # the largest block that Arrow accepts
NUMBER_PATTERN = r"\A[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\z"


def check_csv(input_file: InputFile, recipe: Recipe) -> None:
    """Check the header of a CSV file.

    Raises FolioError if the file has no header, and MisuseError if the header lacks a column that
    the recipe needs or contains a column twice.
    """
    stop = None if input_file.compression else min(input_file.size_bytes, MAX_HEADER_BYTES)
    head = b"".join(itertools.islice(read_blocks(input_file, 0, stop), 1))
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(head[: head.rfind(b"\n") + 1] or head),
            parse_options=_make_parse_options(lambda row: "skip"),
            read_options=pa.csv.ReadOptions(use_threads=False),
        )
    except pa.ArrowInvalid as e:
        raise FolioError(f"{input_file.path} has no CSV header ({e}); its first line must name the columns") from e
    names: list[str] = table.column_names
    if len(set(names)) != len(names):
        raise MisuseError(
            f"the header of {input_file.path} has two columns of the same name: {', '.join(names)[:200]}; rename one"
        )
    check_columns(input_file, find_required_columns(recipe), names)


def read_csv(input_file: InputFile, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of a whole CSV file.

    The file cannot be divided into spans: whether a line feed ends a row depends on the quotes
    before it.
    """
    required = find_required_columns(recipe)

    def reject_row(row: Any) -> str:
        location = f"row {row.number or 'of unknown number'}"
        reason = f"expected {row.expected_columns} values, got {row.actual_columns}"
        rejects.reject(input_file.name, location, reason, (row.text or "").encode())
        return "skip"

    block_bytes = min(max(BLOCK_BYTES, 2 * recipe.max_document_bytes), MAX_BLOCK_BYTES)
    read_options = pa.csv.ReadOptions(use_threads=False, block_size=block_bytes)
    # Read bytes, so that the recipe decides what happens to invalid UTF-8, and so that Arrow does
    # not convert any value to a null, a number or a date.
    convert_options = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(required.names, pa.binary()),
        include_columns=required.names,
        strings_can_be_null=False,
        check_utf8=False,
    )
    parse_options = _make_parse_options(reject_row)
    num_rows = 0
    try:
        with (
            open_stream(input_file) as stream,
            pa.csv.open_csv(stream, read_options, parse_options, convert_options) as reader,
        ):
            for batch in reader:
                if batch.num_rows:
                    where = {
                        name: _convert(batch.column(name), kind, name, input_file)
                        for name, kind in required.where.items()
                    }
                    yield Records({name: batch.column(name) for name in required.columns}, num_rows, where)
                num_rows += batch.num_rows
    except (pa.ArrowInvalid, OSError) as e:
        raise FolioError(
            f"{input_file.path} cannot be read as CSV after row {num_rows:,} ({first_line(e)}); "
            "correct the file, or shorten its longest row"
        ) from e


def _make_parse_options(handle_invalid_row: Callable[[Any], str]) -> Any:
    return pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=handle_invalid_row)


def _convert(values: pa.Array, kind: str, name: str, input_file: InputFile) -> pa.Array:
    """Convert a column of bytes to `kind`, which the condition compares it with.

    A value that is not a number becomes null in a column of numbers.
    """
    if kind == "number":
        text = values.cast(pa.large_binary())
        is_number = pc.match_substring_regex(text, NUMBER_PATTERN)
        return pc.if_else(is_number, text, None).cast(pa.large_string()).cast(pa.float64())
    if kind in ("boolean", "mixed"):
        raise MisuseError(
            f"the condition compares {name} with {kind} values, but every value of {input_file.path} is text; "
            "put the value in quotes"
        )
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid as e:
        raise FolioError(
            f"{input_file.path}: column {name}, which the condition reads, is not UTF-8; convert the file"
        ) from e
