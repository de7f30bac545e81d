"""Cut an input file into blocks of whole records, in bounded memory.

The problem: a file is streamed in blocks of a few megabytes that may end inside a record, but a
reader needs whole records (lines, paragraphs, texts between separators), and a single record may be
too large for memory.

The idea: a *boundary* is an offset at which a record can begin, namely after a line feed, after a
blank line or after a separator. Whether an offset is a boundary depends only on the `reach` bytes
directly before it. A reader can therefore start at any boundary and finds the same records as a
reader that starts at the beginning of the file (partitions.py excludes the separators for which
this is not true). Incoming bytes are collected in a buffer, and the buffer is passed on up to its
last boundary.

A record longer than `max_document_bytes` is cut at white space into several parts. The cut depends
only on the first `max_document_bytes` bytes of the record, not on how many bytes are in the buffer,
so the documents do not depend on the size of the incoming blocks.

The cost: every byte is copied into the buffer, and out of it unless the record block is long. The
buffer holds at most one incoming block and one record of the maximum size. Bytes without a boundary
are searched once, even if a record extends over many incoming blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.open_input import read_blocks
from preprocess.readers.records import Rejects
from preprocess.readers.reject_reasons import RejectReason
from preprocess.recipes.schema import Recipe

CUT_SEARCH_BYTES = 16 << 20  # a record without white space in this many bytes is not text and is not cut
PROBE_BYTES = 1 << 16
MAX_CHAT_BYTES = 8 << 20  # of the values of a chat; Python objects of its messages can take ten times as much
LONG_BLOCK_BYTES = 16 << 20  # a record block of this size is handed over without a copy
WHITE_SPACE = b" \n\t\r"
IS_SPACE = np.zeros(256, bool)  # by byte value
IS_SPACE[list(WHITE_SPACE)] = True


@dataclass(frozen=True)
class Boundaries:
    """The offsets directly after any of `marks`. Without marks, a whole file is one record.

    In "-----" the mark "---" is found at three offsets. If marks `overlap`, only the leftmost ends
    a record, and the search for the next one continues after it.
    """

    marks: tuple[bytes, ...]
    overlap: bool = False

    @property
    def reach(self) -> int:
        """The number of bytes before an offset that decide whether it is a boundary."""
        return max(map(len, self.marks), default=0)

    def find_last(self, data: bytes | bytearray, max_offset: int, min_offset: int = 1) -> int:
        """Return the last boundary from `min_offset` to `max_offset` in `data`, or 0 if there is none."""
        if self.overlap:
            matches = re.compile(b"|".join(map(re.escape, self.marks))).finditer(
                data, max(min_offset - self.reach, 0), max_offset
            )
            return max((match.end() for match in matches), default=0)
        found = ((data.rfind(mark, max(min_offset - len(mark), 0), max_offset), len(mark)) for mark in self.marks)
        return max((start + length for start, length in found if start >= 0), default=0)

    def find_first(self, data: bytes | bytearray, max_offset: int, min_offset: int = 1) -> int | None:
        """Return the first boundary from `min_offset` to `max_offset` in `data`, or None if there is none."""
        found = ((data.find(mark, max(min_offset - len(mark), 0), max_offset), len(mark)) for mark in self.marks)
        return min((start + length for start, length in found if start >= 0), default=None)


LINE_BOUNDARIES = Boundaries((b"\n",))
PARAGRAPH_BOUNDARIES = Boundaries((b"\n\n", b"\n\r\n"))
NO_BOUNDARIES = Boundaries(())


class RecordBlock(NamedTuple):
    """Whole records, or one part of a record that is too long for a document."""

    offset: int  # of the first byte in the decompressed file
    data: bytes | bytearray
    part: int = 0  # 0: whole records; n: the n-th part of a record, from 1
    spans: list[tuple[int, int]] | None = None  # (start, end) of each record in `data`, if they are not lines


def get_boundaries(input_file: InputFile, recipe: Recipe) -> Boundaries:
    """Return the boundaries between the records of a text or JSONL file."""
    if input_file.format == "jsonl":
        return LINE_BOUNDARIES
    if recipe.document == "separator":
        return Boundaries((recipe.separator.encode(),), overlaps_itself(recipe.separator))
    return {"line": LINE_BOUNDARIES, "paragraph": PARAGRAPH_BOUNDARIES}.get(recipe.document, NO_BOUNDARIES)


def overlaps_itself(separator: str) -> bool:
    """Return whether a beginning of `separator` is also an ending of it, as in "==".

    Which bytes of "===" are a separator then depends on the offset at which a reader starts.
    """
    return any(separator.endswith(separator[:n]) for n in range(1, len(separator)))


def find_next_boundary(input_file: InputFile, boundaries: Boundaries, min_offset: int) -> int:
    """Return the first boundary >= `min_offset` of an uncompressed file, or the end of the file."""
    start = max(min_offset - boundaries.reach, 0)  # the bytes before min_offset decide whether it is a boundary
    tail = b""
    with open(input_file.path, "rb") as file:
        file.seek(start)
        while block := file.read(PROBE_BYTES):
            data = tail + block
            found = boundaries.find_first(data, len(data), max(min_offset - start, 1))
            if found is not None:
                return start + found
            tail = data[max(len(data) - boundaries.reach, 0) :]
            start += len(data) - len(tail)
    return input_file.size_bytes


def read_record_blocks(
    input_file: InputFile, start: int, stop: int | None, recipe: Recipe, rejects: Rejects
) -> Iterator[RecordBlock]:
    """Yield the bytes from `start`, a boundary, to `stop`, or to the end, as record blocks.

    A record longer than `max_document_bytes` is cut at white space. If it cannot be cut, it is left
    out or, with `oversized = "error"`, raises FolioError. A line of JSON cannot be cut, but may be
    twice as long. `rejects` counts cuts and omissions. Raises FolioError if the file cannot be
    read, or if the cut is not possible because documents are grouped by position.
    """
    yield from cut_blocks(read_blocks(input_file, start, stop), input_file, start, recipe, rejects)


def cut_blocks(
    blocks: Iterator[bytes], input_file: InputFile, start: int, recipe: Recipe, rejects: Rejects
) -> Iterator[RecordBlock]:
    """Yield `blocks`, the bytes of a file from `start` on, as record blocks. See `read_record_blocks`."""
    cutter = _RecordCutter(input_file, start, recipe, rejects)
    for block in blocks:
        yield from cutter.add(block)
    yield from cutter.finish()


class _RecordCutter:
    """A buffer that collects incoming blocks and from whose front record blocks are cut."""

    def __init__(self, input_file: InputFile, start: int, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects
        self._can_cut = input_file.format != "jsonl"  # half a line of JSON is not JSON
        # A line of JSON may be twice as long, because escapes can double the length of its text.
        self._max_bytes = recipe.max_document_bytes * (1 if self._can_cut else 2)
        self._boundaries = get_boundaries(input_file, recipe)
        # Readers strip these bytes from the start of a document, so they do not count towards the
        # length of a record.
        leading_bytes = {"paragraph": WHITE_SPACE, "separator": b"\r\n"}
        self._leading_bytes = leading_bytes.get(recipe.document, b"") if input_file.format == "text" else b""
        if start and not self._boundaries.marks:  # the span begins where its record, the whole file, was cut
            rejects.counts["cut"] += 1
        self._buffer = bytearray()
        self._offset = start  # of the buffer's first byte in the file
        self._num_searched = 0  # bytes at the buffer's start in which no boundary is
        self._part = 0  # of the long record that is being cut, if the buffer begins inside one
        self._is_skipping = False  # the buffer begins inside a long record that is left out

    def add(self, block: bytes) -> Iterator[RecordBlock]:
        """Append `block` to the buffer and yield the record blocks that are complete."""
        self._buffer += block
        while len(self._buffer) > self._max_bytes:
            yield from self._shrink()
        if self._part or self._is_skipping:
            yield from self._end_long_record()
        if not self._part and not self._is_skipping and (end := self._find_last_boundary(len(self._buffer))):
            yield self._take(end)

    def finish(self) -> Iterator[RecordBlock]:
        """Yield the rest of the buffer after the last block was added.

        An empty file that is one record is an empty record.
        """
        is_empty_record = not self._boundaries.marks and self._offset == 0
        if (self._buffer or is_empty_record) and not self._is_skipping:
            yield self._take(len(self._buffer))

    def _shrink(self) -> Iterator[RecordBlock]:
        """Remove bytes from the front of a buffer that is longer than one record may be."""
        if self._part or self._is_skipping:
            yield from self._end_long_record()
            if not self._part and not self._is_skipping:
                return
        elif end := self._find_last_boundary(self._max_bytes):
            yield self._take(end)
            return
        elif num_leading := self._count_leading_bytes():
            self._take(num_leading)
            return
        if self._is_skipping:
            # Keep the last bytes: they may be the beginning of a mark.
            self._take(max(len(self._buffer) - self._boundaries.reach, 1))
        elif len(self._buffer) > self._max_bytes:
            yield from self._cut_long_record()

    def _find_last_boundary(self, max_offset: int) -> int:
        end = self._boundaries.find_last(self._buffer, max_offset, self._num_searched + 1)
        if not end:
            self._num_searched = max(self._num_searched, max_offset)
        return end

    def _count_leading_bytes(self) -> int:
        if self._buffer[0] not in self._leading_bytes:
            return 0
        return len(self._buffer) - len(self._buffer.lstrip(self._leading_bytes))

    def _cut_long_record(self) -> Iterator[RecordBlock]:
        cut = find_cut(self._buffer, self._max_bytes) if self._can_cut else 0
        if cut:
            check_can_be_cut(f"{self._input_file.path}: the record at byte {self._offset:,}", self._recipe)
            self._rejects.counts["cut"] += 1
            self._part = max(self._part, 1)
            part = self._take(cut)
            self._part += 1
            yield part
        else:
            record = f"{self._input_file.path}: the record at byte {self._offset:,}"
            reject_oversized(record, self._recipe, self._rejects, NO_SPACE if self._can_cut else IS_JSON)
            self._part, self._is_skipping = 0, True

    def _end_long_record(self) -> Iterator[RecordBlock]:
        """Take the rest of a long record if its end is in the buffer and no further cut is needed."""
        max_offset = min(self._max_bytes, len(self._buffer)) if self._part else len(self._buffer)
        end = self._boundaries.find_first(self._buffer, max_offset, self._num_searched + 1)
        if end is None:
            self._num_searched = max(self._num_searched, max_offset)
            return
        last_part = self._take(end)
        if self._part:
            yield last_part
        self._part, self._is_skipping = 0, False

    def _take(self, end: int) -> RecordBlock:
        """Remove the first `end` bytes from the buffer and return them."""
        buffer = self._buffer
        with memoryview(buffer) as view:
            if end < LONG_BLOCK_BYTES:
                data: bytes | bytearray = bytes(view[:end])
            else:
                data, self._buffer = buffer, bytearray(view[end:])
        if data is buffer:
            del buffer[end:]
        else:
            del buffer[:end]
        block = RecordBlock(self._offset, data, self._part)
        self._offset += end
        self._num_searched = max(self._num_searched - end, 0)
        return block


def is_grouped_by_position(recipe: Recipe) -> bool:
    """Return whether the records at the same position of several files must be in one split."""
    is_random = recipe.split in ("exact", "threshold")
    return recipe.group_by == "position" and is_random and recipe.document != "passage"  # passages are numbered later


def check_can_be_cut(record: str, recipe: Recipe) -> None:
    """Raise FolioError for a long record if the documents are grouped by their positions.

    Cutting it would give the documents after it the positions of other documents.
    """
    if is_grouped_by_position(recipe):
        raise FolioError(
            f"{record} is longer than max_document_bytes ({recipe.max_document_bytes:,}), and cutting it would shift "
            "the positions by which documents are grouped; shorten it, or raise max_document_bytes in a recipe file"
        )


# Why a record that is too long cannot be cut. `limit` is the setting with its value.
NO_SPACE = "is longer than {limit} and has no white space to cut it at"
IS_JSON = "is longer than twice {limit}, and a record of JSON cannot be cut"
IS_CHAT = "is longer than {limit}, and a chat cannot be cut"
IS_LONG_CHAT = "is longer than 8 MiB, and a chat is read as a whole"


def reject_oversized(
    record: str, recipe: Recipe, rejects: Rejects, problem: str, *, has_position: bool = False
) -> None:
    """Raise FolioError for a record that is too long and cannot be cut, or count it as left out.

    `recipe.oversized` decides which. `record` names the file and the record in the message. `problem`:
    one of the constants above. `has_position` is as in `Rejects.add`.
    """
    if recipe.oversized == "error":
        limit = f"max_document_bytes ({recipe.max_document_bytes:,})"
        raise FolioError(
            f"{record} {problem.format(limit=limit)}; shorten it, or pass --oversized skip to leave it out"
        )
    path, _, place = record.rpartition(": ")
    reason = "longer than max_document_bytes, and cannot be cut"
    if problem == IS_LONG_CHAT:
        reason = problem.removeprefix("is ")
    found = RejectReason("oversized", reason, 1, path, place)
    rejects.add(found, has_position=has_position)


def find_cut(data: bytes | bytearray | memoryview, max_bytes: int, start: int = 0) -> int:
    """Return the last offset in `data` at which the text from `start` can be cut, or 0 if none.

    A cut is made directly before white space that follows a non-space byte, at most `max_bytes`
    after `start` and in the last CUT_SEARCH_BYTES of that range. GPT-2's pre-tokenizer always
    splits there, so a cut changes no token id.
    """
    first = start + max(max_bytes - CUT_SEARCH_BYTES, 0)
    end, window_bytes = start + max_bytes + 1, PROBE_BYTES
    while end - first > 1:
        begin = max(end - window_bytes, first)
        is_space = IS_SPACE[np.frombuffer(data, np.uint8, count=end - begin, offset=begin)]
        cuts = np.flatnonzero(is_space[1:] & ~is_space[:-1])
        if len(cuts):
            return begin + 1 + int(cuts[-1])
        end, window_bytes = begin + 1, 2 * window_bytes
    return 0


def find_cut_in_file(file: BinaryIO, max_bytes: int, start: int) -> int:
    """Return what `find_cut` returns for the bytes of `file`, of which it reads only those near the cut."""
    for num_bytes in (PROBE_BYTES, CUT_SEARCH_BYTES):
        first = start + max(max_bytes - num_bytes, 0)
        file.seek(first)
        window = file.read(start + max_bytes + 1 - first)
        if cut := find_cut(window, len(window) - 1):
            return first + cut
    return 0
