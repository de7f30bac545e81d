"""Decide the side of the split of each group, and cut long texts into two sides or into passages.

The problem: the validation documents should be a random sample, but the sample must not depend on
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
characters, as in nanoGPT. With `document = "passage"` a text is cut at blank lines.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.documents import SCHEMA, make_batch
from preprocess.shards.permutation import keyed_hash
from preprocess.stages.dedup import to_uint64_halves

# h: the keyed hash that decides the side; high, low: the 128 bits of the group's hash, for ties.
GROUP_DTYPE = np.dtype([("h", "<u8"), ("high", "<u8"), ("low", "<u8")])

BLANK_LINE = "\n\n"


def key_groups(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Return one record for each group hash in `hashes`, (D, 16) uint8: (D,) of GROUP_DTYPE."""
    groups = np.empty(len(hashes), GROUP_DTYPE)
    high, low = to_uint64_halves(hashes)
    groups["h"], groups["high"], groups["low"] = keyed_hash(seed, high ^ keyed_hash(seed, low)), high, low
    return groups


def is_below_threshold(keys: np.ndarray, fraction: float) -> np.ndarray:
    """Return which keyed hashes, (D,) uint64, are below `fraction` of 2**64: (D,) bool."""
    is_below_threshold: np.ndarray = keys < np.uint64(Fraction(str(fraction)) * 2**64)
    return is_below_threshold


def compute_contiguous_cut(num_characters: int, val_fraction: float) -> int:
    """Return how many of `num_characters` are used for training, rounded down as in nanoGPT.

    The fraction is converted to an exact decimal number first, because floats are not exact:
    10 * (1 - 0.8) is 1.99….
    """
    return int(num_characters * (1 - Fraction(str(val_fraction))))


def find_passage_ends(text: str, num_characters: int) -> list[int]:
    """Return the ends of passages of about `num_characters` as offsets in characters.

    A passage ends after the last blank line in its first `num_characters`, or else after the next
    blank line. It includes the line feeds that follow, so that joining the passages gives `text`.
    The last end is the length of `text`.
    """
    ends, start = [], 0
    while len(text) - start > num_characters:
        begin = _skip_line_feeds(text, start)  # blank lines at the start of the text do not end a passage
        cut = text.rfind(BLANK_LINE, begin, start + num_characters)
        if cut < 0:
            cut = text.find(BLANK_LINE, max(begin, start + num_characters - 1))
        if cut < 0:
            break
        start = _skip_line_feeds(text, cut)
        ends.append(start)
    return ends if ends and ends[-1] == len(text) else [*ends, len(text)]


def _skip_line_feeds(text: str, start: int) -> int:
    while start < len(text) and text[start] == "\n":
        start += 1
    return start


def cut_document(
    batch: pa.RecordBatch, *, boundary: int | None, passage_characters: int | None
) -> tuple[pa.RecordBatch, np.ndarray]:
    """Cut the only document of `batch` at `boundary`, and each side into passages.

    `boundary` is an offset in characters and may be outside the text. `passage_characters` is the
    approximate size of a passage. Each cut is made only if its argument is given. Returns the D
    non-empty parts in reading order, and which of them are after the boundary: (D,) bool.
    """
    text = batch.column("text")[0].as_py()
    boundary = len(text) if boundary is None else min(max(boundary, 0), len(text))
    parts: list[str] = []
    is_after_boundary: list[bool] = []
    for side, is_after in ((text[:boundary], False), (text[boundary:], True)):
        if not side:
            continue
        start = 0
        for end in find_passage_ends(side, passage_characters) if passage_characters else [len(side)]:
            parts.append(side[start:end])
            is_after_boundary.append(is_after)
            start = end
    columns: dict[str, Any] = {
        field.name: batch.column(field.name)[0].as_py() for field in SCHEMA if field.name != "text"
    }
    new_batch = make_batch({**columns, "text": pa.array(parts, pa.large_string())}, len(parts))
    return new_batch, np.array(is_after_boundary, bool)
