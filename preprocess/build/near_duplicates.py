"""Find the clusters of nearly equal documents among all documents of a build.

The problem: two documents are nearly equal if their similarity is at least `near_dedup_threshold`,
but there are too many pairs to compare, and the shingles of all documents do not fit into memory.

The idea: only documents with an equal band (stages/near_dup.py) are compared, with all their
shingles, so no document is taken for a copy by chance.

1. Write the bands of all documents to buckets on disk. Documents with an equal band are a *run* in
   a sorted bucket.
2. In every run, compare each document with the one before it and with the first. Those that
   are unlike the first are a new run, which is compared in the same way.
3. Pairs that are similar enough join their clusters. Documents that are in one cluster already
   are not compared again. The clusters are a forest with a link from each document to an earlier
   one, in a mapped file.

The result depends on the documents and their order only, not on partitions or workers.

The cost: buckets of 16 bytes for each band of each document (320 bytes with 20 bands), 16 bytes for
each document in the forest and the table of shingles, and reading the shingles of documents that
have an equal band. The memory is that of one bucket and of the shingles that are compared at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess.build.buckets import Buckets, sort_distinct
from preprocess.build.duplicate_pairs import MAX_PAIRS, Pair, add_pairs
from preprocess.build.forest import Forest
from preprocess.build.near_groups import join_groups
from preprocess.build.similarity import ShingleFile, compute_large_similarity, compute_similarities
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import DROPPED, Chunk, WorkDir, iter_chunks
from preprocess.recipes.schema import Recipe
from preprocess.stages.dedup import to_uint64_halves
from preprocess.stages.near_dup import LOW_BITS

BAND_DTYPE = np.dtype([("h", "<u8"), ("index", "<u8")])  # index: of the document among all documents of the build
FOREST_BYTES = 16  # of disk for each document: a link to an earlier one, and the place of its shingles
MAX_FIRST_DOCUMENTS = 16  # of a run, with which the others are compared
COMPARED_SHINGLES = 1 << 21  # at once
LINKED_DOCUMENTS = 1 << 20  # whose links are written at once


def find_clusters(recipe: Recipe, assignment: SplitAssignment) -> Forest:
    """Return the clusters of the documents that are not dropped.

    Documents are numbered across partitions, in reading order.
    """
    work_dir, num_documents = assignment.work_dir, assignment.num_documents
    forest = Forest(_map_links(work_dir.path / "clusters", sum(num_documents)))
    shingles = _ShingleReader(work_dir, num_documents)
    num_rows = sum(num_documents) * recipe.near_dedup_bands
    with Buckets(work_dir.path, "bands", BAND_DTYPE, num_rows) as buckets:
        for rows in _iter_band_rows(assignment, recipe.near_dedup_bands):
            buckets.append(rows)
        for pieces in buckets:
            first_of_runs = np.empty(0, BAND_DTYPE)  # the first document of each run in the pieces so far
            for piece in pieces:
                rows = np.concatenate([first_of_runs, piece])
                order, starts = sort_distinct(rows, ())
                _compare_runs(rows["index"][order].astype(np.int64), starts, forest, shingles, recipe)
                first_of_runs = rows[order[starts]]
    return forest


def _map_links(path: Path, num_documents: int) -> np.ndarray:
    """Return the numbers of the documents, (N,) int64, in a new mapped file, as they may not fit into memory."""
    links = np.memmap(path, np.int64, "w+", shape=(num_documents,))
    for start in range(0, num_documents, LINKED_DOCUMENTS):
        stop = min(start + LINKED_DOCUMENTS, num_documents)
        links[start:stop] = np.arange(start, stop)
    return links


def _iter_band_rows(assignment: SplitAssignment, num_bands: int) -> Iterator[np.ndarray]:
    first_index = 0
    for chunk, sides in assignment.chunks():
        is_compared = (sides != DROPPED) & (assignment.work_dir.map_num_shingles(chunk) > 0)
        kept = np.flatnonzero(is_compared)
        rows = np.empty((len(kept), num_bands), BAND_DTYPE)
        rows["h"] = assignment.work_dir.map_bands(chunk, num_bands)[kept]
        rows["index"] = (kept + first_index)[:, None]
        yield rows.reshape(-1)
        first_index += chunk.num_documents


def _compare_runs(
    documents: np.ndarray, starts: np.ndarray, forest: Forest, shingles: _ShingleReader, recipe: Recipe
) -> None:
    """Join the clusters of similar documents of each run.

    `documents`, (K,) int64: run after run. `starts`, (R,): the first row of each run.
    """
    runs = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(documents)))
    neighbours = np.flatnonzero(runs[1:] == runs[:-1])
    a, b = documents[neighbours], documents[neighbours + 1]
    _join_similar(a, b, forest, shingles, recipe.near_dedup_threshold)
    for _ in range(MAX_FIRST_DOCUMENTS):
        is_first = np.diff(runs, prepend=-1) != 0
        first = documents[is_first][np.cumsum(is_first) - 1]  # of the run of each document
        _join_similar(documents, first, forest, shingles, recipe.near_dedup_threshold)
        is_other = forest.find_first(documents) != forest.find_first(first)
        documents, runs = documents[is_other], runs[is_other]
        if len(documents) < 2:
            break


def _join_similar(a: np.ndarray, b: np.ndarray, forest: Forest, shingles: _ShingleReader, threshold: float) -> None:
    """Compare the documents a[i] and b[i], (K,) each, and join their clusters if they are similar enough."""
    differs = forest.find_first(a) != forest.find_first(b)
    pairs = np.unique(np.stack([np.minimum(a, b)[differs], np.maximum(a, b)[differs]], axis=1), axis=0)
    for start, stop in shingles.iter_batches(pairs):
        of_batch = pairs[start:stop]
        forest.join(*of_batch[shingles.compare(of_batch) >= threshold].T)


class _ShingleReader:
    """Reads the shingles of documents, which are numbered across partitions."""

    def __init__(self, work_dir: WorkDir, num_documents: list[int]) -> None:
        self._work_dir = work_dir
        self._first_documents = np.cumsum([0, *num_documents])  # of each partition
        # The place of document i in its partition's file of shingles. A mapped file, as it may not fit into memory.
        path = work_dir.path / "shingle_ends"
        self._ends = np.memmap(path, np.int64, "w+", shape=(max(sum(num_documents), 1),))
        for chunk in iter_chunks(num_documents):
            first = self._first_documents[chunk.partition] + chunk.first
            before = self._ends[first - 1] if chunk.first else 0
            ends = np.cumsum(work_dir.map_num_shingles(chunk), dtype=np.int64)
            self._ends[first : first + chunk.num_documents] = before + ends

    def _locate(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the partition of each document, and the start and end of its shingles in the partition's file."""
        partitions = np.searchsorted(self._first_documents, documents, "right") - 1
        is_first = documents == self._first_documents[partitions]
        starts = np.where(is_first, 0, self._ends[documents - 1])
        return partitions, starts, np.asarray(self._ends[documents])

    def iter_batches(self, pairs: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of consecutive pairs that have about COMPARED_SHINGLES shingles. `pairs`: (P, 2)."""
        if not len(pairs):
            return
        _, starts, ends = self._locate(pairs.reshape(-1))
        totals = np.cumsum((ends - starts).reshape(-1, 2).sum(axis=1))
        start = 0
        while start < len(pairs):
            before = int(totals[start - 1]) if start else 0
            stop = max(int(np.searchsorted(totals, before + COMPARED_SHINGLES, "right")), start + 1)
            yield start, stop
            start = stop

    def compare(self, pairs: np.ndarray) -> np.ndarray:
        """Return the similarities of the documents of a batch of pairs, (P, 2): (P,) float64."""
        if len(pairs) == 1:
            partitions, starts, ends = self._locate(pairs[0])
            if (ends - starts).sum() > COMPARED_SHINGLES:
                paths = [self._work_dir.file(partition, "shingles") for partition in partitions.tolist()]
                sets = [ShingleFile(*place) for place in zip(paths, starts.tolist(), ends.tolist(), strict=True)]
                return np.array([compute_large_similarity(*sets)])
        return compute_similarities(*self._read_pairs(pairs), len(pairs))

    def _read_pairs(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the different shingles of both documents of each pair, for `compute_similarities`."""
        documents, rows = np.unique(pairs, return_inverse=True)
        keys = self._read_sets(documents)
        edges = np.searchsorted(keys, np.arange(len(documents) + 1, dtype=np.uint64) << np.uint64(32))
        rows = rows.reshape(pairs.shape)
        return _number_sets(keys, edges, rows[:, 0]), _number_sets(keys, edges, rows[:, 1])

    def _read_sets(self, documents: np.ndarray) -> np.ndarray:
        """Return the different shingles of each document in ascending order, as keys with the document's row.

        `documents`: (K,), ascending. Returns (N,) uint64, the row in the upper 32 bits.
        """
        partitions, starts, ends = self._locate(documents)
        parts: list[np.ndarray] = []
        for partition in np.unique(partitions).tolist():
            mapped = np.asarray(np.memmap(self._work_dir.file(partition, "shingles"), np.uint32, "r"))
            rows = np.flatnonzero(partitions == partition)
            places = zip(starts[rows].tolist(), ends[rows].tolist(), strict=True)
            parts.append(np.concatenate([mapped[start:end] for start, end in places]))
        keys = np.repeat(np.arange(len(documents), dtype=np.uint64) << np.uint64(32), ends - starts)
        keys |= np.concatenate(parts)
        keys.sort()
        return keys[np.diff(keys, prepend=keys[:1] ^ np.uint64(1)) != 0]


def _number_sets(keys: np.ndarray, edges: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the sets of the given rows, (P,), one after another, with their new numbers in the upper 32 bits.

    Set i is `keys[edges[i] : edges[i + 1]]`.
    """
    sizes = (edges[1:] - edges[:-1])[rows]
    ends = np.cumsum(sizes)
    selected: np.ndarray = keys[np.repeat(edges[rows] - ends + sizes, sizes) + np.arange(sizes.sum())] & LOW_BITS
    selected |= np.repeat(np.arange(len(rows), dtype=np.uint64) << np.uint64(32), sizes)
    return selected


def iter_near_duplicates(
    assignment: SplitAssignment, clusters: Forest
) -> Iterator[tuple[Chunk, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (chunk, sides, rows, first) for the documents that are nearly equal to an earlier one.

    `sides`, (D,) int8, writable: of the documents of the chunk. `rows`, (K,) int64: which of them are nearly equal to
    an earlier one. `first`, (K,) int64: the first documents of their clusters, numbered across partitions. The first
    pairs are kept in `assignment`, as examples.
    """
    first_index, pairs = 0, assignment.duplicate_pairs.setdefault("near_duplicates", [])
    for chunk, sides in assignment.chunks():
        documents = np.arange(first_index, first_index + chunk.num_documents)
        first = clusters.find_first(documents)
        rows = np.flatnonzero(first != documents)
        if len(rows):
            if len(pairs) < MAX_PAIRS:
                found = zip(documents[rows].tolist(), first[rows].tolist(), strict=True)
                pairs[:] = add_pairs(pairs, [Pair(*pair) for pair in found])
            yield chunk, sides, rows, first[rows]
        first_index += chunk.num_documents


def drop_near_duplicates(assignment: SplitAssignment, clusters: Forest) -> None:
    """Drop every document that is not the first of its cluster."""
    assignment.dropped["near_duplicates"] = 0
    for _, sides, rows, _ in iter_near_duplicates(assignment, clusters):
        sides[rows] = DROPPED
        assignment.dropped["near_duplicates"] += len(rows)


def group_near_duplicates(assignment: SplitAssignment, clusters: Forest) -> None:
    """Join the groups of all documents of each cluster, so that they are on one side of the split."""
    num_near_duplicates, edges = 0, []
    for chunk, _, rows, first in iter_near_duplicates(assignment, clusters):
        groups = assignment.work_dir.map_documents(chunk)[assignment.group_column][rows]
        edges.append((to_uint64_halves(groups)[0], _read_group_keys(assignment, first)))
        num_near_duplicates += len(rows)
    assignment.near_groups = join_groups(edges, assignment.work_dir.path / "near_groups.table")
    assignment.num_near_duplicates = num_near_duplicates


def _read_group_keys(assignment: SplitAssignment, documents: np.ndarray) -> np.ndarray:
    """Return the upper half of the group hash of each of (K,) documents, numbered across partitions: (K,) uint64."""
    keys, first_index = np.empty(len(documents), np.uint64), 0
    order = np.argsort(documents)
    for chunk in iter_chunks(assignment.num_documents):
        start, stop = np.searchsorted(documents[order], (first_index, first_index + chunk.num_documents))
        if start < stop:
            rows = order[start:stop]
            table = assignment.work_dir.map_documents(chunk)
            keys[rows], _ = to_uint64_halves(table[assignment.group_column][documents[rows] - first_index])
        first_index += chunk.num_documents
    return keys
