"""Read CSV files with a header.

All values are text. A row with more or fewer values than the header is rejected.

csv_rows.py cuts a file into blocks of whole rows, and Arrow parses each of them as a table. Arrow's
own reader of large files is not used: it needs memory for several blocks of the size of the longest
possible row, and it drops a line feed at the start of a block if a carriage return is before it.
"""

from __future__ import annotations

import csv
import io
import itertools
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from preprocess.errors import FolioError, MisuseError, first_line, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.readers.csv_rows import RowCutter, UnclosedQuote, ends_inside_quotes, find_first_row_end, find_rows
from preprocess.readers.decompress import read_blocks
from preprocess.readers.record_sizes import get_max_record_bytes, reject_long_record
from preprocess.readers.records import Records, Rejects, check_columns, find_required_columns, format_utf8_error
from preprocess.recipes.schema import Recipe

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_HEADER_BYTES = 8 << 20
ONLY_ASCII = bytes(range(128)) + b"?" * 128  # a table for bytes.translate
NumberedRows = tuple[pa.RecordBatch, np.ndarray]  # R rows, and the number of each in the file, (R,) int64
NUMBER_PATTERN = r"\A[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\z"


def check_csv(input_file: InputFile, recipe: Recipe) -> None:
    """Check the header of a CSV file.

    Raises FolioError if the file has no header, and MisuseError if the header lacks a column that
    the recipe needs or contains it twice.
    """
    head = b""
    for block in read_blocks(input_file, 0, None):
        head += block
        if len(head) >= MAX_HEADER_BYTES or find_first_row_end(_skip_empty_rows(head)):
            break
    _parse_header(_skip_empty_rows(head), input_file, recipe)


