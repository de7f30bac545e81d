"""Columns of numbers that JSON and CSV write as digits, compared exactly with large values.

The problem: a column of JSON or CSV may have integers and fractions in any order, so it is read as
float64. A float has 53 bits, and 64-bit ids differ in the bits after them: as floats,
1234567890123456789 and 1234567890123456788 are equal.

The idea: a struct has the value of a row either as an integer, if a float cannot represent it, or
as a float. Only conditions with a value of at least 2**53 need it: compared with smaller values, a
rounded number has the same result as the exact one.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

FLOAT, INTEGER = "float of an exact number", "integer of an exact number"
EXACT_NUMBER = pa.struct([(FLOAT, pa.float64()), (INTEGER, pa.int64())])
MAX_INT64 = 2**63 - 1


def make_exact_numbers(values: Iterable[int | float | None]) -> pa.StructArray:
    """Return numbers as a column of EXACT_NUMBER. Integers outside of 64 bits become floats."""
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
    """Return the floats and the integers of a column of EXACT_NUMBER, null in the rows of the other and in nulls."""
    return pc.struct_field(column, FLOAT), pc.struct_field(column, INTEGER)
