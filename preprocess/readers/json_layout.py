"""Find out where the records of a JSON file are: in lines, one after another, or in an array.

The first megabyte decides, so that every process that reads the file finds the same layout. Most
files are JSON lines, which is known as soon as two lines are objects. If the first object is longer
and its first megabyte has not the text, the rest of it decides, up to the size of the largest record.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import orjson

from preprocess.errors import MisuseError, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.open_input import read_blocks
from preprocess.readers.json_structure import QUOTE, StructureScanner
from preprocess.readers.record_sizes import get_max_record_bytes
from preprocess.readers.records import find_text_columns
from preprocess.recipes.nested import split_path
from preprocess.recipes.schema import Recipe

HEAD_BYTES = 1 << 20
NUM_LINES = 100  # that are looked at
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some Windows programs put it at the start of a file; it is not JSON
OPEN_ARRAY, OPEN_OBJECT = b"[{"
LINE_END = re.compile(rb"[ \t\r]*\n\s*\S")  # after which something follows


@dataclass(frozen=True)
class Layout:
    """Where the records are: in lines; in values one after another; or in an array."""

    is_lines: bool = False
    is_array: bool = False
    path: tuple[str, ...] = ()  # the names of the fields that lead to the array; empty if it is the outermost value
    is_guessed: bool = False  # the array is the only one with objects that was found


LINES, VALUES, ARRAY = Layout(is_lines=True), Layout(), Layout(is_array=True)


def detect_layout(input_file: InputFile, head: bytes, recipe: Recipe) -> Layout:
    """Return the layout of a file with the first bytes `head`: HEAD_BYTES, or the whole file if it is shorter.

    Raises MisuseError if the records may be in several arrays.
    """
    is_whole = len(head) < HEAD_BYTES
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    text = text.rstrip() if is_whole else text
    if recipe.json_field is not None:
        return _find_field(text, recipe.json_field)
    if text[:1] not in (b"{", b"[") or _has_lines(text, is_whole):
        return LINES
    if text[:1] == b"[":
        return ARRAY
    columns = find_text_columns(recipe)
    first = (_parse_fields(text) if is_whole else None) or _list_fields(text)
    if not (is_whole or first.end or _is_clear(first, text, columns)):
        text, first = _read_first_object(input_file, columns, get_max_record_bytes(recipe))
        if first.end and LINE_END.match(text, first.end) and b"\n" not in text[: first.end]:
            return LINES  # another line follows
    if first.end is not None and text[first.end :].strip(b" \t\r\n,"):
        return VALUES  # another value follows
    if first.has_any(columns):
        return VALUES if b"\n" in text else LINES
    if len(first.arrays) > 1:
        raise_several_arrays(input_file, first.arrays)
    if first.arrays:
        return Layout(is_array=True, path=(first.arrays[0],), is_guessed=True)
    return VALUES if b"\n" in text else LINES


def _is_clear(first: _Fields, text: bytes, columns: tuple[str, ...]) -> bool:
    """Return whether the beginning of the first object, which does not end in `text`, shows the layout."""
    if first.has_any(columns):
        return b"\n" in text  # otherwise another value may follow in the same line
    return len(first.arrays) == 1 and has_any_field(first.element_names, columns)


def _read_first_object(input_file: InputFile, columns: tuple[str, ...], max_bytes: int) -> tuple[bytes, _Fields]:
    """Return the beginning of a file, at most about `max_bytes`, in which its first object ends, and its fields."""
    data, num_scanned = bytearray(), 0
    text, first = b"", _Fields()
    for block in itertools.chain(read_blocks(input_file, 0, None), [b""]):
        data += block
        if block and len(data) < min(4 * num_scanned, max_bytes):
            continue  # scan larger and larger parts, so that all together are not much more than the last
        if len(data) > num_scanned:
            text = bytes(data).removeprefix(BYTE_ORDER_MARK).lstrip()
            first, num_scanned = _list_fields(text), len(data)
        if first.end or _is_clear(first, text, columns) or num_scanned >= max_bytes:
            break
    return text, first


def _find_field(text: bytes, name: str) -> Layout:
    """Return the layout of a file whose records are in the field `name`."""
    if "." in name and text[:1] == b"{" and name in _list_fields(text).names:
        return Layout(is_array=True, path=(name,))
    return Layout(is_array=True, path=split_path(name))


def _has_lines(text: bytes, is_whole: bool) -> bool:
    """Return whether the first two lines of `text` are objects, or at least half of the first NUM_LINES."""
    parts = text.split(b"\n", NUM_LINES)
    rest = parts.pop()
    if is_whole and b"\n" not in rest:
        parts.append(rest)
    lines = [line for line in parts if line.strip()]
    if len(lines) < 2:
        return False
    num_objects = 0
    for number, line in enumerate(lines):
        num_objects += _is_object(line)
        if number == 1 and num_objects == 2:
            return True
    if 2 * num_objects == len(lines):
        return text[:1] == b"{" or _is_value(lines[0])  # the last line of an array of two may be an object, too
    return 2 * num_objects > len(lines)


def _is_object(line: bytes) -> bool:
    return line.lstrip()[:1] == b"{" and _is_value(line)


def _is_value(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def raise_several_arrays(input_file: InputFile, names: list[str]) -> NoReturn:
    """Raise MisuseError for a file with several arrays of objects."""
    shown = ", ".join(shorten(name) for name in names[:20])
    raise MisuseError(
        f"{input_file.path} has several arrays of objects, in the fields {shown}; choose one with --json-field"
    )


@dataclass
class _Fields:
    """The fields of the first object of a file."""

    names: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)  # the names of those that are arrays of objects
    element_names: set[str] = field(default_factory=set)  # of the fields of the objects in the arrays
    end: int | None = None  # of the object, if it is in the head

    def has_any(self, columns: tuple[str, ...]) -> bool:
        """Return whether one of `columns` is a field, or leads into one."""
        return has_any_field(self.names, columns)


def has_any_field(names: Collection[str], columns: tuple[str, ...]) -> bool:
    """Return whether one of `columns` is one of the fields `names`, or leads into one."""
    return any(name in names or split_path(name)[0] in names for name in columns)


def _parse_fields(text: bytes) -> _Fields | None:
    """Return the fields of an object that is the whole file, if it is valid. Small files need no NumPy."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    arrays = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    return _Fields(list(value), arrays, end=len(text))


