"""Read CSV files with a header, whose values are separated by commas or by another character.

All values are text. A row with more or fewer values than the header is rejected.

csv_rows.py cuts a file into blocks of whole rows, and Arrow parses each of them as a table. Arrow's
own reader of large files is not used: it needs memory for several blocks of the size of the longest
possible row, and it drops a line feed at the start of a block if a carriage return is before it.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from preprocess.errors import FolioError, MisuseError, first_line
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.open_input import read_blocks
from preprocess.readers.csv_header import BYTE_ORDER_MARK, Header, read_header
from preprocess.readers.csv_quotes import (
    MIN_LINES,
    WrongQuote,
    check_text_after_quotes,
    count_lines,
    find_swallowed_rows,
)
from preprocess.readers.csv_rows import RowCutter, UnclosedQuote, find_rows
from preprocess.readers.record_sizes import get_max_record_bytes, reject_long_record
from preprocess.readers.records import MAX_SAVED_BYTES, Records, Rejects, find_required_columns
from preprocess.readers.reject_reasons import RejectReason
from preprocess.recipes.exact_numbers import make_exact_numbers
from preprocess.recipes.schema import Recipe

ONLY_ASCII = bytes(range(128)) + b"?" * 128  # a table for bytes.translate
BACKSLASH_AND_QUOTE = b'\\"'
NumberedRows = tuple[pa.RecordBatch, np.ndarray]  # R rows, and the number of each in the file, (R,) int64
INTEGER_PATTERN = re.compile(r"[-+]?[0-9]{1,40}")  # longer ones do not fit into 64 bits and are floats
NUMBER_PATTERN = r"\A[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\z"


def check_csv(input_file: InputFile, recipe: Recipe) -> list[str] | None:
    """Check the header of a CSV file, and return its names, or None if the file has none and is empty.

    Raises FolioError if the header cannot be read, and MisuseError if it lacks a column that the
    recipe needs or contains it twice.
    """
    header = read_header(read_blocks(input_file, 0, None), input_file, recipe)
    return None if header is None else list(header.names)


def read_csv(input_file: InputFile, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of a whole CSV file, as columns of bytes.

    The file cannot be divided into spans: whether a line feed ends a row depends on the quotes
    before it. Raises FolioError if a quote is not closed, or if a row is too long and the recipe
    makes that an error, and MisuseError if the condition compares a column with true or false or
    with values of several types.
    """
    blocks = read_blocks(input_file, 0, None)
    header = read_header(blocks, input_file, recipe)
    if header is None:
        return
    required = find_required_columns(recipe)
    parser = _TableParser(header, input_file, recipe, rejects)
    num_records = 0
    for batch, row_numbers in parser.parse(blocks):
        where = {name: _convert(batch.column(name), kind, name, input_file) for name, kind in required.where.items()}
        columns = {name: batch.column(name) for name in required.of_documents}
        yield Records(columns, num_records, where, row_numbers=row_numbers)
        num_records += batch.num_rows


