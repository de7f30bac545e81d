"""Read the header of a CSV file, and find out which character separates its values.

The problem: CSV files are separated by commas, semicolons, tabs or vertical bars, and nothing in
the file says by which.

The idea: the recipe names columns, so the delimiter is the one with which the header has them. If
there are several, the one that the file's suffix suggests is used, otherwise the comma. Only the
header and the recipe decide, so every process finds the same delimiter. A first row `sep=;`, with
which Excel marks a delimiter, is obeyed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.readers.csv_dialect import Dialect, get_dialect
from preprocess.readers.csv_rows import WINDOW_BYTES, ends_inside_quotes, find_first_row_end
from preprocess.readers.records import advise_about_encoding, check_columns, find_required_columns
from preprocess.recipes.schema import Recipe

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_HEADER_BYTES = 8 << 20
DELIMITERS = (",", ";", "\t", "|")  # those that are detected, in this order
SUFFIX_DELIMITERS = {".tsv": "\t", ".tab": "\t", ".psv": "|"}
SEPARATOR_ROW_STARTS = (b"s", b'"s')  # the rest may be in the next block
SEPARATOR_ROW = re.compile(rb'"?sep=([ !#-~\t])"?(?:\r\n?|\n)')


@dataclass(frozen=True)
class Header:
    """The header of a CSV file."""

    names: list[str]  # of the columns
    dialect: Dialect
    num_rows: int  # 2 if there is a row `sep=;` before the names, otherwise 1
    rest: bytes  # what was read of the file after the header


def read_header(blocks: Iterator[bytes], input_file: InputFile, recipe: Recipe) -> Header | None:
    """Read the header of a file from its first `blocks`. Return None if the file has no row.

    Raises FolioError if the header cannot be read, and MisuseError if it lacks a column that the
    recipe needs or has it twice.
    """
    head = _Head(blocks)
    separator = head.take_separator_row()
    if not head.data:
        return None
    required = find_required_columns(recipe)
    candidates = _list_delimiters(input_file, recipe, separator)
    parsed: dict[str, tuple[list[str], int]] = {}  # the names of the columns and the size of the header
    error: Exception | None = None  # of the first candidate
    for delimiter in candidates:
        try:
            names, num_bytes = parsed[delimiter] = head.parse_names(
                get_dialect(delimiter, recipe.escape, recipe.quotes)
            )
        except (csv.Error, UnicodeDecodeError) as e:
            error = error or (None if parsed else e)
            continue
        if set(required.names) <= set(names):
            _check_doubled(names, required.names, input_file)
            num_rows = 1 if separator is None else 2
            return Header(names, get_dialect(delimiter, recipe.escape, recipe.quotes), num_rows, head.data[num_bytes:])
    if error is not None:
        raise FolioError(_explain_header_error(error, input_file)) from error
    _reject_given_delimiter(head, candidates, input_file, recipe)
    best = max(parsed, key=lambda delimiter: _rate(parsed[delimiter][0], required.names))
    check_columns(input_file, required, parsed[best][0])
    raise AssertionError("a column is missing")


class _Head:
    """The beginning of a file without a byte order mark and empty rows; more is read if it is needed."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        data = b""
        while len(data) < len(BYTE_ORDER_MARK) and (block := next(blocks, b"")):
            data += block
        self.data = data.removeprefix(BYTE_ORDER_MARK)
        self._skip_empty_rows()

    def _skip_empty_rows(self) -> None:
        self.data = self.data.lstrip(b"\r\n")
        while not self.data and (block := next(self._blocks, b"")):
            self.data = block.lstrip(b"\r\n")

    def take_separator_row(self) -> str | None:
        """Return the delimiter that a first row such as `sep=;` names, and remove the row."""
        if not self.data.startswith(SEPARATOR_ROW_STARTS):
            return None
        match = SEPARATOR_ROW.fullmatch(self.data[: self.find_row_end(get_dialect(DELIMITERS[0]))])
        if match is None:
            return None
        self.data = self.data[match.end() :]
        self._skip_empty_rows()
        return match[1].decode()

    def find_row_end(self, dialect: Dialect) -> int:
        """Return the offset after the first row, or 0 if it does not end."""
        while True:
            # The header is usually short, so most of a large block need not be scanned.
            for head in (self.data[:WINDOW_BYTES], self.data):
                if end := find_first_row_end(head, dialect):
                    return end
            block = next(self._blocks, b"") if len(self.data) <= MAX_HEADER_BYTES else b""
            if not block:
                return 0
            self.data += block

    def parse_names(self, dialect: Dialect) -> tuple[list[str], int]:
        """Return the values of the first row, and its size.

        Raises csv.Error or UnicodeDecodeError if it is not a row.
        """
        end = self.find_row_end(dialect)
        row = self.data[: end or len(self.data)]
        if len(row) > MAX_HEADER_BYTES:
            raise csv.Error(f"it has more than {MAX_HEADER_BYTES:,} bytes")
        if not end and ends_inside_quotes(row, dialect):
            raise csv.Error("a quote is not closed")
        reader = csv.reader(
            io.StringIO(row.decode(), newline=""),
            delimiter=dialect.delimiter,
            escapechar=dialect.escape,
            quoting=csv.QUOTE_MINIMAL if dialect.has_quotes else csv.QUOTE_NONE,
        )
        return next(reader), len(row)


def _list_delimiters(input_file: InputFile, recipe: Recipe, separator: str | None) -> list[str]:
    """Return the delimiters that the file may have, the most likely first."""
    if recipe.delimiter is not None:
        return [recipe.delimiter]
    if separator is not None:
        return [separator]
    suffixes = PurePosixPath(input_file.name.lower()).suffixes[-2:]  # the last may be that of a compression
    likely = [SUFFIX_DELIMITERS[suffix] for suffix in reversed(suffixes) if suffix in SUFFIX_DELIMITERS]
    return [delimiter for delimiter in dict.fromkeys((*likely, *DELIMITERS)) if delimiter != recipe.escape]


def _rate(names: list[str], required: list[str]) -> tuple[int, int]:
    """Return how likely a header was divided by the right delimiter, as numbers to compare."""
    return len(set(required) & set(names)), len(names)


def _check_doubled(names: list[str], required: list[str], input_file: InputFile) -> None:
    for name in required:
        if names.count(name) > 1:
            raise MisuseError(
                f"the header of {input_file.path} has two columns of the same name, {shorten(name)!r}; rename one"
            )


def _reject_given_delimiter(head: _Head, candidates: list[str], input_file: InputFile, recipe: Recipe) -> None:
    """Raise MisuseError if the header has the required columns with another delimiter than the given one."""
    required = find_required_columns(recipe).names
    for delimiter in DELIMITERS:
        if delimiter in candidates or delimiter == recipe.escape:
            continue
        try:
            names, _ = head.parse_names(get_dialect(delimiter, recipe.escape, recipe.quotes))
        except (csv.Error, UnicodeDecodeError):
            continue
        if set(required) <= set(names):
            raise MisuseError(
                f"the header of {input_file.path} has the column {shorten(required[0])!r} if its values are separated "
                f"by {delimiter!r}, but not by {candidates[0]!r}; pass --delimiter {delimiter!r}"
            )


def _explain_header_error(error: Exception, input_file: InputFile) -> str:
    if isinstance(error, UnicodeDecodeError):
        return (
            f"the header of {input_file.path} is not UTF-8: byte 0x{error.object[error.start]:02x} ({error.reason}); "
            f"{advise_about_encoding(input_file)}"
        )
    return f"{input_file.path} has no CSV header ({error}); its first line must name the columns"
