"""Find the lines of texts without white space at their ends and without citations, and join the lines that are kept."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.filters.characters import SPACE, find_characters
from preprocess.filters.lines import LINE_FEED, split_lines
from preprocess.filters.spans import sum_between
from preprocess.filters.words import MAX_FEW, TextGroup, iter_spaced_windows

# References to sources in an encyclopedia: [1], [], [edit], [citation needed]. A digit may be of any script.
CITATION = re.compile(rb"\[(?:(?:[0-9]|[\xC2-\xF4][\x80-\xBF]{1,3})*+|edit|citation needed)\]")

MAX_CITATIONS = 1 << 14  # citations that are looked up at once


@dataclass(frozen=True)
class EditedLines:
    """The L lines of the D texts of a group, without white space at their ends, and possibly without citations."""

    data: np.ndarray  # (N,) uint8, the lines without their separators
    starts: np.ndarray  # (L,) int64, first byte of each line in `data`
    ends: np.ndarray  # (L,) int64, after the last byte
    firsts: np.ndarray  # (D + 1,) int64, index of the first line of each text; at the end L
    num_words: np.ndarray  # (L,) int64, separated by white space, before citations were removed
    longest_words: np.ndarray  # (L,) int64, characters of the longest of these words, 0 if there is none

    @property
    def documents(self) -> np.ndarray:
        """The document of each line: (L,) int64."""
        return np.repeat(np.arange(len(self.firsts) - 1), np.diff(self.firsts))


def find_edited_lines(group: TextGroup, *, has_citations: bool) -> EditedLines:
    """Return the lines of the texts of a group. With `has_citations`, citations remain in them."""
    data, lines = group.data, split_lines(group)
    line_starts, line_ends = lines.starts.copy(), lines.starts.copy()
    num_words, longest = np.zeros(len(line_starts), np.int64), np.zeros(len(line_starts), np.int64)
    position = 0
    for window in iter_spaced_windows(group):
        starts, ends = _find_spaced_words(window)
        first_words = np.searchsorted(starts, lines.starts - position)
        after_last = np.searchsorted(starts, lines.ends - position)
        rows = np.flatnonzero(first_words < after_last)
        if len(rows):
            lengths = window.count_characters_between(starts, ends)
            new = rows[num_words[rows] == 0]
            line_starts[new] = starts[first_words[new]] + position
            line_ends[rows] = ends[after_last[rows] - 1] + position
            longest[rows] = np.maximum(longest[rows], np.maximum.reduceat(lengths, first_words[rows]))
            num_words += after_last - first_words
        position += len(window.data)
    is_kept = _cover(len(data), line_starts, line_ends)
    for start, end in () if has_citations else _iter_citations(data, line_starts, line_ends):
        is_kept[start:end] = False
    lengths = _count_kept(is_kept, line_starts, line_ends)
    new_ends = np.cumsum(lengths)
    return EditedLines(data[is_kept], new_ends - lengths, new_ends, lines.firsts, num_words, longest)


def _find_spaced_words(group: TextGroup) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ends of the words that white space separates: (W,) int64 each."""
    is_text = (find_characters(group.data).kinds & SPACE) == 0
    is_edge = np.zeros(len(group.data) + 1, bool)
    is_edge[group.offsets] = True
    is_first, is_last = is_text.copy(), is_text.copy()
    is_first[1:] &= ~is_text[:-1] | is_edge[1:-1]
    is_last[:-1] &= ~is_text[1:] | is_edge[1:-1]
    return np.flatnonzero(is_first), np.flatnonzero(is_last) + 1


def _count_kept(is_kept: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return how many bytes from each of `starts` to `ends` are kept: (L,) int64."""
    if len(starts) <= MAX_FEW:
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return np.array([np.count_nonzero(is_kept[start:end]) for start, end in spans], np.int64)
    before = np.zeros(len(is_kept) + 1, np.int32)
    np.cumsum(is_kept, out=before[1:])
    return (before[ends] - before[starts]).astype(np.int64)


def _cover(length: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return whether each of `length` bytes is in a span: (length,) bool. The spans are ascending and disjoint."""
    is_nonempty = starts < ends
    changes = np.zeros(length + 1, np.int8)
    changes[starts[is_nonempty]] += 1
    changes[ends[is_nonempty]] -= 1
    return np.cumsum(changes[:-1], dtype=np.int8).view(bool)


def _iter_citations(data: np.ndarray, line_starts: np.ndarray, line_ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, end) for each citation within a line."""
    spans = (
        match.span()
        for match in CITATION.finditer(data.tobytes())
        if match[0].isascii() or match[0][1:-1].decode("utf-8").isdecimal()
    )
    while found := list(itertools.islice(spans, MAX_CITATIONS)):
        rows = np.searchsorted(line_starts, [start for start, _ in found], side="right") - 1
        for (start, end), line_end in zip(found, line_ends[rows].tolist(), strict=True):
            if end <= line_end:
                yield start, end


def join_lines(lines: EditedLines, is_kept: np.ndarray) -> TextGroup:
    """Return the texts that consist of the lines that are kept, (L,) bool, with a line feed between two."""
    lengths = (lines.ends - lines.starts)[is_kept]
    num_lines = sum_between(is_kept, lines.firsts)
    firsts = np.concatenate([[0], np.cumsum(num_lines)])
    kept_bytes = lines.data[_cover(len(lines.data), lines.starts[is_kept], lines.ends[is_kept])]
    is_last = np.zeros(len(lengths), bool)
    is_last[firsts[1:][num_lines > 0] - 1] = True
    num_separators = np.concatenate([[0], np.cumsum(~is_last)])  # before each line
    num_bytes = np.concatenate([[0], np.cumsum(lengths)])
    is_text = np.ones(len(kept_bytes) + int(num_separators[-1]), bool)
    is_text[(num_bytes + num_separators)[1:][~is_last] - 1] = False
    data = np.full(len(is_text), LINE_FEED, np.uint8)
    data[is_text] = kept_bytes
    return TextGroup(data, num_bytes[firsts] + num_separators[firsts])
