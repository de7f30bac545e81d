"""Check the types of settings, and write types and values for error messages.

The values come from TOML files and from Python, so they may be of any type and size.
"""

from __future__ import annotations

import types
import typing
from typing import Any

from preprocess.errors import shorten

MAX_SHOWN_INTEGER = 10**40


def matches_type(value: Any, hint: Any) -> bool:
    """Return whether `value` is of the type `hint`. Integers match float, and lists match tuples."""
    if isinstance(hint, types.UnionType):
        return any(matches_type(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return isinstance(value, list | tuple) and all(matches_type(element, item) for element in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def format_type(hint: Any) -> str:
    """Return the name of a type, such as "str", "int | None" or "list of str", as TOML has no tuples."""
    if typing.get_origin(hint) is tuple:
        return f"list of {format_type(typing.get_args(hint)[0])}"
    return hint.__name__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)


def format_value(value: Any) -> str:
    """Return a short text for a value of any type.

    A long integer, a list and a table are only described, because `repr` fails for integers of
    thousands of digits and for lists that are nested very deeply.
    """
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return f"a list of {len(value):,}"
    if isinstance(value, int) and not isinstance(value, bool):
        is_short = abs(value) <= MAX_SHOWN_INTEGER
        return f"{value:,}" if is_short else f"a number of {value.bit_length():,} bits"
    return shorten(repr(value[:100] if isinstance(value, str) else value))
