"""Plain text → records: a file, a line, a paragraph, or what stands between separators."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.record_blocks import SPACES, runs
from preprocess.readers.records import Records, Rejects
from preprocess.recipes.schema import Recipe

LINE_FEED, RETURN = 10, 13


def read_text(source: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """The records of `span` as a column of bytes named `text`."""
    number = 0
    ends = {"line": b"\r\n", "paragraph": b" \t\r\n", "separator": b"\r\n"}.get(recipe.document, b"")
    for offset, run, is_part in runs(source, span.start, span.stop, recipe, rejects):
        if is_part:
            # Not looked into again: what the last part ends with is all that is no text.
            part = run.removesuffix(b"\n" if recipe.document == "line" else b"")
            part = part.removesuffix(recipe.separator.encode()) if recipe.document == "separator" else part
            texts, starts = pa.array([part.rstrip(ends)] if ends else [part], pa.large_binary()), np.zeros(1, np.int64)
        elif recipe.document == "line":
            texts, starts = _lines(run)
        elif recipe.document == "paragraph":
            texts, starts = _paragraphs(run)
        elif recipe.document == "separator":
            texts, starts = _between(run, recipe.separator.encode())
        else:
            boundaries = pa.py_buffer(np.array([0, len(run)], np.int64))
            texts = pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), 1, [None, boundaries, pa.py_buffer(run)]
            )  # no copy: it may be 64 MB
            starts = np.zeros(1, np.int64)
        if len(texts):
            yield Records({"text": texts}, number, offsets=offset + starts)
        number += len(texts)


def _lines(run: bytes) -> tuple[pa.Array, np.ndarray]:
    """Every line without its end, CRLF included."""
    data = np.frombuffer(run, np.uint8)
    starts, ends = _line_boundaries(data)
    return _slices(data, starts, ends), starts


def _line_boundaries(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    feeds = np.flatnonzero(data == LINE_FEED)
    ends = feeds if len(feeds) and feeds[-1] == len(data) - 1 else np.append(feeds, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    has_return = (ends > starts) & (data[np.maximum(ends - 1, 0)] == RETURN)
    return starts, ends - has_return


def _paragraphs(run: bytes) -> tuple[pa.Array, np.ndarray]:
    """Runs of lines that are not blank, the line feeds between them included."""
    data = np.frombuffer(run, np.uint8)
    starts, ends = _line_boundaries(data)
    inked = np.concatenate([[0], np.cumsum(~SPACES[data])])
    is_full = inked[ends] > inked[starts]
    before = np.concatenate([[False], is_full[:-1]])
    after = np.concatenate([is_full[1:], [False]])
    firsts = starts[is_full & ~before]
    return _slices(data, firsts, ends[is_full & ~after]), firsts


def _between(run: bytes, separator: bytes) -> tuple[pa.Array, np.ndarray]:
    """What stands between separators, without the line ends around each; a text that ends with one has nothing behind it."""
    parts = run.split(separator)
    if not parts[-1].strip(b"\r\n"):
        parts.pop()
    sizes = np.array([len(part) + len(separator) for part in parts], np.int64)
    starts = np.cumsum(sizes) - sizes
    return pa.array([part.strip(b"\r\n") for part in parts], pa.large_binary()), starts


def _slices(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> pa.LargeBinaryArray:
    """data[starts[i]:ends[i]] for each i, the slices rising and apart."""
    step = np.zeros(len(data) + 1, np.int8)
    step[starts] += 1
    step[ends] -= 1
    keep = np.cumsum(step[:-1], dtype=np.int8).astype(bool)
    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data[keep])]
    )
