"""The phase that needs all documents at once: drop duplicates, limit their number, and split them.

The problem: an exact split has round(N * val_fraction) validation groups of N. They must be chosen
at random, but by the recipe alone, and with memory that does not depend on N.

The idea: every group has a hash that is keyed by the seed (stages/split.py), and the k groups with
the smallest hashes are for validation, as if the groups were shuffled and the first k were taken.
This does not require sorting all hashes, only finding the k-th smallest, the *boundary*:

1. Write the keyed hash of every document's group to buckets on disk (buckets.py), and count the
   groups in each bucket. All documents of a group have the same hash, so a bucket is sorted to
   count its distinct hashes.
2. Sort the one bucket that contains the k-th group, to find the boundary.
3. Read the documents again: a group is for validation if its hash is at most the boundary.

`max_documents` keeps whole groups in the same way, in the order of another hash. Duplicates are
found in buckets of the content hashes.

The cost: no text is read; the input is the table of documents, 66 bytes per document. The memory is
that of one bucket, about 150 MB, for any number of documents, even if all of them are equal or in
one group. The buckets need 24 bytes per document on the disk, and the result is one byte per
document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from preprocess.build.buckets import Buckets, sort_distinct
from preprocess.build.count_leaks import count_leaks
from preprocess.build.near_duplicates import drop_near_duplicates, find_clusters, group_near_duplicates
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import DROPPED, WorkDir, iter_chunks
from preprocess.documents import HELD_OUT, TRAIN, VAL
from preprocess.errors import FolioError
from preprocess.recipes.schema import Recipe, has_validation, is_grouped_by_content
from preprocess.stages.dedup import to_uint64_halves
from preprocess.stages.split import GROUP_DTYPE, is_below_threshold, key_groups

# h, low: the halves of the content hash; index: of the document among all documents of the build.
CONTENT_DTYPE = np.dtype([("h", "<u8"), ("low", "<u8"), ("index", "<u8")])
MARKED_DOCUMENTS = 1 << 24  # documents whose sides are mapped at once to mark duplicates


def dedup_and_split(recipe: Recipe, work_dir: WorkDir, num_documents: list[int]) -> SplitAssignment:
    """Decide which documents are in the build, and on which side of the split.

    `num_documents`: of each partition. Raises FolioError if a side of the split would be empty,
    except the validation side if the recipe has none, or if no group is small enough for
    `recipe.max_documents`.
    """
    assignment = SplitAssignment(work_dir, num_documents)
    if recipe.split == "given":
        _drop_test_documents(assignment)
    if recipe.dedup:
        _drop_duplicates(assignment)
    clusters = find_clusters(recipe, assignment) if recipe.near_dedup else None
    if clusters is not None and recipe.near_dedup == "drop":
        drop_near_duplicates(assignment, clusters)
    if is_grouped_by_content(recipe) and has_validation(recipe) and _is_one_group(assignment):
        _split_parts(assignment)
    if clusters is not None and recipe.near_dedup == "group":
        group_near_duplicates(assignment, clusters)
    if recipe.max_documents is not None:
        _limit_documents(assignment, recipe.max_documents, seed=recipe.seed)
    if recipe.split in ("contiguous", "given"):
        for chunk, sides in assignment.chunks():
            is_val = work_dir.map_documents(chunk)["side"] == VAL
            sides[(sides != DROPPED) & is_val] = VAL
    elif not has_validation(recipe):
        pass  # all documents are for training
    elif recipe.split == "threshold":
        _mark_val(assignment, recipe.seed, lambda groups: is_below_threshold(groups["h"], recipe.val_fraction))
    else:
        _split_exactly(assignment, recipe)
    _check_sides(assignment, recipe)
    if not recipe.dedup and has_validation(recipe) and not _keeps_equal_texts_together(assignment, recipe):
        assignment.num_leaks = count_leaks(assignment)
    if work_dir.is_durable:
        assignment.sync()
    return assignment


def _drop_test_documents(assignment: SplitAssignment) -> None:
    """Drop the documents of the test split, or train on them if no document is for training."""
    work_dir = assignment.work_dir
    assignment.dropped["held_out"] = 0
    if not any(bool((work_dir.map_documents(chunk)["side"] == TRAIN).any()) for chunk, _ in assignment.chunks()):
        assignment.warning = "the corpus has no training documents; its test documents are used for training"
        return
    for chunk, sides in assignment.chunks():
        is_test = work_dir.map_documents(chunk)["side"] == HELD_OUT
        sides[is_test] = DROPPED
        assignment.dropped["held_out"] += int(is_test.sum())


def _is_one_group(assignment: SplitAssignment) -> bool:
    """Return whether all documents are in one group."""
    first_group = None
    for chunk, _ in assignment.chunks():
        groups = assignment.work_dir.map_documents(chunk)["group"]
        first_group = groups[0] if first_group is None else first_group
        if (groups != first_group).any():
            return False
    return True


def _keeps_equal_texts_together(assignment: SplitAssignment, recipe: Recipe) -> bool:
    """Return whether equal texts are on one side because all documents are grouped by content."""
    if recipe.split not in ("exact", "threshold"):
        return False
    tables = (assignment.work_dir.map_documents(chunk) for chunk, _ in assignment.chunks())
    return not any(bool((table[assignment.group_column] != table["hash"]).any()) for table in tables)


def _split_parts(assignment: SplitAssignment) -> None:
    """Make each part of the only document a group, because a single group cannot be split."""
    assignment.group_column = "hash"
    if (num_parts := assignment.count_kept()) > 1:
        assignment.warning = (
            f"the corpus is one long document, whose {num_parts:,} parts are split at random; pass --split contiguous "
            "to validate on its end, or --document paragraph or passage to cut it smaller"
        )


def _drop_duplicates(assignment: SplitAssignment) -> None:
    """Drop every document that has the content hash of an earlier document."""
    work_dir, num_documents = assignment.work_dir, assignment.num_documents
    assignment.dropped["duplicates"] = 0
    first_index = 0  # of a chunk; documents are numbered across partitions, in reading order
    with Buckets(work_dir.path, "hashes", CONTENT_DTYPE, sum(num_documents)) as buckets:
        for chunk, sides in assignment.chunks():
            kept = np.flatnonzero(sides != DROPPED)
            rows = np.empty(len(kept), CONTENT_DTYPE)
            rows["h"], rows["low"] = to_uint64_halves(work_dir.map_documents(chunk)["hash"][kept])
            rows["index"] = kept + first_index
            buckets.append(rows)
            first_index += chunk.num_documents
        ranges = list(iter_chunks(num_documents, MARKED_DOCUMENTS))
        starts = np.cumsum([0, *(chunk.num_documents for chunk in ranges)]).astype(np.uint64)
        for pieces in buckets:
            texts = np.empty(0, CONTENT_DTYPE)  # the first document of each text in the pieces so far
            for piece in pieces:
                rows = np.concatenate([texts, piece])
                is_duplicate = find_duplicates(rows)
                indices = np.sort(rows["index"][is_duplicate])
                edges = np.searchsorted(indices, starts)
                for i in np.flatnonzero(np.diff(edges)).tolist():
                    work_dir.map_sides(ranges[i])[indices[edges[i] : edges[i + 1]] - starts[i]] = DROPPED
                assignment.dropped["duplicates"] += len(indices)
                texts = rows[~is_duplicate]


def find_duplicates(rows: np.ndarray) -> np.ndarray:
    """Return which rows have the 128-bit hash of an earlier row: (N,) bool.

    `rows`: (N,) of CONTENT_DTYPE.
    """
    order, starts = sort_distinct(rows, ("low",))
    is_duplicate = np.ones(len(rows), bool)
    is_duplicate[order[starts]] = False  # the first of equal rows
    return is_duplicate


class _GroupKey(NamedTuple):
    """The sort key of a group: its keyed hash, then its 128-bit hash if keyed hashes are equal."""

    h: int
    high: int
    low: int


def _keyed_groups(assignment: SplitAssignment, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (sides, rows, groups) for each chunk of documents.

    `sides`, (D,) int8, writable: of the documents of the chunk. `rows`, (K,): the indices of those
    that are kept. `groups`, (K,) of GROUP_DTYPE: the groups of the kept documents.
    """
    for chunk, sides in assignment.chunks():
        kept = np.flatnonzero(sides != DROPPED)
        documents = assignment.work_dir.map_documents(chunk)
        yield sides, kept, key_groups(assignment.get_groups(documents[kept]), seed)


