"""Read plain text files.

A record is a file, a line, a paragraph, or the text between two separators.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.record_blocks import IS_SPACE, WHITE_SPACE, RecordBlock, read_record_blocks
from preprocess.readers.records import Records, Rejects
from preprocess.recipes.schema import Recipe

LINE_FEED, CARRIAGE_RETURN = 10, 13
MAX_RECORDS = 1 << 16  # read at once; a block of short lines has millions
WINDOW_BYTES = 1 << 16  # in which lines are searched at once
LONG_TEXT_BYTES = 1 << 12  # texts with a larger mean size are copied one by one
STRIPPED_AT_ONCE = 4  # line ends on each side that are removed from all texts at once; more are removed text by text
NONSPACE = re.compile(rb"[^ \n\t\r]")
IS_LINE_END = np.zeros(256, bool)  # by byte value
IS_LINE_END[[LINE_FEED, CARRIAGE_RETURN]] = True
TRAILING_BYTES = {"line": b"\r\n", "paragraph": WHITE_SPACE, "separator": b"\r\n"}

Buffer = bytes | bytearray  # of a record block
Slices = tuple[np.ndarray, np.ndarray]  # starts and ends in a block, (N,) int64 each
Texts = tuple[pa.LargeBinaryArray, np.ndarray]  # R texts, and their starts in the block, (R,) int64


def read_text(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of `span` as one column of bytes named `text`.

    Raises the errors of `read_record_blocks`.
    """
    num_records = 0
    for block in read_record_blocks(input_file, span.start, span.stop, recipe, rejects):
        for texts, starts in _split_block(block, recipe):
            yield Records({"text": texts}, num_records, offsets=block.offset + starts, part=block.part)
            num_records += len(texts)


def _split_block(block: RecordBlock, recipe: Recipe) -> Iterator[Texts]:
    """Yield the texts of `block`, about MAX_RECORDS at a time."""
    if block.part:
        yield _make_text(block.data, _find_end(block.data, recipe))
    elif recipe.document == "line":
        yield from _collect_slices(block.data, _find_lines(block.data))
    elif recipe.document == "paragraph":
        yield from _collect_slices(block.data, _find_paragraphs(block.data))
    elif recipe.document == "separator":
        yield from _collect_slices(block.data, _find_separated(block.data, recipe.separator.encode()))
    else:
        yield _make_text(block.data, len(block.data))


def _make_text(data: Buffer, end: int) -> Texts:
    """Return the first `end` bytes of `data`, which may be 64 MB, as one text without a copy."""
    offsets = pa.py_buffer(np.array([0, end], np.int64))
    text = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
    return text, np.zeros(1, np.int64)


def _find_end(part: Buffer, recipe: Recipe) -> int:
    """Return the end of the text in a part of a long record, before the boundary mark and trailing white space."""
    mark = {"line": "\n", "separator": recipe.separator}.get(recipe.document, "").encode()
    end = len(part) - len(mark) * part.endswith(mark)
    trailing, window_bytes = TRAILING_BYTES.get(recipe.document, b""), 1
    while end and part[end - 1] in trailing:
        window = part[max(end - window_bytes, 0) : end]
        end -= len(window) - len(window.rstrip(trailing))
        window_bytes *= 2
    return end


def _find_lines(data: Buffer) -> Iterator[Slices]:
    """Yield starts and ends, (L,) int64 each, of the lines without their line ends (LF or CRLF).

    The lines are searched in windows, because a block of short lines has millions of them.
    """
    first = 0
    while first < len(data):
        last = data.rfind(b"\n", first, first + WINDOW_BYTES) + 1
        if not last:  # a long line
            last = data.find(b"\n", first + WINDOW_BYTES) + 1 or len(data)
        array = np.frombuffer(data, np.uint8, last - first, first)
        feeds = np.flatnonzero(array == LINE_FEED)
        ends = feeds if len(feeds) and feeds[-1] == len(array) - 1 else np.append(feeds, len(array))
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        has_return = (ends > starts) & (array[np.maximum(ends - 1, 0)] == CARRIAGE_RETURN)
        yield first + starts, first + ends - has_return
        first = last


