"""Find the documents that have an equal band, in tasks: the *runs* of a sorted bucket of bands.

A task per section writes the bands of its documents, and a task per bucket sorts them and keeps the
bands that several documents have. Most documents have none, so all later tasks read few rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from preprocess.build.buckets import choose_buckets, sort_distinct
from preprocess.build.shuffle import BUFFER_ROWS, Section, Shuffle
from preprocess.build.work_dir import DROPPED, cut_chunk

BAND_DTYPE = np.dtype([("h", "<u8"), ("index", "<u8")])  # index: of the document among all documents of the build
# A document of a run, and the first document of the run. The number of a run has its bucket and its piece of the bucket
# in the upper 32 bits, so runs are in the order in which one process would find them.
RUN_DTYPE = np.dtype([("index", "<u8"), ("first", "<u8"), ("run", "<u8")])
PIECE_BITS = 20


class RunCounts(NamedTuple):
    """The numbers of rows of runs and of pieces in one bucket."""

    num_rows: int
    num_pieces: int


def write_bands(bands: Shuffle, num_bands: int, section: Section) -> list[int]:
    """Write the bands of the documents of a section that are not dropped and have shingles.

    Returns the number of shingles of each of `section.chunks`, those of dropped documents included.
    """
    num_shingles = [0] * len(section.chunks)
    rows_of_partition = {chunk.partition: i for i, chunk in enumerate(section.chunks)}
    with bands.open(section.number) as append:
        for first_document, whole in section.iter_chunks():
            for chunk in cut_chunk(whole, max(BUFFER_ROWS // num_bands, 1)):
                counts = bands.work_dir.map_num_shingles(chunk)
                num_shingles[rows_of_partition[chunk.partition]] += int(counts.sum(dtype=np.int64))
                kept = np.flatnonzero((bands.work_dir.map_sides(chunk) != DROPPED) & (counts > 0))
                rows = np.empty((len(kept), num_bands), BAND_DTYPE)
                rows["h"] = bands.work_dir.map_bands(chunk, num_bands)[kept]
                rows["index"] = (kept + (first_document + chunk.first - whole.first))[:, None]
                append(rows.reshape(-1), choose_buckets(rows["h"].reshape(-1), bands.num_readers))
    return num_shingles


def write_runs(bands: Shuffle, runs: Shuffle, starts: np.ndarray, bucket: int) -> RunCounts:
    """Write the documents of each run in a bucket to their sections.

    A document of a bucket that has more than one piece may be in the runs of several pieces: the first document of each
    run is compared with those of the following pieces, too. `starts`: the first document of each section, (S,) uint64.
    """
    # The rows of the pieces so far, their order, and where in it each run begins. Only the first row of a run is kept.
    rows, order, firsts = np.empty(0, BAND_DTYPE), np.empty(0, np.int64), np.empty(0, np.int64)
    num_rows = num_pieces = 0
    with runs.open(bucket) as append:
        for piece in bands.read(bucket):
            rows = np.concatenate([rows[order[firsts]], piece])
            order, firsts = sort_distinct(rows, ())
            found = _select_runs(rows["index"][order], firsts, bucket << PIECE_BITS | num_pieces)
            append(found, np.searchsorted(starts, found["index"], "right") - 1)
            num_rows, num_pieces = num_rows + len(found), num_pieces + 1
    return RunCounts(num_rows, num_pieces)


def _select_runs(documents: np.ndarray, firsts: np.ndarray, piece: int) -> np.ndarray:
    """Return the rows of runs of at least two documents: (R,) of RUN_DTYPE.

    `documents`, (K,) uint64: run after run. `firsts`, (G,): the first row of each run.
    """
    sizes = np.diff(firsts, append=len(documents))
    is_run = sizes > 1
    firsts, sizes = firsts[is_run], sizes[is_run]
    ends = np.cumsum(sizes)
    rows = np.repeat(firsts - ends + sizes, sizes) + np.arange(sizes.sum())
    found = np.empty(len(rows), RUN_DTYPE)
    found["index"], found["first"] = documents[rows], np.repeat(documents[firsts], sizes)
    found["run"] = np.repeat(np.arange(len(firsts), dtype=np.uint64) | np.uint64(piece << 32), sizes)
    return found
