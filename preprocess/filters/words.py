"""Find the words of texts: their positions, lengths, kinds and hashes.

The definition of a word, for the filters that call `find_words`:

- A run of letters, digits and combining marks (accents, joiners) is a word. A full stop or an apostrophe
  between two of them is part of the word: `don't`, `3.5`, `U.S`.
- A letter of a script without spaces between words, such as Chinese, Japanese or Thai, is a word, with
  the marks that follow it.
- Any other character, together with the equal characters that directly follow it, is a word: `,`, `...`,
  `--`, `$`.

White space is not part of a word. So punctuation counts as words, as in the published pipelines, whose
thresholds assume this. Words that consist of punctuation are called *symbols*.

All bytes of a group of documents are classified at once, without a Python loop over words.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers
from preprocess.filters.characters import (
    ALPHA,
    JOINER,
    MARK,
    SINGLE,
    SPACE,
    SYMBOL,
    WORD,
    Characters,
    find_characters,
)
from preprocess.filters.spans import hash_spans

GROUP_BYTES = 1 << 20  # of the documents that are examined at once
# The characters at which `str.split` splits, as UTF-8.
WHITE_SPACE = re.compile(
    rb"[\t-\r\x1c- ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)|\xe3\x80\x80"
)
PROBE_BYTES = 1 << 12  # bytes that are searched for the first of a word, if a long text has no white space
MAX_CHARACTER_BYTES = 4
LONG_GROUPS = 4  # times GROUP_BYTES: more bytes without a place to cut are classified in parts
CONTEXT_BYTES = 16  # before and after a part; whether a word begins or ends depends on up to three characters there
MAX_FEW = 4  # spans of a long text whose characters are counted without an array of sums
FIRST_CHINESE, LAST_CHINESE = 0xE5, 0xE8  # first bytes of U+5000 to U+8FFF


@dataclass(frozen=True)
class TextGroup:
    """D consecutive texts of a batch, as bytes."""

    data: np.ndarray  # (N,) uint8, UTF-8
    offsets: np.ndarray  # (D + 1,) int64, of the texts in `data`

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def _num_continuations(self) -> np.ndarray | None:
        """The number of continuation bytes of UTF-8 before each byte, (N + 1,) int32; None for ASCII."""
        is_continuation = (self.data & 0xC0) == 0x80
        if not is_continuation.any():
            return None
        sums = np.zeros(len(self.data) + 1, np.int32)
        np.cumsum(is_continuation, out=sums[1:])
        return sums

    def count_characters_between(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the number of characters from each byte of `starts` to that of `ends`: (N,) int64.

        `starts`, `ends`: (N,) int64, each in ascending order.
        """
        if len(self.data) > GROUP_BYTES and len(starts) <= MAX_FEW:
            return np.array([self._count_characters(*each) for each in zip(starts, ends, strict=True)], np.int64)
        lengths: np.ndarray = ends - starts
        if len(self.data) > LONG_GROUPS * GROUP_BYTES:
            return lengths - (self._count_continuations_before(ends) - self._count_continuations_before(starts))
        sums = self._num_continuations
        return lengths if sums is None else lengths - (sums[ends] - sums[starts])

    def _count_characters(self, start: int, end: int) -> int:
        parts = (self.data[first : min(first + GROUP_BYTES, end)] for first in range(int(start), int(end), GROUP_BYTES))
        return sum(int(np.count_nonzero((part & 0xC0) != 0x80)) for part in parts)

    def _count_continuations_before(self, offsets: np.ndarray) -> np.ndarray:
        """Return `_num_continuations[offsets]`, (N,) int64, for ascending offsets, without an array for all bytes."""
        counts, total, begin = np.empty(len(offsets), np.int64), 0, 0
        for first in range(0, len(self.data) + 1, GROUP_BYTES):
            is_continuation = (self.data[first : first + GROUP_BYTES] & 0xC0) == 0x80
            end = int(np.searchsorted(offsets, first + GROUP_BYTES))
            if begin < end:
                sums = np.concatenate([[0], np.cumsum(is_continuation)])
                counts[begin:end] = total + sums[offsets[begin:end] - first]
            total, begin = total + int(np.count_nonzero(is_continuation)), end
        return counts

    def count_characters(self) -> np.ndarray:
        """Return the number of characters of each text: (D,) int64."""
        return self.count_characters_between(self.offsets[:-1], self.offsets[1:])


