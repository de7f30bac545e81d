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
TRAILING_BYTES = {"line": b"\r\n", "paragraph": WHITE_SPACE, "separator": b"\r\n"}


def read_text(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the records of `span` as one column of bytes named `text`."""
    num_records = 0
    for block in read_record_blocks(input_file, span.start, span.stop, recipe, rejects):
        texts, starts = _split_block(block, recipe)
        if len(texts):
            yield Records({"text": texts}, num_records, offsets=block.offset + starts)
        num_records += len(texts)


def _split_block(block: RecordBlock, recipe: Recipe) -> tuple[pa.Array, np.ndarray]:
    """Return the R texts of `block` as bytes, and their offsets in it, (R,) int64."""
    if block.is_part:
        return pa.array([_strip_part(block.data, recipe)], pa.large_binary()), np.zeros(1, np.int64)
    if recipe.document == "line":
        return _split_lines(block.data)
    if recipe.document == "paragraph":
        return _split_paragraphs(block.data)
    if recipe.document == "separator":
        return _split_at_separator(block.data, recipe.separator.encode())
    # A whole file: refer to the bytes instead of copying them, as they may be 64 MB.
    offsets = pa.py_buffer(np.array([0, len(block.data)], np.int64))
    text = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(block.data)])
    return text, np.zeros(1, np.int64)


def _strip_part(part: bytes, recipe: Recipe) -> bytes:
    """Return a part of a long record without the boundary mark and white space at its end."""
    mark = {"line": "\n", "separator": recipe.separator}.get(recipe.document, "")
    trailing = TRAILING_BYTES.get(recipe.document)
    part = part.removesuffix(mark.encode())
    return part.rstrip(trailing) if trailing else part


def _split_lines(data: bytes) -> tuple[pa.Array, np.ndarray]:
    """Return all lines without their line ends (LF or CRLF), and their starts."""
    array = np.frombuffer(data, np.uint8)
    starts, ends = _find_lines(array)
    return _take_slices(array, starts, ends), starts


def _find_lines(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends, (L,) int64 each, of the lines without their line ends."""
    feeds = np.flatnonzero(array == LINE_FEED)
    ends = feeds if len(feeds) and feeds[-1] == len(array) - 1 else np.append(feeds, len(array))
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    has_return = (ends > starts) & (array[np.maximum(ends - 1, 0)] == CARRIAGE_RETURN)
    return starts, ends - has_return


def _split_paragraphs(data: bytes) -> tuple[pa.Array, np.ndarray]:
    """Return runs of non-blank lines, with the line feeds inside them, and their starts."""
    array = np.frombuffer(data, np.uint8)
    starts, ends = _find_lines(array)
    num_nonspace = np.concatenate([[0], np.cumsum(~IS_SPACE[array])])  # non-space bytes before each offset
    is_nonblank = num_nonspace[ends] > num_nonspace[starts]  # (L,)
    follows_nonblank = np.concatenate([[False], is_nonblank[:-1]])
    precedes_nonblank = np.concatenate([is_nonblank[1:], [False]])
    first_starts = starts[is_nonblank & ~follows_nonblank]
    last_ends = ends[is_nonblank & ~precedes_nonblank]
    return _take_slices(array, first_starts, last_ends), first_starts


def _split_at_separator(data: bytes, separator: bytes) -> tuple[pa.Array, np.ndarray]:
    """Return the texts between separators, without the line ends around each, and their starts.

    If only line ends follow the last separator, they are not a text.
    """
    texts = data.split(separator)
    if not texts[-1].strip(b"\r\n"):
        texts.pop()
    sizes = np.array([len(text) + len(separator) for text in texts], np.int64)
    starts = np.cumsum(sizes) - sizes
    return pa.array([text.strip(b"\r\n") for text in texts], pa.large_binary()), starts


def _take_slices(array: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> pa.LargeBinaryArray:
    """Return array[starts[i] : ends[i]] for each i. The slices must be ascending and disjoint."""
    # A running sum of +1 at each start and -1 at each end is 1 inside the slices and 0 outside.
    steps = np.zeros(len(array) + 1, np.int8)
    steps[starts] += 1
    steps[ends] -= 1
    is_inside = np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(array[is_inside])]
    )