class _TableParser:
    """A parser of the rows of one file. `num_rows` counts the rows before the current one, with the header."""

    def __init__(self, header: Header, input_file: InputFile, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects
        self._header, self._required = header, find_required_columns(recipe).names
        self.num_rows = header.num_rows

    def parse(self, blocks: Iterator[bytes]) -> Iterator[NumberedRows]:
        """Yield the required columns of rows, as bytes, and the numbers of the rows. The header is row 1.

        `blocks` follow `header.rest`. Raises FolioError if a quote is not closed, or if a row is too
        long and the recipe makes that an error.
        """
        cutter = RowCutter(self._header.dialect, get_max_record_bytes(self._recipe), self._reject_long_row)
        try:
            for rows, has_text_after_quotes in cutter.cut(itertools.chain([self._header.rest], blocks)):
                if has_text_after_quotes:
                    self._check_quotes(rows)
                num_before = self.num_rows
                yield from self._parse_rows(rows)
                if b'"' in rows and count_lines(rows) > self.num_rows - num_before + MIN_LINES - 3:
                    self._find_swallowed_rows(rows, num_before)
        except UnclosedQuote as e:
            number = self.num_rows + (not cutter.is_skipping)  # a row that is left out has been counted already
            raise FolioError(
                f"{self._input_file.path}: a quote that is opened in row {number:,} is not closed; "
                f"{self._advise_about_quotes(is_escaped=BACKSLASH_AND_QUOTE in e.rows)}"
            ) from e

    def _check_quotes(self, rows: bytes) -> None:
        """Raise FolioError for a quote with which a row cannot be read, warn about other wrong quotes."""
        try:
            numbers = check_text_after_quotes(rows, self._header.dialect)
        except WrongQuote as e:
            raise FolioError(
                f"{self._input_file.path}: a quote that is opened in row {self.num_rows + e.row + 1:,} is closed in "
                f"the middle of a value; {self._advise_about_quotes(e.is_escaped)}"
            ) from e
        self._warn_about_quotes(rows, self.num_rows, dict.fromkeys(numbers, "text follows a closing quote"))

    def _find_swallowed_rows(self, rows: bytes, num_before: int) -> None:
        """Warn about rows that may be several rows after a quote that is not closed."""
        found = find_swallowed_rows(rows, len(self._header.names), self._header.dialect)
        reasons = {number: f"a quoted value has {num_lines:,} lines that look like rows" for number, num_lines in found}
        self._warn_about_quotes(rows, num_before, reasons)

    def _warn_about_quotes(self, rows: bytes, num_before: int, reasons: dict[int, str]) -> None:
        """Count rows that are read, but whose quotes are probably wrong. `reasons`: by number in `rows`, from 0."""
        if not reasons:
            return
        starts, ends = find_rows(rows, self._header.dialect)
        for number, reason in reasons.items():
            place = f"row {num_before + number + 1}"
            found = RejectReason("wrong_quotes", reason, 1, self._input_file.name, place)
            row = rows[starts[number] : min(ends[number], starts[number] + MAX_SAVED_BYTES)]
            self._rejects.add(found, row, has_position=True)

    def _advise_about_quotes(self, is_escaped: bool) -> str:
        if is_escaped and self._header.dialect.escape is None:
            return "if a backslash makes a quote part of the text, pass --escape '\\'; otherwise double such quotes"
        return (
            "close it, double the quotes inside of quoted values, or pass --no-quotes if quotes in this file are "
            "ordinary characters"
        )

    def _parse_rows(self, rows: bytes) -> Iterator[NumberedRows]:
        num_before, row_numbers = self.num_rows, None
        try:
            try:
                table = self._parse_table(rows)
            except pa.ArrowInvalid:
                rows, row_numbers = self._reject_rows(rows)
                table = self._parse_table(rows)
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

    def _reject_rows(self, rows: bytes) -> tuple[bytes, np.ndarray]:
        """Reject the rows that do not have exactly one value per column. Return the others, and their numbers."""
        found = array("q")  # alternately the number of a row in `rows`, and its number of values

        def note_row(row: Any) -> str:
            found.extend((row.number, row.actual_columns))
            return "skip"

        # Arrow can pass a row to `note_row` only if it is UTF-8, so other bytes than ASCII are replaced.
        self._parse_table(rows.translate(ONLY_ASCII), note_row)
        starts, ends = find_rows(rows, self._header.dialect)
        is_valid = np.ones(len(starts), bool)
        for number, num_values in zip(found[::2], found[1::2], strict=True):
            is_valid[number - 1] = False
            row = rows[starts[number - 1] : ends[number - 1]].rstrip(b"\r\n")
            reason = f"expected {len(self._header.names)} values, got {num_values}"
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

    def _parse_table(self, rows: bytes, reject_row: Callable[[Any], str] | None = None) -> pa.Table:
        """Return the required columns of `rows` as bytes.

        Calls `reject_row` for each row that does not have exactly one value per column; without it,
        such a row raises ArrowInvalid.
        """
        required, dialect = self._required, self._header.dialect
        if rows.startswith(BYTE_ORDER_MARK):
            rows = BYTE_ORDER_MARK + rows  # Arrow removes the first one
        return pa.csv.read_csv(
            pa.BufferReader(rows or b"\n"),  # Arrow rejects a file without bytes
            pa.csv.ReadOptions(use_threads=False, block_size=len(rows) + 1, column_names=self._header.names),
            pa.csv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char='"' if dialect.has_quotes else False,
                escape_char=dialect.escape or False,
                # This is about how Arrow divides a file into blocks. `rows` is one block of whole rows.
                newlines_in_values=False,
                invalid_row_handler=reject_row,
            ),
            # Read bytes, so that the recipe decides what happens to invalid UTF-8, and so that Arrow does not convert
            # any value to a null, a number or a date.
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(required, pa.binary()),
                include_columns=required,
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )


def _convert(values: pa.Array, kind: str, name: str, input_file: InputFile) -> pa.Array:
    """Convert a column of bytes to `kind`, the kind that the condition compares it with.

    A value that is not a number becomes null in a column of numbers.
    """
    if kind in ("number", "exact number"):
        text = values.cast(pa.large_binary())
        is_number = pc.match_substring_regex(text, NUMBER_PATTERN)
        numbers = pc.if_else(is_number, text, None).cast(pa.large_string())
        if kind == "exact number":
            return make_exact_numbers(map(_parse_number, numbers.to_pylist()))
        return numbers.cast(pa.float64())
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


def _parse_number(text: str | None) -> int | float | None:
    if text is None:
        return None
    return int(text) if INTEGER_PATTERN.fullmatch(text) else float(text)
