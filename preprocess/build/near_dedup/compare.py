"""Compare the documents of runs, and join those that are similar enough to clusters.

In every run, each document is compared with the one before it and with the first. Those that are unlike the
first are a new run, which is compared in the same way. Pairs that are similar enough join their clusters,
and documents that are in one cluster already are not compared again. So the order of the runs can change
which pairs are compared, and the clusters: the runs that are connected by a chain of common documents are
compared by one task, in the order of the buckets. Other runs do not affect them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preprocess.build.duplicate_pairs import MAX_PAIRS, Pair
from preprocess.build.near_dedup.components import LINK_DTYPE, locate
from preprocess.build.near_dedup.forest import Forest
from preprocess.build.near_dedup.shingles import PLACE_DTYPE, ShingleReader
from preprocess.build.shuffle import Shuffle
from preprocess.build.work_dir import WorkDir
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import make_partial_path

MAX_FIRST_DOCUMENTS = 16  # of a run, with which the others are compared
CLUSTERED_DOCUMENTS = 1 << 20  # whose clusters are read at once

# A document of a run. The number of the run is as in RUN_DTYPE (runs.py).
ROW_DTYPE = np.dtype([("index", "<u8"), ("run", "<u8")])
# A document of the runs of a task. component: its smallest document. place: of the shingles.
MEMBER_DTYPE = np.dtype([("index", "<u8"), ("component", "<u8"), ("place", PLACE_DTYPE)])


class Found(NamedTuple):
    """The nearly equal documents that one task has found."""

    num_documents: int  # that are nearly equal to an earlier one
    pairs: list[Pair]  # examples


def compare_documents(
    rows: Shuffle, members: Shuffle, found: Shuffle, starts: np.ndarray, pieces: np.ndarray, recipe: Recipe, number: int
) -> Found:
    """Write a link to the first document of its cluster for each other document of the runs of a task.

    `rows`, `members`: of the runs, of ROW_DTYPE and MEMBER_DTYPE. `found`: the links, of LINK_DTYPE. `starts`: the
    first document of each section, (S,) uint64. `pieces`: the upper halves of the numbers of all runs, (P,) ascending.
    """
    of_task = rows.read(number)
    first_rows = next(of_task, np.empty(0, ROW_DTYPE))
    if next(of_task, None) is None:
        joined = _compare_in_memory(rows.work_dir, first_rows, members.read_all(number), recipe)
        return _write_found(joined, found, starts, number)
    folder = make_partial_path(rows.work_dir.path / f"{rows.name}-{number:05d}")
    folder.mkdir()
    try:
        return _write_found(_compare_on_disk(folder, rows, members, pieces, recipe, number), found, starts, number)
    finally:
        shutil.rmtree(folder)


class _Clusters(NamedTuple):
    documents: np.ndarray  # (M,) uint64, ascending
    forest: Forest  # of their indices


def _compare_in_memory(work_dir: WorkDir, rows: np.ndarray, members: np.ndarray, recipe: Recipe) -> _Clusters:
    """Compare the runs that do not affect each other at once: the first piece of each component, then the second."""
    documents = np.ascontiguousarray(members["index"])
    forest = Forest(np.arange(len(documents)))
    shingles = ShingleReader(work_dir, members["place"])
    indices = np.searchsorted(documents, rows["index"])
    components = np.searchsorted(documents, members["component"])[indices]
    _, runs = np.unique(rows["run"], return_inverse=True)
    # Rows of a run are in ascending order of the documents, and a stable sort keeps them so.
    order = np.argsort(components << 32 | runs, kind="stable")
    indices, components, runs = indices[order], components[order], runs[order]
    pieces = rows["run"][order] >> np.uint64(32)
    is_new_component = np.diff(components, prepend=-1) != 0
    is_new_piece = is_new_component | (np.diff(pieces, prepend=pieces[:1]) != 0)
    num_pieces = np.cumsum(is_new_piece)
    ranks = num_pieces - np.repeat(
        num_pieces[is_new_component], np.diff(np.flatnonzero(is_new_component), append=len(rows))
    )
    order = np.argsort(ranks, kind="stable")
    edges = np.searchsorted(ranks[order], np.arange(ranks.max(initial=-1) + 2))
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        of_rank = order[start:end]
        _compare_runs(indices[of_rank], runs[of_rank], forest, shingles, recipe)
    return _Clusters(documents, forest)


def _compare_on_disk(
    folder: Path, rows: Shuffle, members: Shuffle, pieces: np.ndarray, recipe: Recipe, number: int
) -> _Clusters:
    """Compare the runs of one piece of a bucket after another. The tables of the documents are mapped files."""
    num_documents = 0
    with open(folder / "documents", "wb") as documents_file, open(folder / "places", "wb") as places_file:
        for of_piece in members.read(number):
            np.ascontiguousarray(of_piece["index"]).tofile(documents_file)
            np.ascontiguousarray(of_piece["place"]).tofile(places_file)
            num_documents += len(of_piece)
    documents = np.memmap(folder / "documents", np.uint64, "r")
    shingles = ShingleReader(rows.work_dir, np.memmap(folder / "places", PLACE_DTYPE, "r"))
    links = np.memmap(folder / "links", np.int64, "w+", shape=(num_documents,))
    for start in range(0, num_documents, CLUSTERED_DOCUMENTS):
        stop = min(start + CLUSTERED_DOCUMENTS, num_documents)
        links[start:stop] = np.arange(start, stop)
    forest = Forest(links)
    by_piece = Shuffle(WorkDir(folder), "pieces", ROW_DTYPE, 1, len(pieces))
    with by_piece.open(0) as append:
        for of_piece in rows.read(number):
            of_piece["index"] = np.searchsorted(documents, of_piece["index"])
            append(of_piece, np.searchsorted(pieces, of_piece["run"] >> np.uint64(32)))
    for piece in range(len(pieces)):
        of_piece = by_piece.read_all(piece)
        if len(of_piece):
            of_piece = of_piece[np.argsort(of_piece["run"], kind="stable")]
            runs = of_piece["run"].astype(np.int64)
            _compare_runs(of_piece["index"].astype(np.int64), runs, forest, shingles, recipe)
    return _Clusters(documents, forest)


def _write_found(clusters: _Clusters, found: Shuffle, starts: np.ndarray, number: int) -> Found:
    num_found, pairs = 0, np.empty(0, LINK_DTYPE)
    with found.open(number) as append:
        for start in range(0, len(clusters.documents), CLUSTERED_DOCUMENTS):
            indices = np.arange(start, min(start + CLUSTERED_DOCUMENTS, len(clusters.documents)))
            first = clusters.forest.find_first(indices)
            is_found = first != indices
            links = np.empty(int(np.count_nonzero(is_found)), LINK_DTYPE)
            links["index"] = clusters.documents[indices[is_found]]
            links["first"] = clusters.documents[first[is_found]]
            append(links, locate(starts, links["index"]))
            num_found += len(links)
            pairs = _choose_pairs(np.concatenate([pairs, links]))
    return Found(num_found, [Pair(*pair) for pair in pairs.tolist()])


def _choose_pairs(links: np.ndarray) -> np.ndarray:
    """Return the first MAX_PAIRS links to different documents. `links`: in ascending order of the index."""
    _, rows = np.unique(links["first"], return_index=True)
    chosen: np.ndarray = links[np.sort(rows)[:MAX_PAIRS]]
    return chosen


def _compare_runs(
    documents: np.ndarray, runs: np.ndarray, forest: Forest, shingles: ShingleReader, recipe: Recipe
) -> None:
    """Join the clusters of similar documents of each run.

    `documents`, (K,) int64: run after run. `runs`, (K,): different numbers for neighbouring runs.
    """
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


def _join_similar(a: np.ndarray, b: np.ndarray, forest: Forest, shingles: ShingleReader, threshold: float) -> None:
    """Compare the documents a[i] and b[i], (K,) each, and join their clusters if they are similar enough."""
    differs = forest.find_first(a) != forest.find_first(b)
    pairs = np.unique(np.stack([np.minimum(a, b)[differs], np.maximum(a, b)[differs]], axis=1), axis=0)
    for start, stop in shingles.iter_batches(pairs):
        of_batch = pairs[start:stop]
        forest.join(*of_batch[shingles.compare(of_batch) >= threshold].T)
