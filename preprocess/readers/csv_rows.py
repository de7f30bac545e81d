"""Cut a CSV file into blocks of whole rows, in bounded memory.

The problem: a line feed ends a row unless it is inside a quoted value, so whether it does depends
on all quotes before it. A row may be as long as the largest document, and if a quote is never
closed, the rest of the file is one row.

The idea: a quote opens a quoted value only if it is the first byte of a value. In almost all files,
every second quote opens a value. A line feed is then outside of quotes if the number of quotes
before it is even, and NumPy counts quotes quickly. In other files a value that is not quoted
contains a quote, such as `5" disk`. There a regular expression finds the quotes that open or close
a value. Only one state is carried from a block to the next, so the rows do not depend on where a
block ends. If the dialect has an escape character, it and the byte after it are replaced in what is
scanned by bytes without a meaning.

The cost: about 1 ms per MB, and memory for one incoming block and one row of the maximum size.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from preprocess.readers.csv_dialect import CARRIAGE_RETURN, LINE_FEED, QUOTE, Dialect, hide_escaped

REST_OF_QUOTED_VALUE = re.compile(rb'[^"]*+(?:""[^"]*+)*+("?)')
WINDOW_BYTES = 1 << 16

# The state after the last byte of a block.
START_OF_VALUE, INSIDE_VALUE, INSIDE_QUOTES, CLOSING_QUOTE, AFTER_RETURN = range(5)


class UnclosedQuote(Exception):
    """The file ends inside of quotes. `rows`: the row in which they are opened, if it was not left out."""

    def __init__(self, rows: bytes) -> None:
        super().__init__()
        self.rows = rows


class RowCutter:
    """A converter of incoming blocks to blocks of whole rows. It leaves out rows that are too long."""

    def __init__(self, dialect: Dialect, max_row_bytes: int, reject_long_row: Callable[[bool], None]) -> None:
        """`max_row_bytes` must be at least the size of an incoming block.

        `reject_long_row` is called once for each longer row. Its argument says whether the row is
        inside of quotes at the end of the block with which it became too long.
        """
        self._dialect, self._max_row_bytes, self._reject_long_row = dialect, max_row_bytes, reject_long_row
        self._pending: list[bytes | memoryview] = []  # the beginning of a row
        self._has_text_after_quotes = False  # perhaps in the pending rows
        self._state = START_OF_VALUE
        self._is_escaped = False  # the next byte
        self.is_skipping = False  # the last row is being left out

    def cut(self, blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
        """Yield the bytes of `blocks` in blocks of whole rows, and whether text may follow a closing quote in them.

        If there is such text, it is reported with its rows. Raises UnclosedQuote if the last row
        does not close a quote, after the other rows were yielded.
        """
        for block in filter(None, blocks):
            yield from self._add(block)
        if self._state == INSIDE_QUOTES:
            raise UnclosedQuote(b"".join(self._pending))
        yield from self._take_pending()

    def _add(self, block: bytes) -> Iterator[tuple[bytes, bool]]:
        if self._state == AFTER_RETURN and block[:1] != b"\n":  # the row ended with the block before
            yield from self._take_pending()
            self.is_skipping = False
        scan = BlockScan(block, self._dialect, self._state, self._is_escaped)
        self._state, self._is_escaped = scan.find_last_state(), scan.ends_in_escape
        has_text_after_quotes = scan.has_text_after_quotes()
        self._has_text_after_quotes |= has_text_after_quotes
        start = self._end_long_row(scan)
        end = scan.find_last_row_end()
        if end > start:
            self._pending.append(memoryview(block)[start:end])
            yield from self._take_pending()
            start = end
        if not self.is_skipping and start < len(block):
            self._pending.append(block[start:])
            self._has_text_after_quotes |= has_text_after_quotes

    def _take_pending(self) -> Iterator[tuple[bytes, bool]]:
        rows, has_text_after_quotes = b"".join(self._pending), self._has_text_after_quotes
        self._pending.clear()
        self._has_text_after_quotes = False
        if rows:
            yield rows, has_text_after_quotes

    def _end_long_row(self, scan: BlockScan) -> int:
        """Return the offset in the block at which the rows that are not left out begin."""
        num_pending = sum(map(len, self._pending))
        if not self.is_skipping and num_pending + len(scan.block) <= self._max_row_bytes:
            return 0
        end = scan.find_first_row_end()
        if not self.is_skipping:
            if num_pending + (end or len(scan.block)) <= self._max_row_bytes:
                return 0
            self._reject_long_row(not end and self._state == INSIDE_QUOTES)
            self._pending.clear()
        self.is_skipping = not end
        return end or len(scan.block)


class BlockScan:
    """The quotes and the ends of rows in one block.

    `state` is the state at the end of the previous block. `is_escaped`: the previous block ends in
    an escape character.
    """

    def __init__(self, block: bytes, dialect: Dialect, state: int = START_OF_VALUE, is_escaped: bool = False) -> None:
        self.ends_in_escape = False  # the next byte after the block is escaped
        if dialect.escape is not None:
            block, self.ends_in_escape = hide_escaped(block, dialect.escape, is_escaped)
        self.block = block
        self.array = np.frombuffer(block, np.uint8)
        self._dialect = dialect
        self._state = state
        self._is_inside = state == INSIDE_QUOTES  # at the start of the block
        self._quotes = np.empty(0, np.int64)  # those that open or close a value
        if dialect.has_quotes:
            self._quotes = np.flatnonzero(self.array == QUOTE)
            if not self._has_regular_quotes():
                self._quotes = _find_quotes(block, dialect, state)

    def _has_regular_quotes(self) -> bool:
        """Return whether the quotes of the block alternately open and close a value."""
        opening = self._quotes[1 if self._is_inside else 0 :: 2]
        if len(opening) and opening[0] == 0:
            if self._state == INSIDE_VALUE:
                return False
            opening = opening[1:]
        return bool(self._dialect.borders_value[self.array[opening - 1]].all())

    def has_text_after_quotes(self) -> bool:
        """Return whether a quote that closes a value is not at the end of the value."""
        borders = self._dialect.borders_value
        if self._state == CLOSING_QUOTE and not borders[self.array[0]]:
            return True
        after = self._quotes[0 if self._is_inside else 1 :: 2] + 1
        if len(after) and after[-1] == len(self.array):
            after = after[:-1]
        return not borders[self.array[after]].all()

    def find_values(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the offsets of the quotes that open and of those that close values, (V,) int64 each.

        The block must consist of whole rows.
        """
        opening, closing = self._quotes[::2], self._quotes[1::2]
        is_apart = opening[1:] != closing[:-1] + 1  # otherwise it is a doubled quote inside of a value
        return opening[np.append(True, is_apart)[: len(opening)]], closing[np.append(is_apart, True)[: len(closing)]]

    def is_inside(self, positions: np.ndarray) -> np.ndarray:
        """Return whether each of `positions`, (P,) int64, is inside of quotes: (P,) bool."""
        inside: np.ndarray = (np.searchsorted(self._quotes, positions) + self._is_inside) % 2 == 1
        return inside

    @property
    def is_inside_at_end(self) -> bool:
        """Whether the end of the block is inside of quotes."""
        return (len(self._quotes) + self._is_inside) % 2 == 1

    def find_last_state(self) -> int:
        """Return the state at the end of the block."""
        if self.is_inside_at_end:
            return INSIDE_QUOTES
        last = self.block[-1]
        if last == QUOTE:
            return CLOSING_QUOTE if len(self._quotes) and self._quotes[-1] == len(self.block) - 1 else INSIDE_VALUE
        if last == CARRIAGE_RETURN:
            return AFTER_RETURN
        return START_OF_VALUE if self._dialect.borders_value[last] else INSIDE_VALUE

    def find_first_row_end(self) -> int:
        """Return the offset after the first row end, or 0."""
        for start in range(0, len(self.block), WINDOW_BYTES):
            ends = self.find_row_ends(start, start + WINDOW_BYTES)
            if len(ends):
                return int(ends[0])
        return 0

    def find_last_row_end(self) -> int:
        """Return the offset after the last row end, or 0."""
        for stop in range(len(self.block), 0, -WINDOW_BYTES):
            ends = self.find_row_ends(max(stop - WINDOW_BYTES, 0), stop)
            if len(ends):
                return int(ends[-1])
        return 0

    def find_row_ends(self, start: int, stop: int) -> np.ndarray:
        """Return the offsets after the row ends in block[start:stop], (E,) int64.

        A carriage return at the end of the block is not included, because a line feed may follow.
        """
        window = self.array[start:stop]
        positions = start + np.flatnonzero((window == LINE_FEED) | (window == CARRIAGE_RETURN))
        positions = positions[~self.is_inside(positions)]
        next_bytes = self.array[np.minimum(positions + 1, len(self.array) - 1)]
        is_last = positions == len(self.array) - 1
        continues = (self.array[positions] == CARRIAGE_RETURN) & (is_last | (next_bytes == LINE_FEED))
        return positions[~continues] + 1


