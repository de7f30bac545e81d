"""Columns of numbers of JSON and CSV files that are compared exactly with large values.

The problem: a column of JSON or CSV may contain integers and fractions in any order, so it is read as
float64. A float64 represents every integer only up to 2**53, so large 64-bit ids are rounded:
1234567890123456789 and 1234567890123456788 become equal.

The idea: each row is a struct with two fields. An integer that a float64 cannot represent is stored as
int64, and any other number as float64. Only conditions with a value of at least 2**53 need this:
compared with a smaller value, a rounded number gives the same result as the exact one.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

FLOAT, INTEGER = "float of an exact number", "integer of an exact number"
EXACT_NUMBER = pa.struct([(FLOAT, pa.float64()), (INTEGER, pa.int64())])
MAX_INT64 = 2**63 - 1


def make_exact_numbers(values: Iterable[int | float | None]) -> pa.StructArray:
    """Return N numbers as a column of EXACT_NUMBER, (N,). Integers outside of int64 become float64."""
    floats: list[float | None] = []
    integers: list[int | None] = []
    for value in values:
        if value is None:
            integer, as_float = None, None
        else:
            is_integer = isinstance(value, int) and float(value) != value and -MAX_INT64 - 1 <= value <= MAX_INT64
            integer, as_float = (int(value), None) if is_integer else (None, float(value))
        floats.append(as_float)
        integers.append(integer)
    missing = pa.array([a is None and b is None for a, b in zip(floats, integers, strict=True)], pa.bool_())
    arrays = [pa.array(floats, pa.float64()), pa.array(integers, pa.int64())]
    return pa.StructArray.from_arrays(arrays, fields=list(EXACT_NUMBER), mask=missing)


def split_exact_numbers(column: pa.StructArray) -> tuple[pa.DoubleArray, pa.Int64Array]:
    """Return the floats and the integers of a column of EXACT_NUMBER, (N,) each.

    In each row, at least one of the two is null, and both are null if the number is missing.
    """
    return pc.struct_field(column, FLOAT), pc.struct_field(column, INTEGER)
