"""Find the lines and paragraphs of texts, as spans of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preprocess.filters.spans import hash_spans
from preprocess.filters.words import TextGroup, Words

LINE_FEED = ord("\n")
ENDS_LINE = np.zeros(256, bool)
ENDS_LINE[list(b"\n\r\v\f\x1c\x1d\x1e")] = True
WIDE_LINE_ENDS = (b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")  # next line, line separator, paragraph separator


@dataclass(frozen=True)
class Lines:
    """The L lines or paragraphs of the D texts of a group, without their separators."""

    starts: np.ndarray  # (L,) int64, first byte
    ends: np.ndarray  # (L,) int64, after the last byte
    firsts: np.ndarray  # (D + 1,) int64, index of the first line of each text; at the end L

    @property
    def counts(self) -> np.ndarray:
        """The number of lines of each text: (D,) int64."""
        return np.diff(self.firsts)

    @property
    def documents(self) -> np.ndarray:
        """The document of each line: (L,) int64."""
        return np.repeat(np.arange(len(self.firsts) - 1), self.counts)

    def hash(self, data: np.ndarray) -> np.ndarray:
        """Return a hash of each line: (L,) uint64. `data`: of the group."""
        return hash_spans(data, self.starts, self.ends - self.starts)

    def count_characters(self, group: TextGroup) -> np.ndarray:
        """Return the number of characters of each line: (L,) int64."""
        return group.count_characters_between(self.starts, self.ends)

    def select(self, is_selected: np.ndarray) -> Lines:
        """Return the lines for which `is_selected`, (L,) bool, is true."""
        sums = np.concatenate([[0], np.cumsum(is_selected, dtype=np.int64)])
        return Lines(self.starts[is_selected], self.ends[is_selected], sums[self.firsts])

    def find_words(self, words: Words) -> tuple[np.ndarray, np.ndarray]:
        """Return the index of the first word of each line, and the index after its last: (L,) int64 each."""
        return np.searchsorted(words.starts, self.starts), np.searchsorted(words.starts, self.ends)


def split_at_line_feeds(group: TextGroup) -> Lines:
    """Return the lines that end at a line feed, as `text.split("\\n")` does."""
    feeds = np.flatnonzero(group.data == LINE_FEED)
    return _split(group, group.offsets[:-1], group.offsets[1:], (feeds, feeds + 1))


def split_at_runs_of_line_feeds(group: TextGroup, min_feeds: int = 1) -> Lines:
    """Return the lines that are separated by `min_feeds` or more line feeds. The first and the last may be empty."""
    starts, ends = _find_runs(group)
    if min_feeds > 1:
        is_separator = ends - starts >= min_feeds
        starts, ends = starts[is_separator], ends[is_separator]
    return _split(group, group.offsets[:-1], group.offsets[1:], (starts, ends))


def split_into_paragraphs(group: TextGroup, words: Words) -> Lines:
    """Return the paragraphs, separated by two or more line feeds. White space at the ends of the text is left out."""
    starts, ends = _find_runs(group)
    is_separator = ends - starts > 1
    starts, ends = starts[is_separator], ends[is_separator]
    has_words = words.counts > 0
    text_starts, text_ends = group.offsets[:-1].copy(), group.offsets[:-1].copy()
    text_starts[has_words] = words.starts[words.firsts[:-1][has_words]]
    text_ends[has_words] = words.ends[words.firsts[1:][has_words] - 1]
    rows = np.searchsorted(text_starts, starts, side="right") - 1
    is_inside = (rows >= 0) & (ends <= text_ends[rows])
    return _split(group, text_starts, text_ends, (starts[is_inside], ends[is_inside]))


def split_lines(group: TextGroup) -> Lines:
    """Return the lines that end at any of Unicode's line boundaries, as `text.splitlines()` does."""
    data = group.data
    starts = np.flatnonzero(ENDS_LINE[data])
    starts = starts[~((data[starts] == LINE_FEED) & _follows_carriage_return(group, starts))]
    lengths = np.ones(len(starts), np.int64)
    lengths[_precedes_line_feed(group, starts)] = 2
    for mark in WIDE_LINE_ENDS:
        found = _find_bytes(data, mark)
        starts, lengths = np.concatenate([starts, found]), np.concatenate([lengths, np.full(len(found), len(mark))])
    order = np.argsort(starts)
    starts, ends = starts[order], (starts + lengths)[order]
    lines = _split(group, group.offsets[:-1], group.offsets[1:], (starts, ends))
    is_after_last = np.zeros(len(lines.starts), bool)
    lasts = lines.firsts[1:] - 1  # empty text after the last boundary is not a line
    is_after_last[lasts] = lines.starts[lasts] == group.offsets[1:]
    return lines.select(~is_after_last)


def _split(
    group: TextGroup, text_starts: np.ndarray, text_ends: np.ndarray, separators: tuple[np.ndarray, np.ndarray]
) -> Lines:
    """Return the spans between separators. Every text has one more than it has separators.

    `text_starts`, `text_ends`: (D,), where each text begins and ends. `separators`: starts and ends of
    the separators within the texts, ascending.
    """
    starts = np.sort(np.concatenate([text_starts, separators[1]]), kind="stable")
    ends = np.sort(np.concatenate([text_ends, separators[0]]), kind="stable")
    num_before = np.searchsorted(separators[0], group.offsets)
    return Lines(starts, ends, num_before + np.arange(len(num_before)))


def _find_runs(group: TextGroup) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ends of the runs of line feeds."""
    feeds = np.flatnonzero(group.data == LINE_FEED)
    is_first, is_last = np.ones(len(feeds), bool), np.ones(len(feeds), bool)
    is_next = (np.diff(feeds) == 1) & ~_is_among(feeds[1:], group.offsets)
    is_first[1:], is_last[:-1] = ~is_next, ~is_next
    return feeds[is_first], feeds[is_last] + 1


def _follows_carriage_return(group: TextGroup, indices: np.ndarray) -> np.ndarray:
    is_after = np.zeros(len(indices), bool)
    inside = np.flatnonzero((indices > 0) & ~_is_among(indices, group.offsets))
    is_after[inside] = group.data[indices[inside] - 1] == ord("\r")
    return is_after


def _precedes_line_feed(group: TextGroup, indices: np.ndarray) -> np.ndarray:
    is_before = np.zeros(len(indices), bool)
    inside = np.flatnonzero((group.data[indices] == ord("\r")) & ~_is_among(indices + 1, group.offsets))
    is_before[inside] = group.data[indices[inside] + 1] == LINE_FEED
    return is_before


def _is_among(indices: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return whether each of `indices` is one of the ascending `offsets`."""
    return offsets[np.minimum(np.searchsorted(offsets, indices), len(offsets) - 1)] == indices


def _find_bytes(data: np.ndarray, mark: bytes) -> np.ndarray:
    """Return where `mark`, of two or three bytes that begin a character, occurs."""
    found = np.flatnonzero(data[: len(data) - len(mark) + 1] == mark[0]) if len(data) >= len(mark) else np.empty(0, int)
    for i, byte in enumerate(mark[1:], start=1):
        found = found[data[found + i] == byte]
    return found
