"""Find the lines or paragraphs of documents, and remove those that other documents have too.

The problem: web pages repeat menus, cookie notices and signatures. So different documents have lines
in common, which a model would memorise.

The idea, as in CCNet (Wenzek et al. 2019, arXiv 1911.00359): hash every line of the corpus, find the hashes
that occur in several documents (build/repeated_lines.py), and remove these lines.

A line or paragraph is called a *unit* here. It is identified by a 64-bit hash of its bytes. If the corpus
has n distinct repeated units, any other unit is removed by mistake with a probability of n / 2^64.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from preprocess.documents import get_text_buffers, replace_column
from preprocess.filters.words import TextGroup
from preprocess.stages.ngrams import hash_spans

LINE_FEED = 0x0A
WINDOW_BYTES = 1 << 20  # of texts whose units are found at once
SEPARATORS = {"line": re.compile(rb"\n+"), "paragraph": re.compile(rb"\n\n+")}  # after WINDOW_BYTES of a long text
MAX_SPAN_BYTES = 1 << 12  # a longer unit is hashed separately


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

    def move(self, first_document: int, offset: int) -> Units:
        """Return the units of texts that begin at a document and an offset, after others."""
        return Units(
            self.hashes,
            self.documents + first_document,
            self.starts + offset,
            self.ends + offset,
            self.next_starts + offset,
        )


def iter_units(texts: pa.LargeStringArray, unit: str, min_characters: int) -> Iterator[Units]:
    """Yield the units of D texts that have at least `min_characters` characters, in order.

    `unit`: "line", or "paragraph", which ends at an empty line. Each part has the units of some texts of
    at most WINDOW_BYTES together, or of about as many bytes of a longer text, so that the positions of all
    its lines are never in memory.
    """
    data, offsets = get_text_buffers(texts)
    first = 0
    while first < len(texts):
        last = max(int(np.searchsorted(offsets, offsets[first] + WINDOW_BYTES, "right")) - 1, first + 1)
        start, end = int(offsets[first]), int(offsets[last])
        while start < end:
            match = SEPARATORS[unit].search(data.data, start + WINDOW_BYTES, end) if last == first + 1 else None
            text_end, next_start = match.span() if match else (end, end)
            edges = np.clip(offsets[first : last + 1], start, text_end) - start
            units = _find_units(data[start:text_end], edges, unit, min_characters).move(first, start)
            units.next_starts[units.next_starts == text_end] = next_start
            yield units
            start = next_start
        first = last


def _find_units(data: np.ndarray, offsets: np.ndarray, unit: str, min_characters: int) -> Units:
    """Return the units of the D texts in `data`, (N,), that begin and end at `offsets`, (D + 1,)."""
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
    is_long = TextGroup(data, offsets).count_characters_between(starts, ends) >= min_characters
    starts, ends = starts[is_long], ends[is_long]
    return Units(_hash_units(data, starts, ends), documents[is_long], starts, ends, next_starts[is_long])


def _find_text(data: np.ndarray, offsets: np.ndarray, unit: str) -> np.ndarray:
    """Return which bytes are part of a unit, i.e. do not separate two units: (N,) bool."""
    is_text: np.ndarray = data != LINE_FEED
    if unit == "line":
        return is_text
    # A line feed inside of a paragraph has other characters of the text before and after it.
    is_inside = np.zeros(len(data) + 2, bool)  # between two bytes of text; moved by one byte
    is_inside[2:-1] = is_text[:-1]
    is_inside[1:-2] &= is_text[1:]
    is_inside[offsets + 1] = is_inside[offsets] = False
    is_inside = is_inside[1:-1]
    is_inside |= is_text
    return is_inside


def _hash_units(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    lengths = ends - starts
    hashes = hash_spans(data, starts, np.minimum(lengths, MAX_SPAN_BYTES))
    for row in np.flatnonzero(lengths > MAX_SPAN_BYTES).tolist():
        hashes[row] = xxhash.xxh3_64_intdigest(np.ascontiguousarray(data[starts[row] : ends[row]]).data)
    return hashes


class UnitRemover:
    """Removes units from the texts of a batch.

    The separator after a unit is removed too, and at the end of a text the one before it.
    """

    def __init__(self, texts: pa.LargeStringArray) -> None:
        self._data, self._offsets = get_text_buffers(texts)
        self._is_kept = np.ones(len(self._data), bool)
        self.documents: set[int] = set()  # from which units are removed

    def remove(self, units: Units, is_removed: np.ndarray) -> None:
        """Mark the units for which `is_removed`, (U,) bool, is true as removed."""
        starts, ends = units.starts[is_removed], units.next_starts[is_removed]
        if not len(starts):
            return
        first, last = int(starts[0]), int(ends[-1])
        change = np.zeros(last - first + 1, np.int8)
        change[starts - first] += 1  # no two units begin or end at the same byte
        change[ends - first] -= 1
        self._is_kept[first:last] &= np.cumsum(change[:-1], dtype=np.int8) == 0
        self.documents.update(np.unique(units.documents[is_removed]).tolist())

    def apply_to(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return `batch`, which has the texts, without the units that are marked."""
        for document in self.documents:
            self._remove_trailing(int(self._offsets[document]), int(self._offsets[document + 1]))
        edges = itertools.pairwise(self._offsets.tolist())
        lengths = [np.count_nonzero(self._is_kept[start:end]) for start, end in edges]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        buffers = pa.py_buffer(offsets), pa.py_buffer(self._data[self._is_kept])
        return replace_column(batch, "text", pa.LargeStringArray.from_buffers(batch.num_rows, *buffers))

    def _remove_trailing(self, start: int, end: int) -> None:
        """Remove the line feeds that are left at the end of a text, if its last unit was removed."""
        if self._is_kept[end - 1]:
            return
        last = end  # after the last byte that remains
        while last > start:
            first = max(last - WINDOW_BYTES, start)
            rows = np.flatnonzero(self._is_kept[first:last] & (self._data[first:last] != LINE_FEED))
            if len(rows):
                last = first + int(rows[-1]) + 1
                break
            last = first
        self._is_kept[last:end] = False
