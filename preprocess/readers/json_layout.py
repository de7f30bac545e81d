"""Find out where the records of a JSON file are: in lines, one after another, or in an array.

The first megabyte decides, so that every process that reads the file finds the same layout. Most
files are JSON lines, which is known as soon as two lines are objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

import orjson

from preprocess.errors import MisuseError, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.readers.json_structure import QUOTE, StructureScanner
from preprocess.readers.records import find_text_columns
from preprocess.recipes.nested import split_path
from preprocess.recipes.schema import Recipe

HEAD_BYTES = 1 << 20
NUM_LINES = 100  # that are looked at
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some Windows programs put it at the start of a file; it is not JSON
OPEN_ARRAY, OPEN_OBJECT = b"[{"


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
    first = (_parse_fields(text) if is_whole else None) or _list_fields(text)
    if first.end is not None and text[first.end :].strip(b" \t\r\n,"):
        return VALUES  # another value follows
    if first.has_any(find_text_columns(recipe)):
        return VALUES if b"\n" in text else LINES
    if len(first.arrays) > 1:
        raise_several_arrays(input_file, first.arrays)
    if first.arrays:
        return Layout(is_array=True, path=(first.arrays[0],), is_guessed=True)
    return VALUES if b"\n" in text else LINES


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
    end: int | None = None  # of the object, if it is in the head

    def has_any(self, columns: tuple[str, ...]) -> bool:
        """Return whether one of `columns` is a field, or leads into one."""
        return any(name in self.names or split_path(name)[0] in self.names for name in columns)


def _parse_fields(text: bytes) -> _Fields | None:
    """Return the fields of an object that is the whole file, if it is valid. Small files need no NumPy."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    arrays = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    return _Fields(list(value), arrays, len(text))


def _list_fields(text: bytes) -> _Fields:
    """Return the fields of the object with which `text` begins."""
    found, scanner = _Fields(), StructureScanner()
    start, key = 0, ""
    string_start: int | None = None
    is_new_array = False  # the last mark opened an array
    while start < len(text):
        marks, start = scanner.scan(text, start, is_last=True)
        for place, kind, depth in zip(marks.offsets.tolist(), marks.kinds.tolist(), marks.depths.tolist(), strict=True):
            if is_new_array and kind == OPEN_OBJECT:
                found.arrays.append(key)
            is_new_array = depth == 1 and kind == OPEN_ARRAY
            if kind == QUOTE and depth == 1 and string_start is None:
                string_start = place
            elif kind == QUOTE and depth == 1:
                if text[place + 1 : place + 100].lstrip()[:1] == b":":
                    key = _parse_name(text[string_start : place + 1])
                    found.names.append(key)
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
