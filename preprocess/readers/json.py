"""Read JSON lines. A line that cannot be read is rejected, and the other lines are not affected.

Every line is parsed separately with orjson, so the result does not depend on which lines share a
block. Arrow's JSON reader would be faster, but it fails for a whole block if one line is invalid,
and it converts text that looks like a date to a timestamp. Long lines are parsed by long_json.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.input_files import InputFile, Span
from preprocess.inputs.open_input import read_blocks
from preprocess.readers.long_json import LongStrings
from preprocess.readers.record_blocks import RecordBlock, read_record_blocks
from preprocess.readers.records import (
    Records,
    Rejects,
    RequiredColumns,
    check_columns,
    find_required_columns,
    format_utf8_error,
)
from preprocess.readers.reject_reasons import RejectReason
from preprocess.readers.utf8 import find_invalid_utf8, replace_invalid_utf8
from preprocess.recipes.schema import Recipe

_Row = tuple[list[Any], list[Any]]  # the values for the document, and those for the condition
TYPES = {"text": pa.large_string(), "number": pa.float64(), "boolean": pa.bool_(), "null": pa.large_string()}
HEAD_BYTES = 1 << 20
LINE = re.compile(rb"\S[^\n]*")  # blank lines are not records
LONG_LINE_BYTES = 8 << 20
MAX_RECORDS = 1 << 16  # read at once; a block of short lines has more
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
    stop = min(input_file.size_bytes, HEAD_BYTES) if input_file.is_plain else None
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
    """Yield the records of `span`. The value of a key that a line does not have is null.

    `rejects` counts the lines that cannot be read. Raises FolioError for a line that is not UTF-8
    or too long if the recipe makes that an error.
    """
    parser = _BlockParser(input_file, recipe, rejects)
    num_records = 0
    for block in read_record_blocks(input_file, span.start, span.stop, recipe, rejects):
        for records in parser.parse(block):
            records.first = num_records
            num_records += records.num_records
            yield records


class _BlockParser:
    """A parser of the lines of record blocks."""

    def __init__(self, input_file: InputFile, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects
        self._required = find_required_columns(recipe)

    def parse(self, block: RecordBlock) -> Iterator[Records]:
        """Yield the records of `block`, at most MAX_RECORDS at a time."""
        rows: list[_Row] = []
        offsets: list[int] = []  # of the rows in the file
        for match in LINE.finditer(block.data):
            start, end = match.span()
            offset = block.offset + start
            if rows and (len(rows) == MAX_RECORDS or end - start > LONG_LINE_BYTES):
                yield self._make_records(rows, offsets)
                rows, offsets = [], []
            if end - start > LONG_LINE_BYTES:
                yield from self._parse_long_line(memoryview(block.data)[start:end], offset)
                continue
            line = match[0] if offset else match[0].removeprefix(BYTE_ORDER_MARK)
            parsed = self._parse_record(line)
            row = self._handle_error(line, offset, parsed) if isinstance(parsed, str) else parsed
            if row is not None:
                rows.append(row)
                offsets.append(offset)
        if rows:
            yield self._make_records(rows, offsets)

    def _make_records(self, rows: list[_Row], offsets: list[int], strings: LongStrings | None = None) -> Records:
        make_array = pa.array if strings is None else strings.make_array
        arrays = []
        for kinds, of_kind in ((self._required.columns, 0), (self._required.where, 1)):
            columns = zip(*(row[of_kind] for row in rows), strict=True) if kinds else ()
            arrays.append(
                {n: make_array(column, TYPES[kind]) for (n, kind), column in zip(kinds.items(), columns, strict=True)}
            )
        return Records(arrays[0], 0, arrays[1], np.array(offsets, np.int64))

    def _handle_error(self, line: bytes, offset: int, reason: str) -> _Row | None:
        """Repair a line that could not be parsed, or reject it. Return the values of a repaired line, else None."""
        if not line.strip():  # after the byte order mark
            return None
        if (invalid := find_invalid_utf8(line)) is not None:
            if self._recipe.invalid_utf8 != "replace":
                self._skip_invalid_utf8(offset, line, invalid)
                return None
            self._note_invalid_utf8(offset, line, invalid)
            row = self._parse_record(replace_invalid_utf8(line))
            if not isinstance(row, str):
                return row
            reason = row
        self._rejects.reject(self._input_file.name, f"byte {offset}", reason, line)
        return None

    def _parse_long_line(self, line: memoryview, offset: int) -> Iterator[Records]:
        """Yield the only record of a long line, unless it is rejected or skipped."""
        if offset == 0 and line[: len(BYTE_ORDER_MARK)] == BYTE_ORDER_MARK:
            line = line[len(BYTE_ORDER_MARK) :]
        valid_line: bytearray | memoryview = line
        if (invalid := find_invalid_utf8(line)) is not None:
            if self._recipe.invalid_utf8 != "replace":
                self._skip_invalid_utf8(offset, line, invalid)
                return
            self._note_invalid_utf8(offset, line, invalid)
            valid_line = replace_invalid_utf8(line)
        strings = LongStrings(valid_line)
        if not strings.shortened_line.strip():  # after the byte order mark
            return
        row = strings.find_error() or self._parse_record(strings.shortened_line)
        if isinstance(row, str):
            self._rejects.reject(self._input_file.name, f"byte {offset}", row, line)
        else:
            yield self._make_records([row], [offset], strings)

    def _skip_invalid_utf8(self, offset: int, line: bytes | memoryview, invalid: tuple[int, str]) -> None:
        """Count a line that is left out because it is not UTF-8, or raise FolioError if the recipe says so."""
        index, reason = invalid
        if self._recipe.invalid_utf8 == "error":
            location = f"at offset {offset + index:,}"
            raise FolioError(format_utf8_error(self._input_file, location, line[index], reason))
        self._note_invalid_utf8(offset, line, invalid)

    def _note_invalid_utf8(self, offset: int, line: bytes | memoryview, invalid: tuple[int, str]) -> None:
        reason = f"not UTF-8 ({invalid[1]})"
        self._rejects.add(RejectReason("invalid_utf8", reason, 1, self._input_file.name, f"byte {offset}"), line)

    def _parse_record(self, line: bytes | bytearray) -> _Row | str:
        """Return the values for the document and for the condition, or the reason why the line is rejected."""
        required = self._required
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as e:
            return f"invalid JSON: {e}"
        if not isinstance(record, dict):
            return f"expected a JSON object, got {_get_json_type(record)}"
        try:
            values = [
                value if isinstance(value := record.get(name), str) else _to_text(value, name, required)
                for name in required.columns
            ]
            return values, [_to_kind(record.get(name), name, kind) for name, kind in required.where.items()]
        except TypeError as e:
            return str(e)


def _to_text(value: Any, name: str, required: RequiredColumns) -> str | None:
    """Return a value that is not a string as text. Raises TypeError if it cannot be converted."""
    if value is None:
        return None
    is_formattable = isinstance(value, bool | int | float)
    if name == required.text_only or not is_formattable:
        advice = f"; --template '{{{name}}}' writes it as text" if is_formattable else ""
        raise TypeError(f"{name} must be text, got {_get_json_type(value)}{advice}")
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
