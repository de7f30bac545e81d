"""How the values of a CSV file are separated, quoted and escaped."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

LINE_FEED, CARRIAGE_RETURN, QUOTE = b'\n\r"'
HIDDEN = 0xFF  # stands for a byte without a meaning; a delimiter is ASCII


@dataclass(frozen=True)
class Dialect:
    """How the values of a CSV file are written."""

    delimiter: str = ","  # one ASCII character
    escape: str | None = None  # the character that makes the next one a part of the value, also a quote
    has_quotes: bool = True  # quotes enclose values, so that these can contain delimiters and line ends

    @functools.cached_property
    def borders_value(self) -> np.ndarray:
        """Whether each byte can be before the quote that opens a value, and after the one that closes it, (256,) bool.

        A quote after a closing quote opens the same value again: "".
        """
        borders = np.zeros(256, bool)
        borders[list(b'\n\r"' + self.delimiter.encode())] = True
        return borders

    @functools.cached_property
    def quoted_value(self) -> re.Pattern[bytes]:
        """Matches a quoted value. Possessive quantifiers, so that a value of any length needs no memory."""
        return re.compile(rb'"(?<=[%b\n\r]")[^"]*+(?:""[^"]*+)*+("?)' % re.escape(self.delimiter.encode()))


@functools.cache
def get_dialect(delimiter: str, escape: str | None = None, has_quotes: bool = True) -> Dialect:
    """Return a Dialect, always the same one for the same arguments, so that its tables are made once."""
    return Dialect(delimiter, escape, has_quotes)


def hide_escaped(block: bytes, escape: str, is_escaped: bool) -> tuple[bytes, bool]:
    """Replace each escape character and the byte after it by HIDDEN.

    `is_escaped`: the first byte of `block` is escaped. Also returns whether the byte after the
    block is.
    """
    positions = np.flatnonzero(np.frombuffer(block, np.uint8) == ord(escape))
    if is_escaped and len(positions) and positions[0] == 0:
        positions = positions[1:]
    # In a row of consecutive escape characters, the first escapes the second, the third the fourth, and so on.
    indices = np.arange(len(positions))
    first = np.maximum.accumulate(np.where(np.diff(positions, prepend=-2) != 1, indices, 0))
    positions = positions[(indices - first) % 2 == 0]
    ends_in_escape = len(positions) > 0 and int(positions[-1]) == len(block) - 1
    hidden = np.frombuffer(block, np.uint8).copy()
    hidden[positions] = HIDDEN
    hidden[positions[: len(positions) - ends_in_escape] + 1] = HIDDEN
    if is_escaped:
        hidden[0] = HIDDEN
    return hidden.tobytes(), ends_in_escape
