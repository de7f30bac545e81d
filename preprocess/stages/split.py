"""Where a text is cut: `contiguous`, once, at its share of characters; and in passages, at blank lines."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.documents import SCHEMA, make_batch
from preprocess.shards.windows import keyed_hash
from preprocess.stages.dedup import two_halves

GROUP = np.dtype([("h", "<u8"), ("high", "<u8"), ("low", "<u8")])

BLANK_LINE = "\n\n"


def contiguous_cut(num_characters: int, val_fraction: float) -> int:
    """How many of `num_characters` train: the floor of their share, in exact arithmetic, as nanoGPT cuts."""
    return int(num_characters * (1 - Fraction(str(val_fraction))))


def passage_ends(text: str, num_characters: int) -> list[int]:
    """Ends of passages of about `num_characters`, in characters; the last is the end of `text`.

    A passage ends behind the last blank line within its first `num_characters`, else behind the next one, and takes
    all of the blank lines with it: joined, the passages are `text`.
    """
    ends, start = [], 0
    while len(text) - start > num_characters:
        begin = _skip_line_feeds(text, start)  # blank lines at the very front are no passage of their own
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
    """The one document of `batch` cut at `boundary`, a number of characters of which any may be, and in passages; either None for not.

    Returns the spans in reading order, and for each whether it is behind the boundary: (D,) bool. A side without a character gives none.
    """
    text = batch.column("text")[0].as_py()
    boundary = len(text) if boundary is None else min(max(boundary, 0), len(text))
    spans: list[str] = []
    is_behind: list[bool] = []
    for side, behind in ((text[:boundary], False), (text[boundary:], True)):
        start = 0
        for end in (passage_ends(side, passage_characters) if passage_characters else [len(side)]) if side else []:
            spans.append(side[start:end])
            is_behind.append(behind)
            start = end
    columns: dict[str, Any] = {
        field.name: batch.column(field.name)[0].as_py() for field in SCHEMA if field.name != "text"
    }
    return make_batch({**columns, "text": pa.array(spans, pa.large_string())}, len(spans)), np.array(is_behind, bool)


def keyed_groups(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Groups' hashes, (D, 16) uint8, as (D,) GROUP: the keyed hash that they are drawn by, then their own 128 bits."""
    groups = np.empty(len(hashes), GROUP)
    high, low = two_halves(hashes)
    groups["h"], groups["high"], groups["low"] = keyed_hash(seed, high ^ keyed_hash(seed, low)), high, low
    return groups


def is_below(keys: np.ndarray, fraction: float) -> np.ndarray:
    """Which keyed hashes, (D,) uint64, validate in a split by threshold: (D,) bool."""
    below: np.ndarray = keys < np.uint64(Fraction(str(fraction)) * 2**64)
    return below