def read_csv(input_file: InputFile, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of a whole CSV file, as columns of bytes.

    The file cannot be divided into spans: whether a line feed ends a row depends on the quotes
    before it. Raises FolioError if a quote is not closed, or if a row is too long and the recipe
    makes that an error, and MisuseError if the condition compares a column with true or false or
    with values of several types.
    """
    required = find_required_columns(recipe)
    parser = _TableParser(input_file, recipe, rejects)
    num_records = 0
    for batch, row_numbers in parser.parse(read_blocks(input_file, 0, None)):
        where = {name: _convert(batch.column(name), kind, name, input_file) for name, kind in required.where.items()}
        columns = {name: batch.column(name) for name in required.columns}
        yield Records(columns, num_records, where, row_numbers=row_numbers)
        num_records += batch.num_rows


class _TableParser:
    """A parser of the rows of one file. `num_rows` counts the rows before the current one, with the header."""

    def __init__(self, input_file: InputFile, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects
        self._names: list[str] = []  # of the columns
        self.num_rows = 0

    def parse(self, blocks: Iterator[bytes]) -> Iterator[NumberedRows]:
        """Yield the required columns of rows, as bytes, and the numbers of the rows. The header is row 1.

        Raises FolioError if a quote is not closed, or if a row is too long and the recipe makes
        that an error.
        """
        cutter = RowCutter(get_max_record_bytes(self._recipe), self._reject_long_row)
        first_block = next(blocks, b"").removeprefix(BYTE_ORDER_MARK)
        try:
            for rows in cutter.cut(itertools.chain([first_block], blocks)):
                if not self.num_rows:
                    rows = self._take_header(rows)
                if rows:
                    yield from self._parse_rows(rows)
        except UnclosedQuote as e:
            number = self.num_rows + (not cutter.is_skipping)  # a row that is left out has been counted already
            raise FolioError(
                f"{self._input_file.path}: a quote that is opened in row {number:,} is not closed; close it, or double "
                "the quotes inside of quoted values"
            ) from e

    def _take_header(self, rows: bytes) -> bytes:
        """Set the names of the columns, and return the rows after the header."""
        rows = _skip_empty_rows(rows)
        if rows:
            self._names, num_bytes = _parse_header(rows, self._input_file, self._recipe)
            self.num_rows = 1
            rows = rows[num_bytes:]
        return rows

    def _parse_rows(self, rows: bytes) -> Iterator[NumberedRows]:
        required = find_required_columns(self._recipe).names
        num_before, row_numbers = self.num_rows, None
        try:
            try:
                table = _parse_table(rows, self._names, required)
            except pa.ArrowInvalid:
                rows, row_numbers = self._reject_rows(rows, required)
                table = _parse_table(rows, self._names, required)
        except pa.ArrowInvalid as e:
            raise FolioError(
                f"{self._input_file.path} cannot be read as CSV after row {num_before:,} ({first_line(e)}); "
                "correct the file"
            ) from e
        self.num_rows += table.num_rows
        if row_numbers is None:
            row_numbers = num_before + 1 + np.arange(table.num_rows)
        for batch in table.combine_chunks().to_batches():  # at most one
            yield batch, row_numbers

    def _reject_rows(self, rows: bytes, required: list[str]) -> tuple[bytes, np.ndarray]:
        """Reject the rows that do not have exactly one value per column. Return the others, and their numbers."""
        found = array("q")  # alternately the number of a row in `rows`, and its number of values

        def note_row(row: Any) -> str:
            found.extend((row.number, row.actual_columns))
            return "skip"

        # Arrow can pass a row to `note_row` only if it is UTF-8, so other bytes than ASCII are replaced.
        _parse_table(rows.translate(ONLY_ASCII), self._names, required, note_row)
        starts, ends = find_rows(rows)
        is_valid = np.ones(len(starts), bool)
        for number, num_values in zip(found[::2], found[1::2], strict=True):
            is_valid[number - 1] = False
            row = rows[starts[number - 1] : ends[number - 1]].rstrip(b"\r\n")
            reason = f"expected {len(self._names)} values, got {num_values}"
            self._rejects.reject(self._input_file.name, f"row {self.num_rows + number}", reason, row)
        row_numbers = self.num_rows + 1 + np.flatnonzero(is_valid)
        self.num_rows += len(found) // 2
        valid = zip(starts[is_valid], ends[is_valid], strict=True)
        return b"".join(rows[start:end] for start, end in valid), row_numbers

    def _reject_long_row(self, is_inside_quotes: bool) -> None:
        self.num_rows += 1
        advice = "close the quote that is opened in it, or shorten it" if is_inside_quotes else "shorten it"
        record = f"{self._input_file.path}: row {self.num_rows:,}"
        reject_long_record(record, self._recipe, self._rejects, advice=advice)


def _parse_table(
    rows: bytes, names: list[str], required: list[str], reject_row: Callable[[Any], str] | None = None
) -> pa.Table:
    """Return the columns `required` of `rows` as bytes.

    `names` are all columns. Calls `reject_row` for each row that does not have exactly one value
    per column; without it, such a row raises ArrowInvalid.
    """
    if rows.startswith(BYTE_ORDER_MARK):
        rows = BYTE_ORDER_MARK + rows  # Arrow removes the first one
    return pa.csv.read_csv(
        pa.BufferReader(rows or b"\n"),  # Arrow rejects a file without bytes
        pa.csv.ReadOptions(use_threads=False, block_size=len(rows) + 1, column_names=names),
        # newlines_in_values is about how Arrow divides a file into blocks. `rows` is one block of whole rows.
        pa.csv.ParseOptions(newlines_in_values=False, invalid_row_handler=reject_row),
        # Read bytes, so that the recipe decides what happens to invalid UTF-8, and so that Arrow does not convert any
        # value to a null, a number or a date.
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(required, pa.binary()),
            include_columns=required,
            strings_can_be_null=False,
            check_utf8=False,
        ),
    )


def _skip_empty_rows(head: bytes) -> bytes:
    """Return the beginning of a file without a byte order mark and empty rows."""
    return head.removeprefix(BYTE_ORDER_MARK).lstrip(b"\r\n")


def _parse_header(rows: bytes, input_file: InputFile, recipe: Recipe) -> tuple[list[str], int]:
    """Return the names of the columns, from the first of `rows`, and the size of that row."""
    num_bytes = find_first_row_end(rows) or len(rows)
    names: list[str] = []
    try:
        if num_bytes > MAX_HEADER_BYTES:
            raise csv.Error(f"it has more than {MAX_HEADER_BYTES:,} bytes")
        if ends_inside_quotes(rows[:num_bytes]):
            raise csv.Error("a quote is not closed")
        names = next(csv.reader(io.StringIO(rows[:num_bytes].decode(), newline="")), [])
        if not names:
            raise csv.Error("it is empty")
    except UnicodeDecodeError as e:
        raise FolioError(format_utf8_error(input_file.path, "in the header", rows[e.start], e.reason)) from e
    except csv.Error as e:
        raise FolioError(f"{input_file.path} has no CSV header ({e}); its first line must name the columns") from e
    required = find_required_columns(recipe)
    check_columns(input_file, required, names)
    for name in required.names:
        if names.count(name) > 1:
            raise MisuseError(
                f"the header of {input_file.path} has two columns of the same name, {shorten(name)!r}; rename one"
            )
    return names, num_bytes


def _convert(values: pa.Array, kind: str, name: str, input_file: InputFile) -> pa.Array:
    """Convert a column of bytes to `kind`, the kind that the condition compares it with.

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
