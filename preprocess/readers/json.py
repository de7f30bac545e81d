"""Read JSON. A record that cannot be read is rejected, and the other records are not affected.

The records are lines, values one after another, or the elements of an array (json_layout.py). Every
record is parsed separately with orjson, so the result does not depend on which records share a
block. Arrow's JSON reader would be faster, but it fails for a whole block if one line is invalid,
and it converts text that looks like a date to a timestamp. Long records are parsed by long_json.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile, Span
from preprocess.inputs.open_input import read_blocks
from preprocess.readers.json_layout import BYTE_ORDER_MARK, HEAD_BYTES, Layout, detect_layout
from preprocess.readers.json_records import RecordParser, Row, replace_lone_surrogates
from preprocess.readers.json_values import read_json_values
from preprocess.readers.long_json import LongStrings
from preprocess.readers.record_blocks import IS_LONG_CHAT, MAX_CHAT_BYTES, RecordBlock, cut_blocks, reject_oversized
from preprocess.readers.records import CHAT_TEXT, Records, Rejects, find_required_columns, format_utf8_error
from preprocess.readers.reject_reasons import RejectReason
from preprocess.readers.utf8 import Buffer, find_invalid_utf8, replace_invalid_utf8
from preprocess.recipes.exact_numbers import make_exact_numbers
from preprocess.recipes.schema import Recipe

TYPES = {"text": pa.large_string(), "number": pa.float64(), "boolean": pa.bool_(), "null": pa.large_string()}
LINE = re.compile(rb"\S[^\n]*")  # blank lines are not records
LONG_LINE_BYTES = MAX_CHAT_BYTES  # also of a record that is not a line
MAX_RECORDS = 1 << 16  # read at once; a block of short lines has more
HALF_OF_A_PAIR = "half of a surrogate pair"


def read_head(input_file: InputFile) -> bytes:
    """Return the first HEAD_BYTES of a file, decompressed, or all of it if it is shorter."""
    stop = min(input_file.size_bytes, HEAD_BYTES) if input_file.is_plain else None
    return _split_head(read_blocks(input_file, 0, stop))[0]


def has_lines(input_file: InputFile, recipe: Recipe) -> bool:
    """Return whether the records of a file are its lines, so that it can be read from any line."""
    return detect_layout(input_file, read_head(input_file), recipe).is_lines


def read_jsonl(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of `span`. The value of a key that a record does not have is null.

    `rejects` counts the records that cannot be read. Raises FolioError for a record that is not UTF-8
    or too long if the recipe makes that an error, and the errors of `read_json_blocks`.
    """
    parser = _BlockParser(input_file, recipe, rejects)
    num_records = 0
    for block in read_json_blocks(input_file, span, recipe, rejects):
        for records in parser.parse(block):
            records.first = num_records
            num_records += records.num_records
            yield records