@dataclass(frozen=True)
class Words:
    """The W words of the D texts of a group."""

    starts: np.ndarray  # (W,) int64, first byte
    ends: np.ndarray  # (W,) int64, after the last byte
    lengths: np.ndarray  # (W,) int64, in characters
    # (W,) uint8: the kind of the first character, but ALPHA means that any character is a letter, and SYMBOL that all
    # are punctuation or control characters
    kinds: np.ndarray
    firsts: np.ndarray  # (D + 1,) int64, index of the first word of each text; at the end W

    @property
    def documents(self) -> np.ndarray:
        """The document of each word: (W,) int32."""
        return np.repeat(np.arange(len(self.firsts) - 1, dtype=np.int32), self.counts)

    @property
    def counts(self) -> np.ndarray:
        """The number of words of each text: (D,) int64."""
        return np.diff(self.firsts)

    def have(self, kind: int) -> np.ndarray:
        """Return whether each word has one of the bits of `kind`: (W,) bool."""
        return (self.kinds & kind) != 0

    def hash(self, data: np.ndarray) -> np.ndarray:
        """Return a hash of each word: (W,) uint64. `data`: the bytes of the group, uint8."""
        return hash_spans(data, self.starts, self.ends - self.starts)


def iter_text_groups(texts: pa.LargeStringArray) -> Iterator[TextGroup]:
    """Yield consecutive texts of at most GROUP_BYTES together, or one longer text."""
    data, offsets = get_text_buffers(texts)
    first = 0
    while first < len(texts):
        last = max(int(np.searchsorted(offsets, offsets[first] + GROUP_BYTES, side="right")) - 1, first + 1)
        part = data[offsets[first] : offsets[last]]
        yield TextGroup(part, offsets[first : last + 1] - offsets[first])
        first = last


def find_words(group: TextGroup) -> Words:
    """Return the words of the texts of a group."""
    edges = [0, *_find_cuts(group.data), len(group.data)]
    parts = [_find_words_in(group, *each) for each in itertools.pairwise(edges)]
    starts, ends, kinds = (np.concatenate(each) for each in zip(*parts, strict=True))
    lengths = group.count_characters_between(starts, ends)
    return Words(starts, ends, lengths, kinds, np.searchsorted(starts, group.offsets))


def iter_word_windows(group: TextGroup) -> Iterator[TextGroup]:
    """Yield the parts of one long text, as texts of about GROUP_BYTES. Together they have the words of the text."""
    for first, last in itertools.pairwise([0, *_find_cuts(group.data), len(group.data)]):
        yield TextGroup(group.data[first:last], np.array([0, last - first]))


def iter_spaced_windows(group: TextGroup) -> Iterator[TextGroup]:
    """Yield `group`, or if it is one text of more than GROUP_BYTES, parts of it that are cut after white space."""
    first, data = 0, group.data
    while first + GROUP_BYTES < len(data):
        match = WHITE_SPACE.search(data.data, first + GROUP_BYTES)
        last = match.end() if match else len(data)
        yield TextGroup(data[first:last], np.array([0, last - first]))
        first = last
    if first < len(data) or not first:
        yield group if not first else TextGroup(data[first:], np.array([0, len(data) - first]))


