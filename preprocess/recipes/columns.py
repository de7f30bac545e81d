"""Whole columns of any table, compared with values or turned into text: the Arrow behind conditions and templates.

A column comes as a reader gives it: of any width, dictionary-encoded or not, with nulls anywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Value = str | int | float | bool | None  # Any, below: of the column's `kind`, which is for the caller to know

COMPARISONS = {"==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}


def kind(of: pa.DataType) -> str:
    """What a column of this type holds: "text", "number", "boolean", "null", or "other" that no value compares with."""
    if pa.types.is_dictionary(of):
        return kind(of.value_type)
    if of in (pa.string(), pa.large_string(), pa.string_view()):
        return "text"
    if pa.types.is_integer(of) or pa.types.is_floating(of):
        return "number"
    if pa.types.is_boolean(of):
        return "boolean"
    return "null" if pa.types.is_null(of) else "other"


def is_text_or_bytes(of: pa.DataType) -> bool:
    """Whether a column of this type holds text, or bytes that may be text."""
    return of in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def kind_of_value(value: Value) -> str:
    """The `kind` of the columns that `value` compares with."""
    if isinstance(value, str):
        return "text"
    return "boolean" if isinstance(value, bool) else "null" if value is None else "number"


def is_null(column: pa.Array) -> pa.BooleanArray:
    """Where `column` has no value; a dictionary may hold its nulls on either side."""
    return pc.is_null(_decoded(column))


def compare(column: pa.Array, operator: str, value: Any) -> pa.BooleanArray:
    """Where `column` `operator` `value` holds; false where it is null. The value is of the column's `kind`."""
    column = _decoded(column)
    if pa.types.is_null(column.type):
        return _constant(column, False)
    if pa.types.is_integer(column.type):
        return _compare_integers(column, operator, value)
    if pa.types.is_floating(column.type):
        column, value = column.cast(pa.float64()), _rounded(value, column.type)
    return _call(column, operator, value)


def is_in(column: pa.Array, values: tuple[Any, ...]) -> pa.BooleanArray:
    """Where `column` equals one of `values`, which are of the column's `kind`; false where it is null."""
    column = _decoded(column)
    if pa.types.is_null(column.type):
        return _constant(column, False)
    if pa.types.is_integer(column.type):
        low, high = _range(column.type)
        values = tuple(int(v) for v in values if v == math.floor(v) and low <= v <= high)
    elif pa.types.is_floating(column.type):
        # `is_in` hashes, and so tells 0.0 from -0.0, which are equal everywhere else.
        rounded = [_rounded(v, column.type) for v in values]
        column, values = column.cast(pa.float64()), (*rounded, *(-v for v in rounded if v == 0))
    return pc.is_in(column, value_set=pa.array(values, column.type))


def as_text(column: pa.Array) -> pa.LargeStringArray:
    """`column`, of any `kind` but "other", as text; null stays null. A float is spelled as Arrow does: 1.0 is 1."""
    return _decoded(column).cast(pa.large_string())


def _decoded(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return (
        column.cast(pa.large_string()) if column.type == pa.string_view() else column
    )  # Arrow compares no views before version 20


def _constant(column: pa.Array, value: bool) -> pa.BooleanArray:
    return pc.is_valid(column) if value else pa.repeat(False, len(column))


def _call(column: pa.Array, operator: str, value: Value) -> pa.BooleanArray:
    return pc.call_function(COMPARISONS[operator], [column, pa.scalar(value, column.type)]).fill_null(False)


def _rounded(value: float, of: pa.DataType) -> float:
    """`value` in the column's own precision, so that 0.1 equals the 0.1 of a float32 column; beyond its range, as it is."""
    with np.errstate(over="ignore"):
        rounded = float(of.to_pandas_dtype()(value))
    return rounded if math.isfinite(rounded) else float(value)


def _range(of: pa.DataType) -> tuple[int, int]:
    info = np.iinfo(of.to_pandas_dtype())
    return int(info.min), int(info.max)


def _compare_integers(column: pa.Array, operator: str, value: float) -> pa.BooleanArray:
    """Exact, where Arrow would go through floats or refuse: `x < 2.5` is `x < 3`, and every uint8 is below 300."""
    low, high = _range(column.type)
    bound = math.ceil(value) if operator in ("<", ">=") else math.floor(value)
    if operator in ("==", "!=") and (bound != value or not low <= bound <= high):
        return _constant(column, operator == "!=")
    if not low <= bound <= high:
        return _constant(column, (operator in ("<", "<=")) == (bound > high))
    return _call(column, operator, bound)
