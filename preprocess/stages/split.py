"""Decide the side of the split of each group, and cut long texts into two sides or into passages.

The problem: the validation documents should be chosen at random, but the choice must not depend on
the order of the documents, the number of workers or the other documents of a batch. Numbers drawn
one after another from a random generator depend on all of these.

The idea: a group's random number is a hash of the group's hash (dedup.py), keyed by the recipe's
seed. The number depends only on the group and the seed, so every process computes the same number
at any time. With `split = "threshold"` a group is used for validation if its number is below
`val_fraction` of the range of numbers. Each group is then decided without knowledge of the others,
but the fraction is only approximate. With `split = "exact"` the groups with the smallest numbers
are used, which requires the numbers of all groups (build/dedup_and_split.py). The cost is a few
integer operations per document.

With `split = "contiguous"` the text of a file is cut in two instead, at `1 - val_fraction` of its
characters, as in nanoGPT. With `document = "passage"` a text is cut at blank lines. Both work on
the UTF-8 bytes, since the text may have 64 MB: a character is counted by its first byte, and the
parts of a text are views of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.documents import SCHEMA, get_text_buffers, make_batch
from preprocess.shards.permutation import keyed_hash
from preprocess.stages.dedup import to_uint64_halves
from preprocess.stages.slices import make_views

# h: the keyed hash that decides the side; high, low: the 128 bits of the group's hash, for ties.
GROUP_DTYPE = np.dtype([("h", "<u8"), ("high", "<u8"), ("low", "<u8")])

LINE_FEED = 10
WINDOW_BYTES = 1 << 20  # of text in which passages are found at once


def key_groups(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Return one record for each group hash in `hashes`, (D, 16) uint8: (D,) of GROUP_DTYPE."""
    groups = np.empty(len(hashes), GROUP_DTYPE)
    high, low = to_uint64_halves(hashes)
    groups["h"], groups["high"], groups["low"] = keyed_hash(seed, high ^ keyed_hash(seed, low)), high, low
    return groups


def is_below_threshold(keys: np.ndarray, fraction: float) -> np.ndarray:
    """Return which keyed hashes, (D,) uint64, are below `fraction` of 2**64: (D,) bool."""
    is_below_threshold: np.ndarray = keys < np.uint64(compute_threshold(fraction))
    return is_below_threshold


def compute_threshold(fraction: float) -> int:
    """Return `fraction` of 2**64, rounded down."""
    return int(Fraction(str(fraction)) * 2**64)


def compute_contiguous_cut(num_characters: int, val_fraction: float) -> int:
    """Return how many of `num_characters` are used for training, rounded down as in nanoGPT.

    The fraction is converted to an exact decimal number first, because floats are not exact:
    10 * (1 - 0.8) is 1.99….
    """
    return int(num_characters * (1 - Fraction(str(val_fraction))))


def iter_passage_ends(data: np.ndarray, num_characters: int) -> Iterator[list[int]]:
    """Yield the ends of passages of about `num_characters` as offsets in bytes, some at a time.

    `data`: (N,) uint8, text in UTF-8. A passage ends after the last blank line in its first
    `num_characters`, or else after the next blank line. It includes the line feeds that follow, so
    that joining the passages gives the text. The last end is the length of `data`. Empty data has
    no passages.
    """
    start, window_bytes, is_last = 0, WINDOW_BYTES, False
    while not is_last:
        is_last = start + window_bytes >= len(data)
        found = _find_ends_in_window(data[start : start + window_bytes], num_characters, is_last=is_last)
        if found:
            yield [start + end for end in found]
        # Continue at the last end, or with a larger window if it was too small for a passage.
        start, window_bytes = (start + found[-1], WINDOW_BYTES) if found else (start, 2 * window_bytes)
    if start < len(data):
        yield [len(data)]


def _find_ends_in_window(window: np.ndarray, num_characters: int, *, is_last: bool) -> list[int]:
    """Return the ends of the passages, except the last passage, in bytes from the window's start.

    A window that is not the last one ends inside the text. Passages whose end depends on what
    follows it are left out.
    """
    starts, ends = _find_blank_lines(window)
    start_characters, end_characters, total = _count_characters(window, starts, ends)
    if not is_last and len(ends) and ends[-1] == len(window):  # the line feeds may continue
        starts, ends, total = starts[:-1], ends[:-1], int(start_characters[-1])
        start_characters, end_characters = start_characters[:-1], end_characters[:-1]
    # For each position at which a passage can begin: the number of the blank line at which it ends.
    positions = np.append(0, end_characters)
    numbers = np.arange(len(positions))
    next_numbers = np.maximum(np.searchsorted(start_characters, positions + num_characters - 2, "right") - 1, numbers)
    found: list[int] = []
    number = 0
    while number < len(positions) and total - positions[number] > num_characters:
        blank_line = int(next_numbers[number])
        if blank_line == len(ends):
            break
        found.append(int(ends[blank_line]))
        number = blank_line + 1
    return found


def _find_blank_lines(window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ends of the runs of two or more line feeds, (B,) each.

    A run at the start of the window is left out, since it does not end a passage.
    """
    is_feed = window == LINE_FEED
    edges = np.flatnonzero(np.diff(is_feed[:-1] & is_feed[1:], prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2] + 1
    return starts[starts > 0], ends[starts > 0]


def _count_characters(window: np.ndarray, *offsets: np.ndarray) -> tuple[Any, ...]:
    """Return the numbers of characters before each of `offsets` > 0, and in the whole window."""
    is_first_byte = (window & 0xC0) != 0x80  # 0b10xxxxxx continues a character
    if is_first_byte.all():
        return *offsets, len(window)
    num_started = np.cumsum(is_first_byte, dtype=np.int32)
    return *(num_started[of_kind - 1] for of_kind in offsets), int(num_started[-1])


def _find_character(data: np.ndarray, index: int) -> int:
    """Return the offset of a character in UTF-8 bytes, given by its index, or the number of bytes."""
    for start in range(0, len(data), WINDOW_BYTES):
        is_first_byte = (data[start : start + WINDOW_BYTES] & 0xC0) != 0x80
        count = int(np.count_nonzero(is_first_byte))
        if index < count:
            return start + int(np.flatnonzero(is_first_byte)[index])
        index -= count
    return len(data)


def cut_document(
    batch: pa.RecordBatch, *, boundary: int | None, passage_characters: int | None
) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """Cut the only document of `batch` at `boundary`, and each side into passages.

    `boundary` is an offset in characters and may be outside the text. `passage_characters` is the
    approximate size of a passage. Each cut is made only if its argument is given. Yields the
    non-empty parts in reading order, some at a time, and whether they are after the boundary.
    """
    texts = batch.column("text")
    data, _ = get_text_buffers(texts)
    cut = len(data) if boundary is None else _find_character(data, max(boundary, 0))
    metadata: dict[str, Any] = {
        field.name: batch.column(field.name)[0].as_py() for field in SCHEMA if field.name != "text"
    }
    for first, stop, is_after_boundary in ((0, cut, False), (cut, len(data), True)):
        if first == stop:
            continue
        start = first
        side = data[first:stop]
        for ends in iter_passage_ends(side, passage_characters) if passage_characters else [[len(side)]]:
            edges = np.array([start - first, *ends], np.int64) + first
            parts = make_views(texts, edges).slice(1)  # the first one is the text before `start`
            yield make_batch({**metadata, "text": parts}, len(parts)), is_after_boundary
            start = int(edges[-1])
