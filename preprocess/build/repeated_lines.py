"""Find the lines or paragraphs that several documents of a build have, before the documents are prepared.

The problem: whether a line is repeated is known only after all documents have been read, but a
document must be without it when it is hashed and encoded.

The idea: read all documents twice. A first pass writes the hashes of their units, each with the
number of documents that have it. They are sorted in buckets on the disk (shuffle.py), and the hashes
of the repeated units go to a file, with the first document that has the unit. In the second pass,
`prepare`, each unit is looked up in this file, which all workers map.

The cost: the input is read, cleaned and filtered twice. Each distinct unit of a part of a partition takes
40 bytes of disk: a row of 20 bytes in the file of the partition, and one in a bucket. The memory is
that of one bucket.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from preprocess.build.buckets import choose_buckets, count_buckets, sort_distinct
from preprocess.build.receipts import PrepareReceipt
from preprocess.build.shuffle import Shuffle
from preprocess.build.work_dir import HashedFile, WorkDir
from preprocess.chats.marked_text import get_plain_texts
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import JsonObject
from preprocess.stages.pipeline import Documents
from preprocess.stages.repeated_lines import UnitRemover, Units, iter_units

# index: of the first document with the unit, in the partition or among all documents. count: of the documents.
UNIT_DTYPE = np.dtype([("h", "<u8"), ("index", "<u8"), ("count", "<u4")])
LINES_SUFFIX = "lines"  # rows of UNIT_DTYPE
REPEATED_FILES = ("repeated.hashes", "repeated.first", "repeated.starts")
NO_DOCUMENT = (1 << 64) - 1  # the unit is removed from all documents
MAX_ROWS = 1 << 20  # collected before they are written, and read at once


def write_units(documents: Documents, recipe: Recipe, file: HashedFile) -> int:
    """Write the units of `documents` to `file`, and return the number of documents."""
    num_documents, parts, num_rows = 0, [], 0
    for batch, _ in documents:
        for units in _iter_units(batch, recipe):
            parts.append((units.hashes, units.documents + num_documents))
            num_rows += len(units)
        num_documents += batch.num_rows
        del batch
        if num_rows >= MAX_ROWS:
            file.write(_count_units(parts))
            parts, num_rows = [], 0
    if parts:
        file.write(_count_units(parts))
    return num_documents


def _iter_units(batch: pa.RecordBatch, recipe: Recipe) -> Iterator[Units]:
    assert recipe.dedup_lines is not None
    texts = get_plain_texts(batch.column("text"), has_chats=False)
    return iter_units(texts, recipe.dedup_lines, recipe.dedup_lines_min_characters)


def _count_units(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return a row for each distinct unit: (R,) of UNIT_DTYPE. `parts`: hashes and documents of units."""
    hashes, documents = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.lexsort((documents, hashes))
    hashes, documents = hashes[order], documents[order]
    is_new_hash = np.diff(hashes, prepend=~hashes[:1]) != 0
    is_new = is_new_hash | (np.diff(documents, prepend=-1) != 0)  # a document may repeat a unit
    hashes, documents = hashes[is_new], documents[is_new]
    starts = np.flatnonzero(is_new_hash[is_new])
    rows = np.empty(len(starts), UNIT_DTYPE)
    rows["h"], rows["index"] = hashes[starts], documents[starts]
    rows["count"] = np.diff(starts, append=len(hashes))
    return rows


def find_repeated_units(work_dir: WorkDir, recipe: Recipe, num_documents: list[int]) -> None:
    """Write the hashes of the units that are removed, from the files that `write_units` has written.

    `num_documents`: of each partition. The files of an earlier attempt are replaced.
    """
    starts = np.cumsum([0, *num_documents])
    paths = [work_dir.file(partition, LINES_SUFFIX) for partition in range(len(num_documents))]
    num_rows = sum(path.stat().st_size for path in paths) // UNIT_DTYPE.itemsize
    partial = [work_dir.path / f"{name}.{os.getpid()}.partial" for name in REPEATED_FILES]
    with (
        Shuffle(work_dir, "units", UNIT_DTYPE, 1, count_buckets(num_rows)) as buckets,
        open(partial[0], "wb") as hashes,
        open(partial[1], "wb") as first,
    ):
        with buckets.open(0) as append:
            for path, start in zip(paths, starts.tolist(), strict=False):
                for rows in _iter_rows(path):
                    rows["index"] += np.uint64(start)
                    append(rows, choose_buckets(rows["h"], buckets.num_readers))
        for bucket in range(buckets.num_readers):
            repeated = _select_repeated(buckets.read(bucket), recipe.dedup_lines_max_documents)
            repeated["h"].tofile(hashes)
            repeated["index"].tofile(first)
    starts.astype("<u8").tofile(partial[2])
    for path, name in zip(partial, REPEATED_FILES, strict=True):
        os.replace(path, work_dir.path / name)


