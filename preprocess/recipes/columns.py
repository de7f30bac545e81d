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

from preprocess.recipes.exact_numbers import EXACT_NUMBER, split_exact_numbers

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
    if pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or data_type == EXACT_NUMBER:
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


def view_as_bytes(column: pa.Array) -> pa.Array:
    """Return a column with bytes in place of text, also inside of lists, structs and dictionaries. Nothing is copied.

    The column need not have been validated: its text may be not UTF-8.
    """
    data_type = _replace_text(column.type)
    return column if data_type == column.type else column.view(data_type)


def _replace_text(data_type: pa.DataType) -> pa.DataType:
    """Return a type with bytes in place of text."""
    types = pa.types
    if types.is_string(data_type):
        return pa.binary()
    if types.is_large_string(data_type):
        return pa.large_binary()
    if types.is_string_view(data_type):
        return pa.binary_view()
    if types.is_dictionary(data_type):
        return pa.dictionary(data_type.index_type, _replace_text(data_type.value_type), data_type.ordered)
    if types.is_struct(data_type):
        return pa.struct([field.with_type(_replace_text(field.type)) for field in data_type])
    if types.is_map(data_type):
        return pa.map_(_replace_text(data_type.key_type), _replace_text(data_type.item_type), data_type.keys_sorted)
    makers = {
        types.is_list: pa.list_, types.is_large_list: pa.large_list,
        types.is_list_view: pa.list_view, types.is_large_list_view: pa.large_list_view,
        types.is_fixed_size_list: lambda field: pa.list_(field, data_type.list_size),
    }  # fmt: skip
    for is_of_kind, make in makers.items():
        if is_of_kind(data_type):
            return make(data_type.value_field.with_type(_replace_text(data_type.value_type)))
    return data_type


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
    if column.type == EXACT_NUMBER:
        floats, integers = split_exact_numbers(column)
        return pc.or_(compare(floats, operator, value), compare(integers, operator, value))
    if pa.types.is_integer(column.type):
        return _compare_integers(column, operator, value)
    if pa.types.is_floating(column.type):
        if isinstance(value, int) and float(value) != value:
            return _compare_with_integer(column.cast(pa.float64()), operator, value)
        column, value = column.cast(pa.float64()), _round_to_type(value, column.type)
    return _call(column, operator, value)


def is_in(column: pa.Array, values: tuple[Any, ...]) -> pa.BooleanArray:
    """Return which rows equal one of `values`, (R,) bool; false for nulls.

    The values must be of the column's kind.
    """
    column = _decode(column)
    if pa.types.is_null(column.type):
        return pa.repeat(False, len(column))
    if column.type == EXACT_NUMBER:
        floats, integers = split_exact_numbers(column)
        return pc.or_(is_in(floats, values), is_in(integers, values))
    if pa.types.is_integer(column.type):
        min_value, max_value = _integer_range(column.type)
        values = tuple(int(v) for v in values if v == math.floor(v) and min_value <= v <= max_value)
    elif pa.types.is_floating(column.type):
        # Arrow's is_in compares hashes, for which 0.0 and -0.0 differ. Look for both.
        rounded = [_round_to_type(v, column.type) for v in values if not isinstance(v, int) or float(v) == v]
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


def _compare_with_integer(column: pa.DoubleArray, operator: str, value: int) -> pa.BooleanArray:
    """Compare (N,) floats exactly with an integer that float64 cannot represent, so that none is equal to it."""
    rounded = float(value)
    if operator in ("==", "!="):
        return pc.is_valid(column) if operator == "!=" else pa.repeat(False, len(column))
    is_less = operator in ("<", "<=")
    includes_rounded = is_less == (rounded < value)
    return _call(column, operator[0] + ("=" if includes_rounded else ""), rounded)
