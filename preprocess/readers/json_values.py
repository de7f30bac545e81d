"""Cut JSON that is not in lines into blocks of whole records, in bounded memory.

The records are values one after another, with or without line feeds in and between them, or the
elements of an array. The array is the whole file, or in a field of an object, which may have other
fields before and after it.

Incoming bytes are collected in a buffer, and their marks (json_structure.py) show where records
begin and end. Blocks of the buffer are passed on with these places. Only the record structure is
checked here; the records are parsed one by one, so a malformed record does not affect the others
unless it has a quote or a bracket too few or too many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.json_finders import ElementFinder, ValueFinder
from preprocess.readers.json_layout import Layout
from preprocess.readers.json_structure import StructureScanner
from preprocess.readers.record_blocks import IS_JSON, RecordBlock, reject_oversized
from preprocess.readers.records import Rejects
from preprocess.recipes.schema import Recipe

PIECE_BYTES = 2 << 20  # in which there may be a million records
LEADING = re.compile(rb"[\s,]*")  # before a record; programs that join objects with commas need no brackets


def read_json_values(
    blocks: Iterator[bytes], input_file: InputFile, layout: Layout, recipe: Recipe, rejects: Rejects
) -> Iterator[RecordBlock]:
    """Yield the records in `blocks`, the bytes of a whole file.

    A record longer than twice `max_document_bytes` is left out or, with `oversized = "error"`,
    raises FolioError. Raises FolioError if the file ends within a value or has anything after its
    array, MisuseError if the field of `layout` is not there, or is one of several.
    """
    cutter = ValueCutter(input_file, layout, recipe, rejects)
    for block in blocks:
        yield from cutter.add(block)
    yield from cutter.finish()


class ValueCutter:
    """Collects incoming blocks in a buffer, and finds the records in it."""

    def __init__(self, input_file: InputFile, layout: Layout, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects
        self._max_bytes = 2 * recipe.max_document_bytes  # as of a line of JSON
        self._scanner = StructureScanner()
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's first byte in the file
        self._num_scanned = 0  # bytes of the buffer
        self._finder = ElementFinder(input_file, layout) if layout.is_array else ValueFinder(input_file)
        self._is_skipping = False  # the unfinished record is left out

    def add(self, block: bytes) -> Iterator[RecordBlock]:
        """Add the next bytes of the file, and yield the records that end in them."""
        for start in range(0, len(block), PIECE_BYTES):
            yield from self._add(block[start : start + PIECE_BYTES])

    def _add(self, piece: bytes, *, is_last: bool = False) -> Iterator[RecordBlock]:
        self._buffer += piece
        spans: list[tuple[int, int]] = []
        finder = self._finder
        while self._num_scanned < len(self._buffer):
            marks, stop = self._scanner.scan(self._buffer, self._num_scanned, is_last=is_last)
            if stop == self._num_scanned:
                break
            self._num_scanned = stop
            spans += finder.find(marks, self._buffer, self._offset)
        finder.check_end(self._buffer, self._num_scanned, self._offset, self._scanner)
        spans = self._select(spans)
        if finder.start is not None:
            self._skip_long_record(finder.start)
        yield from self._take(spans)

    def finish(self) -> Iterator[RecordBlock]:
        """Yield the last records. Raises FolioError if the file ends too early."""
        yield from self._add(b"", is_last=True)
        if self._scanner.depth or self._scanner.is_in_string:
            raise FolioError(
                f"{self._input_file.path} ends within {self._finder.describe_unfinished(self._offset)}; it is cut "
                "short, or has a quote or a bracket too many or too few"
            )
        self._finder.check_found()
        if self._finder.start is not None:
            yield from self._take(self._select([(self._finder.start, len(self._buffer))]))

    def _select(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return `spans` without white space before them, blank ones and those of records that are too long."""
        selected = []
        for start, end in spans:
            start = _skip_leading(self._buffer, start, end)
            if start < end and not self._is_skipping:
                if end - start > self._max_bytes:
                    self._reject_oversized(start)
                else:
                    selected.append((start, end))
            self._is_skipping = False
        return selected

    def _skip_long_record(self, start: int) -> None:
        """Leave out the unfinished record, which begins at `start`, if it is too long already."""
        if not self._is_skipping:
            start = _skip_leading(self._buffer, start, self._num_scanned)
            if self._num_scanned - start > self._max_bytes:
                self._reject_oversized(start)
                self._is_skipping = True
        self._finder.start = self._num_scanned if self._is_skipping else start

    def _reject_oversized(self, start: int) -> None:
        record = f"{self._input_file.path}: the record at byte {self._offset + start:,}"
        reject_oversized(record, self._recipe, self._rejects, IS_JSON)

    def _take(self, spans: list[tuple[int, int]]) -> Iterator[RecordBlock]:
        """Remove what is not needed any more from the buffer, and yield it if it has records."""
        data, offset = self._buffer, self._offset
        num_taken = self._finder.find_first_needed(self._num_scanned)
        if spans:
            self._buffer = bytearray(memoryview(data)[num_taken:])  # the records are passed on without a copy
        else:
            del self._buffer[:num_taken]
        self._offset += num_taken
        self._num_scanned -= num_taken
        self._finder.shift(num_taken)
        if spans:
            yield RecordBlock(offset, data, spans=spans)


def _skip_leading(data: bytearray, start: int, end: int) -> int:
    match = LEADING.match(data, start, end)
    assert match is not None  # it matches the empty string
    return match.end()
