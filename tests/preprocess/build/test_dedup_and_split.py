"""Deduplication, the limit on documents, and the split, for any partitions and buckets."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.build.dedup_and_split import dedup_and_split
from preprocess.build.work_dir import DOCUMENT_DTYPE, DROPPED, WorkDir
from preprocess.documents import HELD_OUT, TRAIN, VAL
from preprocess.errors import FolioError
from tests.preprocess.build.helpers import ANY_EXAMPLES, make_recipe, read_sides, write_documents


@ANY_EXAMPLES
@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 12)), min_size=4, max_size=60),
    st.lists(st.integers(0, 60), max_size=3),
    st.floats(0.1, 0.9),
    st.integers(0, 9),
    st.sampled_from([1, 5, 1000]),
    st.sampled_from([1, 3, 1000]),
)
def test_split_is_exact_and_keeps_the_first_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs, boundaries, val_fraction, seed, rows_per_bucket, chunk
) -> None:
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", rows_per_bucket)
    monkeypatch.setattr("preprocess.build.shuffle.BUFFER_ROWS", chunk + 1)
    monkeypatch.setattr("preprocess.build.work_dir.CHUNK_DOCUMENTS", chunk)
    monkeypatch.setattr("preprocess.build.shuffle.MIN_SECTION_DOCUMENTS", chunk + 2)
    monkeypatch.setattr("preprocess.build.shuffle.PAGE_DOCUMENTS", 1)
    recipe = make_recipe(val_fraction=val_fraction, seed=seed, group_column="g")
    work_dir, contents, groups = WorkDir(tmp_path), [c for c, _ in pairs], [g for _, g in pairs]
    num_documents = write_documents(work_dir, contents, groups, [min(b, len(pairs)) for b in boundaries])
    kept = [i for i, content in enumerate(contents) if content not in contents[:i]]
    distinct_groups = {groups[i] for i in kept}
    num_val = round(len(distinct_groups) * val_fraction)
    if num_val in (0, len(distinct_groups)):
        with pytest.raises(FolioError, match="one side would be empty|are one group, which cannot be split"):
            dedup_and_split(recipe, work_dir, num_documents)
        return
    assignment = dedup_and_split(recipe, work_dir, num_documents)
    sides = read_sides(work_dir, num_documents)
    assert np.flatnonzero(sides != DROPPED).tolist() == kept
    assert assignment.dropped["duplicates"] == len(contents) - len(kept)
    val_groups = {groups[i] for i in kept if sides[i] == VAL}
    assert len(val_groups) == num_val and not val_groups & {groups[i] for i in kept if sides[i] == TRAIN}
    assert not list(tmp_path.glob("*.rows"))
    # The result depends neither on partitions nor on buckets.
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", 3)
    num_documents = write_documents(work_dir, contents, groups, [])
    dedup_and_split(recipe, work_dir, num_documents)
    assert (read_sides(work_dir, num_documents) == sides).all()


def test_split_depends_on_the_seed(tmp_path: Path) -> None:
    work_dir, results = WorkDir(tmp_path), []
    num_documents = write_documents(work_dir, list(range(500)), list(range(500)), [])
    for seed in (0, 1):
        dedup_and_split(make_recipe(seed=seed), work_dir, num_documents)
        results.append(read_sides(work_dir, num_documents))
    assert (results[0] != results[1]).any() and all(np.count_nonzero(sides == VAL) == 50 for sides in results)


def test_threshold_split_moves_no_document_when_others_are_added(tmp_path: Path) -> None:
    work_dir, recipe = WorkDir(tmp_path), make_recipe(split="threshold", val_fraction=0.25)
    num_documents = write_documents(work_dir, list(range(400)), list(range(400)), [100])
    dedup_and_split(recipe, work_dir, num_documents)
    before = read_sides(work_dir, num_documents)
    assert 70 < np.count_nonzero(before == VAL) < 130
    num_documents = write_documents(work_dir, list(range(500)), list(range(500)), [250])
    dedup_and_split(recipe, work_dir, num_documents)
    assert (read_sides(work_dir, num_documents)[:400] == before).all()


@pytest.mark.parametrize("rows_per_bucket", [1, 4, 1000])
@pytest.mark.parametrize("max_documents", [1, 2, 7, 39, 40, 99])
def test_max_documents_keeps_whole_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_documents: int, rows_per_bucket: int
) -> None:
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", rows_per_bucket)
    work_dir = WorkDir(tmp_path)
    num_documents = write_documents(work_dir, list(range(40)), [i // 2 for i in range(40)], [13])
    recipe = make_recipe(max_documents=max_documents, val_fraction=0.5)
    try:
        assignment = dedup_and_split(recipe, work_dir, num_documents)
    except FolioError:
        assert max_documents < 4  # fewer than two groups, which cannot be split
        return
    kept = np.flatnonzero(read_sides(work_dir, num_documents) != DROPPED)
    assert len(kept) == min(max_documents // 2 * 2, 40)
    assert assignment.dropped["over_max_documents"] == 40 - len(kept)
    assert len({k // 2 for k in kept.tolist()}) * 2 == len(kept)


def test_max_documents_smaller_than_the_first_group_is_rejected(tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path)
    num_documents = write_documents(work_dir, list(range(40)), [i // 2 for i in range(40)], [13])
    with pytest.raises(FolioError, match="max_documents is 1, but the first randomly chosen group"):
        dedup_and_split(make_recipe(max_documents=1), work_dir, num_documents)
    assert not list(tmp_path.glob("*.rows"))


def test_given_split_drops_test_documents_unless_there_is_no_training_split(tmp_path: Path) -> None:
    work_dir, recipe = WorkDir(tmp_path), make_recipe(split="given", split_column="s")
    sides = [TRAIN, VAL, HELD_OUT, TRAIN, VAL, HELD_OUT]
    num_documents = write_documents(work_dir, list(range(6)), list(range(6)), [2], side=sides)
    assignment = dedup_and_split(recipe, work_dir, num_documents)
    assert read_sides(work_dir, num_documents).tolist() == [TRAIN, VAL, DROPPED, TRAIN, VAL, DROPPED]
    assert assignment.dropped["held_out"] == 2 and assignment.warning is None
    num_documents = write_documents(work_dir, list(range(3)), list(range(3)), [], side=[HELD_OUT, VAL, HELD_OUT])
    assignment = dedup_and_split(recipe, work_dir, num_documents)
    assert read_sides(work_dir, num_documents).tolist() == [TRAIN, VAL, TRAIN] and assignment.dropped["held_out"] == 0
    assert "its test documents are used for training" in assignment.warning
    num_documents = write_documents(work_dir, list(range(3)), list(range(3)), [], side=[TRAIN] * 3)
    with pytest.raises(FolioError, match="the validation side of x would be empty with the given split"):
        dedup_and_split(recipe, work_dir, num_documents)
    num_documents = write_documents(work_dir, list(range(3)), list(range(3)), [], side=[TRAIN, TRAIN, HELD_OUT])
    with pytest.raises(FolioError, match="test documents, but none for validation, .*; pass only the training files"):
        dedup_and_split(recipe, work_dir, num_documents)


@ANY_EXAMPLES
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.sampled_from([TRAIN, VAL])), min_size=2, max_size=40),
    st.sampled_from([{"split": "given", "split_column": "s"}, {"split": "exact", "group_column": "g"}, {}]),
    st.sampled_from([1, 5, 1000]),
)
def test_texts_on_both_sides_are_counted_without_dedup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows, settings_, rows_per_bucket
) -> None:
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", rows_per_bucket)
    work_dir, (contents, groups, given_sides) = WorkDir(tmp_path), map(list, zip(*rows, strict=True))
    num_documents = write_documents(work_dir, contents, groups, [len(rows) // 2], side=given_sides)
    for dedup in (False, True):
        try:
            assignment = dedup_and_split(make_recipe(dedup=dedup, **settings_), work_dir, num_documents)
        except FolioError:  # one side is empty
            continue
        sides = read_sides(work_dir, num_documents)
        train, val = ({content for content, s in zip(contents, sides, strict=True) if s == x} for x in (TRAIN, VAL))
        assert assignment.num_leaks == len(train & val)
        assert not (dedup and assignment.num_leaks)


@pytest.mark.parametrize("settings_", [{}, {"dedup": False}, {"max_documents": 9}, {"dedup": False, "split": "given"}])
@pytest.mark.parametrize("kind", ["equal", "one group"])
def test_memory_does_not_grow_with_equal_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, settings_: dict[str, Any]
) -> None:
    """All equal hashes are in one bucket: 24 bytes for each of 300,000 documents would be 7 MB."""
    limits = ("buckets.ROWS_PER_BUCKET", "shuffle.BUFFER_ROWS", "work_dir.CHUNK_DOCUMENTS")
    for name in (*limits, "shuffle.MIN_SECTION_DOCUMENTS", "shuffle.PAGE_DOCUMENTS"):
        monkeypatch.setattr(f"preprocess.build.{name}", 20_000)
    num_documents, work_dir = 300_000, WorkDir(tmp_path)
    table = np.zeros(num_documents, DOCUMENT_DTYPE)
    if kind == "one group":
        table["hash"] = np.random.default_rng(0).integers(0, 256, (num_documents, 16), np.uint8)
    table["side"][0] = VAL
    table.tofile(work_dir.file(0, "docs"))
    del table
    settings_ = settings_ | ({"split_column": "s"} if settings_.get("split") == "given" else {})
    tracemalloc.start()
    try:
        with contextlib.suppress(FolioError):  # one document or one group cannot be split
            dedup_and_split(make_recipe(**settings_), work_dir, [num_documents])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6_000_000
