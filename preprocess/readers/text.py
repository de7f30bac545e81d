"""Read plain text files.

A record is a file, a line, a paragraph, or the text between two separators.
"""

from __future__ import annotations

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
TRAILING_BYTES = {"line": b"\r\n", "paragraph": WHITE_SPACE, "separator": b"\r\n"}

Slices = tuple[np.ndarray, np.ndarray]  # starts and ends in a block, (N,) int64 each
Texts = tuple[pa.LargeBinaryArray, np.ndarray]  # R texts, and their starts in the block, (R,) int64


def read_text(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of `span` as one column of bytes named `text`."""
    num_records = 0
    for block in read_record_blocks(input_file, span.start, span.stop, recipe, rejects):
        for texts, starts in _split_block(block, recipe):
            yield Records({"text": texts}, num_records, offsets=block.offset + starts)
            num_records += len(texts)


def _split_block(block: RecordBlock, recipe: Recipe) -> Iterator[Texts]:
    """Yield the texts of `block`, about MAX_RECORDS at a time. No texts are yielded if there are none."""
    if block.is_part:
        yield pa.array([_strip_part(block.data, recipe)], pa.large_binary()), np.zeros(1, np.int64)
    elif recipe.document == "line":
        yield from _collect_slices(block.data, _find_lines(block.data))
    elif recipe.document == "paragraph":
        yield from _collect_slices(block.data, _find_paragraphs(block.data))
    elif recipe.document == "separator":
        yield from _split_at_separator(block.data, recipe.separator.encode())
    else:
        # A whole file: refer to the bytes instead of copying them, as they may be 64 MB.
        offsets = pa.py_buffer(np.array([0, len(block.data)], np.int64))
        text = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(block.data)])
        yield text, np.zeros(1, np.int64)


def _strip_part(part: bytes, recipe: Recipe) -> bytes:
    """Return a part of a long record without the boundary mark and white space at its end."""
    mark = {"line": "\n", "separator": recipe.separator}.get(recipe.document, "")
    trailing = TRAILING_BYTES.get(recipe.document)
    part = part.removesuffix(mark.encode())
    return part.rstrip(trailing) if trailing else part


def _find_lines(data: bytes) -> Iterator[Slices]:
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


def _find_paragraphs(data: bytes) -> Iterator[Slices]:
    """Yield starts and ends, (P,) int64 each, of runs of non-blank lines, with the line feeds inside them."""
    run_start = run_end = -1  # of the run that the line before belongs to, -1 if it is blank
    for starts, ends in _find_lines(data):
        first = int(starts[0])
        num_nonspace = np.concatenate(
            [[0], np.cumsum(~IS_SPACE[np.frombuffer(data, np.uint8, int(ends[-1]) - first, first)])]
        )  # non-space bytes before each offset
        is_nonblank = num_nonspace[ends - first] > num_nonspace[starts - first]  # (L,)
        follows_nonblank = np.concatenate([[run_start >= 0], is_nonblank[:-1]])
        run_starts = np.concatenate([[run_start], starts[is_nonblank & ~follows_nonblank]])[run_start < 0 :]
        # A run ends with the line before a blank line.
        run_ends = np.concatenate([[run_end], ends[:-1]])[follows_nonblank & ~is_nonblank]
        yield run_starts[: len(run_ends)], run_ends
        run_start, run_end = (int(run_starts[-1]), int(ends[-1])) if is_nonblank[-1] else (-1, -1)
    if run_start >= 0:
        yield np.array([run_start]), np.array([run_end])


def _collect_slices(data: bytes, slices: Iterator[Slices]) -> Iterator[Texts]:
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


def _take_slices(data: bytes, slices: list[Slices]) -> Texts:
    """Return data[start:end] for each of the ascending and disjoint `slices`, and their starts."""
    starts, ends = (np.concatenate(part) for part in zip(*slices, strict=True))
    first, last = int(starts[0]), int(ends[-1])
    # A running sum of +1 at each start and -1 at each end is 1 inside the slices and 0 outside.
    steps = np.zeros(last - first + 1, np.int8)
    steps[starts - first] += 1
    steps[ends - first] -= 1
    is_inside = np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
    array = np.frombuffer(data, np.uint8, last - first, first)
    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(array[is_inside])]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), buffers), starts


def _split_at_separator(data: bytes, separator: bytes) -> Iterator[Texts]:
    """Yield the texts between separators, without the line ends around each.

    If only line ends follow the last separator, they are not a text.
    """
    first, rest, is_last = 0, data, False
    while not is_last:
        *texts, rest = rest.split(separator, MAX_RECORDS)
        is_last = len(texts) < MAX_RECORDS
        if is_last and rest.strip(b"\r\n"):
            texts.append(rest)
        if texts:
            ends = first + np.cumsum([len(text) + len(separator) for text in texts])
            starts = np.concatenate([[first], ends[:-1]])
            yield pa.array([text.strip(b"\r\n") for text in texts], pa.large_binary()), starts
            first = int(ends[-1])