def _iter_rows(path: Path) -> Iterator[np.ndarray]:
    with open(path, "rb") as file:
        while len(rows := np.fromfile(file, UNIT_DTYPE, MAX_ROWS)):
            yield rows


def _select_repeated(pieces: Iterator[np.ndarray], max_documents: int | None) -> np.ndarray:
    """Return the units of a bucket that are removed, in ascending order of their hashes: (R,) of UNIT_DTYPE."""
    units = np.empty(0, UNIT_DTYPE)
    for piece in pieces:
        rows = np.concatenate([units, piece])
        order, starts = sort_distinct(rows, ())
        units = rows[order[starts]]
        if len(units):
            units["index"] = np.minimum.reduceat(rows["index"][order], starts)
            units["count"] = np.add.reduceat(rows["count"][order], starts)
    repeated = units[units["count"] > (1 if max_documents is None else max_documents)]
    if max_documents is not None:
        repeated["index"] = NO_DOCUMENT
    return repeated


class LineRemover:
    """Removes the repeated units from the documents of one partition, batch after batch, and counts them."""

    def __init__(self, work_dir: WorkDir, recipe: Recipe, partition: int) -> None:
        """Maps the files that `find_repeated_units` has written."""
        self._hashes, self._first, starts = (_map_numbers(work_dir.path / name) for name in REPEATED_FILES)
        self._recipe, self._next_document = recipe, int(starts[partition])
        self.counts: Counter[str] = Counter()

    def apply_to_all(self, documents: Documents) -> Documents:
        """Yield `documents` without repeated units."""
        for batch, sides in documents:
            batch = self.apply(batch)
            yield batch, sides
            del batch  # it may be a record of 128 MB

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the documents of `batch` without repeated units."""
        remover = None
        for units in _iter_units(batch, self._recipe):
            self.counts["units"] += len(units)
            is_removed = self._find_repeated(units)
            if is_removed.any():
                remover = remover or UnitRemover(batch.column("text"))
                remover.remove(units, is_removed)
                self.counts["removed"] += int(is_removed.sum())
                self.counts["removed_bytes"] += int((units.ends - units.starts)[is_removed].sum())
        self._next_document += batch.num_rows
        if not remover:
            return batch
        self.counts["documents"] += len(remover.documents)
        return remover.apply_to(batch)

    def _find_repeated(self, units: Units) -> np.ndarray:
        """Return which units are removed: (U,) bool."""
        if not len(self._hashes):
            return np.zeros(len(units), bool)
        documents = (units.documents + self._next_document).astype(np.uint64)
        rows = np.minimum(np.searchsorted(self._hashes, units.hashes), len(self._hashes) - 1)
        is_removed: np.ndarray = (self._hashes[rows] == units.hashes) & (self._first[rows] != documents)
        return is_removed


def _map_numbers(path: Path) -> np.ndarray:
    return np.asarray(np.memmap(path, "<u8", "r")) if path.stat().st_size else np.empty(0, np.uint64)


def describe_repeated_lines(work_dir: WorkDir, recipe: Recipe, receipts: Iterable[PrepareReceipt]) -> JsonObject:
    """Return the entry `repeated_lines` of stats.json, or an empty object if the recipe keeps repeated lines."""
    if recipe.dedup_lines is None:
        return {}
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts.update(receipt.removed_lines)
    num_repeated = (work_dir.path / REPEATED_FILES[0]).stat().st_size // 8
    keys = ("units", "removed", "removed_bytes", "documents")
    return {
        "repeated_lines": {"unit": recipe.dedup_lines, "repeated": num_repeated, **{key: counts[key] for key in keys}}
    }


def format_repeated_lines(entry: JsonObject | None) -> list[str]:
    """Return the lines that `preprocess stats` prints for the `repeated_lines` of stats.json, or none without it."""
    if entry is None:
        return []
    return [
        f"repeated    {entry['repeated']:,} different {entry['unit']}s are in several documents; "
        f"{entry['removed']:,} of {entry['units']:,} were removed from {entry['documents']:,} documents, "
        f"{entry['removed_bytes']:,} bytes"
    ]
