"""Choose groups of documents in the order of a keyed hash: for validation, or to limit the documents.

A task per section writes the keyed hash of the group of each document, and a task per bucket counts
its groups (shuffle.py). The counts say which bucket has the last group to be chosen, the *boundary*.
A task per section then marks the documents of the groups before or after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from preprocess.build.buckets import choose_buckets, count_buckets, sort_distinct
from preprocess.build.engines.interface import Engine
from preprocess.build.shuffle import Section, Shuffle, cut_sections, run_all
from preprocess.build.split_assignment import Grouping, SplitAssignment, write_sides
from preprocess.build.work_dir import DROPPED, WorkDir
from preprocess.stages.split import GROUP_DTYPE, key_groups

MAX_UINT64 = (1 << 64) - 1


class GroupKey(NamedTuple):
    """The sort key of a group: its keyed hash, then its 128-bit hash if keyed hashes are equal."""

    h: int
    high: int
    low: int


class GroupCounts(NamedTuple):
    """The numbers of groups and documents in one bucket, and its last group."""

    num_groups: int
    num_documents: int
    last: GroupKey | None  # the largest; None if there are no groups


class Marking(NamedTuple):
    """Assign `side` to the groups whose keys, computed with `seed`, are at most `boundary`, or above it."""

    seed: int
    boundary: GroupKey
    is_above: bool
    side: int


class KeyedGroups:
    """The groups of the documents that are not dropped, in buckets of their keyed hashes.

    A context manager: leaving it deletes the buckets.
    """

    def __init__(self, assignment: SplitAssignment, seed: int, engine: Engine) -> None:
        self._assignment, self._seed, self._engine = assignment, seed, engine
        self._sections = cut_sections(assignment.num_documents)
        num_buckets = count_buckets(assignment.count_kept())
        self._rows = Shuffle(assignment.work_dir, "groups", GROUP_DTYPE, len(self._sections), num_buckets)

    def __enter__(self) -> KeyedGroups:
        self._assignment.publish()
        with_groups = [(self._rows, self._assignment.grouping, self._seed, section) for section in self._sections]
        run_all(self._engine, "the groups of section", write_groups, with_groups)
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.__exit__()

    def count(self) -> list[GroupCounts]:
        """Return the counts of each bucket."""
        of_buckets = [(self._rows, bucket) for bucket in range(self._rows.num_readers)]
        return run_all(self._engine, "the groups of bucket", count_groups, of_buckets)

    def sort(self, bucket: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct groups in a bucket in ascending order, and their numbers of documents."""
        return _sort_groups(self._rows.read(bucket))


def mark_groups(assignment: SplitAssignment, marking: Marking, engine: Engine) -> None:
    """Set the side of the documents of some groups. Dropped documents remain dropped."""
    assignment.publish()
    sections = cut_sections(assignment.num_documents)
    arguments = [(assignment.work_dir, assignment.grouping, marking, section) for section in sections]
    run_all(engine, "the sides of section", mark_section, arguments)


def write_groups(rows: Shuffle, grouping: Grouping, seed: int, section: Section) -> None:
    """Write a row for each document of a section that is not dropped: the key of its group."""
    groups, num_rows = np.empty(section.num_documents, GROUP_DTYPE), 0
    for _, kept, of_chunk in _iter_keyed(rows.work_dir, grouping, seed, section):
        groups[num_rows : num_rows + len(kept)] = of_chunk
        num_rows += len(kept)
    groups = groups[:num_rows]
    with rows.open(section.number) as append:
        append(groups, choose_buckets(groups["h"], rows.num_readers))


def count_groups(rows: Shuffle, bucket: int) -> GroupCounts:
    """Return the counts of one bucket."""
    groups, sizes = _sort_groups(rows.read(bucket))
    return GroupCounts(len(groups), int(sizes.sum()), GroupKey(*groups[-1].tolist()) if len(groups) else None)


def mark_section(work_dir: WorkDir, grouping: Grouping, marking: Marking, section: Section) -> None:
    """Set the side of those documents of a section that are in the groups of `marking`."""
    for sides, kept, groups in _iter_keyed(work_dir, grouping, marking.seed, section):
        is_marked = _is_at_most(groups, marking.boundary) != marking.is_above
        sides[kept[is_marked]] = marking.side
    write_sides(work_dir, section)


def _iter_keyed(
    work_dir: WorkDir, grouping: Grouping, seed: int, section: Section
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (sides, rows, groups) for each chunk of documents of a section.

    `sides`, (D,) int8, writable: of the documents of the chunk. `rows`, (K,): the indices of those
    that are kept. `groups`, (K,) of GROUP_DTYPE: the groups of the kept documents.
    """
    for _, chunk in section.iter_chunks():
        sides = work_dir.map_sides(chunk)
        kept = np.flatnonzero(sides != DROPPED)
        yield sides, kept, key_groups(grouping.get_groups(work_dir.map_documents(chunk), kept), seed)


def _sort_groups(pieces: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct groups in a bucket in ascending order, and their numbers of documents.

    `pieces`: the rows of the bucket, (N,) of GROUP_DTYPE each. Returns arrays (G,) of GROUP_DTYPE
    and (G,) int64.
    """
    groups, sizes = np.empty(0, GROUP_DTYPE), np.empty(0, np.int64)
    for piece in pieces:
        rows = np.concatenate([groups, piece]) if len(groups) else piece
        num_documents = np.concatenate([sizes, np.ones(len(piece), np.int64)])
        order, starts = sort_distinct(rows, ("high", "low"))
        groups, sizes = rows[order[starts]], np.add.reduceat(num_documents[order], starts)
    return groups, sizes


def _is_at_most(groups: np.ndarray, boundary: GroupKey) -> np.ndarray:
    """Return which of (N,) groups have a sort key of at most `boundary`: (N,) bool."""
    h, high, low = (np.uint64(value) for value in boundary)
    is_low_at_most = (groups["high"] < high) | ((groups["high"] == high) & (groups["low"] <= low))
    is_at_most: np.ndarray = (groups["h"] < h) | ((groups["h"] == h) & is_low_at_most)
    return is_at_most
