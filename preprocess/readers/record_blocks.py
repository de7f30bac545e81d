"""A file's bytes in runs of whole records, in bounded memory, whatever the length of a record.

A boundary is a place where a record can begin: behind a line feed, behind a blank line, behind a separator. Whether a place is a
boundary shows from the few bytes in front of it, so that a reader may start anywhere and find the same records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.decompress import blocks
from preprocess.readers.records import Rejects
from preprocess.recipes.schema import Recipe

NO_CUT_BYTES = 16 << 20  # so long a stretch without white space is no text
PROBE_BYTES = 1 << 16
WHITE_SPACE = b" \n\t\r"
SPACES = np.zeros(256, bool)
SPACES[list(WHITE_SPACE)] = True


@dataclass(frozen=True)
class Boundaries:
    """Where records begin: behind any of `marks`; with no marks, at the file's head alone."""

    marks: tuple[bytes, ...]

    @property
    def reach(self) -> int:
        """How many bytes in front of a place tell whether it is a boundary."""
        return max(map(len, self.marks), default=0)

    def last(self, data: bytes | bytearray) -> int:
        """The last boundary within `data`, its end included; 0 where there is none."""
        return max((found + len(mark) for mark in self.marks if (found := data.rfind(mark)) >= 0), default=0)

    def first(self, data: bytes | bytearray, least: int = 1) -> int | None:
        """The first boundary within `data`, its end included, that is at or behind `least`."""
        found = ((data.find(mark, max(least - len(mark), 0)), len(mark)) for mark in self.marks)
        return min((place + length for place, length in found if place >= 0), default=None)


LINES = Boundaries((b"\n",))
PARAGRAPHS = Boundaries((b"\n\n", b"\n\r\n"))
WHOLE = Boundaries(())


class Run(NamedTuple):
    """Whole records, or a part of one that is too long for a document."""

    offset: int  # in the decompressed file, in bytes
    data: bytes
    is_part: bool


def boundaries_of(source: InputFile, recipe: Recipe) -> Boundaries:
    """What separates the records of `source`."""
    if source.format == "jsonl":
        return LINES
    by_document = {"line": LINES, "paragraph": PARAGRAPHS, "separator": Boundaries((recipe.separator.encode(),))}
    return by_document.get(recipe.document, WHOLE)


def next_boundary(source: InputFile, boundaries: Boundaries, place: int) -> int:
    """The first boundary at or behind byte `place` of an uncompressed file; its end where there is none."""
    start = max(place - boundaries.reach, 0)
    tail = b""
    with open(source.path, "rb") as file:
        file.seek(start)
        while block := file.read(PROBE_BYTES):
            data = tail + block
            found = boundaries.first(data, max(place - start, 1))
            if found is not None:
                return start + found
            tail = data[max(len(data) - boundaries.reach, 0) :]
            start += len(data) - len(tail)
    return source.size_bytes


