"""Keyed hashes and permutations: bijective, uniform, and never changing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from preprocess.shards.permutation import keyed_hash, mix64, permute, permute_each

U64 = st.integers(0, 2**64 - 1)


def permuted(index: np.ndarray, size: int, key: int) -> np.ndarray:
    return permute(index.astype(np.uint64), size, np.full(len(index), key, np.uint64))


def chi_squared_per_degree(counts: np.ndarray) -> float:
    expected = counts.mean()
    return ((counts - expected) ** 2 / expected).sum() / (len(counts) - 1)


def test_mix64_is_splitmix64() -> None:
    # The generator's first outputs from state 0, as its authors' reference code prints them.
    states = (np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    assert [hex(v) for v in mix64(states).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_keyed_hash_differs_between_seeds() -> None:
    assert (keyed_hash(1, np.arange(100)) != keyed_hash(2, np.arange(100))).all()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_keyed_hash_rejects_a_seed_beyond_64_bits(seed) -> None:
    with pytest.raises(MisuseError, match=rf"seed must be a whole number from 0 to 2\*\*64 - 1, got {seed}"):
        keyed_hash(seed, np.arange(3))


def test_golden_hashes_and_permutations_never_change() -> None:
    assert keyed_hash(1337, np.arange(2)).tolist() == [10397223512575972624, 8891518001730717572]
    assert permuted(np.arange(6), 6, 7).tolist() == [2, 0, 5, 4, 3, 1]
    images = [384595223915, 262547247663, 398129871518, 602752325327, 774565346912, 709721466148]
    assert permuted(np.arange(6), 10**12, 7).tolist() == images


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permute_is_a_bijection_of_every_small_size(key) -> None:
    for size in range(1, 301):
        assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


def test_permute_each_is_a_bijection_for_each_size_and_key() -> None:
    """All sizes at once, as the items of a batch of packed rows have different ones."""
    sizes = np.repeat(np.arange(1, 301, dtype=np.uint64), np.arange(1, 301))
    index = np.concatenate([np.arange(size, dtype=np.uint64) for size in range(1, 301)])
    for key in (0, 1, 2**64 - 1):
        images = permute_each(index, sizes, np.full(len(index), key, np.uint64))
        for size in range(1, 301):
            assert sorted(images[sizes == size].tolist()) == list(range(size))


@given(st.integers(65, 2**52), U64, st.lists(U64, min_size=1, max_size=30, unique=True))
def test_permute_each_equals_permute_for_sizes_above_64(size, key, numbers) -> None:
    index = np.array(numbers, np.uint64) % np.uint64(size)
    keys = np.full(len(index), key, np.uint64)
    assert (permute_each(index, np.full(len(index), size, np.uint64), keys) == permute(index, size, keys)).all()


def test_permute_each_puts_each_of_a_few_anywhere_with_equal_probability() -> None:
    keys = mix64(np.arange(20_000, dtype=np.uint64))
    for size in (2, 3, 5, 12):
        images = permute_each(np.zeros(len(keys), np.uint64), np.full(len(keys), size, np.uint64), keys)
        assert chi_squared_per_degree(np.bincount(images.astype(np.int64), minlength=size)) < 4


@given(st.integers(1, 200_000), U64)
def test_permute_is_a_bijection(size, key) -> None:
    assert (np.bincount(permuted(np.arange(size), size, key).astype(np.int64), minlength=size) == 1).all()


@given(st.integers(1, 2**62), U64, st.lists(U64, min_size=1, max_size=30, unique=True))
def test_permute_is_injective_and_in_range_at_any_size(size, key, numbers) -> None:
    index = np.unique(np.array(numbers, np.uint64) % np.uint64(size))
    images = permuted(index, size, key)
    assert images.dtype == np.uint64 and (images < size).all() and len(np.unique(images)) == len(index)
    assert [permuted(index[i : i + 1], size, key)[0] for i in range(len(index))] == images.tolist()


@pytest.mark.parametrize("size", [5, 64, 65, 101])
def test_permute_makes_every_pair_of_images_equally_likely(size) -> None:
    keys = keyed_hash(3, np.arange(300_000))
    first, second = (permute(np.full(len(keys), i, np.uint64), size, keys).astype(np.int64) for i in (0, 1))
    pairs = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert (np.diag(pairs) == 0).all()
    # A uniform permutation has about 1; four rounds instead of six have 6.9 at size 65 and 3.1 at
    # 101.
    assert chi_squared_per_degree(pairs[~np.eye(size, dtype=bool)]) < 1.3
    assert chi_squared_per_degree(np.bincount(first)) < 2.5


def test_permute_separates_neighbours() -> None:
    size = 1_000_000
    images = permuted(np.arange(size), size, 11).astype(np.int64)
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.005
    distances = np.bincount((np.diff(images) % size) * 100 // size, minlength=100)
    assert chi_squared_per_degree(distances) < 1.6


@pytest.mark.parametrize(("size", "index"), [(0, 0), (2**62 + 1, 0), (5, 5)])
def test_permute_rejects_size_or_index_out_of_range(size, index) -> None:
    with pytest.raises(ValueError, match="permute expects a size"):
        permuted(np.array([index]), size, 0)