def _list_fields(text: bytes) -> _Fields:
    """Return the fields of the object with which `text` begins."""
    found, scanner = _Fields(), StructureScanner()
    start, key = 0, ""
    string_start: int | None = None
    last_kind = 0
    while start < len(text):
        marks, start = scanner.scan(text, start, is_last=True)
        is_first = (marks.depths == 2) & (marks.kinds == OPEN_OBJECT)  # in an array, if a bracket is before it
        is_first &= np.append(last_kind, marks.kinds[:-1])[: len(is_first)] == OPEN_ARRAY
        is_inner_name = (marks.depths == 3) & (marks.kinds == QUOTE) & (marks.offsets < HEAD_BYTES)
        last_kind = marks.kinds[-1] if len(marks.kinds) else last_kind
        needed = (marks.depths == 1) | is_first | is_inner_name
        columns = (marks.offsets, marks.kinds, marks.depths)
        for place, kind, depth in zip(*(column[needed].tolist() for column in columns), strict=True):
            if depth == 2:
                found.arrays.append(key)
            elif kind == QUOTE and string_start is None:
                string_start = place
            elif kind == QUOTE:
                if text[place + 1 : place + 100].lstrip()[:1] == b":":
                    name = _parse_name(text[string_start : place + 1])
                    if depth == 1:
                        key = name
                        found.names.append(name)
                    elif found.arrays[-1:] == [key]:
                        found.element_names.add(name)
                string_start = None
            elif depth == 1 and kind in b"]}":
                found.end = place + 1
                return found
    return found


def _parse_name(quoted: bytes) -> str:
    try:
        name: str = orjson.loads(quoted)
    except orjson.JSONDecodeError:
        return ""
    return name
