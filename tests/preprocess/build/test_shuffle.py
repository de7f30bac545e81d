"""Sections of documents, and rows on their way from tasks to other tasks."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.build import shuffle
from preprocess.build.buckets import choose_buckets
from preprocess.build.dedup_and_split import dedup_and_split
from preprocess.build.engines.local import ProcessEngine
from preprocess.build.shuffle import Shuffle, cut_sections
from preprocess.build.work_dir import WorkDir
from tests.preprocess.build.helpers import ANY_EXAMPLES, make_recipe, read_sides, write_documents


@ANY_EXAMPLES
@given(st.lists(st.integers(0, 30), max_size=9), st.integers(1, 20), st.integers(1, 6), st.integers(1, 9))
def test_sections_have_all_documents_in_order(
    monkeypatch: pytest.MonkeyPatch, num_documents: list[int], section: int, page: int, chunk: int
) -> None:
    monkeypatch.setattr(shuffle, "MIN_SECTION_DOCUMENTS", section)
    monkeypatch.setattr(shuffle, "PAGE_DOCUMENTS", page)
    monkeypatch.setattr("preprocess.build.work_dir.CHUNK_DOCUMENTS", chunk)
    sections = cut_sections(num_documents)
    expected = [(partition, i) for partition, count in enumerate(num_documents) for i in range(count)]
    documents = []
    for number, each in enumerate(sections):
        assert each.number == number and each.num_documents > 0
        assert each.num_documents <= max(section, -(-sum(num_documents) // shuffle.MAX_SECTIONS)) + page - 1
        for first_document, (partition, first, last) in each.iter_chunks():
            assert first_document == len(documents) and last - first <= chunk
            documents += [(partition, i) for i in range(first, last)]
    assert documents == expected
    for a, b in itertools.pairwise(sections):
        assert a.chunks[-1].partition != b.chunks[0].partition or b.chunks[0].first % page == 0


@ANY_EXAMPLES
@given(
    st.lists(st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=3), min_size=1, max_size=4),
    st.integers(1, 8),
)
def test_readers_get_their_rows_in_the_order_of_the_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: list[list[list[int]]], rows_per_bucket: int
) -> None:
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", rows_per_bucket)
    expected: list[list[int]] = [[] for _ in range(5)]
    with Shuffle(WorkDir(tmp_path, is_durable=True), "x", np.dtype("<u8"), len(readers), 5) as rows:
        numbers = itertools.count()
        for writer, calls in enumerate(readers):
            with rows.open(writer) as append:
                for call in calls:
                    values = [next(numbers) for _ in call]
                    append(np.array(values, np.uint64), np.array(call, np.int64))
                    for value, reader in zip(values, call, strict=True):
                        expected[reader].append(value)
        for reader, values in enumerate(expected):
            pieces = list(rows.read(reader))
            assert [value for piece in pieces for value in piece.tolist()] == values
            assert all(0 < len(piece) <= -(-rows_per_bucket * 5 // 4) for piece in pieces)
    assert list(tmp_path.iterdir()) == []


def test_failed_writer_leaves_no_file(tmp_path: Path) -> None:
    rows = Shuffle(WorkDir(tmp_path), "x", np.dtype("<u8"), 1, 2)
    with pytest.raises(ZeroDivisionError), rows.open(0) as append:
        append(np.arange(3, dtype=np.uint64), np.zeros(3, np.int64))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_buckets_are_in_the_order_of_the_hashes() -> None:
    hashes = np.sort(np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64))
    hashes[[0, -1]] = 0, 2**64 - 1
    buckets = choose_buckets(hashes, 4096)
    assert (np.diff(buckets.astype(int)) >= 0).all() and buckets[0] == 0 and buckets[-1] == 4095


@pytest.mark.parametrize("settings", [{}, {"max_documents": 500}, {"split": "threshold", "val_fraction": 0.3}])
def test_worker_processes_decide_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    work_dir = WorkDir(tmp_path)
    contents = np.random.default_rng(0).integers(0, 700, 1000).tolist()
    num_documents = write_documents(work_dir, contents, contents, [10, 300, 600])
    expected = dedup_and_split(make_recipe(**settings), work_dir, num_documents)
    sides = read_sides(work_dir, num_documents)
    monkeypatch.setattr(shuffle, "MIN_SECTION_DOCUMENTS", 90)
    monkeypatch.setattr(shuffle, "PAGE_DOCUMENTS", 1)
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", 100)
    with ProcessEngine(2) as engine:
        found = dedup_and_split(make_recipe(**settings), work_dir, num_documents, engine)
    assert (read_sides(work_dir, num_documents) == sides).all() and found.dropped == expected.dropped
    assert found.dropped["duplicates"] > 300
