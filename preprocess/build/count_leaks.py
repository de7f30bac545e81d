"""Counts the texts that are in both splits, which would make the validation loss too low.

After deduplication each text occurs once, and if all documents are grouped by their content, equal
texts are on the same side. In all other builds a text may be on both sides. To count such texts, a
task per section writes the content hash and the side of each document, and a task per bucket sorts
them (shuffle.py).
"""

from __future__ import annotations

import numpy as np

from preprocess.build.buckets import choose_buckets, count_buckets, sort_distinct
from preprocess.build.engines.interface import Engine
from preprocess.build.shuffle import Section, Shuffle, cut_sections, run_all
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import DROPPED
from preprocess.documents import TRAIN, VAL
from preprocess.errors import format_quantity
from preprocess.stages.dedup import to_uint64_halves

# h, low: the halves of a content hash; sides: bits TRAIN and VAL are set if a document with this hash is there.
SIDES_DTYPE = np.dtype([("h", "<u8"), ("low", "<u8"), ("sides", "<u8")])
LEAK_ADVICE = "pass --dedup to keep each text only once"
BOTH_SIDES = 1 << TRAIN | 1 << VAL


def count_leaks(assignment: SplitAssignment, engine: Engine) -> int:
    """Return how many distinct texts are in both splits. Dropped documents are not counted."""
    sections = cut_sections(assignment.num_documents)
    num_buckets = count_buckets(assignment.count_kept())
    with Shuffle(assignment.work_dir, "leaks", SIDES_DTYPE, len(sections), num_buckets) as texts:
        assignment.publish()
        run_all(engine, "the texts of section", write_texts, [(texts, section) for section in sections])
        of_buckets = [(texts, bucket) for bucket in range(num_buckets)]
        return sum(run_all(engine, "the texts of bucket", count_bucket_leaks, of_buckets))


def write_texts(texts: Shuffle, section: Section) -> None:
    """Write the content hash and the side of each document of a section that is not dropped."""
    with texts.open(section.number) as append:
        for _, chunk in section.iter_chunks():
            sides = texts.work_dir.map_sides(chunk)
            is_kept = sides != DROPPED
            rows = np.empty(int(np.count_nonzero(is_kept)), SIDES_DTYPE)
            rows["h"], rows["low"] = to_uint64_halves(texts.work_dir.map_documents(chunk)["hash"][is_kept])
            rows["sides"] = 1 << sides[is_kept].astype(np.uint64)
            append(rows, choose_buckets(rows["h"], texts.num_readers))


def count_bucket_leaks(texts: Shuffle, bucket: int) -> int:
    """Return how many distinct texts of a bucket are in both splits."""
    found = np.empty(0, SIDES_DTYPE)  # one row for each text in the pieces so far
    for rows in texts.read(bucket):
        found = _merge_equal(np.concatenate([found, rows]))
    return int(np.count_nonzero(found["sides"] == BOTH_SIDES))


def describe_leaks(num_leaks: int, advice: str = LEAK_ADVICE) -> str:
    """Return the warning about `num_leaks` > 0 texts that are in both splits. `advice`: what to do."""
    return (
        f"{format_quantity(num_leaks, 'text')} {'is' if num_leaks == 1 else 'are'} in both train and val, so the "
        f"validation loss will be too low; {advice}"
    )


def _merge_equal(rows: np.ndarray) -> np.ndarray:
    """Merge rows with the same hash into one with the sides of all. `rows` must not be empty."""
    order, starts = sort_distinct(rows, ("low",))
    merged = rows[order[starts]]
    merged["sides"] = np.bitwise_or.reduceat(rows["sides"][order], starts)
    return merged
