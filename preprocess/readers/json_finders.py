"""Find where the records of JSON begin and end, from the marks of its structure.

Offsets are those in the buffer of `json_values.ValueCutter`, which calls `shift` when it removes
bytes from the front. `offset` is that of the buffer in the file.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import orjson

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.readers.json_layout import OPEN_ARRAY, OPEN_OBJECT, Layout, raise_several_arrays
from preprocess.readers.json_structure import COMMA, DEPTH_CHANGE, QUOTE, Marks, StructureScanner

MAX_KEY_BYTES = 1 << 16
CLOSING = {ord("["): ord("]"), ord("{"): ord("}")}


class ValueFinder:
    """Finds values that are not in an array."""

    def __init__(self, input_file: InputFile) -> None:
        self._input_file = input_file
        self.start: int | None = 0  # of the unfinished value in the buffer

    def find(self, marks: Marks, data: bytearray, offset: int) -> list[tuple[int, int]]:
        """Return start and end of each value that ends in a window with `marks`."""
        is_closing = DEPTH_CHANGE[marks.kinds] < 0
        unmatched = np.flatnonzero(is_closing & (marks.depths <= 0))
        if len(unmatched):
            raise_unmatched(self._input_file, data, int(marks.offsets[unmatched[0]]), offset)
        ends = (marks.offsets[is_closing & (marks.depths == 1)] + 1).tolist()
        if not ends:
            return []
        spans = list(zip([self.start or 0, *ends[:-1]], ends, strict=True))
        self.start = ends[-1]
        return spans

    def check_end(self, data: bytearray, end: int, offset: int, scanner: StructureScanner) -> None:
        pass  # what follows the last value becomes a malformed record

    def check_found(self) -> None:
        pass

    def describe_unfinished(self, offset: int) -> str:
        return f"the value that begins at byte {offset + (self.start or 0):,}"

    def find_first_needed(self, num_scanned: int) -> int:
        return self.start or 0

    def shift(self, num_bytes: int) -> None:
        self.start = (self.start or 0) - num_bytes


class ElementFinder:
    """Finds the elements of an array: of the outermost one, or of that in a field.

    The marks outside of the elements are the *frame*, which is usually short. They are looked at
    one by one.
    """

    def __init__(self, input_file: InputFile, layout: Layout) -> None:
        self._input_file, self._layout = input_file, layout
        self._depth = len(layout.path) + 1  # of the elements
        self.start: int | None = None  # of the unfinished element in the buffer, unless outside of the array
        self._array_offset = 0  # of the last outermost value in the file
        self._is_found = False
        self._brackets: list[int] = []  # those of the frame that are open
        self._keys: list[str | None] = [None] * (self._depth + 1)  # the last string at each depth
        self._string_start: int | None = None  # of an unfinished string of the frame in the buffer
        self._gap_start: int | None = None  # after an outermost value
        self._other_array: str | None = None  # the field of an array whose first element is not known yet

    def find(self, marks: Marks, data: bytearray, offset: int) -> list[tuple[int, int]]:
        """Return start and end of each element that ends in a window with `marks`."""
        if self._other_array is not None and len(marks.kinds):
            self._check_other_array(int(marks.kinds[0]))
        depths, kinds = marks.depths, marks.kinds
        is_closing = DEPTH_CHANGE[kinds] < 0
        is_frame = ((depths < self._depth) | (is_closing & (depths == self._depth))) & (kinds != COMMA)
        commas = marks.offsets[(kinds == COMMA) & (depths == self._depth)]
        spans: list[tuple[int, int]] = []
        for index in np.flatnonzero(is_frame).tolist():
            place, kind, depth = int(marks.offsets[index]), int(kinds[index]), int(depths[index])
            if kind == QUOTE:
                self._add_quote(data, place, depth, offset)
            elif kind in CLOSING:
                self._open(data, place, kind, offset)
                if self._other_array is not None and index + 1 < len(kinds):
                    self._check_other_array(int(kinds[index + 1]))
            else:
                if self.start is not None and depth == self._depth:
                    spans += self._split(commas, place)
                    spans.append((self.start, place))
                    self.start = None
                self._close(data, place, kind, offset)
        if self.start is not None:
            spans += self._split(commas, place=None)
        return spans

    def _split(self, commas: np.ndarray, place: int | None) -> list[tuple[int, int]]:
        """Return the elements that end with a comma before `place`, or before the end of the window."""
        start = self.start or 0
        last = len(commas) if place is None else np.searchsorted(commas, place)
        ends = commas[np.searchsorted(commas, start) : last].tolist()
        starts = [start, *(end + 1 for end in ends)]
        self.start = starts.pop()
        return list(zip(starts, ends, strict=True))

    def _add_quote(self, data: bytearray, place: int, depth: int, offset: int) -> None:
        if depth == 0:
            self._raise_trailing(offset + place)
        if self._string_start is None:
            self._string_start = place
            return
        self._keys[depth] = _parse_key(data, self._string_start, place + 1)
        self._string_start = None

    def _open(self, data: bytearray, place: int, kind: int, offset: int) -> None:
        depth, path = len(self._brackets), self._layout.path
        if depth == 0:
            self._check_gap(data, place, offset)
            if self._gap_start is not None and not path and kind != OPEN_ARRAY:
                self._raise_trailing(offset + place)
            if self._gap_start is not None and self._layout.is_guessed:
                self._raise_unclear(offset + place)
            self._array_offset = offset + place
        is_in_objects = all(bracket == OPEN_OBJECT for bracket in self._brackets)
        self._brackets.append(kind)
        self._keys[depth + 1] = None
        if depth != len(path) or kind != OPEN_ARRAY or not is_in_objects:
            return
        if self._keys[1 : depth + 1] == list(path):
            self.start, self._is_found = place + 1, True
        elif self._layout.is_guessed:
            self._other_array = self._keys[depth] or ""

    def _close(self, data: bytearray, place: int, kind: int, offset: int) -> None:
        if not self._brackets or CLOSING[self._brackets.pop()] != kind:
            raise_unmatched(self._input_file, data, place, offset)
        if not self._brackets:
            self._gap_start = place + 1

    def _check_other_array(self, next_kind: int) -> None:
        """Raise MisuseError if an array that is not the one of the layout has objects too."""
        name, self._other_array = self._other_array, None
        if next_kind == OPEN_OBJECT:
            raise_several_arrays(self._input_file, [self._layout.path[0], name or ""])

    def _check_gap(self, data: bytearray, end: int, offset: int) -> None:
        """Raise FolioError if there is anything but white space between an outermost value and `end`."""
        if self._gap_start is not None and (found := data[self._gap_start : end].strip()):
            self._raise_trailing(offset + data.index(found, self._gap_start))

    def _raise_trailing(self, offset: int) -> None:
        raise FolioError(
            f"{self._input_file.path} has something at byte {offset:,}, after the end of its array or object; expected "
            "nothing: it is not JSON, or two files were joined"
        )

    def _raise_unclear(self, offset: int) -> NoReturn:
        name = shorten(self._layout.path[0])
        raise MisuseError(
            f"{self._input_file.path} has an object at byte {offset:,}, after one with an array of objects in its "
            f"field {name}, so it is not clear which are the records; pass --json-field {name} if they are the "
            "elements of the arrays, otherwise write the fields with text first"
        )

    def check_end(self, data: bytearray, end: int, offset: int, scanner: StructureScanner) -> None:
        """Check what is after the last mark before `end`."""
        if self._gap_start is not None and not scanner.depth:
            self._check_gap(data, end, offset)
            self._gap_start = end
        if self._string_start is not None and end - self._string_start > MAX_KEY_BYTES:
            self._string_start = end - MAX_KEY_BYTES  # too long for the name of a field

    def check_found(self) -> None:
        if not self._is_found:
            raise MisuseError(
                f"{self._input_file.path} has no array in the field {shorten('.'.join(self._layout.path))!r}; choose "
                "another with --json-field, or leave it out"
            )

    def describe_unfinished(self, offset: int) -> str:
        if self.start is not None:
            return f"an element of the array, which begins at byte {offset + self.start:,}"
        return f"the value that begins at byte {self._array_offset:,}"

    def find_first_needed(self, num_scanned: int) -> int:
        if self.start is not None:
            return self.start
        return num_scanned if self._string_start is None else self._string_start

    def shift(self, num_bytes: int) -> None:
        self.start = self.start - num_bytes if self.start is not None else None
        self._string_start = self._string_start - num_bytes if self._string_start is not None else None
        self._gap_start = self._gap_start - num_bytes if self._gap_start is not None else None


def _parse_key(data: bytearray, start: int, end: int) -> str | None:
    """Return the string in data[start:end], or None if it is too long or malformed."""
    if end - start > MAX_KEY_BYTES:
        return None
    try:
        key: str = orjson.loads(data[start:end])
    except orjson.JSONDecodeError:
        return None
    return key


def raise_unmatched(input_file: InputFile, data: bytearray, place: int, offset: int) -> NoReturn:
    """Raise FolioError for a bracket that closes nothing."""
    raise FolioError(
        f"{input_file.path} has an unexpected {chr(data[place])} at byte {offset + place:,}; it is not JSON, or a "
        "quote or a bracket before it is missing"
    )
