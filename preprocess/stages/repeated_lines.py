"""Find the lines or paragraphs of documents, and remove those that other documents have too.

The problem: web pages repeat menus, cookie notices and signatures. So different documents have lines
in common, which a model would memorise.

The idea, as in CCNet (Wenzek et al. 2019, arXiv 1911.00359): hash every line of the corpus, find the hashes
that occur in several documents (build/repeated_lines.py), and remove these lines.

A line or paragraph is called a *unit* here. It is identified by a 64-bit hash of its bytes. If the corpus
has n distinct repeated units, any other unit is removed by mistake with a probability of n / 2^64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from preprocess.documents import get_text_buffers, replace_column
from preprocess.stages.ngrams import hash_spans

LINE_FEED = 0x0A
MAX_SPAN_BYTES = 1 << 12  # a longer unit is hashed separately
CONTINUATION, CONTINUATION_MASK = 0x80, 0xC0  # bytes of a UTF-8 character after the first


@dataclass(frozen=True)
class Units:
    """U units of D texts, in order. Short ones are left out."""

    hashes: np.ndarray  # (U,) uint64
    documents: np.ndarray  # (U,) int64
    starts: np.ndarray  # (U,) int64, offsets in the bytes of all texts
    ends: np.ndarray  # (U,) int64
    next_starts: np.ndarray  # (U,) int64: of the next unit of the text, short ones included, or the end of the text

    def __len__(self) -> int:
        return len(self.hashes)


def find_units(texts: pa.LargeStringArray, unit: str, min_characters: int) -> Units:
    """Return the units of D texts that have at least `min_characters` characters.

    `unit`: "line", or "paragraph", which ends at an empty line.
    """
    data, offsets = get_text_buffers(texts)
    is_text = _find_text(data, offsets, unit)
    is_start, is_end = is_text.copy(), is_text.copy()
    is_start[1:] &= ~is_text[:-1]
    is_end[:-1] &= ~is_text[1:]
    document_starts = offsets[:-1][np.diff(offsets) > 0]
    is_start[document_starts] = is_text[document_starts]
    is_end[document_starts[1:] - 1] = is_text[document_starts[1:] - 1]
    starts, ends = np.flatnonzero(is_start), np.flatnonzero(is_end) + 1
    documents = np.searchsorted(offsets, starts, "right") - 1
    next_starts = offsets[documents + 1].copy()
    is_followed = np.flatnonzero(documents[1:] == documents[:-1])
    next_starts[is_followed] = starts[is_followed + 1]
    num_before = _count_before((data & CONTINUATION_MASK) != CONTINUATION)
    is_long = num_before[ends] - num_before[starts] >= min_characters
    starts, ends = starts[is_long], ends[is_long]
    return Units(_hash_units(data, starts, ends), documents[is_long], starts, ends, next_starts[is_long])


def _find_text(data: np.ndarray, offsets: np.ndarray, unit: str) -> np.ndarray:
    """Return which bytes are part of a unit, i.e. do not separate two units: (N,) bool."""
    is_text: np.ndarray = data != LINE_FEED
    if unit == "line":
        return is_text
    # A line feed inside of a paragraph has other characters of the text before and after it.
    single = np.flatnonzero(~is_text)
    edges = offsets[1:-1]
    is_first, is_last = np.isin(single, [0, *edges]), np.isin(single + 1, [len(data), *edges])
    has_text_before = is_text[np.maximum(single - 1, 0)] & ~is_first
    has_text_after = is_text[np.minimum(single + 1, len(data) - 1)] & ~is_last
    result = is_text.copy()
    result[single[has_text_before & has_text_after]] = True
    return result


def _hash_units(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    lengths = ends - starts
    hashes = hash_spans(data, starts, np.minimum(lengths, MAX_SPAN_BYTES))
    for row in np.flatnonzero(lengths > MAX_SPAN_BYTES).tolist():
        hashes[row] = xxhash.xxh3_64_intdigest(np.ascontiguousarray(data[starts[row] : ends[row]]).data)
    return hashes


def remove_units(batch: pa.RecordBatch, units: Units, is_removed: np.ndarray) -> pa.RecordBatch:
    """Return the documents of `batch` without the units for which `is_removed`, (U,) bool, is true.

    The separator after a unit is removed too, and at the end of a text the one before it.
    """
    texts = batch.column("text")
    data, offsets = get_text_buffers(texts)
    starts, ends = units.starts[is_removed], units.next_starts[is_removed]
    change = np.zeros(len(data) + 1, np.int8)
    np.add.at(change, starts, 1)
    np.add.at(change, ends, -1)
    is_kept = np.cumsum(change[:-1], dtype=np.int8) == 0
    is_kept &= ~_find_trailing(data, offsets, is_kept, units.documents[is_removed])
    num_before = _count_before(is_kept)
    new_offsets = pa.py_buffer(num_before[offsets].astype(np.int64))
    kept = pa.LargeStringArray.from_buffers(len(texts), new_offsets, pa.py_buffer(data[is_kept]))
    return replace_column(batch, "text", kept)


def _count_before(is_counted: np.ndarray) -> np.ndarray:
    """Return how many of the first i of (N,) bytes are counted, for i from 0 to N: (N + 1,) int32 or int64."""
    counts = np.zeros(len(is_counted) + 1, np.int32 if len(is_counted) < 1 << 31 else np.int64)
    np.cumsum(is_counted, out=counts[1:])
    return counts


def _find_trailing(data: np.ndarray, offsets: np.ndarray, is_kept: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the line feeds that are left at the end of a text whose last unit was removed: (N,) bool."""
    is_trailing = np.zeros(len(data), bool)
    for document in np.unique(documents).tolist():
        start, end = int(offsets[document]), int(offsets[document + 1])
        if is_kept[end - 1]:
            continue
        kept = start + np.flatnonzero(is_kept[start:end] & (data[start:end] != LINE_FEED))
        is_trailing[(int(kept[-1]) + 1 if len(kept) else start) : end] = True
    return is_trailing
