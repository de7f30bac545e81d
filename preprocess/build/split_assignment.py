"""The result of the phase dedup_and_split: whether each document is in train, in val or dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from preprocess.build.duplicate_pairs import Pair
from preprocess.build.near_dedup.groups import NearGroups
from preprocess.build.shuffle import Section
from preprocess.build.work_dir import DROPPED, Chunk, WorkDir, iter_chunks


@dataclass(frozen=True)
class Grouping:
    """Which documents are on the same side of the split."""

    column: str  # field of DOCUMENT_DTYPE; documents with the same value are on the same side
    near_groups: NearGroups | None  # joins groups whose documents are nearly equal

    def get_groups(self, documents: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the hash of the group of each document in `rows`: (K, 16) uint8.

        `documents`: (D,) of DOCUMENT_DTYPE. `rows`: (K,) indices.
        """
        groups: np.ndarray = documents[self.column][rows]
        return groups if self.near_groups is None else self.near_groups.apply(groups)


@dataclass
class SplitAssignment:
    """The side of every document, stored in the work directory, and how many were dropped and why.

    Creating it assigns all documents to train.
    """

    work_dir: WorkDir
    num_documents: list[int]  # of each partition
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> number of documents
    warning: str | None = None
    group_column: str = "group"  # field of DOCUMENT_DTYPE; documents with the same value are on the same side
    near_groups: NearGroups | None = None  # joins groups whose documents are nearly equal
    num_near_duplicates: int | None = None  # grouped with an earlier document; None if not looked for
    num_leaks: int = 0  # distinct texts that are in both splits
    duplicate_pairs: dict[str, list[Pair]] = field(default_factory=dict)  # examples of dropped documents, by reason

    def __post_init__(self) -> None:
        for partition, count in enumerate(self.num_documents):
            self.work_dir.create_sides(partition, count)

    def chunks(self) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Yield each chunk of documents in reading order, and its sides, (D,) int8, writable."""
        return ((chunk, self.work_dir.map_sides(chunk)) for chunk in iter_chunks(self.num_documents))

    @property
    def grouping(self) -> Grouping:
        """Which documents are on the same side, for tasks."""
        return Grouping(self.group_column, self.near_groups)

    def count_kept(self) -> int:
        """Return the number of documents that are not dropped."""
        return sum(int(np.count_nonzero(sides != DROPPED)) for _, sides in self.chunks())

    def count(self, side: int) -> int:
        """Return the number of documents on `side`."""
        return sum(int(np.count_nonzero(sides == side)) for _, sides in self.chunks())

    def publish(self) -> None:
        """Make the changes of sides visible to tasks on other machines, if there are any."""
        if self.work_dir.is_durable:
            for partition in range(len(self.num_documents)):
                self.work_dir.sync_sides(partition)

    def contains(self, side: int) -> bool:
        """Return whether any document is on `side`."""
        return any(bool((sides == side).any()) for _, sides in self.chunks())


def write_sides(work_dir: WorkDir, section: Section) -> None:
    """Make the changes that a task has made to the sides of a section visible to other machines."""
    if work_dir.is_durable:
        for partition, _, _ in section.chunks:
            work_dir.sync_sides(partition)