class _Cutter:
    """Takes blocks, gives runs. Nothing that it gives depends on where blocks end: a record counts as long if its first `limit` bytes
    hold no boundary, which is asked only when so many are there.
    """

    def __init__(self, source: InputFile, start: int, recipe: Recipe, rejects: Rejects) -> None:
        self._source, self._recipe, self._losses = source, recipe, rejects
        self._boundaries, self._limit = boundaries_of(source, recipe), longest_record(source, recipe)
        # What no document begins with, so that a long one is measured from where it begins.
        leads = {"paragraph": WHITE_SPACE, "separator": b"\r\n"}
        self._lead = leads.get(recipe.document, b"") if source.format == "text" else b""
        self._data, self._offset = bytearray(), start
        self._is_part = self._is_skipping = (
            False  # the data begins within a long record, or within one that is left out
        )

    def feed(self, block: bytes) -> Iterator[Run]:
        """The runs that are whole with `block`."""
        self._data += block
        while len(self._data) > self._limit:
            yield from self._first()
        if self._is_part or self._is_skipping:
            yield from self._rest()
        if not self._is_part and not self._is_skipping and (end := self._boundaries.last(self._data)):
            yield self._take(end)

    def finish(self) -> Iterator[Run]:
        """What is left at the end of the span."""
        if self._data and not self._is_skipping:
            yield self._take(len(self._data))

    def _first(self) -> Iterator[Run]:
        """Of more data than a document may have, some from the front."""
        if self._is_part or self._is_skipping:
            yield from self._rest()
            if not self._is_part and not self._is_skipping:
                return
        elif end := self._boundaries.last(self._data[: self._limit]):
            yield self._take(end)
            return
        elif self._lead and (num_lead := len(self._data) - len(self._data.lstrip(self._lead))):
            self._take(num_lead)
            return
        if self._is_skipping:
            self._take(max(len(self._data) - self._boundaries.reach, 1))
        elif len(self._data) > self._limit:
            yield from self._cut()

    def _cut(self) -> Iterator[Run]:
        cut = find_cut(self._data, self._limit) if self._source.format != "jsonl" else 0  # half a JSON value is none
        if cut:
            self._losses.counts["cut"] += 1
            self._is_part = True
            yield self._take(cut)
        else:
            reject_oversized(
                f"{self._source.path}: at byte {self._offset:,} begins",
                self._recipe,
                can_be_cut=self._source.format != "jsonl",
            )
            self._losses.counts["oversized"] += 1
            self._is_part, self._is_skipping = False, True

    def _rest(self) -> Iterator[Run]:
        """The end of a long record, if it is there and no longer than a document may be."""
        end = self._boundaries.first(self._data[: self._limit] if self._is_part else self._data)
        if end is not None:
            run = self._take(end)
            if self._is_part:
                yield run
            self._is_part = self._is_skipping = False

    def _take(self, end: int) -> Run:
        with memoryview(self._data) as view:
            run = Run(self._offset, bytes(view[:end]), self._is_part)
        del self._data[:end]
        self._offset += end
        return run


def runs(source: InputFile, start: int, stop: int | None, recipe: Recipe, rejects: Rejects) -> Iterator[Run]:
    """All of a span in runs.

    A record longer than `max_document_bytes` is cut at white space. Raises FolioError for one that cannot be cut, unless the recipe
    skips it; `rejects` counts both.
    """
    cutter = _Cutter(source, start, recipe, rejects)
    for block in blocks(source, start, stop):
        yield from cutter.feed(block)
    yield from cutter.finish()


def longest_record(source: InputFile, recipe: Recipe) -> int:
    """The bytes that a record may have before it is cut; a line of JSON, which cannot be cut, may spell a document twice as long."""
    return recipe.max_document_bytes * (2 if source.format == "jsonl" else 1)


def reject_oversized(where: str, recipe: Recipe, *, can_be_cut: bool) -> None:
    """Raise FolioError for a record that cannot be cut, unless the recipe skips it. `where`: what it is, for the message."""
    if recipe.oversized == "error":
        what = "a record that is" if can_be_cut else "a line of JSON that is"
        why = "and has no white space to cut it at" if can_be_cut else "by far, and a line cannot be cut"
        raise FolioError(
            f"{where} {what} longer than max_document_bytes ({recipe.max_document_bytes:,}) {why}; mend it, or pass --oversized skip to "
            "leave it out"
        )


def find_cut(data: bytes | bytearray | memoryview, limit: int, start: int = 0) -> int:
    """The last place within `limit` bytes from `start` where white space follows something else; 0 where the last 16 MB have none.

    In front of white space: there GPT-2's pre-tokenizer must cut anyway, so that no id changes.
    """
    floor = start + max(limit - NO_CUT_BYTES, 0)
    window = np.frombuffer(data, np.uint8, count=start + limit + 1 - floor, offset=floor)
    is_space = SPACES[window]
    places = np.flatnonzero(is_space[1:] & ~is_space[:-1])
    return floor + 1 + int(places[-1]) if len(places) else 0
