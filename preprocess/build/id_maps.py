"""Maps the numbers in the document table of a partition to those of the build.

The table refers to an author, city or language by its index in the values of the partition, and
positions are counted from the start of a span (prepare.py). The control ids, the language numbers
and the positions in whole files are known only after all partitions have been read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocess.build.document_counts import NUM_YEARS
from preprocess.build.receipts import PartitionValues
from preprocess.build.work_dir import WorkDir
from preprocess.shards.control_tokens import ControlTokenIds
from preprocess.shards.format import CONTROL_FIELDS

# The smallest number S of a partition's input files, and what to add to the positions of the
# documents of files S, S + 1, …: (F,) u8.
PositionOffsets = tuple[int, np.ndarray]


@dataclass(frozen=True)
class IdMaps:
    """The maps of one partition."""

    control_ids: dict[str, np.ndarray]  # author, city: index of the value -> control id; year: year -> control id
    languages: np.ndarray  # (L + 1,) u4: index of the tag -> number in `.docs`; the last entry, for -1, is 0
    first_file: int  # the smallest number of the partition's input files
    position_offsets: np.ndarray  # (F,) u8: file number - first_file -> what to add to the positions of its documents


class IdMapper:
    """Makes the maps of a partition when they are needed.

    The maps of all partitions may not fit into memory, because each of them may have all authors.
    """

    def __init__(
        self,
        work_dir: WorkDir,
        control_ids: ControlTokenIds,
        languages: dict[str, int],
        position_offsets: list[PositionOffsets],
    ) -> None:
        """`languages`: tag -> number in `.docs`. `position_offsets`: of each partition."""
        self._work_dir, self._control_ids = work_dir, control_ids
        self._languages, self._position_offsets = languages, position_offsets
        has_id = (year for year in range(NUM_YEARS) if control_ids.find("year", year) >= 0)
        self._years = range(max(has_id, default=-1) + 1)
        self._last: tuple[int, IdMaps] | None = None  # a partition and its maps

    def make(self, partition: int) -> IdMaps:
        """Return the maps of `partition`. The maps of the last call are cached."""
        if self._last is None or self._last[0] != partition:
            values = self._work_dir.read_values(partition)
            languages = np.array([*(self._languages.get(tag, 0) for tag in values.lang), 0], np.uint32)
            maps = IdMaps(self._map_control_ids(values), languages, *self._position_offsets[partition])
            self._last = partition, maps
        return self._last[1]

    def _map_control_ids(self, values: PartitionValues) -> dict[str, np.ndarray]:
        """Return the control id of each value, -1 if it has none, by field.

        Returns {} if no author, city or year has one.
        """
        if not self._control_ids.has_values:
            return {}
        columns: dict[str, Sequence[str | int]] = {"author": values.author, "city": values.city, "year": self._years}
        return {
            name: np.array([self._control_ids.find(name, value) for value in columns[name]], np.int64)
            for name in CONTROL_FIELDS
        }


def assign_control_ids(
    control_ids: ControlTokenIds,
    documents: np.ndarray,
    values: PartitionValues,
    is_assigned: dict[str, np.ndarray],
) -> None:
    """Assign ids to the authors, cities and years that appear in `documents` for the first time.

    The ids are assigned in the order of the documents, and within a document in the order of
    CONTROL_FIELDS. `documents`: (D,) of DOCUMENT_DTYPE, of one partition. `values`: the values of
    the partition. `is_assigned`: for each field, which values have appeared in the partition
    already, (V,) bool; it is updated in place. Raises FolioError like `ControlTokenIds.assign`.
    """
    appearances: list[tuple[int, int, int]] = []  # row of the first appearance, field, value
    for field, name in enumerate(CONTROL_FIELDS):
        rows = np.flatnonzero(documents[name] >= 0)
        rows = rows[~is_assigned[name][documents[name][rows]]]
        new, first = np.unique(documents[name][rows], return_index=True)
        is_assigned[name][new] = True
        appearances += zip(rows[first].tolist(), itertools.repeat(field), new.tolist(), strict=False)
    names = {"author": values.author, "city": values.city}
    for _, field, value in sorted(appearances):
        name = CONTROL_FIELDS[field]
        control_ids.assign(name, names[name][value] if name in names else value)
