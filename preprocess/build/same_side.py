"""Put documents with the same text on one side of the split, that of the first of them.

A task per section writes the content hash and the side of each document, a task per bucket finds the
documents that are on another side than the first with their text, and a task per section moves them
(shuffle.py).
"""

from __future__ import annotations

import numpy as np

from preprocess.build.buckets import choose_buckets, count_buckets, sort_distinct
from preprocess.build.engines.interface import Engine
from preprocess.build.shuffle import Section, Shuffle, cut_sections, run_all
from preprocess.build.split_assignment import SplitAssignment, write_sides
from preprocess.build.work_dir import DROPPED
from preprocess.stages.dedup import to_uint64_halves

# h, low: the halves of a content hash; index: of the document among all documents; side: TRAIN or VAL.
TEXT_DTYPE = np.dtype([("h", "<u8"), ("low", "<u8"), ("index", "<u8"), ("side", "<u8")])
MOVE_DTYPE = np.dtype([("index", "<u8"), ("side", "<u8")])  # a document, and its new side


def keep_texts_together(assignment: SplitAssignment, engine: Engine) -> None:
    """Move each document to the side of the first document with the same text."""
    work_dir, sections = assignment.work_dir, cut_sections(assignment.num_documents)
    num_buckets = count_buckets(sum(assignment.num_documents))
    starts = np.array([section.first_document for section in sections], np.uint64)
    with (
        Shuffle(work_dir, "sides", TEXT_DTYPE, len(sections), num_buckets) as texts,
        Shuffle(work_dir, "moves", MOVE_DTYPE, num_buckets, len(sections)) as moves,
    ):
        assignment.publish()
        run_all(engine, "the sides of section", write_sides_of_texts, [(texts, section) for section in sections])
        of_buckets = [(texts, moves, starts, bucket) for bucket in range(num_buckets)]
        run_all(engine, "the sides of bucket", write_moves, of_buckets)
        run_all(engine, "the sides of section", move_documents, [(moves, section) for section in sections])
    assignment.num_leaks = 0


def write_sides_of_texts(texts: Shuffle, section: Section) -> None:
    """Write the content hash and the side of each document of a section that is not dropped."""
    with texts.open(section.number) as append:
        for first_document, chunk in section.iter_chunks():
            sides = texts.work_dir.map_sides(chunk)
            kept = np.flatnonzero(sides != DROPPED)
            rows = np.empty(len(kept), TEXT_DTYPE)
            rows["h"], rows["low"] = to_uint64_halves(texts.work_dir.map_documents(chunk)["hash"][kept])
            rows["index"], rows["side"] = kept + first_document, sides[kept]
            append(rows, choose_buckets(rows["h"], texts.num_readers))


def write_moves(texts: Shuffle, moves: Shuffle, starts: np.ndarray, bucket: int) -> None:
    """Write the documents of a bucket that are to move. `starts`: the first document of each section, (S,) uint64."""
    first_of_texts = np.empty(0, TEXT_DTYPE)  # the first document of each text in the pieces so far
    with moves.open(bucket) as append:
        for piece in texts.read(bucket):
            rows = np.concatenate([first_of_texts, piece])
            order, firsts = sort_distinct(rows, ("low",))
            first_of_texts = rows[order[firsts]]
            wanted = np.repeat(first_of_texts["side"], np.diff(firsts, append=len(order)))
            is_moved = rows["side"][order] != wanted
            found = np.empty(int(np.count_nonzero(is_moved)), MOVE_DTYPE)
            found["index"], found["side"] = rows["index"][order[is_moved]], wanted[is_moved]
            append(found, np.searchsorted(starts, found["index"], "right") - 1)


def move_documents(moves: Shuffle, section: Section) -> None:
    """Move the documents of a section that were written to their new sides."""
    for piece in moves.read(section.number):
        rows = piece[np.argsort(piece["index"])]
        for first_document, chunk in section.iter_chunks():
            first, last = np.searchsorted(rows["index"], (first_document, first_document + chunk.num_documents))
            if first < last:
                indices = rows["index"][first:last] - np.uint64(first_document)
                moves.work_dir.map_sides(chunk)[indices] = rows["side"][first:last]
    write_sides(moves.work_dir, section)
