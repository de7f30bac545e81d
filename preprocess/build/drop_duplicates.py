"""Drop every document that has the content of an earlier one.

A task per section writes the content hash of each document, a task per bucket finds the duplicates
among the hashes of its bucket, and a task per section drops them (shuffle.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from preprocess.build.buckets import choose_buckets, count_buckets, sort_distinct
from preprocess.build.duplicate_pairs import Pair, add_pairs, find_pairs
from preprocess.build.engines.interface import Engine
from preprocess.build.shuffle import Section, Shuffle, cut_sections, run_all
from preprocess.build.split_assignment import SplitAssignment, write_sides
from preprocess.build.work_dir import DROPPED, WorkDir
from preprocess.stages.dedup import to_uint64_halves

# h, low: the halves of the content hash; index: of the document among all documents of the build.
CONTENT_DTYPE = np.dtype([("h", "<u8"), ("low", "<u8"), ("index", "<u8")])
INDEX_DTYPE = np.dtype("<u8")


class Found(NamedTuple):
    """The duplicates of one bucket."""

    num_duplicates: int
    pairs: list[Pair]  # examples


def drop_duplicates(assignment: SplitAssignment, engine: Engine) -> None:
    """Drop every document that has the content hash of an earlier document."""
    sections = cut_sections(assignment.num_documents)
    num_buckets = count_buckets(sum(assignment.num_documents))
    starts = np.array([section.first_document for section in sections], INDEX_DTYPE)
    with (
        Shuffle(assignment.work_dir, "hashes", CONTENT_DTYPE, len(sections), num_buckets) as hashes,
        Shuffle(assignment.work_dir, "duplicates", INDEX_DTYPE, num_buckets, len(sections)) as duplicates,
    ):
        assignment.publish()
        run_all(engine, "the hashes of section", write_hashes, [(hashes, section) for section in sections])
        of_buckets = [(hashes, duplicates, starts, bucket) for bucket in range(num_buckets)]
        found = run_all(engine, "the duplicates of bucket", find_bucket_duplicates, of_buckets)
        num_duplicates = sum(of_bucket.num_duplicates for of_bucket in found)
        if num_duplicates:
            run_all(engine, "the duplicates of section", drop_found, [(duplicates, section) for section in sections])
    assignment.dropped["duplicates"] = num_duplicates
    assignment.duplicate_pairs["duplicates"] = add_pairs([], [pair for of_bucket in found for pair in of_bucket.pairs])


def write_hashes(hashes: Shuffle, section: Section) -> None:
    """Write the content hashes of the documents of a section that are not dropped."""
    rows, num_rows = np.empty(section.num_documents, CONTENT_DTYPE), 0
    for first_document, chunk in section.iter_chunks():
        kept = np.flatnonzero(hashes.work_dir.map_sides(chunk) != DROPPED)
        of_chunk = rows[num_rows : num_rows + len(kept)]
        of_chunk["h"], of_chunk["low"] = to_uint64_halves(hashes.work_dir.map_documents(chunk)["hash"][kept])
        of_chunk["index"] = kept + first_document
        num_rows += len(kept)
    rows = rows[:num_rows]
    with hashes.open(section.number) as append:
        append(rows, choose_buckets(rows["h"], hashes.num_readers))


def find_bucket_duplicates(hashes: Shuffle, duplicates: Shuffle, starts: np.ndarray, bucket: int) -> Found:
    """Write the indices of the duplicates in a bucket, and return their number and examples.

    `starts`: the first document of each section, (S,) uint64.
    """
    num_duplicates = 0
    pairs: list[Pair] = []
    texts = np.empty(0, CONTENT_DTYPE)  # the first document of each text in the pieces so far
    with duplicates.open(bucket) as append:
        for piece in hashes.read(bucket):
            rows = np.concatenate([texts, piece])
            is_duplicate = find_duplicates(rows)
            pairs = add_pairs(pairs, find_pairs(rows, is_duplicate))
            indices = rows["index"][is_duplicate]
            if len(indices):
                append(indices, np.searchsorted(starts, indices, "right") - 1)
            num_duplicates += len(indices)
            texts = rows[~is_duplicate]
    return Found(num_duplicates, pairs)


def find_duplicates(rows: np.ndarray) -> np.ndarray:
    """Return which rows have the 128-bit hash of an earlier row: (N,) bool.

    `rows`: (N,) of CONTENT_DTYPE.
    """
    order, starts = sort_distinct(rows, ("low",))
    is_duplicate = np.ones(len(rows), bool)
    is_duplicate[order[starts]] = False  # the first of equal rows
    return is_duplicate


def drop_found(duplicates: Shuffle, section: Section) -> None:
    """Drop the documents of a section whose indices were written."""
    drop_documents(duplicates.work_dir, section, duplicates.read(section.number))


def drop_documents(work_dir: WorkDir, section: Section, pieces: Iterable[np.ndarray]) -> None:
    """Drop documents of a section. `pieces`: their indices among all documents of the build, (N,) uint64 each."""
    for piece in pieces:
        indices = np.sort(piece)
        for first_document, chunk in section.iter_chunks():
            first, last = np.searchsorted(indices, (first_document, first_document + chunk.num_documents))
            if first < last:
                work_dir.map_sides(chunk)[indices[first:last] - np.uint64(first_document)] = DROPPED
    write_sides(work_dir, section)
