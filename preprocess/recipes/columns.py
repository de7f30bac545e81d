"""Compare whole Arrow columns with values, and convert them to text.

Row filters and templates use these functions. A column may have integers or floats of any width, it
may contain nulls, and it may be dictionary-encoded. Comparisons are exact, and every comparison
with a null in the column is false.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Value = str | int | float | bool | None

COMPARISONS = {"==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}


def get_kind(data_type: pa.DataType) -> str:
    """Return the kind of a type: "text", "number", "boolean", "date", "null" or "other".

    Columns of the kinds "date" (dates, times, timestamps and decimal numbers, which only become
    text) and "other" cannot be compared.
    """
    if pa.types.is_dictionary(data_type):
        return get_kind(data_type.value_type)
    if data_type in (pa.string(), pa.large_string(), pa.string_view()):
        return "text"
    if pa.types.is_integer(data_type) or pa.types.is_floating(data_type):
        return "number"
    if pa.types.is_boolean(data_type):
        return "boolean"
    is_date = pa.types.is_temporal(data_type) and not pa.types.is_duration(data_type)
    if is_date or pa.types.is_decimal(data_type):
        return "date"
    return "null" if pa.types.is_null(data_type) else "other"


def is_text_or_bytes(data_type: pa.DataType) -> bool:
    """Return whether a column of this type holds text, or bytes that may be text."""
    return data_type in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def is_null(column: pa.Array) -> pa.BooleanArray:
    """Return which rows are null. In a dictionary column the index or the value may be null."""
    return pc.is_null(_decode(column))


def compare(column: pa.Array, operator: str, value: Any) -> pa.BooleanArray:
    """Return in which rows `column operator value` is true, (R,) bool; false for nulls.

    `operator` is a key of COMPARISONS; `value` must be of the column's kind.
    """
    column = _decode(column)
    if pa.types.is_null(column.type):
        return pa.repeat(False, len(column))
    if pa.types.is_integer(column.type):
        return _compare_integers(column, operator, value)
    if pa.types.is_floating(column.type):
        column, value = column.cast(pa.float64()), _round_to_type(value, column.type)
    return _call(column, operator, value)


def is_in(column: pa.Array, values: tuple[Any, ...]) -> pa.BooleanArray:
    """Return which rows equal one of `values`, (R,) bool; false for nulls.

    The values must be of the column's kind.
    """
    column = _decode(column)
    if pa.types.is_null(column.type):
        return pa.repeat(False, len(column))
    if pa.types.is_integer(column.type):
        min_value, max_value = _integer_range(column.type)
        values = tuple(int(v) for v in values if v == math.floor(v) and min_value <= v <= max_value)
    elif pa.types.is_floating(column.type):
        # Arrow's is_in compares hashes, for which 0.0 and -0.0 differ. Look for both.
        rounded = [_round_to_type(v, column.type) for v in values]
        column, values = column.cast(pa.float64()), (*rounded, *(-v for v in rounded if v == 0))
    return pc.is_in(column, value_set=pa.array(values, column.type))


def cast_to_text(column: pa.Array) -> pa.LargeStringArray:
    """Convert a column of any kind except "other" to text. Nulls stay null; 1.0 becomes "1".

    Dates and times are written as in ISO 8601, such as "1999-05-03" or "1999-05-03 12:00:00". A
    timestamp with a time zone is written in UTC, with a Z at its end, so that the text does not
    depend on the machine's table of time zones.
    """
    column = _decode(column)
    if pa.types.is_timestamp(column.type):
        is_zoned = column.type.tz is not None
        texts = pc.replace_substring_regex(column.view(pa.timestamp(column.type.unit)).cast(pa.string()), r"\.0+$", "")
        return (pc.binary_join_element_wise(texts, "Z", "") if is_zoned else texts).cast(pa.large_string())
    return column.cast(pa.large_string())


def decode_dictionary(column: pa.Array) -> pa.Array:
    """Return a column without dictionary encoding."""
    if not pa.types.is_dictionary(column.type):
        return column
    if column.type.value_type == pa.string_view():  # which Arrow cannot look up
        column = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.large_string()))
    return column.dictionary_decode()


def _decode(column: pa.Array) -> pa.Array:
    column = decode_dictionary(column)
    # Arrow cannot compare string views before version 20.
    return column.cast(pa.large_string()) if column.type == pa.string_view() else column


def _call(column: pa.Array, operator: str, value: Value) -> pa.BooleanArray:
    return pc.call_function(COMPARISONS[operator], [column, pa.scalar(value, column.type)]).fill_null(False)


def _round_to_type(value: float, data_type: pa.DataType) -> float:
    """Round `value` to the precision of a float type.

    So 0.1 equals the 0.1 of a float32 column. A value outside the range of the type is not rounded.
    """
    with np.errstate(over="ignore"):
        rounded = float(_get_numpy_dtype(data_type).type(value))
    return rounded if math.isfinite(rounded) else float(value)


def _integer_range(data_type: pa.DataType) -> tuple[int, int]:
    info = np.iinfo(_get_numpy_dtype(data_type))
    return int(info.min), int(info.max)


def _get_numpy_dtype(data_type: pa.DataType) -> np.dtype:
    # `DataType.to_pandas_dtype()` needs pandas in some versions of Arrow.
    dtype: np.dtype = pa.array([], data_type).to_numpy().dtype
    return dtype


def _compare_integers(column: pa.Array, operator: str, value: float) -> pa.BooleanArray:
    """Compare integers with an integer or float of any size, exactly.

    Arrow would convert both to floats, or fail if the value does not fit into the column's type.
    Here `x < 2.5` becomes `x < 3`, and a comparison with a value outside the range of the type has
    the same result for all rows.
    """
    min_value, max_value = _integer_range(column.type)
    bound = math.ceil(value) if operator in ("<", ">=") else math.floor(value)
    in_range = min_value <= bound <= max_value
    if in_range and (bound == value or operator not in ("==", "!=")):
        return _call(column, operator, bound)
    # No value of the column equals `value`, or all values are on the same side of it.
    holds = operator == "!=" or operator in (("<", "<=") if bound > max_value else (">", ">="))
    return pc.is_valid(column) if holds else pa.repeat(False, len(column))
