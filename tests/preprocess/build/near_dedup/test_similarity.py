"""The similarity of sets of shingles, in memory and in files."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.build.near_dedup.similarity import ShingleFile, compute_large_similarity, compute_similarities


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 20), min_size=1), st.sets(st.integers(0, 20), min_size=1)), min_size=1)
)
def test_similarities_are_exact(pairs: list[tuple[set[int], set[int]]]) -> None:
    keys = [
        np.array([(i << 32) + each for i, pair in enumerate(pairs) for each in sorted(pair[side])], np.uint64)
        for side in (0, 1)
    ]
    found = compute_similarities(keys[0], keys[1], len(pairs))
    assert found.tolist() == [len(a & b) / len(a | b) for a, b in pairs]


def write_shingles(path: Path, sets: list[np.ndarray]) -> list[ShingleFile]:
    path.write_bytes(b"".join(each.astype("<u4").tobytes() for each in sets))
    ends = np.cumsum([len(each) for each in sets]).tolist()
    return [ShingleFile(path, end - len(each), end) for each, end in zip(sets, ends, strict=True)]


def test_compute_large_similarity_is_exact_with_repeated_and_extreme_shingles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.build.near_dedup.similarity.PART_SHINGLES", 300)
    monkeypatch.setattr("preprocess.build.near_dedup.similarity.CHUNK_SHINGLES", 70)
    rng = np.random.default_rng(0)
    a = np.concatenate([rng.integers(0, 1 << 32, 500), [0, 0, (1 << 32) - 1]])
    b = np.concatenate([a[100:], a[200:300], rng.integers(0, 1 << 32, 200), [0]])
    expected = len(set(a.tolist()) & set(b.tolist())) / len(set(a.tolist()) | set(b.tolist()))
    assert compute_large_similarity(*write_shingles(tmp_path / "shingles", [a, b])) == expected
    one_word = np.full(1000, 7)
    assert compute_large_similarity(*write_shingles(tmp_path / "shingles", [one_word, one_word])) == 1


def test_compute_large_similarity_needs_less_memory_than_the_shingles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.build.near_dedup.similarity.PART_SHINGLES", 1 << 18)
    monkeypatch.setattr("preprocess.build.near_dedup.similarity.CHUNK_SHINGLES", 1 << 16)
    a = np.random.default_rng(0).integers(0, 1 << 32, 1_000_000, np.uint32)
    sets = write_shingles(tmp_path / "shingles", [a, a])
    tracemalloc.start()
    try:
        assert compute_large_similarity(*sets) == 1
        assert tracemalloc.get_traced_memory()[1] < 2 * a.nbytes  # as uint64 keys, the sets alone take four times that
    finally:
        tracemalloc.stop()
