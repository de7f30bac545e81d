"""Parse a long line of JSON in little memory.

The problem: a line may have 128 MB. A Python string takes four times as much if it contains one
emoji, and a list of short lists takes twenty times as much as its text.

The idea: almost all of a long line is in long strings. They are found first, and the line is parsed
with a short mark in place of the contents of each. The contents are then decoded in slices of a
megabyte. If a line without its long strings has too many values, it is rejected.

The cost: 1 to 8 ns per byte to find the strings, and one copy of their contents.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

LONG_STRING_BYTES = 1 << 10
SLICE_BYTES = 1 << 20
MAX_SHORTENED_BYTES = 32 << 20  # of a line without the contents of its long strings; Python takes up to four times that
# The memory of Python objects, by the byte that stands for them: an object, an array, a key, an element.
OBJECT_BYTES = {b"{": 184, b"[": 80, b":": 110, b",": 45}
MAX_OBJECT_BYTES = 160 << 20  # of one line, by this estimate

QUOTE, BACKSLASH, LETTER_U = b'"\\u'
HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
ESCAPE_BYTES = 6  # of \uXXXX

Line = bytes | bytearray | memoryview


class LongStrings:
    """The long strings of one line of JSON. The line must be valid UTF-8."""

    def __init__(self, line: Line) -> None:
        self._line = line
        name = secrets.token_hex(16)  # so that no string of the line looks like a mark
        self._spans = {f"{name} {i}": span for i, span in enumerate(_find_long_strings(line))}
        self.shortened_line = self._shorten()

    def _shorten(self) -> bytes:
        """Return the line with a mark in place of the contents of each long string."""
        parts, first = [], 0
        for mark, (start, end) in self._spans.items():
            parts += [bytes(self._line[first:start]), mark.encode()]
            first = end
        return b"".join([*parts, bytes(self._line[first:])])

    def find_error(self) -> str | None:
        """Return why the line must be rejected, or None.

        Errors outside of the long strings are found later, when the shortened line is parsed.
        """
        if len(self.shortened_line) > MAX_SHORTENED_BYTES:
            return f"its short values have more than {MAX_SHORTENED_BYTES:,} bytes"
        if sum(size * self.shortened_line.count(mark) for mark, size in OBJECT_BYTES.items()) > MAX_OBJECT_BYTES:
            return "it has too many values for memory"
        try:
            for span in self._spans.values():
                for _ in _decode_slices(self._line, *span):
                    pass
        except orjson.JSONDecodeError as e:
            return f"invalid JSON: {e.msg}"
        return None

    def make_array(self, values: tuple[Any], type_: pa.DataType) -> pa.Array:
        """Return an array of type `type_` with the only one of `values`. A mark is replaced by its string."""
        (value,) = values
        if not isinstance(value, str) or value not in self._spans:
            return pa.array(values, type_)
        text = bytearray()
        for part in _decode_slices(self._line, *self._spans[value]):
            text += part
        return pa.LargeStringArray.from_buffers(1, pa.py_buffer(np.array([0, len(text)])), pa.py_buffer(text))


def _find_long_strings(line: Line) -> Iterator[tuple[int, int]]:
    """Yield start and end of the contents of each string of at least LONG_STRING_BYTES."""
    begin = 0
    quotes = np.empty(0, np.int64)  # the quote of a string that is not yet closed
    while begin < len(line):
        window = np.frombuffer(line, np.uint8, min(SLICE_BYTES, len(line) - begin), begin)
        quotes = np.append(quotes, begin + _find_unescaped_quotes(window))
        num_closed = len(quotes) // 2 * 2
        starts, ends = quotes[:num_closed:2] + 1, quotes[1:num_closed:2]
        is_long = ends - starts >= LONG_STRING_BYTES
        yield from zip(starts[is_long].tolist(), ends[is_long].tolist(), strict=True)
        quotes = quotes[num_closed:]
        end = begin + len(window)
        # If the window ends with a backslash that escapes the next byte, begin the next one with it.
        begin = end - count_last_backslashes(line, begin, end) % 2 if end < len(line) else end


def _find_unescaped_quotes(window: np.ndarray) -> np.ndarray:
    """Return the offsets of the quotes that do not follow an odd number of backslashes."""
    quotes = np.flatnonzero(window == QUOTE)
    return quotes[~find_escaped_quotes(window, quotes)]


def find_escaped_quotes(window: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    """Return which of `quotes`, (Q,) ascending offsets in `window`, follow an odd number of backslashes: (Q,) bool."""
    is_escaped = (quotes > 0) & (window[quotes - 1] == BACKSLASH)
    candidates = quotes[is_escaped]
    if not len(candidates):
        return is_escaped
    if not (window[np.maximum(candidates - 2, 0)] == BACKSLASH).any():
        return is_escaped
    is_backslash = window == BACKSLASH
    last_others = np.maximum.accumulate(np.where(is_backslash, -1, np.arange(len(window), dtype=np.int32)))
    is_escaped[is_escaped] = (candidates - 1 - last_others[candidates - 1]) % 2 == 1
    return is_escaped


def count_last_backslashes(line: Line, start: int, end: int) -> int:
    """Return the number of backslashes at the end of line[start:end]."""
    data = bytes(line[start:end])
    return len(data) - len(data.rstrip(b"\\"))


def _decode_slices(line: Line, start: int, end: int) -> Iterator[bytes]:
    """Yield the UTF-8 text of the contents of a string, a slice at a time."""
    while start < end:
        stop = _find_slice_end(line, start, start + SLICE_BYTES) if end - start > SLICE_BYTES else end
        text: str = orjson.loads(b'"%b"' % bytes(line[start:stop]))
        yield text.encode()
        start = stop


def _find_slice_end(line: Line, start: int, stop: int) -> int:
    """Return the last offset up to `stop` at which contents that begin at `start` can be cut.

    The offset is not inside a character or an escape, nor between the escapes of a surrogate pair.
    """
    while line[stop] & 0xC0 == 0x80:  # 0b10xxxxxx continues a character
        stop -= 1
    for offset in range(stop - 1, stop - ESCAPE_BYTES, -1):
        if line[offset] == BACKSLASH and count_last_backslashes(line, start, offset) % 2 == 0:
            stop = min(stop, offset) if offset + (ESCAPE_BYTES if line[offset + 1] == LETTER_U else 2) > stop else stop
            break
    before = stop - ESCAPE_BYTES
    is_high_surrogate = HIGH_SURROGATE.fullmatch(bytes(line[before:stop])) is not None
    return before if is_high_surrogate and count_last_backslashes(line, start, before) % 2 == 0 else stop
