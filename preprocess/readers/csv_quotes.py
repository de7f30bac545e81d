"""Find the places in a CSV file where quotes are wrong, so that no row is damaged or lost in silence.

The problem: a quote that is opened and never closed makes one value of all rows up to the next
quote, and a file that escapes its quotes by backslashes is read as if they ended values. Both give
rows, so nothing fails.

The idea: a closing quote is at the end of its value. If text follows it, the quote was meant to
open another value, or a backslash is before it because it was meant as a character. What remains is
a value that swallowed rows and is closed by chance at the end of a value. All of its lines have as
many delimiters as the header, which a text of many lines has not.

The cost: nothing for values without line ends; otherwise 2 ms per MB.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

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

    Such a row, of which the number from 0 is returned, has at least MIN_LINES lines, each with as
    many delimiters as a row, and with digits in the columns in which the row itself has digits.
    `num_columns` is that of the header.
    """
    if num_columns == 1:
        return []  # such lines are those of any text
    scan = BlockScan(rows, dialect)
    line_ends = np.concatenate([[-1], *_iter_line_ends(scan.array), [len(rows)]])  # (L,)
    ends_of_rows = np.flatnonzero(~scan.is_inside(line_ends))  # indices in `line_ends`, with that before the first row
    swallowed = []
    for index in np.flatnonzero(np.diff(ends_of_rows) >= MIN_LINES).tolist():
        borders = line_ends[ends_of_rows[index] : ends_of_rows[index + 1] + 1].tolist()
        if _are_rows(scan.block, borders, num_columns, dialect.delimiter.encode()):
            swallowed.append((borders[1], len(borders) - 1))
    numbers = _number_rows(rows, np.array([position for position, _ in swallowed]), dialect)
    return [(number, num_lines) for number, (_, num_lines) in zip(numbers, swallowed, strict=True)]


def _are_rows(block: bytes, borders: list[int], num_columns: int, delimiter: bytes) -> bool:
    """Return whether each line between two of `borders` looks like a row; the last one may have more delimiters."""
    lines = list(itertools.pairwise(borders))
    if any(block.count(delimiter, start + 1, end) != num_columns - 1 for start, end in lines[:-1]):
        return False
    first, *inner, last = ([value.isdigit() for value in block[a + 1 : b].strip().split(delimiter)] for a, b in lines)
    has_digits = [column for column in range(num_columns) if first[column]]
    if len(last) == num_columns:
        has_digits += [column for column in range(num_columns) if last[column]]
    return all(line[column] for line in inner for column in has_digits)


def count_lines(rows: bytes) -> int:
    """Return the number of line ends in `rows`, inside and outside of quotes."""
    return sum(map(len, _iter_line_ends(np.frombuffer(rows, np.uint8))))


def _iter_line_ends(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the offsets of the last bytes of line ends, (E,) int64, inside and outside of quotes.

    They are found in windows that fit into the cache of a processor.
    """
    for start in range(0, len(array), WINDOW_BYTES):
        window = array[start : start + WINDOW_BYTES]
        positions = start + np.flatnonzero((window == LINE_FEED) | (window == CARRIAGE_RETURN))
        next_bytes = array[np.minimum(positions + 1, len(array) - 1)]
        yield positions[(array[positions] == LINE_FEED) | (next_bytes != LINE_FEED)]


def _number_rows(rows: bytes, positions: np.ndarray, dialect: Dialect) -> list[int]:
    """Return the number of the row at each of `positions`, (P,) int64, from 0 and without empty rows."""
    if not len(positions):
        return []
    starts, _ = find_rows(rows, dialect)
    numbers: list[int] = (np.searchsorted(starts, positions, side="right") - 1).tolist()
    return numbers