def read_json_blocks(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[RecordBlock]:
    """Yield the bytes of `span` as blocks of whole records. Raises the errors of `read_json_values`."""
    blocks: Iterator[bytes] = read_blocks(input_file, span.start, span.stop)
    layout = Layout(is_lines=True)
    if span.start == 0 and span.stop is None:  # only files of lines are divided
        head, blocks = _split_head(blocks)
        layout = detect_layout(input_file, head, recipe)
    if layout.is_lines:
        yield from cut_blocks(blocks, input_file, span.start, recipe, rejects)
    else:
        yield from read_json_values(blocks, input_file, layout, recipe, rejects)


def find_records(block: RecordBlock) -> Iterable[tuple[int, int]]:
    """Return start and end of each record in the data of a block."""
    return map(re.Match.span, LINE.finditer(block.data)) if block.spans is None else block.spans


def _split_head(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first HEAD_BYTES of `blocks`, and all of them."""
    first: list[bytes] = []
    num_bytes = 0
    while num_bytes < HEAD_BYTES and (block := next(blocks, b"")):
        first.append(block)
        num_bytes += len(block)
    joined = first[0] if len(first) == 1 else b"".join(first)
    return joined[:HEAD_BYTES], itertools.chain([joined] if joined else [], blocks)


class _BlockParser:
    """A parser of the records of record blocks."""

    def __init__(self, input_file: InputFile, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects
        self._required = find_required_columns(recipe)
        self._parse_record = RecordParser(recipe).parse
        # The kinds of the values that the parser returns for a document, by column.
        self._columns = ({CHAT_TEXT: "text"} if self._required.chat else {}) | self._required.columns

    def parse(self, block: RecordBlock) -> Iterator[Records]:
        """Yield the records of `block`, at most MAX_RECORDS at a time."""
        rows: list[Row] = []
        offsets: list[int] = []  # of the rows in the file
        content, parse_record = block.data, self._parse_record
        for start, end in find_records(block):
            is_long = end - start > LONG_LINE_BYTES
            offset = block.offset + start
            if rows and (is_long or len(rows) == MAX_RECORDS):
                yield self._make_records(rows, offsets)
                rows, offsets = [], []
            if is_long:
                yield from self._parse_long_record(memoryview(content)[start:end], offset)
                continue
            data = content[start:end] if offset else content[start:end].removeprefix(BYTE_ORDER_MARK)
            parsed = parse_record(data)
            row = self._handle_error(data, offset, parsed) if isinstance(parsed, str) else parsed
            if row is not None:
                rows.append(row)
                offsets.append(offset)
        if rows:
            yield self._make_records(rows, offsets)

    def _make_records(self, rows: list[Row], offsets: list[int], strings: LongStrings | None = None) -> Records:
        arrays = []
        for kinds, of_kind in ((self._columns, 0), (self._required.where, 1)):
            columns = zip(*(row[of_kind] for row in rows), strict=True) if kinds else ()
            arrays.append(
                {
                    n: _make_array(column, kind, strings)
                    for (n, kind), column in zip(kinds.items(), columns, strict=True)
                }
            )
        return Records(arrays[0], 0, arrays[1], np.array(offsets, np.int64))

    def _handle_error(self, data: Buffer, offset: int, reason: str) -> Row | None:
        """Repair a record that could not be parsed, or reject it. Return the values of a repaired one, else None."""
        if not bytes(data).strip():  # after the byte order mark
            return None
        repaired = self._repair(data, offset, is_escape_checked=True)
        if repaired is None:
            return None
        row = reason if repaired is data else self._parse_record(bytes(repaired))
        if isinstance(row, str):
            self._rejects.reject(self._input_file.name, f"byte {offset}", row, data)
            return None
        return row

    def _parse_long_record(self, data: memoryview, offset: int) -> Iterator[Records]:
        """Yield the only record of a long one, unless it is rejected or skipped."""
        if self._required.chat:
            record = f"{self._input_file.path}: the record at byte {offset:,}"
            reject_oversized(record, self._recipe, self._rejects, IS_LONG_CHAT)
            return
        if offset == 0 and data[: len(BYTE_ORDER_MARK)] == BYTE_ORDER_MARK:
            data = data[len(BYTE_ORDER_MARK) :]
        repaired = self._repair(data, offset, is_escape_checked=False)
        if repaired is None:
            return
        strings, row = self._parse_long(repaired)
        if isinstance(row, str) and repaired is data:
            repaired = self._repair(data, offset, is_escape_checked=True)
            if repaired is None:
                return
            if repaired is not data:
                strings, row = self._parse_long(repaired)
        if not strings.shortened_line.strip():  # after the byte order mark
            return
        if isinstance(row, str):
            self._rejects.reject(self._input_file.name, f"byte {offset}", row, data)
        else:
            yield self._make_records([row], [offset], strings)

    def _parse_long(self, data: Buffer) -> tuple[LongStrings, Row | str]:
        strings = LongStrings(data)
        return strings, strings.find_error() or self._parse_record(strings.shortened_line)

    def _repair(self, data: Buffer, offset: int, *, is_escape_checked: bool) -> Buffer | None:
        """Return a record with U+FFFD for what is not text, or None if it is left out.

        Bytes that are not UTF-8 are not text, and halves of surrogate pairs are not, which are looked
        for only if `is_escape_checked` or if there are such bytes. Raises FolioError if the recipe makes
        them an error.
        """
        repaired = data
        invalid = find_invalid_utf8(data)
        if invalid is not None:
            repaired = replace_invalid_utf8(data)
        if is_escape_checked or invalid is not None:
            replaced = replace_lone_surrogates(repaired)
            if replaced is not None:
                repaired, index = replaced
                invalid = invalid or (index, HALF_OF_A_PAIR)
        if invalid is None:
            return data
        if self._recipe.invalid_utf8 == "error":
            raise FolioError(self._format_error(data, offset, invalid))
        reason = f"not UTF-8 ({invalid[1]})"
        found = RejectReason("invalid_utf8", reason, 1, self._input_file.name, f"byte {offset}")
        is_replaced = self._recipe.invalid_utf8 == "replace"
        self._rejects.add(found, data, has_position=is_replaced)
        return repaired if is_replaced else None

    def _format_error(self, data: Buffer, offset: int, invalid: tuple[int, str]) -> str:
        index, reason = invalid
        location = f"at offset {offset + index:,}"
        if reason != HALF_OF_A_PAIR:
            return format_utf8_error(self._input_file, location, data[index], reason)
        escape = bytes(data[index : index + 6]).decode()
        return (
            f"{self._input_file.path} has {HALF_OF_A_PAIR}, {escape}, {location}, which is not text; pass "
            "--invalid-utf8 replace or skip"
        )


def _make_array(values: tuple[Any, ...], kind: str, strings: LongStrings | None) -> pa.Array:
    if kind == "exact number":
        return make_exact_numbers(values)
    return pa.array(values, TYPES[kind]) if strings is None else strings.make_array(values, TYPES[kind])