def _find_cuts(data: np.ndarray) -> Iterator[int]:
    """Yield the offsets at which a long text is cut before its words are found, so that no word is cut.

    It is cut at white space or before a Chinese character, which begins a word whatever is before it. If there
    is neither, the words of some bytes are found to cut it where one begins: of few first, then of all.
    """
    cut = GROUP_BYTES
    while cut < len(data):
        window = data[cut : cut + GROUP_BYTES]
        is_chinese = (window >= FIRST_CHINESE) & (window <= LAST_CHINESE)
        spaces = np.flatnonzero((window == ord(" ")) | (window == ord("\n")) | is_chinese)
        length = int(spaces[0]) if len(spaces) else _find_word_start(window[:PROBE_BYTES])
        if length is None:
            length = _find_word_start(window)
        if length is not None:
            yield cut + length
            cut += length
        cut += GROUP_BYTES


def _find_word_start(data: np.ndarray) -> int | None:
    """Return where a word begins in a part of a text, whatever is before and after the part; None if nowhere."""
    first = int(np.argmax((data[:4] & 0xC0) != 0x80))  # of a whole character
    last = len(data) - int(np.argmax((data[:-5:-1] & 0xC0) != 0x80)) - 1
    if last <= first:
        return None
    part = data[first:last]
    starts = _find_words_in(TextGroup(part, np.array([0, len(part)])), 0, len(part))[0]
    # Whether a word begins at a character depends on the characters directly before and after it.
    inside = starts[(starts >= MAX_CHARACTER_BYTES) & (starts <= len(part) - 2 * MAX_CHARACTER_BYTES)]
    return first + int(inside[0]) if len(inside) else None


def _find_words_in(group: TextGroup, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return starts, ends and kinds of the words of the bytes from `first` to `last`, as in Words."""
    if last - first > LONG_GROUPS * GROUP_BYTES:
        return _find_words_in_parts(group.data, first, last)
    text_starts = np.unique(group.offsets[np.searchsorted(group.offsets, first) : np.searchsorted(group.offsets, last)])
    return _classify(group.data, first, last, text_starts)[:3]


def _find_words_in_parts(data: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `_find_words_in` returns for many bytes of one text, in the memory that a part of them needs."""
    starts, ends, kinds = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.uint8)]
    is_open = False  # the last word continues in the next part
    for start in range(first, last, GROUP_BYTES):
        stop = min(start + GROUP_BYTES, last)
        begin, end = max(start - CONTEXT_BYTES, first), min(stop + CONTEXT_BYTES, last)
        while begin > first and data[begin] & 0xC0 == 0x80:  # 0b10xxxxxx continues a character
            begin -= 1
        while end < last and data[end] & 0xC0 == 0x80:
            end += 1
        new_starts, new_ends, new_kinds, of_bytes = _classify(data, begin, end, np.empty(0, np.int64))
        is_inside = (new_starts >= start) & (new_starts < stop)
        new_starts, new_kinds = new_starts[is_inside], new_kinds[is_inside]
        new_ends = new_ends[(new_ends > start) & (new_ends <= stop)]
        if is_open:
            end_of_open = int(new_ends[0]) if len(new_ends) else stop
            kinds[-1][-1] = _join_kinds(kinds[-1][-1], of_bytes[start - begin : end_of_open - begin])
        starts.append(new_starts)
        ends.append(new_ends)
        if len(new_starts):
            kinds.append(new_kinds)
        is_open = is_open + len(new_starts) > len(new_ends)
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(kinds)


def _join_kinds(kind: np.uint8, others: np.ndarray) -> np.uint8:
    """Return the kind of a word that begins with characters of the kind `kind` and continues with `others`, (N,)."""
    kind |= np.bitwise_or.reduce(others & ALPHA)
    kind &= np.bitwise_and.reduce(others | np.uint8(0xFF & ~SYMBOL))
    return kind


