"""Find the places in a CSV file where quotes are wrong, so that no row is damaged or lost in silence.

The problem: a quote that is opened and never closed makes one value of all rows up to the next
quote, and a file that escapes its quotes by backslashes is read as if they ended values. Both give
rows, so nothing fails.

The idea: a closing quote is at the end of its value. If text follows it, the quote was meant to
open another value, or a backslash is before it because it was meant as a character. What remains is
a value that swallowed rows and is closed by chance at the end of a value. All of its lines have as
many delimiters as the header, which a text of many lines has not.

The cost: 0.3 ms per MB if values are quoted, and as much again if there are values of many lines.
"""

from __future__ import annotations

import numpy as np

from preprocess.readers.csv_dialect import CARRIAGE_RETURN, LINE_FEED, Dialect
from preprocess.readers.csv_rows import WINDOW_BYTES, BlockScan, find_quoted_values, find_rows

MIN_LINES = 10  # of a value that may have swallowed rows


class WrongQuote(Exception):
    """A quote that makes a file unreadable. `row`: its number among rows that are not empty, from 0."""

    def __init__(self, row: int, *, is_escaped: bool) -> None:
        super().__init__()
        self.row, self.is_escaped = row, is_escaped


def check_text_after_quotes(rows: bytes, dialect: Dialect) -> list[int]:
    """Return the numbers of whole rows, from 0, in which text follows a closing quote.

    Raises WrongQuote if the value has a line end, so that it swallowed the end of its row, or if the
    quote is escaped by a backslash, which has no meaning in `dialect`.
    """
    opening, closing = find_quoted_values(rows, dialect)
    after = np.frombuffer(rows, np.uint8)[np.minimum(closing + 1, len(rows) - 1)]
    has_text = (closing + 1 < len(rows)) & ~dialect.borders_value[after]
    numbers = _number_rows(rows, opening[has_text], dialect)
    for row, start, end in zip(numbers, opening[has_text].tolist(), closing[has_text].tolist(), strict=True):
        value = rows[start + 1 : end]
        is_escaped = dialect.escape is None and (len(value) - len(value.rstrip(b"\\"))) % 2 == 1
        if is_escaped or b"\n" in value or b"\r" in value:
            raise WrongQuote(row, is_escaped=is_escaped or b'\\"' in value)
    return sorted(set(numbers))


def find_swallowed_rows(rows: bytes, num_columns: int, dialect: Dialect) -> list[tuple[int, int]]:
    """Return the whole rows that are probably several rows inside of quotes, and the number of lines of each.

    Such a row, of which the number from 0 is returned, has a value of at least MIN_LINES lines. Each
    line has as many delimiters as a row, and digits in the columns in which the row itself has
    digits. `num_columns` is that of the header.
    """
    if num_columns == 1:
        return []  # such lines are those of any text
    scan = BlockScan(rows, dialect)
    opening, closing = scan.find_values()
    is_long = closing - opening > MIN_LINES * (num_columns - 1)
    swallowed = []
    for start, end in zip(opening[is_long].tolist(), closing[is_long].tolist(), strict=True):
        lines = _split_value(scan.block, start, end, num_columns, dialect.delimiter.encode())
        if len(lines) >= MIN_LINES and _have_digits_in_same_columns(lines):
            swallowed.append((start, len(lines)))
    numbers = _number_rows(rows, np.array([start for start, _ in swallowed]), dialect)
    return [(number, num_lines) for number, (_, num_lines) in zip(numbers, swallowed, strict=True)]


def _split_value(block: bytes, start: int, end: int, num_columns: int, delimiter: bytes) -> list[list[bytes]]:
    """Return the values in each line of a quoted value from `start` to `end`, and of what is before and after it.

    Returns no lines if one of them, except the last, has not `num_columns` values.
    """
    line_end = b"\n" if (position := block.find(b"\n", start, end)) >= 0 else b"\r"
    if position < 0 and (position := block.find(b"\r", start, end)) < 0:
        return []
    line_start = row_start = block.rfind(line_end, max(start - WINDOW_BYTES, 0), start) + 1
    while position >= 0:
        if block.count(delimiter, line_start, position) != num_columns - 1:
            return []
        line_start = position + 1
        position = block.find(line_end, line_start, end)
    row_end = block.find(line_end, end)
    row = block[row_start : row_end if row_end >= 0 else len(block)]
    return [line.rstrip(b"\r").split(delimiter) for line in row.split(line_end)]


def _have_digits_in_same_columns(lines: list[list[bytes]]) -> bool:
    """Return whether each line has digits in the columns in which the first or the last has digits."""
    first, *inner, last = ([value.isdigit() for value in line] for line in lines)
    has_digits = [column for column, is_number in enumerate(first) if is_number]
    if len(last) == len(first):
        has_digits += [column for column, is_number in enumerate(last) if is_number]
    return all(line[column] for line in inner for column in has_digits)


def count_lines(rows: bytes) -> int:
    """Return the number of line ends in `rows`, inside and outside of quotes."""
    array = np.frombuffer(rows, np.uint8)
    has_returns = b"\r" in rows
    num_lines = int(rows.endswith(b"\r"))
    for start in range(0, len(array), WINDOW_BYTES):  # a window fits into the cache of the processor
        window = array[start : start + WINDOW_BYTES]
        num_lines += np.count_nonzero(window == LINE_FEED)
        if has_returns:
            following = array[start + 1 : start + WINDOW_BYTES + 1]
            num_lines += np.count_nonzero((window[: len(following)] == CARRIAGE_RETURN) & (following != LINE_FEED))
    return num_lines


def _number_rows(rows: bytes, positions: np.ndarray, dialect: Dialect) -> list[int]:
    """Return the number of the row at each of `positions`, (P,) int64, from 0 and without empty rows."""
    if not len(positions):
        return []
    starts, _ = find_rows(rows, dialect)
    numbers: list[int] = (np.searchsorted(starts, positions, side="right") - 1).tolist()
    return numbers
