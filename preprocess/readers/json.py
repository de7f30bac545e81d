"""Read JSON lines. A line that cannot be read is rejected, and the other lines are not affected.

Every line is parsed separately with orjson, so the result does not depend on which lines share a
block. Arrow's JSON reader would be faster, but it fails for a whole block if one line is invalid,
and it converts text that looks like a date to a timestamp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.decompress import read_blocks
from preprocess.readers.record_blocks import read_record_blocks
from preprocess.readers.records import (
    Records,
    Rejects,
    RequiredColumns,
    check_columns,
    find_required_columns,
    format_utf8_error,
)
from preprocess.recipes.schema import Recipe

TYPES = {"text": pa.large_string(), "number": pa.float64(), "boolean": pa.bool_(), "null": pa.large_string()}
HEAD_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some Windows programs put it at the start of a file; it is not JSON


def check_jsonl(input_file: InputFile, recipe: Recipe) -> None:
    """Check the recipe's columns against the first megabyte of a JSONL file.

    Raises MisuseError if no object there has a key that the recipe needs, or if the condition
    compares a column with values of several types.
    """
    required = find_required_columns(recipe)
    if mixed := [name for name, kind in required.where.items() if kind == "mixed"]:
        raise MisuseError(
            f"the condition compares {mixed[0]} with values of several types; "
            "compare it only with text, only with numbers, or only with true and false"
        )
    stop = None if input_file.compression else min(input_file.size_bytes, HEAD_BYTES)
    head = next(read_blocks(input_file, 0, stop), b"")[:HEAD_BYTES]
    keys: dict[str, None] = {}
    for line in head.removeprefix(BYTE_ORDER_MARK).splitlines():
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # the last line may be incomplete, and read_jsonl reports the others
        if isinstance(record, dict):
            keys.update(dict.fromkeys(record))
    if keys:
        check_columns(input_file, required, list(keys))


def read_jsonl(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of `span`. A key that is missing in a line is null."""
    required = find_required_columns(recipe)
    num_records = 0
    for offset, data, _ in read_record_blocks(input_file, span.start, span.stop, recipe, rejects):
        rows: list[tuple[list[Any], list[Any]]] = []
        starts = []
        for line in data.split(b"\n"):
            start, offset = offset, offset + len(line) + 1
            if start == 0:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if not line.strip():
                continue
            try:
                row = _parse_line(line, required, recipe, rejects)
            except UnicodeDecodeError as e:
                if recipe.invalid_utf8 == "error":
                    location = f"at offset {start + e.start:,}"
                    raise FolioError(format_utf8_error(input_file.path, location, line[e.start], e.reason)) from e
                rejects.counts["invalid_utf8"] += 1
                continue
            if isinstance(row, str):
                rejects.reject(input_file.name, f"byte {start}", row, line)
            else:
                rows.append(row)
                starts.append(start)
        if rows:
            columns = _to_arrays(required.columns, [values for values, _ in rows])
            where = _to_arrays(required.where, [values for _, values in rows])
            yield Records(columns, num_records, where, np.array(starts, np.int64))
        num_records += len(rows)


def _to_arrays(kinds: dict[str, str], rows: list[list[Any]]) -> dict[str, pa.Array]:
    columns = zip(*rows, strict=True) if kinds else ()
    return {name: pa.array(column, TYPES[kind]) for (name, kind), column in zip(kinds.items(), columns, strict=True)}


def _parse_line(
    line: bytes, required: RequiredColumns, recipe: Recipe, rejects: Rejects
) -> tuple[list[Any], list[Any]] | str:
    """Return the values for the document and those for the condition, or why the line is rejected.

    Raises UnicodeDecodeError if the line is not UTF-8, unless the recipe replaces invalid bytes.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            if recipe.invalid_utf8 != "replace":
                raise
            rejects.counts["invalid_utf8"] += 1
            return _parse_line(line.decode("utf-8", "replace").encode(), required, recipe, rejects)
        return f"invalid JSON: {e}"
    if not isinstance(record, dict):
        return f"expected a JSON object, got {_get_json_type(record)}"
    try:
        values = [_to_text(record.get(name), name, required) for name in required.columns]
        return values, [_to_kind(record.get(name), name, kind) for name, kind in required.where.items()]
    except TypeError as e:
        return str(e)


def _to_text(value: Any, name: str, required: RequiredColumns) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if name == required.text_only or not isinstance(value, bool | int | float):
        raise TypeError(f"{name} must be text, got {_get_json_type(value)}")
    if isinstance(value, float) and value.is_integer() and abs(value) >= 2**53:
        raise TypeError(f"{name} is a number with too many digits for a float; put it in quotes")
    return orjson.dumps(value).decode()


def _to_kind(value: Any, name: str, kind: str) -> Any:
    """Return `value` as the condition needs it. Raises TypeError if it is not of `kind`."""
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_of_kind = {"number": is_number, "text": isinstance(value, str), "boolean": isinstance(value, bool), "null": True}
    if not is_of_kind[kind]:
        raise TypeError(f"the condition compares {name} with a value of type {kind}, got {_get_json_type(value)}")
    if kind == "null":
        return str(value)
    return float(value) if kind == "number" else value


def _get_json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
