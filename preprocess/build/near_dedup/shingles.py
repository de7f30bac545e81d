"""Read the shingles of documents and compare them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from preprocess.build.near_dedup.similarity import ShingleFile, compute_large_similarity, compute_similarities
from preprocess.build.shuffle import Section
from preprocess.build.work_dir import WorkDir
from preprocess.stages.near_dup import LOW_BITS

COMPARED_SHINGLES = 1 << 21  # at once
# The shingles of a document: `count` of them from `start`, in the file of its partition.
PLACE_DTYPE = np.dtype([("start", "<u8"), ("partition", "<u4"), ("count", "<u4")])


def locate_shingles(work_dir: WorkDir, section: Section, starts: list[int]) -> np.ndarray:
    """Return the places of the shingles of the documents of a section: (D,) of PLACE_DTYPE.

    `starts`: of each of `section.chunks`, in the file of its partition.
    """
    places, row = np.empty(section.num_documents, PLACE_DTYPE), 0
    for chunk, start in zip(section.chunks, starts, strict=True):
        of_chunk = places[row : row + chunk.num_documents]
        of_chunk["partition"], of_chunk["count"] = chunk.partition, work_dir.map_num_shingles(chunk)
        ends = np.cumsum(of_chunk["count"], dtype=np.uint64)
        of_chunk["start"] = ends - of_chunk["count"] + np.uint64(start)
        row += chunk.num_documents
    return places


class ShingleReader:
    """Reads the shingles of documents, which are numbered from 0."""

    def __init__(self, work_dir: WorkDir, places: np.ndarray) -> None:
        """`places`, (N,) of PLACE_DTYPE: of each document."""
        self._work_dir, self._places = work_dir, places

    def _locate(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the partition of each document, and the start and end of its shingles in the partition's file."""
        places = np.asarray(self._places[documents])
        starts = places["start"].astype(np.int64)
        return places["partition"], starts, starts + places["count"]

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
