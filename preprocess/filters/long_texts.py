"""Find repeated lines and sequences of words in one long text, with little memory for each word.

The problem: the positions, lengths and hashes of all words of a text of 64 MB, and the arrays that sorting
them needs, take up to 2 GB.

The idea: only a hash of eight bytes and a length of one byte are kept for each word. Sequences of words
are hashed again whenever they are needed, and are sorted in parts: those whose hashes are in the same
range. Equal sequences are in the same part. Within a window of words equal sequences are merged before
parts are sorted, so that a sequence that fills the text does not fill a part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from preprocess.filters.lines import LINE_FEED, Lines, split_at_runs_of_line_feeds, split_lines
from preprocess.filters.spans import MULTIPLIER
from preprocess.filters.words import TextGroup, Words, find_words, iter_word_windows

LONG_BYTES = 4 << 20  # of a text that is examined as described above
WINDOW_ELEMENTS = 1 << 18  # that are hashed at once
PART_ELEMENTS = 1 << 20  # that are sorted at once
FEED = re.compile(b"\n")
ANY_LINE_END = re.compile(rb"\r\n?|[\n\v\f\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]")
MAX_SHORT = 255  # the length of a word that has at least so many characters; its own is kept apart


class LongTextGrams:
    """Sequences of words that occur more than once in a text, for one size after the other, from the smallest."""

    def __init__(self, group: TextGroup) -> None:
        """`group`: of one text."""
        hashes, lengths = bytearray(), bytearray()  # they grow in place
        long_words, long_lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        self.text_start = self.text_end = position = 0  # of the text without white space at its ends
        for window in iter_word_windows(group):
            words = find_words(window)
            if len(words.starts):
                self.text_start = self.text_start if len(lengths) else position + int(words.starts[0])
                self.text_end = position + int(words.ends[-1])
            position += len(window.data)
            rows = np.flatnonzero(words.lengths >= MAX_SHORT)
            long_words.append(rows + len(lengths))
            long_lengths.append(words.lengths[rows])
            hashes += words.hash(window.data).data.cast("B")
            lengths += np.minimum(words.lengths, MAX_SHORT).astype(np.uint8).data
        self._hashes = np.frombuffer(hashes, np.uint64)  # (W,)
        self._short_lengths = np.frombuffer(lengths, np.uint8)  # (W,)
        self._long_words, self._long_lengths = np.concatenate(long_words), np.concatenate(long_lengths)
        self._is_candidate = np.ones(len(self._hashes), bool)  # (W,): a sequence from this word on can be repeated
        self._is_repeated = np.zeros(0, bool)  # (W,): the sequence from this word on is equal to an earlier one
        self._size, self._most, self._first_of_most = 0, 1, 0

    def find(self, size: int) -> None:
        """Find the sequences of `size` words, which must be larger than in the last call."""
        self._size, self._most, self._first_of_most = size, 1, 0
        is_large, is_repeated = np.zeros(len(self._hashes), bool), np.zeros(len(self._hashes), bool)
        for part in self._iter_parts():
            hashes, firsts, counts = self._count_equal(part)
            is_found = counts > 1
            hashes, firsts, counts = hashes[is_found], firsts[is_found], counts[is_found]
            if not len(hashes):
                continue
            most = int(counts.max())
            first = int(firsts[counts == most].min())
            if (most, -first) > (self._most, -self._first_of_most):
                self._most, self._first_of_most = most, first
            for starts, of_starts in self._iter_windows(part):
                numbers = np.minimum(np.searchsorted(hashes, of_starts), len(hashes) - 1)
                is_large[starts[hashes[numbers] == of_starts]] = True
            is_repeated[firsts] = True
        self._is_candidate = is_large
        self._is_repeated = np.logical_xor(is_large, is_repeated, out=is_repeated)  # all but the first of each

    def measure_top(self, _: np.ndarray) -> np.ndarray:
        """Return the characters of the most frequent sequence, with spaces, times its occurrences: (1,) int64."""
        first, size = self._first_of_most, self._size
        if len(self._hashes) < size:
            return np.zeros(1, np.int64)
        characters = int(self._get_lengths(first, first + size).sum()) + size - 1
        return np.array([characters * self._most])

    def measure_duplicates(self, num_allowed: np.ndarray) -> np.ndarray:
        """Return the characters of repeated sequences, read from left to right without overlaps: (1,) int64.

        If the text cannot have more than `num_allowed`, (1,), this is an upper bound.
        """
        measured = self._bound()
        return np.array([measured if measured <= num_allowed[0] else self._count()])

    def _get_lengths(self, first: int, last: int) -> np.ndarray:
        """Return the characters of the words from `first` to `last`: int64."""
        lengths = self._short_lengths[first:last].astype(np.int64)
        rows = slice(*np.searchsorted(self._long_words, (first, last)))
        lengths[self._long_words[rows] - first] = self._long_lengths[rows]
        return lengths

    def _iter_parts(self) -> Iterator[tuple[int, int]]:
        """Yield (bits, number) for each part: its hashes begin with these bits."""
        bits = (int(np.count_nonzero(self._is_candidate)) // PART_ELEMENTS).bit_length()
        for number in range(1 << bits):
            yield bits, number

    def _iter_windows(self, part: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the first words and the hashes of the sequences of a part: (S,) int64 and (S,) uint64."""
        bits, number = part
        num_starts = len(self._hashes) - self._size + 1
        for first in range(0, num_starts, WINDOW_ELEMENTS):
            last = min(first + WINDOW_ELEMENTS, num_starts)
            is_selected = self._is_candidate[first:last]
            if not is_selected.any():
                continue
            hashes = np.zeros(last - first, np.uint64)
            for i in range(self._size):
                hashes *= MULTIPLIER
                hashes += self._hashes[first + i : last + i]
            if bits:
                is_selected = is_selected & (hashes >> np.uint64(64 - bits) == number)
            rows = np.flatnonzero(is_selected)
            yield rows + first, hashes[rows]

    def _count_equal(self, part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the different hashes of a part, ascending, the first word of each, and its number: (G,) each."""
        found = [(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int32))]
        for starts, of_starts in self._iter_windows(part):
            different, first, number = np.unique(of_starts, return_index=True, return_counts=True)
            found.append((different, starts[first].astype(np.int32), number.astype(np.int32)))
        hashes, firsts, counts = (np.concatenate(each) for each in zip(*found, strict=True))
        del found
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        edges = np.flatnonzero(np.concatenate([hashes[:1] == hashes[:1], hashes[1:] != hashes[:-1]]))
        if not len(edges):
            return hashes, firsts, counts
        return hashes[edges], firsts[order[edges]], np.add.reduceat(counts[order], edges)

    def _bound(self) -> int:
        """Return the characters of all words that are in a sequence equal to an earlier one."""
        total = 0
        for first in range(0, len(self._hashes), WINDOW_ELEMENTS):
            last = min(first + WINDOW_ELEMENTS, len(self._hashes))
            is_inside = np.zeros(last - first, bool)
            for i in range(self._size):  # the sequence that begins i words before
                begin = max(first - i, 0)
                is_inside[begin + i - first :] |= self._is_repeated[begin : max(last - i, begin)]
            total += int(self._get_lengths(first, last)[is_inside].sum())
        return total

    def _count(self) -> int:
        groups, num_groups = self._number_groups()
        size, seen, position, total = self._size, bytearray(num_groups), 0, 0
        for first in range(0, len(groups), WINDOW_ELEMENTS):
            last = min(first + WINDOW_ELEMENTS, len(groups))
            starts = np.flatnonzero(self._is_candidate[first:last])
            sums = np.concatenate([[0], np.cumsum(self._get_lengths(first, last + size))])
            lengths = sums[np.minimum(starts + size, len(sums) - 1)] - sums[starts]
            of_starts = groups[starts + first]
            for start, group, length in zip(
                (starts + first).tolist(), of_starts.tolist(), lengths.tolist(), strict=True
            ):
                if start < position:
                    continue
                if seen[group]:
                    total += length
                    position = start + size
                else:
                    seen[group] = 1
        return total

    def _number_groups(self) -> tuple[np.ndarray, int]:
        """Return the number of the group of equal sequences that begins at each word, (W,) int32, and their count."""
        groups, num_groups = np.zeros(len(self._hashes), np.int32), 0
        for part in self._iter_parts():
            hashes, _, _ = self._count_equal(part)
            for starts, of_starts in self._iter_windows(part):
                groups[starts] = num_groups + np.searchsorted(hashes, of_starts)
            num_groups += len(hashes)
        return groups, num_groups


class EqualLines:
    """The different lines of a long text, which is read in windows."""

    def __init__(self) -> None:
        self.num_lines, self.num_characters = 0, 0
        self._parts = [(np.empty(0, np.uint64), np.empty(0, np.int32))]
        self._num_merged = self._num_pending = 0

    def add(self, hashes: np.ndarray, lengths: np.ndarray) -> None:
        """Add lines. `hashes`: (L,) uint64. `lengths`: (L,) int64, in characters."""
        self.num_lines += len(hashes)
        self.num_characters += int(lengths.sum())
        different, rows = np.unique(hashes, return_index=True)
        self._parts.append((different, lengths[rows].astype(np.int32)))
        self._num_pending += len(different)
        if self._num_pending > max(self._num_merged, PART_ELEMENTS):
            self._merge()

    def _merge(self) -> None:
        hashes, lengths = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        self._parts.clear()
        hashes, rows = np.unique(hashes, return_index=True)
        self._parts.append((hashes, lengths[rows]))
        self._num_merged, self._num_pending = len(hashes), 0

    def count_duplicates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return how many lines are equal to an earlier one, and their characters: (1,) int64 each."""
        self._merge()
        [(hashes, lengths)] = self._parts
        in_different = int(lengths.sum(dtype=np.int64))
        return np.array([self.num_lines - len(hashes)]), np.array([self.num_characters - in_different])


def count_long_duplicates(data: np.ndarray, min_feeds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of lines, of those equal to an earlier one, and the characters of these: (1,) int64 each.

    `data`: (N,) uint8, of one text. The lines are separated by runs of `min_feeds` (1 or 2) or more line feeds.
    """
    equal, first = EqualLines(), 0
    while first >= 0:
        start, end = _find_run(data, first, min_feeds)
        part = TextGroup(data[first:start], np.array([0, start - first]))
        if start - first > WINDOW_ELEMENTS:  # one line
            lines = Lines(part.offsets[:-1], part.offsets[1:], np.array([0, 1]))
        else:
            lines = split_at_runs_of_line_feeds(part, min_feeds)
        equal.add(lines.hash(part.data), lines.count_characters(part))
        first = end
    return np.array([equal.num_lines]), *equal.count_duplicates()


def _find_run(data: np.ndarray, first: int, min_feeds: int) -> tuple[int, int]:
    """Return start and end of the last run of line feeds in the window from `first` on, or the first after it.

    Returns the length of `data` and -1 if there is none.
    """
    last = min(first + WINDOW_ELEMENTS, len(data))
    is_feed = data[first:last] == LINE_FEED
    begins_run = is_feed[: len(is_feed) - min_feeds + 1] & is_feed[min_feeds - 1 :]
    found = np.flatnonzero(begins_run)
    if len(found):
        inside = int(found[-1])
        others = np.flatnonzero(~is_feed[:inside])
        start = first + (int(others[-1]) + 1 if len(others) else 0)
        match = re.compile(b"\n+").match(data.data, first + inside)
    else:
        match = re.compile(rb"\n{%d,}" % min_feeds).search(data.data, max(last - min_feeds + 1, first))
        start = match.start() if match else len(data)
    return start, match.end() if match else -1


def iter_whole_lines(group: TextGroup, line_end: re.Pattern[bytes] = FEED) -> Iterator[TextGroup]:
    """Yield the parts of one long text, which end after a line end: FEED, or ANY_LINE_END, as in `split_lines`.

    A part has some lines, of at most WINDOW_ELEMENTS bytes together, or one longer line.
    """
    first, data = 0, group.data
    while first < len(data):
        last = min(first + WINDOW_ELEMENTS, len(data))
        if last < len(data):
            window = data[first:last]
            length = _find_last_feed(window)
            if not length and line_end is ANY_LINE_END:
                length = _find_last_line_end(window)
            # A line end of up to three bytes may begin before `last`, and end one byte before it or later.
            match = None if length else line_end.search(data.data, max(last - 4, first))
            last = first + length if length else match.end() if match else len(data)
        yield TextGroup(data[first:last], np.array([0, last - first]))
        first = last


def _find_last_feed(data: np.ndarray) -> int:
    """Return the offset after the last line feed, or 0 if there is none."""
    feeds = np.flatnonzero(data == LINE_FEED)
    return int(feeds[-1]) + 1 if len(feeds) else 0


def _find_last_line_end(data: np.ndarray) -> int:
    """Return the offset after the last line end of a window without line feeds, or 0 if there is none.

    A carriage return at the end is not one, because a line feed may follow.
    """
    ends = split_lines(TextGroup(data[:-1], np.array([0, max(len(data) - 1, 0)]))).starts[1:]
    return int(ends[-1]) if len(ends) else 0


def find_outer_words(group: TextGroup, split: Callable[[TextGroup], Lines]) -> tuple[Words, int]:
    """Return words of one text that include the first and last of each line, and the number of all its words.

    `split` finds the lines. A short text is examined as a whole, and all its words are returned. A longer one is
    examined in windows, and only the first and last word of each line of a window are returned.
    """
    found, num_words, position = [], 0, 0
    for window in iter_word_windows(group):
        words = find_words(window)
        num_words += len(words.starts)
        if len(window.data) < len(group.data):
            words = _select_outer_words(split(window), words)
        found.append((words.starts + position, words.ends + position, words.lengths, words.kinds))
        position += len(window.data)
    starts, ends, lengths, kinds = (np.concatenate(each) for each in zip(*found, strict=True))
    return Words(starts, ends, lengths, kinds, np.array([0, len(starts)])), num_words


def _select_outer_words(lines: Lines, words: Words) -> Words:
    first_words, after_last = lines.find_words(words)
    has_words = first_words < after_last
    rows = np.unique(np.concatenate([first_words[has_words], after_last[has_words] - 1]))
    return Words(words.starts[rows], words.ends[rows], words.lengths[rows], words.kinds[rows], np.array([0, len(rows)]))
