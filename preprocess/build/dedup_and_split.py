"""The phase that needs all documents at once: drop duplicates, limit their number, and split them.

The problem: an exact split has round(N * val_fraction) validation groups of N. They must be chosen
at random, but by the recipe alone, and with memory that does not depend on N.

The idea: every group has a hash that is keyed by the seed (stages/split.py), and the k groups with
the smallest hashes are for validation, as if the groups were shuffled and the first k were taken.
This does not require sorting all hashes, only finding the k-th smallest, the *boundary*:

1. Write the keyed hash of every document's group to buckets, and count the groups in each bucket
   (group_split.py). All documents of a group have the same hash, so a bucket is sorted to count its
   distinct hashes.
2. Sort the one bucket that contains the k-th group, to find the boundary.
3. Read the documents again: a group is for validation if its hash is at most the boundary.

`max_documents` keeps whole groups in the same way, in the order of another hash. Duplicates are
found in buckets of the content hashes (drop_duplicates.py), and nearly equal documents in buckets of
their bands (near_dedup/). All steps are tasks on sections of the documents or on buckets, so any number
of workers share them, and none needs all documents.

The cost: no text is read; the input is the table of documents, 66 bytes per document. The memory is
that of one section or bucket, about 150 MB per worker, for any number of documents, even if all of
them are equal or in one group. The buckets need 24 bytes per document on the disk, and the result
is one byte per document.
"""

from __future__ import annotations

import numpy as np

from preprocess.build.count_leaks import count_leaks
from preprocess.build.drop_duplicates import drop_duplicates
from preprocess.build.engines.interface import Engine
from preprocess.build.engines.local import SerialEngine
from preprocess.build.group_split import MAX_UINT64, GroupKey, KeyedGroups, Marking, mark_groups
from preprocess.build.near_dedup.near_duplicates import (
    drop_near_duplicates,
    find_near_duplicates,
    group_near_duplicates,
)
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import DROPPED, WorkDir
from preprocess.documents import HELD_OUT, TRAIN, VAL
from preprocess.errors import FolioError
from preprocess.recipes.schema import Recipe, has_validation, is_grouped_by_content
from preprocess.stages.split import compute_threshold


def dedup_and_split(
    recipe: Recipe, work_dir: WorkDir, num_documents: list[int], engine: Engine | None = None
) -> SplitAssignment:
    """Decide which documents are in the build, and on which side of the split.

    `num_documents`: of each partition. `engine`: runs the tasks, by default in this process. Raises
    FolioError if a side of the split would be empty, except the validation side if the recipe has
    none, or if no group is small enough for `recipe.max_documents`.
    """
    assignment, engine = SplitAssignment(work_dir, num_documents), engine or SerialEngine()
    if recipe.split == "given":
        _drop_test_documents(assignment)
    if recipe.dedup:
        drop_duplicates(assignment, engine)
    near = find_near_duplicates(recipe, assignment, engine) if recipe.near_dedup else None
    if near is not None and recipe.near_dedup == "drop":
        drop_near_duplicates(assignment, near, engine)
    if is_grouped_by_content(recipe) and has_validation(recipe) and _is_one_group(assignment):
        _split_parts(assignment)
    if near is not None and recipe.near_dedup == "group":
        group_near_duplicates(assignment, near, engine)
    if recipe.max_documents is not None:
        _limit_documents(assignment, recipe, recipe.max_documents, engine)
    if recipe.split in ("contiguous", "given"):
        for chunk, sides in assignment.chunks():
            is_val = work_dir.map_documents(chunk)["side"] == VAL
            sides[(sides != DROPPED) & is_val] = VAL
    elif not has_validation(recipe):
        pass  # all documents are for training
    elif recipe.split == "threshold":
        _split_by_threshold(assignment, recipe, engine)
    else:
        _split_exactly(assignment, recipe, engine)
    _check_sides(assignment, recipe)
    if not recipe.dedup and has_validation(recipe) and not _keeps_equal_texts_together(assignment, recipe):
        assignment.num_leaks = count_leaks(assignment, engine)
    assignment.publish()
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


def _split_exactly(assignment: SplitAssignment, recipe: Recipe, engine: Engine) -> None:
    """Assign round(N * val_fraction) of N groups to validation, those with the smallest hashes."""
    with KeyedGroups(assignment, recipe.seed, engine) as groups:
        num_groups = [counts.num_groups for counts in groups.count()]  # of each bucket
        num_val = round(sum(num_groups) * recipe.val_fraction)
        if num_val in (0, sum(num_groups)):
            _reject_split(assignment, recipe, sum(num_groups))
        num_groups_up_to = np.cumsum(num_groups)
        bucket = int(np.searchsorted(num_groups_up_to, num_val))  # the first with num_groups_up_to >= num_val
        rank = num_val - int(num_groups_up_to[bucket]) + num_groups[bucket]  # in the bucket, from 1
        keys, _ = groups.sort(bucket)
    boundary = GroupKey(*keys[rank - 1].tolist())
    mark_groups(assignment, Marking(recipe.seed, boundary, is_above=False, side=VAL), engine)


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


def _limit_documents(assignment: SplitAssignment, recipe: Recipe, max_documents: int, engine: Engine) -> None:
    """Keep groups in the order of their keyed hash, until the next would exceed `max_documents`."""
    num_before = assignment.count_kept()
    assignment.dropped["over_max_documents"] = 0
    if num_before <= max_documents:
        return
    # Use another order than the split does. Otherwise the kept groups would be those with the
    # smallest hashes, which the split uses for validation.
    seed = ~recipe.seed & MAX_UINT64
    boundary, num_kept = None, 0
    with KeyedGroups(assignment, seed, engine) as groups:
        for bucket, counts in enumerate(groups.count()):
            if num_kept + counts.num_documents <= max_documents:
                boundary, num_kept = counts.last or boundary, num_kept + counts.num_documents
                continue
            keys, sizes = groups.sort(bucket)
            num_kept_up_to = num_kept + np.cumsum(sizes)
            num_fitting = int(np.searchsorted(num_kept_up_to, max_documents, "right"))
            if num_fitting:
                boundary, num_kept = GroupKey(*keys[num_fitting - 1].tolist()), int(num_kept_up_to[num_fitting - 1])
            break
    if boundary is None:
        raise FolioError(
            f"max_documents is {max_documents:,}, but the first randomly chosen group has more documents; increase "
            "max_documents"
        )
    mark_groups(assignment, Marking(seed, boundary, is_above=True, side=DROPPED), engine)
    assignment.dropped["over_max_documents"] = num_before - num_kept


def _split_by_threshold(assignment: SplitAssignment, recipe: Recipe, engine: Engine) -> None:
    """Assign the groups to validation whose keyed hashes are below `val_fraction` of the range of hashes."""
    if threshold := compute_threshold(recipe.val_fraction):
        boundary = GroupKey(threshold - 1, MAX_UINT64, MAX_UINT64)
        mark_groups(assignment, Marking(recipe.seed, boundary, is_above=False, side=VAL), engine)


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
        if side == VAL and assignment.dropped.get("held_out"):
            raise FolioError(
                f"{recipe.corpus} has training and test documents, but none for validation, which the given split "
                "needs; pass only the training files, which are then split at random without --split given, or call "
                "the test split val"
            )
        raise FolioError(
            f"the {name} side of {recipe.corpus} would be empty with the {recipe.split} split; add documents, or "
            "choose another split"
        )
