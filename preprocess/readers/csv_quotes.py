"""Find the places in a CSV file where quotes are wrong, so that no row is damaged or lost in silence.

The problem: a quote that is opened and never closed makes one value of all rows up to the next
quote, and a file that escapes its quotes by backslashes is read as if they ended values. Both give
rows, so nothing fails.

The idea: a closing quote is at the end of its value. If text follows it, the quote was meant to
open another value, or a backslash is before it because it was meant as a character. What remains is
a value that swallowed rows and is closed by chance at the end of a value. All of its lines have as
many delimiters as the header, and similar values, which is rare in a text of many lines.

The cost: 0.3 ms per MB if values are quoted, and as much again if there are values of many lines.
"""

from __future__ import annotations

import itertools

import numpy as np

from preprocess.readers.csv_dialect import CARRIAGE_RETURN, LINE_FEED, Dialect
from preprocess.readers.csv_rows import WINDOW_BYTES, BlockScan, find_quoted_values, find_rows

MIN_LINES = 10  # of a value that may have swallowed rows
MIN_SIMILAR = 0.8  # fraction of its lines that have values of the same kind
DIGITS = b"0123456789.-+:/"  # numbers, dates and times


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
    line has as many delimiters as a row, and values similar to those of the row itself.
    `num_columns` is that of the header.
    """
    if num_columns == 1:
        return []  # such lines are those of any text
    scan = BlockScan(rows, dialect)
    opening, closing = scan.find_values()
    is_long = closing - opening > MIN_LINES * (num_columns - 1)
    swallowed = []
    for start, end in zip(opening[is_long].tolist(), closing[is_long].tolist(), strict=True):
        borders = _find_lines(scan.block, start, end, num_columns, dialect.delimiter.encode())
        if len(borders) > MIN_LINES and _are_similar(scan.block, borders, start, end, dialect.delimiter.encode()):
            swallowed.append((start, len(borders) - 1))
    numbers = _number_rows(rows, np.array([start for start, _ in swallowed]), dialect)
    return [(number, num_lines) for number, (_, num_lines) in zip(numbers, swallowed, strict=True)]


def _find_lines(block: bytes, start: int, end: int, num_columns: int, delimiter: bytes) -> list[int]:
    """Return the borders of the lines of a quoted value from `start` to `end`, with what is before and after it.

    A border is the offset after a line end. Returns no borders if one of the lines, except the last,
    has not `num_columns` values.
    """
    line_end = b"\n" if (position := block.find(b"\n", start, end)) >= 0 else b"\r"
    if position < 0 and (position := block.find(b"\r", start, end)) < 0:
        return []
    borders = [block.rfind(line_end, max(start - WINDOW_BYTES, 0), start) + 1]
    while position >= 0:
        if block.count(delimiter, borders[-1], position) != num_columns - 1:
            return []
        borders.append(position + 1)
        position = block.find(line_end, position + 1, end)
    row_end = block.find(line_end, end)
    return [*borders, row_end + 1 if row_end >= 0 else len(block)]


def _are_similar(block: bytes, borders: list[int], start: int, end: int, delimiter: bytes) -> bool:
    """Return whether most lines have, in the columns outside of the quotes, values of the kind that is there."""
    first, *inner, last = (block[a:b].rstrip(b"\r\n").split(delimiter) for a, b in itertools.pairwise(borders))
    expected = {column: _classify(first[column]) for column in range(block.count(delimiter, borders[0], start))}
    num_after = block.count(delimiter, end, borders[-1])
    expected |= {column: _classify(last[column]) for column in range(-num_after, 0)}
    return all(
        sum(_classify(line[column]) == kind for line in inner) >= MIN_SIMILAR * len(inner)
        for column, kind in expected.items()
    )


def _classify(value: bytes) -> str:
    """Return the kind of a value. In ordinary text, a space follows a comma."""
    if value[:1].isspace():
        return "text after a space"
    if not value.strip(DIGITS):
        return "number" if value else "empty"
    return "words" if b" " in value else "word"


def count_lines(rows: bytes) -> int:
    """Return the number of line ends in `rows`, inside and outside of quotes."""
    array = np.frombuffer(rows, np.uint8)
    has_returns = b"\r" in rows
    num_lines = int(rows.endswith(b"\r"))
    for start in range(0, len(array), WINDOW_BYTES):  # a window fits into the cache of the processor
        window = array[start : start + WINDOW_BYTES]
        num_lines += int(np.count_nonzero(window == LINE_FEED))
        if has_returns:
            following = array[start + 1 : start + WINDOW_BYTES + 1]
            is_lone_return = (window[: len(following)] == CARRIAGE_RETURN) & (following != LINE_FEED)
            num_lines += int(np.count_nonzero(is_lone_return))
    return num_lines


def _number_rows(rows: bytes, positions: np.ndarray, dialect: Dialect) -> list[int]:
    """Return the number of the row at each of `positions`, (P,) int64, from 0 and without empty rows."""
    if not len(positions):
        return []
    starts, _ = find_rows(rows, dialect)
    numbers: list[int] = (np.searchsorted(starts, positions, side="right") - 1).tolist()
    return numbers