def _write_group_buckets(assignment: SplitAssignment, seed: int) -> Buckets:
    """Return buckets with one row for each kept document: the key of its group."""
    buckets = Buckets(assignment.work_dir.path, "groups", GROUP_DTYPE, assignment.count_kept())
    for _, _, groups in _keyed_groups(assignment, seed):
        buckets.append(groups)
    return buckets


def _sort_groups(pieces: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct groups in a bucket in ascending order, and their numbers of documents.

    `pieces`: the rows of the bucket, (N,) of GROUP_DTYPE each. Returns arrays (G,) of GROUP_DTYPE
    and (G,) int64.
    """
    groups, sizes = np.empty(0, GROUP_DTYPE), np.empty(0, np.int64)
    for piece in pieces:
        rows = np.concatenate([groups, piece])
        num_documents = np.concatenate([sizes, np.ones(len(piece), np.int64)])
        order, starts = sort_distinct(rows, ("high", "low"))
        groups, sizes = rows[order[starts]], np.add.reduceat(num_documents[order], starts)
    return groups, sizes


def _is_at_most(groups: np.ndarray, boundary: _GroupKey) -> np.ndarray:
    """Return which of (N,) groups have a sort key of at most `boundary`: (N,) bool."""
    h, high, low = (np.uint64(value) for value in boundary)
    is_low_at_most = (groups["high"] < high) | ((groups["high"] == high) & (groups["low"] <= low))
    is_at_most: np.ndarray = (groups["h"] < h) | ((groups["h"] == h) & is_low_at_most)
    return is_at_most


def _split_exactly(assignment: SplitAssignment, recipe: Recipe) -> None:
    """Assign round(N * val_fraction) of N groups to validation, those with the smallest hashes."""
    with _write_group_buckets(assignment, recipe.seed) as buckets:
        num_groups = [len(_sort_groups(pieces)[0]) for pieces in buckets]  # of each bucket
        num_val = round(sum(num_groups) * recipe.val_fraction)
        if num_val in (0, sum(num_groups)):
            _reject_split(assignment, recipe, sum(num_groups))
        num_groups_up_to = np.cumsum(num_groups)
        bucket = int(np.searchsorted(num_groups_up_to, num_val))  # the first with num_groups_up_to >= num_val
        rank = num_val - int(num_groups_up_to[bucket]) + num_groups[bucket]  # in the bucket, from 1
        groups, _ = _sort_groups(buckets.read(bucket))
        boundary = _GroupKey(*groups[rank - 1].tolist())
    _mark_val(assignment, recipe.seed, lambda groups: _is_at_most(groups, boundary))


def _reject_split(assignment: SplitAssignment, recipe: Recipe, num_groups: int) -> None:
    num_kept = assignment.count_kept()
    if num_groups == 1 and assignment.num_near_duplicates:
        raise FolioError(
            f"all {num_kept:,} documents are nearly equal or in groups that contain nearly equal documents, so they "
            "cannot be split; increase near_dedup_threshold, or set near_dedup to 'drop'"
        )
    if num_groups == 1 and num_kept > 1:
        raise FolioError(
            f"all {num_kept:,} documents are one group, which cannot be split; choose another group_by or group_column"
        )
    raise FolioError(
        f"{num_groups:,} {'document' if num_groups == 1 else 'documents'} cannot be split with val_fraction "
        f"{recipe.val_fraction}: one side would be empty; add documents, cut them smaller (--document paragraph, or "
        "--split contiguous for one long text), or choose another --val-fraction"
    )


def _limit_documents(assignment: SplitAssignment, max_documents: int, *, seed: int) -> None:
    """Keep groups in the order of their keyed hash, until the next would exceed `max_documents`."""
    num_before = assignment.count_kept()
    assignment.dropped["over_max_documents"] = 0
    if num_before <= max_documents:
        return
    # Use another order than the split does. Otherwise the kept groups would be those with the
    # smallest hashes, which the split uses for validation.
    seed = ~seed & (2**64 - 1)
    boundary, num_kept = None, 0
    with _write_group_buckets(assignment, seed) as buckets:
        for pieces in buckets:
            groups, sizes = _sort_groups(pieces)
            num_kept_up_to = num_kept + np.cumsum(sizes)
            num_fitting = int(np.searchsorted(num_kept_up_to, max_documents, "right"))
            if num_fitting:
                boundary = _GroupKey(*groups[num_fitting - 1].tolist())
                num_kept = int(num_kept_up_to[num_fitting - 1])
            if num_fitting < len(groups):
                break
    if boundary is None:
        raise FolioError(
            f"max_documents is {max_documents:,}, but the first randomly chosen group has more documents; increase "
            "max_documents"
        )
    for sides, kept, groups in _keyed_groups(assignment, seed):
        sides[kept[~_is_at_most(groups, boundary)]] = DROPPED
    assignment.dropped["over_max_documents"] = num_before - num_kept


def _mark_val(assignment: SplitAssignment, seed: int, is_val: Callable[[np.ndarray], np.ndarray]) -> None:
    """Assign to validation the kept documents whose groups satisfy `is_val`.

    `is_val` maps groups, (K,) of GROUP_DTYPE, to (K,) bool.
    """
    for sides, kept, groups in _keyed_groups(assignment, seed):
        sides[kept[is_val(groups)]] = VAL


def _check_sides(assignment: SplitAssignment, recipe: Recipe) -> None:
    """Raise FolioError if a side has no documents, and the recipe does not say so."""
    for side, name in ((TRAIN, "training"), (VAL, "validation")):
        if assignment.contains(side) or (side == VAL and not has_validation(recipe)):
            continue
        if recipe.split == "contiguous":
            raise FolioError(
                f"{recipe.corpus} is too short to cut: its {name} side would be empty; give it more text or another "
                "--val-fraction"
            )
        raise FolioError(
            f"the {name} side of {recipe.corpus} would be empty with the {recipe.split} split; add documents, or "
            "choose another split"
        )
