"""Connected components: in memory, range after range, and of groups."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preprocess.build.engines.local import SerialEngine
from preprocess.build.near_dedup.components import LINK_DTYPE, _join_pieces, find_components, locate, resolve
from preprocess.build.near_dedup.forest import Forest
from preprocess.build.near_dedup.groups import join_groups
from preprocess.build.shuffle import Shuffle, cut_sections
from preprocess.build.split_assignment import Grouping
from preprocess.build.work_dir import WorkDir
from tests.helpers.memory import measure_peak_bytes
from tests.preprocess.build.helpers import ANY_EXAMPLES, write_documents

MAX_NUMBER = 30
EDGES = st.lists(st.lists(st.tuples(st.integers(0, MAX_NUMBER), st.integers(0, MAX_NUMBER)), max_size=20), max_size=4)


def list_first(edges: list[tuple[int, int]]) -> list[int]:
    """Return the smallest number of the component of each number up to MAX_NUMBER."""
    first = list(range(MAX_NUMBER + 1))
    for _ in first:
        for a, b in edges:
            first[a] = first[b] = min(first[a], first[b])
    return first


@ANY_EXAMPLES
@given(EDGES)
def test_forest_finds_the_connected_components(edges: list[list[tuple[int, int]]]) -> None:
    forest = Forest(np.arange(MAX_NUMBER + 1))
    for each in edges:
        forest.join(*np.array(each, np.int64).reshape(-1, 2).T)
    assert forest.find_first(np.arange(MAX_NUMBER + 1)).tolist() == list_first(
        [pair for each in edges for pair in each]
    )


def test_joined_links_take_the_memory_of_one_piece_of_them() -> None:
    def iter_pieces() -> Iterator[np.ndarray]:
        for first in range(100):  # each number is linked to a hundred others
            piece = np.empty(1000, LINK_DTYPE)
            piece["index"], piece["first"] = np.arange(1000) + 1000, first
            yield piece

    joined = _join_pieces(iter_pieces())
    assert len(joined) == 1099 and not joined["first"].any()
    assert measure_peak_bytes(lambda: _join_pieces(iter_pieces())) < 100 * 1000 * LINK_DTYPE.itemsize // 4


@ANY_EXAMPLES
@given(EDGES, st.sets(st.integers(1, MAX_NUMBER), max_size=9))
def test_ranges_find_the_connected_components(
    tmp_path: Path, edges: list[list[tuple[int, int]]], boundaries: set[int]
) -> None:
    starts = np.array([0, *sorted(boundaries)], np.uint64)
    with Shuffle(WorkDir(tmp_path), "links", LINK_DTYPE, max(len(edges), 1), len(starts)) as links:
        for writer in range(links.num_writers):
            with links.open(writer) as append:
                rows = [(max(pair), min(pair)) for pair in edges[writer]] if edges else []
                found = np.array(rows, LINK_DTYPE)
                append(found, locate(starts, found["index"]))
        with find_components(links, starts, SerialEngine()) as components:
            of_ranges = [components.read_all(number) for number in range(len(starts))]
    numbers = np.arange(MAX_NUMBER + 1, dtype=np.uint64)
    resolved = [int(resolve(of_ranges[locate(starts, numbers[i : i + 1])[0]], numbers[i : i + 1])[0]) for i in numbers]
    assert resolved == list_first([pair for each in edges for pair in each])
    for number, rows in enumerate(of_ranges):
        assert (locate(starts, rows["index"]) == number).all() and len(np.unique(rows["index"])) == len(rows)
        assert (rows["first"] < rows["index"]).all()
    assert list(tmp_path.iterdir()) == []


def test_forest_joins_a_long_chain_of_pairs_quickly() -> None:
    number = 100_000
    forest = Forest(np.arange(number))
    started = time.process_time()
    forest.join(np.arange(1, number), np.arange(number - 1))
    assert not forest.find_first(np.arange(number)).any()
    assert time.process_time() - started < 3  # 0.05 s; following one link at a time takes half a minute


def test_tasks_are_small_however_many_groups_are_joined(tmp_path: Path) -> None:
    work_dir, count = WorkDir(tmp_path), 1000
    num_documents = write_documents(work_dir, list(range(count)), list(range(count)), [400])
    sections = cut_sections(num_documents)
    links = Shuffle(work_dir, "near", LINK_DTYPE, 1, len(sections))
    with links.open(0) as append:
        rows = np.zeros(count - 2, LINK_DTYPE)
        rows["index"] = np.arange(1, count - 1)
        append(rows, np.zeros(len(rows), np.int64))
    groups = join_groups(links, sections, "group", len(rows), SerialEngine())
    assert groups.num_groups == count - 1
    assert len(ForkingPickler.dumps(Grouping("group", groups))) < 2_000
    hashes = np.concatenate([np.fromfile(work_dir.file(i, "docs"), "V66")[:] for i in (0, 1)])
    tables = hashes.view(np.uint8).reshape(count, -1)[:, 16:32]
    joined = groups.apply(np.ascontiguousarray(tables))
    assert len(np.unique(joined[:-1], axis=0)) == 1 and (joined[-1] == tables[-1]).all()
