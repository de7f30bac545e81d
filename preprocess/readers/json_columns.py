"""Check that the columns which a recipe needs occur in JSON files.

The problem: a record of JSON may leave out keys, so a column may appear only late in a file, or only
in some files. But a misspelled name must be reported before hours of work.

The idea: the first megabyte of a file nearly always has all columns. For a column that it does not
have, the files are searched until a record has it. Only if no file has it is the name wrong. Remote
files that a stream has not copied yet are not searched.

The cost: one pass over the files, at 1 GB/s, if a name is wrong, and a part of it if a column
appears late.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from preprocess.errors import MisuseError
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.json import LONG_LINE_BYTES, find_records, read_head, read_json_blocks
from preprocess.readers.json_layout import BYTE_ORDER_MARK, HEAD_BYTES, detect_layout
from preprocess.readers.json_records import parse_object
from preprocess.readers.json_values import ValueCutter
from preprocess.readers.long_json import LongStrings
from preprocess.readers.record_blocks import RecordBlock
from preprocess.readers.records import Rejects, check_columns, find_required_columns, find_text_columns, raise_list
from preprocess.readers.utf8 import Buffer, find_invalid_utf8, replace_invalid_utf8
from preprocess.recipes.nested import get_nested, has_nested, split_path
from preprocess.recipes.schema import Recipe


class JsonColumnChecker:
    """Checks JSON files, and remembers the columns that were found in any of them."""

    def __init__(self, input_files: Sequence[InputFile], recipe: Recipe) -> None:
        self._input_files, self._recipe = input_files, recipe
        self._required = find_required_columns(recipe)
        self._text_columns = set(find_text_columns(recipe))
        self._missing = set(self._required.names)  # that were not found in any file yet

    def check(self, input_file: InputFile) -> list[str]:
        """Check the recipe's columns against a file, and return the columns of its first record.

        Raises MisuseError if no record of the file has a column of the text, if no record of any file
        that is on the disk has another column that the recipe needs, or if the condition compares a
        column with values of several types.
        """
        required, text_columns = self._required, self._text_columns
        if mixed := [name for name, kind in required.where.items() if kind == "mixed"]:
            raise MisuseError(
                f"the condition compares {mixed[0]} with values of several types; "
                "compare it only with text, only with numbers, or only with true and false"
            )
        head = read_head(input_file)
        missing = self._missing | text_columns  # in this file
        has_records, first_columns = False, None
        for record in iter_head(input_file, head, self._recipe):
            first_columns = list(record) if first_columns is None else first_columns
            has_records = has_records or bool(record)
            missing = {name for name in missing if not has_nested(record, name)}
            if not missing:
                break
        if has_records and missing and len(head) == HEAD_BYTES:
            missing -= find_columns(input_file, missing, self._recipe)
        self._missing &= missing
        if has_records:
            self._search_others(input_file, self._missing - text_columns)
            if any(not file.disk.is_copied for file in self._input_files[: input_file.number]):
                self._missing &= text_columns  # the stream began with another file, in which they were found
        if has_records and (absent := self._missing | (missing & text_columns)):
            records = [*iter_head(input_file, head, self._recipe)]
            _reject_lists(input_file, records, absent)
            _reject_table(input_file, records[0])
            names = dict.fromkeys(name for record in records for name in _list_columns(record) if name not in absent)
            found = [name for name in required.names if name not in absent]
            check_columns(input_file, required, list(dict.fromkeys([*names, *found])))
        return first_columns or []

    def _search_others(self, first: InputFile, names: set[str]) -> None:
        """Search the files for the columns `names`, those after `first` before those before it."""
        others = [*self._input_files[first.number + 1 :], *self._input_files[: first.number]] if names else []
        for input_file in others:
            if input_file.format == "jsonl" and names and input_file.disk.is_copied:
                found = find_columns(input_file, names, self._recipe)
                self._missing -= found
                names = names - found


def iter_head(input_file: InputFile, head: bytes, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Yield the records in the head of a file. Those that are malformed have no fields."""
    layout = detect_layout(input_file, head, recipe)
    if layout.is_lines:
        blocks = iter([RecordBlock(0, head.removeprefix(BYTE_ORDER_MARK))])
    else:
        blocks = _cut_head(ValueCutter(input_file, layout, recipe, Rejects(None)), head)
    for block in blocks:
        for start, end in find_records(block):
            yield parse_object(block.data[start:end].removeprefix(BYTE_ORDER_MARK))


def _cut_head(cutter: ValueCutter, head: bytes) -> Iterator[RecordBlock]:
    yield from cutter.add(head)
    if len(head) < HEAD_BYTES:
        yield from cutter.finish()


def _reject_lists(input_file: InputFile, records: list[dict[str, Any]], names: set[str]) -> None:
    """Raise MisuseError if one of the columns `names` would be in the elements of a list."""
    for name in sorted(names):
        keys = split_path(name)
        parents = [".".join(keys[:number]) for number in range(1, len(keys))]
        found = (parent for parent in parents for record in records if isinstance(get_nested(record, parent), list))
        if parent := next(found, None):
            raise_list(input_file, parent, name)


def _reject_table(input_file: InputFile, record: dict[str, Any]) -> None:
    """Raise MisuseError if a record without the text is a whole table, as pandas can write it."""
    orient = ""
    if {"columns", "data"} <= record.keys() <= {"columns", "data", "index"}:
        orient = "split"
    elif record and all(key == str(number) for number, key in enumerate(record)):
        orient = "index"
    if orient:
        raise MisuseError(
            f"{input_file.path} has a whole table in one object, as pandas writes it with to_json(orient='{orient}'); "
            "write it with to_json(orient='records', lines=True)"
        )


def _list_columns(record: dict[str, Any]) -> list[str]:
    """Return the keys of a record, and those of the objects in it."""
    nested = [f"{key}.{inner}" for key, value in record.items() if isinstance(value, dict) for inner in value]
    return [*record, *nested]


def find_columns(input_file: InputFile, names: set[str], recipe: Recipe) -> set[str]:
    """Return which of the columns `names` a record of a JSON file has, reading it until all are found."""
    recipe = dataclasses.replace(recipe, oversized="skip")
    spellings = [spelling for name in names for spelling in _spell_key(split_path(name)[-1])]
    found: set[str] = set()
    for block in read_json_blocks(input_file, Span(input_file.number), recipe, Rejects(None)):
        if not any(spelling in block.data for spelling in spellings):
            continue
        for start, end in find_records(block):
            data = block.data[start:end]
            if any(spelling in data for spelling in spellings):
                record = _parse_any(data.removeprefix(BYTE_ORDER_MARK))
                found.update(name for name in names if has_nested(record, name))
        if found == names:
            break
    return found


def _parse_any(data: Buffer) -> dict[str, Any]:
    """Return the fields of a record, none if it is malformed or takes too much memory when it is parsed.

    Long strings, which may be the values of fields, are replaced by marks.
    """
    if len(data) <= LONG_LINE_BYTES:
        return parse_object(data)
    if find_invalid_utf8(data) is not None:
        data = replace_invalid_utf8(data)
    strings = LongStrings(data)
    return {} if strings.find_error() else parse_object(strings.shortened_line)


def _spell_key(key: str) -> set[bytes]:
    """Return how a key may end: as it is, or with escapes."""
    escaped = json.dumps(key)[1:]
    upper_case = re.sub(r"\\u[0-9a-f]{4}", lambda match: "\\u" + match[0][2:].upper(), escaped)
    return {json.dumps(key, ensure_ascii=False)[1:].encode(), escaped.encode(), upper_case.encode()}
