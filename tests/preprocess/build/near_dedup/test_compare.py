"""The tasks that find clusters, compared with one loop over all runs in the order of the buckets."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from preprocess.build import buckets, shuffle
from preprocess.build.buckets import choose_buckets, count_buckets, get_max_piece_rows
from preprocess.build.dedup_and_split import dedup_and_split
from preprocess.build.engines.local import ProcessEngine, SerialEngine
from preprocess.build.near_dedup import compare, near_duplicates
from preprocess.build.work_dir import DROPPED, NUM_SHINGLES_DTYPE, WorkDir
from tests.preprocess.build.helpers import make_recipe, read_sides, write_documents

NUM_SEEDS = 12


class Tables(NamedTuple):
    bands: np.ndarray  # (D, B) uint64
    shingles: list[np.ndarray]  # of each document
    groups: list[int]


def make_tables(seed: int) -> Tables:
    """Return documents made from templates, some of whose shingles and bands are others."""
    rng = np.random.default_rng(seed)
    count, num_bands, size = (int(rng.integers(*limits)) for limits in ((2, 90), (1, 6), (1, 20)))
    num_templates = int(rng.integers(1, count // 3 + 2))
    template = rng.integers(0, num_templates, count)
    shingles = rng.integers(0, 400, (num_templates, size))[template]
    is_other = rng.random(shingles.shape) < rng.choice([0, 0.05, 0.2, 0.3])
    shingles[is_other] = rng.integers(0, 400, is_other.sum())
    bands = rng.integers(0, 1 << 62, (num_templates, num_bands))[template]
    is_own = rng.random(bands.shape) < rng.choice([0, 0.3, 0.7])
    bands[is_own] = rng.integers(0, 1 << 62, is_own.sum())
    is_common = rng.random(bands.shape) < rng.choice([0, 0.05, 0.3])  # of documents that are not similar
    bands[is_common] = rng.choice(rng.integers(0, 1 << 62, 5), is_common.sum())
    sizes = rng.integers(0, size + 1, count) if seed % 2 else np.full(count, size)
    groups = rng.integers(0, count, count) if seed % 3 else np.arange(count)
    kept = [row[:number] for row, number in zip(shingles, sizes.tolist(), strict=True)]
    return Tables(bands.astype(np.uint64), kept, groups.tolist())


def write_tables(work_dir: WorkDir, tables: Tables) -> list[int]:
    count = len(tables.groups)
    boundaries = [count // 4, count // 2]
    num_documents = write_documents(work_dir, list(range(count)), tables.groups, boundaries)
    first = 0
    for partition, number in enumerate(num_documents):
        rows = slice(first, first + number)
        first += number
        np.concatenate([[], *tables.shingles[rows]]).astype("<u4").tofile(work_dir.file(partition, "shingles"))
        sizes = np.array([len(each) for each in tables.shingles[rows]], NUM_SHINGLES_DTYPE)
        sizes.tofile(work_dir.file(partition, "num_shingles"))
        tables.bands[rows].tofile(work_dir.file(partition, "bands"))
    return num_documents


def find_clusters(tables: Tables, threshold: float) -> list[int]:
    """Return the first document of each document's cluster."""
    first = list(range(len(tables.groups)))
    sets = [set(each.tolist()) for each in tables.shingles]

    def find(document: int) -> int:
        return document if first[document] == document else find(first[document])

    def join_if_similar(a: int, b: int) -> None:
        if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b]):
            a, b = sorted((find(a), find(b)))
            first[b] = a

    rows = [(int(h), i) for i, bands in enumerate(tables.bands) if sets[i] for h in bands]
    num_buckets, max_rows = count_buckets(tables.bands.size), get_max_piece_rows()
    numbers = choose_buckets(np.array([h for h, _ in rows], np.uint64), num_buckets).tolist()
    for bucket in range(num_buckets):
        of_bucket = [row for row, number in zip(rows, numbers, strict=True) if number == bucket]
        first_of_runs: list[tuple[int, int]] = []
        for start in range(0, len(of_bucket), max_rows):
            of_hash = defaultdict(list)
            for h, document in sorted(first_of_runs + of_bucket[start : start + max_rows]):
                of_hash[h].append(document)
            first_of_runs = [(h, documents[0]) for h, documents in of_hash.items()]
            runs = list(of_hash.values())
            for run in runs:
                for a, b in itertools.pairwise(run):
                    join_if_similar(a, b)
            for _ in range(compare.MAX_FIRST_DOCUMENTS):
                for run in runs:
                    for other in run[1:]:
                        join_if_similar(run[0], other)
                runs = [[i for i in run if find(i) != find(run[0])] for run in runs]
    return [find(i) for i in range(len(first))]


