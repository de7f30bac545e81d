"""Cut long texts into slices that can be cleaned and encoded independently.

The problem: a document may have 64 MB. Python strings and token ids of a text that long take
several times its size, and one document would occupy one thread.

The idea: most steps look only at a few neighbouring characters. A text is therefore cut where
neither the cleaning rules nor the tokenizers look across the cut: directly before a space that
follows a character other than white space, and before a line feed or an ideographic full stop that
follows an ASCII letter or digit or a Chinese character. The result for a text is that of its
slices, joined. Not every tokenizer allows these cuts (`Tokenizer.cuts`).

The cost: a slice is a pair of offsets, and no text is copied. A text that has no such offset
remains one slice.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers
from preprocess.tokenizers.interface import Cuts

SLICE_BYTES = 1 << 18  # long enough that the cost of a slice is negligible, short enough to occupy many threads
GROUP_BYTES = 8 << 20  # of slices that are processed at once
LONG_SLICE_BYTES = 2 << 20  # a slice that is longer, as it could not be cut, is processed by itself
SEARCH_BYTES = 1 << 12

SPACE, LINE_FEED = 0x20, 0x0A
# Whether a text can be cut at a space, by the byte before the space. That byte must end a character
# that is neither white space nor a byte order mark. In UTF-8 no white space ends with a byte from
# 0xB0 to 0xBE, and the byte order mark ends with 0xBF.
PRECEDES_SPACE = np.zeros(256, bool)
PRECEDES_SPACE[0x21:0x7F] = PRECEDES_SPACE[0xB0:0xBF] = True
IS_ALPHANUMERIC = np.zeros(256, bool)
IS_ALPHANUMERIC[[b for b in range(128) if chr(b).isalnum()]] = True
FIRST_IDEOGRAPH, LAST_IDEOGRAPH = 0xE5, 0xE8  # first bytes of U+5000 to U+8FFF, which are Chinese characters
FULL_STOP = 0xE3, 0x80, 0x82  # U+3002


def slice_texts(
    texts: pa.LargeStringArray, cuts: Cuts = "spaces", slice_bytes: int = SLICE_BYTES
) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Cut each of D texts into slices of at least `slice_bytes`, except the last of a text.

    `cuts` says where the tokenizer allows cuts ("spaces" for cleaning). Returns the S slices, which
    are views of the texts, and the index of each text's first slice with S at the end: (D + 1,)
    int64. No text may be null.
    """
    data, offsets = get_text_buffers(texts)
    first_slices = np.arange(len(texts) + 1)
    long_rows = np.flatnonzero(np.diff(offsets) > slice_bytes).tolist()
    if not long_rows or cuts == "none":
        return texts, first_slices
    find_cut = FINDERS[cuts]
    ends: list[np.ndarray] = []
    row = 0
    for long_row in long_rows:
        inner, start, stop = [], int(offsets[long_row]), int(offsets[long_row + 1])
        while stop - start > slice_bytes and (start := find_cut(data, start + slice_bytes, stop)) < stop:
            inner.append(start)
        ends += [offsets[row + 1 : long_row + 1], np.array(inner, np.int64)]
        first_slices[long_row + 1 :] += len(inner)
        row = long_row
    ends.append(offsets[row + 1 :])
    return make_views(texts, np.concatenate(ends)), first_slices


def make_views(texts: pa.LargeStringArray, ends: np.ndarray) -> pa.LargeStringArray:
    """Return the texts of a column, cut at other offsets, without copying them.

    `ends`: (S,) int64, the end of each new text as an offset in the concatenated texts.
    """
    first = np.frombuffer(texts.buffers()[1], np.int64, count=1, offset=texts.offset * 8)
    offsets = np.concatenate([first, first + ends])
    return pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), texts.buffers()[2])


def iter_groups(slices: pa.LargeStringArray, group_bytes: int = GROUP_BYTES) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of groups of consecutive slices with about `group_bytes` each.

    A slice longer than LONG_SLICE_BYTES is a group by itself.
    """
    ends = get_text_buffers(slices)[1][1:]
    if not len(ends):
        return
    num_groups = max(round(ends[-1] / group_bytes), 1)
    groups = np.maximum(ends - 1, 0) * num_groups // max(ends[-1], 1)  # a slice is in the group in which it ends
    is_long = np.diff(ends, prepend=0) > LONG_SLICE_BYTES
    is_first = (np.diff(groups) > 0) | is_long[1:] | is_long[:-1]
    yield from itertools.pairwise([0, *(np.flatnonzero(is_first) + 1).tolist(), len(slices)])


def is_long_slice(group: pa.LargeStringArray) -> bool:
    """Return whether a group is one slice longer than LONG_SLICE_BYTES."""
    return len(group) == 1 and len(get_text_buffers(group)[0]) > LONG_SLICE_BYTES


def _find_character(data: np.ndarray, start: int, stop: int) -> int:
    """Return the first offset from `start` to `stop` at which a character begins, or `stop`."""
    while start < stop and data[start] & 0xC0 == 0x80:  # 0b10xxxxxx continues a character
        start += 1
    return start


def _find_cut(data: np.ndarray, start: int, stop: int, find_cuts: Callable[..., np.ndarray]) -> int:
    """Return the first offset from `start` to `stop` at which a text can be cut, or `stop`.

    `find_cuts(data, start, end)` returns at which of the offsets `start` … `end` - 1 it can be: (end - start,) bool.
    """
    search_bytes = SEARCH_BYTES
    while start < stop:
        end = min(start + search_bytes, stop)
        cuts = find_cuts(data, start, end)
        if cuts.any():
            return start + int(np.argmax(cuts))
        start, search_bytes = end, min(2 * search_bytes, SLICE_BYTES)
    return stop


def _is_cut(data: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return at which of the offsets `start` >= 3 … `end` - 1 a text can be cut: (end - start,) bool."""
    at, before = data[start:end], data[start - 1 : end - 1]
    lead = data[start - 3 : end - 3]  # of the character before the offset, if that has three bytes
    is_word_end = IS_ALPHANUMERIC[before] | ((lead >= FIRST_IDEOGRAPH) & (lead <= LAST_IDEOGRAPH))
    is_full_stop = at == FULL_STOP[0]
    if is_full_stop.any():
        after = data[start : end + 2]
        for i in (1, 2):
            is_full_stop[: len(after) - i] &= after[i : len(at) + i] == FULL_STOP[i]
    is_cut: np.ndarray = (is_word_end & ((at == LINE_FEED) | is_full_stop)) | _is_space(data, start, end)
    return is_cut


def _is_space(data: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return at which of the offsets `start` >= 1 … `end` - 1 is a space after a word: (end - start,) bool."""
    is_space: np.ndarray = (data[start:end] == SPACE) & PRECEDES_SPACE[data[start - 1 : end - 1]]
    return is_space


def _is_space_after_ascii(data: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return at which of the offsets `start` >= 1 … `end` - 1 is a space after a visible ASCII character.

    (end - start,) bool. A normalizer may turn another character into a space, or remove it.
    """
    is_space: np.ndarray = _is_space(data, start, end) & (data[start - 1 : end - 1] < 0x80)
    return is_space


# By the cuts that a tokenizer allows: a function of a text and two offsets that returns the first cut between them.
FINDERS: dict[Cuts, Callable[[np.ndarray, int, int], int]] = {
    "spaces": functools.partial(_find_cut, find_cuts=_is_cut),
    "only_spaces": functools.partial(_find_cut, find_cuts=_is_space_after_ascii),
    "characters": _find_character,
}