def _find_paragraphs(data: Buffer) -> Iterator[Slices]:
    """Yield starts and ends, (P,) int64 each, of runs of non-blank lines, with the line feeds inside them."""
    run_start = run_end = -1  # of the run that the line before belongs to, -1 if it is blank
    for starts, ends in _find_lines(data):
        is_nonblank = _find_nonblank(data, starts, ends)
        follows_nonblank = np.concatenate([[run_start >= 0], is_nonblank[:-1]])
        run_starts = np.concatenate([[run_start], starts[is_nonblank & ~follows_nonblank]])[run_start < 0 :]
        # A run ends with the line before a blank line.
        run_ends = np.concatenate([[run_end], ends[:-1]])[follows_nonblank & ~is_nonblank]
        yield run_starts[: len(run_ends)], run_ends
        run_start, run_end = (int(run_starts[-1]), int(ends[-1])) if is_nonblank[-1] else (-1, -1)
    if run_start >= 0:
        yield np.array([run_start]), np.array([run_end])


def _find_nonblank(data: Buffer, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which of L consecutive lines have a byte that is not white space: (L,) bool."""
    if len(starts) == 1:  # perhaps a long line, for which counting bytes would take eight times its size
        return np.array([NONSPACE.search(data, int(starts[0]), int(ends[0])) is not None])
    first = int(starts[0])
    num_nonspace = np.concatenate(
        [[0], np.cumsum(~IS_SPACE[np.frombuffer(data, np.uint8, int(ends[-1]) - first, first)])]
    )  # non-space bytes before each offset
    is_nonblank: np.ndarray = num_nonspace[ends - first] > num_nonspace[starts - first]
    return is_nonblank


def _collect_slices(data: Buffer, slices: Iterator[Slices]) -> Iterator[Texts]:
    """Yield the texts of `data` in `slices`, which are ascending and disjoint, about MAX_RECORDS at a time."""
    found: list[Slices] = []
    num_found = 0
    for starts, ends in slices:
        found.append((starts, ends))
        num_found += len(starts)
        if num_found >= MAX_RECORDS:
            yield _take_slices(data, found)
            found, num_found = [], 0
    if num_found:
        yield _take_slices(data, found)


def _take_slices(data: Buffer, slices: list[Slices]) -> Texts:
    """Return data[start:end] for each of the ascending and disjoint `slices`, and their starts."""
    starts, ends = (np.concatenate(part) for part in zip(*slices, strict=True))
    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    first, last = int(starts[0]), int(ends[-1])
    if last - first > LONG_TEXT_BYTES * len(starts):
        with memoryview(data) as view:
            texts = b"".join([view[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(texts)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), buffers), starts
    # A running sum of +1 at each start and -1 at each end is 1 inside the slices and 0 outside.
    steps = np.zeros(last - first + 1, np.int8)
    steps[starts - first] += 1
    steps[ends - first] -= 1
    is_inside = np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
    array = np.frombuffer(data, np.uint8, last - first, first)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(array[is_inside])]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), buffers), starts


def _find_separated(data: Buffer, separator: bytes) -> Iterator[Slices]:
    """Yield starts and ends, (N,) int64 each, of the texts between separators, without the line ends around each.

    If only line ends follow the last separator, they are not a text.
    """
    matches = re.finditer(re.escape(separator), data)
    first, is_last = 0, False
    while not is_last:
        found = np.fromiter((match.start() for match in itertools.islice(matches, MAX_RECORDS)), np.int64)
        is_last = len(found) < MAX_RECORDS
        edges = np.append(found, len(data)) if is_last else found
        starts, ends = _strip_line_ends(data, np.append(first, found + len(separator))[: len(edges)], edges)
        num_texts = len(found) + int(is_last and starts[-1] < ends[-1])
        if num_texts:
            yield starts[:num_texts], ends[:num_texts]
        first = int(edges[-1]) + len(separator)


def _strip_line_ends(data: Buffer, starts: np.ndarray, ends: np.ndarray) -> Slices:
    """Return the slices without the line feeds and carriage returns at their starts and ends."""
    array = np.frombuffer(data, np.uint8)
    starts_with_line_end = ends_with_line_end = np.ones(len(starts), bool)
    for _ in range(STRIPPED_AT_ONCE):
        starts_with_line_end = (starts < ends) & IS_LINE_END[array[np.minimum(starts, len(array) - 1)]]
        starts = starts + starts_with_line_end
        ends_with_line_end = (starts < ends) & IS_LINE_END[array[ends - 1]]
        ends = ends - ends_with_line_end
    for row in np.flatnonzero(starts_with_line_end | ends_with_line_end).tolist():  # these may have many line ends
        text = data[starts[row] : ends[row]]
        starts[row] += len(text) - len(text.lstrip(b"\r\n"))
        ends[row] = starts[row] + len(text.strip(b"\r\n"))
    return starts, ends