def use_small_parts(monkeypatch: pytest.MonkeyPatch, seed: int, count: int) -> None:
    """Divide `count` documents into sections, buckets, pieces and tasks, the number of which depends on `seed`."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(shuffle, "PAGE_DOCUMENTS", 1)
    monkeypatch.setattr(near_duplicates, "MIN_SECTION_DOCUMENTS", max(count // int(rng.integers(1, 5)), 1))
    monkeypatch.setattr(near_duplicates, "ROWS_PER_TASK", int(rng.choice([20, 60, 1000])))
    monkeypatch.setattr("preprocess.build.near_dedup.shingles.COMPARED_SHINGLES", int(rng.choice([10, 1 << 20])))


def decide(recipe: Any, work_dir: WorkDir, num_documents: list[int], engine: Any) -> tuple[np.ndarray, Any]:
    assignment = dedup_and_split(recipe, work_dir, num_documents, engine)
    return read_sides(work_dir, num_documents), assignment


@pytest.mark.parametrize("rows_per_bucket", [25, 90, 10**6])
def test_clusters_are_those_of_one_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_bucket: int) -> None:
    monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", rows_per_bucket)
    num_found = 0
    for seed in range(NUM_SEEDS):
        tables = make_tables(seed)
        work_dir = WorkDir(tmp_path / str(seed))
        work_dir.path.mkdir()
        num_documents = write_tables(work_dir, tables)
        use_small_parts(monkeypatch, seed, sum(num_documents))
        threshold = (0.3, 0.5, 0.8, 1.0)[seed % 4]
        first = find_clusters(tables, threshold)
        recipe = make_recipe(
            near_dedup="drop", near_dedup_bands=tables.bands.shape[1], near_dedup_threshold=threshold, val_fraction=0.0
        )
        sides, assignment = decide(recipe, work_dir, num_documents, SerialEngine())
        assert (sides == DROPPED).tolist() == [i != each for i, each in enumerate(first)]
        assert assignment.dropped["near_duplicates"] == (sides == DROPPED).sum()
        expected: dict[int, int] = {}
        for document, each in enumerate(first):
            if document != each:
                expected.setdefault(each, document)
        assert assignment.duplicate_pairs["near_duplicates"] == [(b, a) for a, b in expected.items()][:5]
        assert not list(work_dir.path.glob("*.rows")) and not list(work_dir.path.glob("*.partial"))
        num_found += assignment.dropped["near_duplicates"]
    assert num_found > 100


def test_runs_of_a_task_that_do_not_fit_into_memory_are_compared_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = make_tables(8)
    num_documents = write_tables(WorkDir(tmp_path), tables)
    recipe = make_recipe(near_dedup="drop", near_dedup_bands=tables.bands.shape[1], val_fraction=0.0)
    monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", 25)

    def reject(*_: object) -> None:
        raise AssertionError("compared in memory")

    monkeypatch.setattr(compare, "_compare_in_memory", reject)
    sides, _ = decide(recipe, WorkDir(tmp_path), num_documents, SerialEngine())
    first = find_clusters(tables, recipe.near_dedup_threshold)
    assert (sides == DROPPED).tolist() == [i != each for i, each in enumerate(first)]


@pytest.mark.parametrize("mode", ["drop", "group"])
def test_worker_processes_decide_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    tables = make_tables(5)
    num_documents = write_tables(WorkDir(tmp_path), tables)
    settings = {"near_dedup": mode, "near_dedup_bands": tables.bands.shape[1], "val_fraction": 0.3}
    expected, found = decide(make_recipe(**settings), WorkDir(tmp_path), num_documents, SerialEngine())
    use_small_parts(monkeypatch, 1, sum(num_documents))
    with ProcessEngine(2) as engine:
        sides, again = decide(make_recipe(**settings), WorkDir(tmp_path), num_documents, engine)
    assert (sides == expected).all() and again.dropped == found.dropped
    assert again.num_near_duplicates == found.num_near_duplicates