def _classify(
    data: np.ndarray, first: int, last: int, text_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return starts, ends and kinds of the words of data[first:last], as in Words, and the kind of each byte there.

    `text_starts`: the offsets in `data`, ascending, at which texts begin.
    """
    data, text_starts = data[first:last], text_starts - first
    characters = find_characters(data)
    kinds = characters.kinds
    _join(data, kinds, text_starts)
    is_space, is_word, is_single = ((kinds & bit) != 0 for bit in (SPACE, WORD, SINGLE))
    # A word begins at a letter or digit after something else, and at every other character that is not a space …
    is_start = ~is_space
    is_start[1:] &= ~(is_word[1:] & (is_word[:-1] | is_single[:-1] & ((kinds[1:] & MARK) != 0)))
    # … except at one that repeats the character before it, and within a character.
    is_other = ~(is_space | is_word | is_single)
    is_start[1:] &= ~(is_other[1:] & (data[1:] == data[:-1]) & (data[1:] < 0x80))
    is_start[_find_repeated_wide(characters, is_other)] = False
    is_start[(data & 0xC0) == 0x80] = False
    is_start[text_starts] = ~is_space[text_starts]
    is_last = ~is_space
    is_last[:-1] &= is_start[1:] | is_space[1:]
    text_ends = text_starts[text_starts > 0] - 1
    is_last[text_ends] = ~is_space[text_ends]
    starts, ends = np.flatnonzero(is_start), np.flatnonzero(is_last) + 1
    return starts + first, ends + first, _find_word_kinds(kinds, starts, ends), kinds


def _find_word_kinds(kinds: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the kinds of words as in Words: (W,) uint8. `kinds`: of the bytes of the text."""
    of_words = kinds[starts]
    begins_word = (of_words & (WORD | SINGLE)) != 0  # other words repeat one character
    # Most words begin with a letter. The other characters of the rest are examined.
    rows = np.flatnonzero(begins_word & ((of_words & ALPHA) == 0) & (ends - starts > 1))
    if len(rows):
        n = ends[rows] - starts[rows]
        edges = np.cumsum(n) - n
        inside = kinds[np.arange(int(n.sum())) - np.repeat(edges - starts[rows], n)]
        of_words[rows] |= np.bitwise_or.reduceat(inside & ALPHA, edges)
        of_words[rows] &= np.bitwise_and.reduceat(inside | np.uint8(0xFF & ~SYMBOL), edges)
    return of_words


def _join(data: np.ndarray, kinds: np.ndarray, text_starts: np.ndarray) -> None:
    """Give joiners between letters and digits the kind WORD."""
    joiners = np.flatnonzero((kinds & JOINER) != 0)
    joiners = joiners[(data[joiners] & 0xC0) != 0x80]
    lengths = np.where(data[joiners] < 0x80, 1, 3)
    inside = (joiners > 0) & (joiners + lengths < len(data))
    joiners, lengths = joiners[inside], lengths[inside]
    is_between = ((kinds[joiners - 1] & WORD) != 0) & ((kinds[joiners + lengths] & WORD) != 0)
    is_text_start = np.zeros(len(data) + 1, bool)
    is_text_start[text_starts] = True
    is_between &= ~is_text_start[joiners] & ~is_text_start[joiners + lengths]
    joiners, lengths = joiners[is_between], lengths[is_between]
    for i in range(3):
        rows = joiners[lengths > i] + i
        kinds[rows] = kinds[rows] & np.uint8(0xFF & ~JOINER) | WORD


def _find_repeated_wide(characters: Characters, is_other: np.ndarray) -> np.ndarray:
    """Return the first bytes of punctuation that is not ASCII and repeats the character before it."""
    starts, lengths, codes = characters.wide_starts, characters.wide_lengths, characters.wide_codes
    is_repeated = (codes[1:] == codes[:-1]) & (starts[1:] == starts[:-1] + lengths[:-1]) & is_other[starts[1:]]
    repeated: np.ndarray = starts[1:][is_repeated]
    return repeated
