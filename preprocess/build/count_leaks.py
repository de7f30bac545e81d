"""Counts the texts that are in both splits, which would make the validation loss too low.

After deduplication each text occurs once, and if all documents are grouped by their content, equal
texts are on the same side. In all other builds a text may be on both sides. To count such texts,
the content hashes of all documents, each with its side, are sorted in buckets (buckets.py).
"""

from __future__ import annotations

import numpy as np

from preprocess.build.buckets import Buckets, sort_distinct
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import DROPPED
from preprocess.documents import TRAIN, VAL
from preprocess.errors import format_quantity
from preprocess.stages.dedup import to_uint64_halves

# h, low: the halves of a content hash; sides: bits TRAIN and VAL are set if a document with this hash is there.
SIDES_DTYPE = np.dtype([("h", "<u8"), ("low", "<u8"), ("sides", "<u8")])
BOTH_SIDES = 1 << TRAIN | 1 << VAL


def count_leaks(assignment: SplitAssignment) -> int:
    """Return how many distinct texts are in both splits. Dropped documents are not counted."""
    num_leaks = 0
    with Buckets(assignment.work_dir.path, "leaks", SIDES_DTYPE, assignment.count_kept()) as buckets:
        for chunk, sides in assignment.chunks():
            is_kept = sides != DROPPED
            rows = np.empty(int(np.count_nonzero(is_kept)), SIDES_DTYPE)
            rows["h"], rows["low"] = to_uint64_halves(assignment.work_dir.map_documents(chunk)["hash"][is_kept])
            rows["sides"] = 1 << sides[is_kept].astype(np.uint64)
            buckets.append(rows)
        for pieces in buckets:
            texts = np.empty(0, SIDES_DTYPE)  # one row for each text in the pieces so far
            for rows in pieces:
                texts = _merge_equal(np.concatenate([texts, rows]))
            num_leaks += int(np.count_nonzero(texts["sides"] == BOTH_SIDES))
    return num_leaks


def describe_leaks(num_leaks: int) -> str:
    """Return the warning about `num_leaks` > 0 texts that are in both splits."""
    return (
        f"{format_quantity(num_leaks, 'text')} {'is' if num_leaks == 1 else 'are'} in both train and val, so the "
        "validation loss will be too low; pass --dedup to keep each text only once"
    )


def _merge_equal(rows: np.ndarray) -> np.ndarray:
    """Merge rows with the same hash into one with the sides of all. `rows` must not be empty."""
    order, starts = sort_distinct(rows, ("low",))
    merged = rows[order[starts]]
    merged["sides"] = np.bitwise_or.reduceat(rows["sides"][order], starts)
    return merged