def find_first_row_end(rows: bytes, dialect: Dialect) -> int:
    """Return the offset after the first row, or 0 if it does not end. `rows` begins with a row."""
    return BlockScan(rows, dialect).find_first_row_end()


def ends_inside_quotes(rows: bytes, dialect: Dialect) -> bool:
    """Return whether a quote in `rows` is not closed. `rows` begins with a row."""
    return BlockScan(rows, dialect).is_inside_at_end


def find_rows(rows: bytes, dialect: Dialect) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ends of the rows that are not empty, (R,) int64 each.

    `rows` are whole rows. The end of a row is after its line end.
    """
    ends = BlockScan(rows, dialect).find_row_ends(0, len(rows))
    if len(ends) == 0 or ends[-1] < len(rows):
        ends = np.append(ends, len(rows))
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    first_bytes = np.frombuffer(rows, np.uint8)[starts]
    has_value = (first_bytes != LINE_FEED) & (first_bytes != CARRIAGE_RETURN)
    return starts[has_value], ends[has_value]


def find_quoted_values(rows: bytes, dialect: Dialect) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of the quotes that open and of those that close values, (V,) int64 each. `rows` are whole."""
    if dialect.escape is not None:
        rows, _ = hide_escaped(rows, dialect.escape, False)
    quotes = _find_quotes(rows, dialect, START_OF_VALUE)
    return quotes[::2], quotes[1::2]


def _find_quotes(block: bytes, dialect: Dialect, state: int) -> np.ndarray:
    """Return the offsets in `block` of the quotes that open or close a value, (Q,) int64, ascending.

    A doubled quote inside a quoted value, which stands for one quote character, is not included.
    `state` is the state at the end of the previous block.
    """
    found = array("q")
    start = 0
    if state == INSIDE_QUOTES or (state != INSIDE_VALUE and block[:1] == b'"'):
        if state != INSIDE_QUOTES:
            found.append(0)
            start = 1
        match = REST_OF_QUOTED_VALUE.match(block, start)
        assert match is not None  # it matches any text
        start = match.end()
        if match[1]:
            found.append(start - 1)
    for match in dialect.quoted_value.finditer(block, start):
        found.append(match.start())
        if match[1]:
            found.append(match.end() - 1)
    return np.frombuffer(found, np.int64) if found else np.empty(0, np.int64)
