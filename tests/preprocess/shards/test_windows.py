"""The window of a sample: a pure function of its number, uniform, inside one shard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.shards.windows import (
    EpochWindows,
    RandomWindows,
    check_windows,
    gather_windows,
    list_sequential_windows,
    number_documents,
)

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=6)


GOLDEN_LENGTHS = [1000, 3, 70, 20_000]
GOLDEN_SAMPLES = np.array([0, 1, 2, 3, 1315, 1316, 1317, 2**40, 2**64 - 1], dtype=np.uint64)


@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_random_windows_depend_on_seed_and_number_only(lengths, block_size, seed, samples) -> None:
    if max(lengths) <= block_size:
        with pytest.raises(ValueError):
            RandomWindows(lengths, block_size, seed=seed)
        with pytest.raises(FolioError, match=f"longest train shard has {max(lengths)}"):
            check_windows(lengths, block_size, "train")
        return
    windows = RandomWindows(lengths, block_size, seed=seed)
    shard, start = windows.locate(np.array(samples))
    assert (start >= 0).all() and (start + block_size + 1 <= np.array(lengths)[shard]).all()
    for i, sample in enumerate(samples):
        alone = RandomWindows(lengths, block_size, seed=seed).locate(np.array([sample]))
        assert (alone[0][0], alone[1][0]) == (shard[i], start[i])


def test_random_windows_are_uniform_over_all_starts() -> None:
    lengths, block_size = [13, 3, 8, 30], 4
    shard, start = RandomWindows(lengths, block_size, seed=5).locate(np.arange(170_000))
    counts = np.unique(shard * 100 + start, return_counts=True)[1]
    expected = 170_000 / 39
    assert len(counts) == 9 + 0 + 4 + 26
    # Chi-squared with 38 degrees of freedom: above 75 once in 3,000 seeds; this seed is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 75


@given(LENGTHS, st.integers(1, 20))
def test_list_sequential_windows_has_each_target_once(lengths, block_size) -> None:
    shard, start = list_sequential_windows(lengths, block_size)
    targets = [(s, t) for s, b in zip(shard, start, strict=True) for t in range(b + 1, b + block_size + 1)]
    assert len(targets) == len(set(targets)) == sum(max((n - 1) // block_size, 0) * block_size for n in lengths)
    assert all(t < lengths[s] for s, t in targets)
    assert len(list_sequential_windows(lengths, block_size, 2)[0]) == min(2, len(shard))


@given(LENGTHS, st.integers(1, 10), st.integers(0, 99))
def test_gather_windows_equals_slices(lengths, block_size, seed) -> None:
    if max(lengths) <= block_size:
        return
    tokens = [(np.arange(n) + 1000 * s).astype("<u2") for s, n in enumerate(lengths)]
    shard, start = RandomWindows(lengths, block_size, seed=seed).locate(np.arange(17))
    batch = gather_windows(tokens, shard, start, block_size)
    assert batch.dtype == np.dtype("<u2") and batch.shape == (17, block_size + 1)
    assert all(
        batch[i].tolist() == tokens[s][b : b + block_size + 1].tolist()
        for i, (s, b) in enumerate(zip(shard, start, strict=True))
    )


def test_golden_orders_never_change() -> None:
    shard, start = RandomWindows(GOLDEN_LENGTHS, 16, seed=1337).locate(GOLDEN_SAMPLES)
    assert shard.tolist() == [3] * 9
    assert start.tolist() == [1894, 2428, 9346, 10901, 12993, 19581, 5834, 10310, 14927]
    shard, start = EpochWindows(GOLDEN_LENGTHS, 16, seed=1337).locate(GOLDEN_SAMPLES)
    assert shard.tolist() == [3, 3, 3, 3, 0, 3, 3, 3, 3]
    assert start.tolist() == [495, 191, 7807, 16383, 931, 9065, 4537, 7694, 9215]
    # With 64 windows per epoch or fewer, `permute` ranks hashes instead of encrypting.
    shard, start = EpochWindows([70], 16, seed=0).locate(np.arange(9))
    assert not shard.any() and start.tolist() == [20, 36, 4, 52, 3, 19, 35, 51, 37]


@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_epoch_windows_visit_each_window_once_per_epoch(lengths, block_size, seed, epoch) -> None:
    if max(lengths) <= block_size:
        with pytest.raises(ValueError, match="check_windows"):
            EpochWindows(lengths, block_size, seed=seed)
        return
    windows = EpochWindows(lengths, block_size, seed=seed)
    total = windows.windows_per_epoch
    assert windows.num_epochs(total) == 1.0
    shard, start = windows.locate(np.arange(epoch * total, (epoch + 1) * total, dtype=np.uint64))
    assert (shard.dtype, start.dtype) == (np.int64, np.int64)
    visited = 0
    for s, tokens in enumerate(lengths):
        starts = np.sort(start[shard == s])
        assert len(starts) == max((tokens - 1) // block_size, 0)
        if len(starts):
            assert starts[0] >= 0 and starts[-1] + block_size + 1 <= tokens
            assert (np.diff(starts) == block_size).all()
            visited += len(starts) * block_size + 1
    assert visited + windows.num_unvisited == sum(lengths)


def test_epoch_windows_of_a_shard_without_remainder_visit_every_token() -> None:
    windows = EpochWindows([41, 11], 10, seed=3)
    assert (windows.windows_per_epoch, windows.num_unvisited) == (5, 0)
    shard, start = windows.locate(np.arange(50))
    assert sorted(set(zip(shard.tolist(), start.tolist(), strict=True))) == [(0, 0), (0, 10), (0, 20), (0, 30), (1, 0)]


def test_epoch_windows_visit_each_of_ten_million_windows_once() -> None:
    windows = EpochWindows([12_000_001, 5, 1, 8_000_000], 2, seed=9)
    total = windows.windows_per_epoch
    assert total == 10_000_001
    first = np.array([0, 6_000_000, 6_000_002, 6_000_002])
    visits = np.empty(total, np.int32)
    for begin in range(0, total, 1 << 17):
        shard, start = windows.locate(np.arange(total + begin, total + min(begin + (1 << 17), total), dtype=np.uint64))
        visits[begin : begin + (1 << 17)] = first[shard] + start // 2
    assert (np.bincount(visits, minlength=total) == 1).all()


def test_epoch_windows_differ_in_order_and_offsets_between_epochs_and_seeds() -> None:
    lengths, block_size = [20_000, 30_000], 100
    total = EpochWindows(lengths, block_size, seed=1).windows_per_epoch
    shard, start = EpochWindows(lengths, block_size, seed=1).locate(np.arange(40 * total))
    other = EpochWindows(lengths, block_size, seed=2).locate(np.arange(40 * total))
    orders = (shard * 10**6 + start // block_size).reshape(40, total)
    # Two random orders agree at one position on average.
    assert max((orders[e] == orders[e + 1]).sum() for e in range(39)) < 10
    assert (orders == (other[0] * 10**6 + other[1] // block_size).reshape(40, total)).sum() < 100
    offsets = [
        (start.reshape(40, total)[e][shard.reshape(40, total)[e] == s] % block_size)[0]
        for e in range(40)
        for s in (0, 1)
    ]
    # 80 draws from 100 leave 45 of them undrawn on average.
    assert len(set(offsets)) > 40
    assert sum(a == b for a, b in zip(offsets[::2], offsets[1::2], strict=True)) < 6


def test_epoch_windows_draw_offsets_uniformly() -> None:
    start = EpochWindows([20], 10, seed=4).locate(np.arange(100_000))[1]
    counts = np.bincount(start, minlength=10)
    # Chi-squared with 9 degrees of freedom: above 28 once in 1,000 seeds; this seed is fixed.
    assert len(counts) == 10 and ((counts - 10_000) ** 2 / 10_000).sum() < 28


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40), st.integers(0, 2**64 - 1), st.randoms())
def test_epoch_windows_depend_on_seed_and_number_only(samples, seed, random) -> None:
    def locate(numbers: list[int]) -> dict[int, tuple[int, int]]:
        shard, start = EpochWindows([500, 7, 90], 8, seed=seed).locate(np.array(numbers, dtype=np.uint64))
        return dict(zip(numbers, zip(shard.tolist(), start.tolist(), strict=True), strict=True))

    together = locate(samples)
    shuffled = random.sample(samples, len(samples))
    assert locate(shuffled) == together
    assert {k: v for s in samples for k, v in locate([s]).items()} == together


@pytest.mark.parametrize(
    "windows", [EpochWindows(GOLDEN_LENGTHS, 16, seed=1), RandomWindows(GOLDEN_LENGTHS, 16, seed=1)]
)
def test_locate_does_not_depend_on_world_size_and_micro_batch(windows) -> None:
    def locate_all(world_size: int, micro_batch: int) -> list[tuple[int, int]]:
        """Return 5,760 windows as the ranks locate them, one micro-batch after the other."""
        out = []
        for begin in range(0, 240 * 24, world_size * micro_batch):
            for rank in range(world_size):
                samples = np.arange(begin + rank * micro_batch, begin + (rank + 1) * micro_batch)
                out += list(zip(*(part.tolist() for part in windows.locate(samples)), strict=True))
        return out

    expected = locate_all(1, 24)
    assert len(expected) == 5760 and all(
        locate_all(*shares) == expected for shares in [(1, 1), (1, 8), (2, 12), (2, 3), (4, 6), (4, 2)]
    )


@given(
    st.data(),
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=40), min_size=1, max_size=3),
    st.integers(1, 30),
)
def test_number_documents_equals_a_plain_count(data, documents, block_size) -> None:
    ends = [np.cumsum(lengths).astype("<u8") for lengths in documents]
    owners = [[d for d, n in enumerate(lengths) for _ in range(n)] for lengths in documents]
    starts = [(s, b) for s, owner in enumerate(owners) for b in range(len(owner) - block_size)]
    if not starts:
        return
    chosen = data.draw(st.lists(st.sampled_from(starts), max_size=12))
    shard, start = np.array(chosen, dtype=np.int64).reshape(-1, 2).T
    numbers = number_documents(ends, shard, start, block_size)
    assert numbers.dtype == np.int32 and numbers.shape == (len(chosen), block_size)
    for row, (s, b) in zip(numbers.tolist(), chosen, strict=True):
        window = owners[s][b : b + block_size]
        assert row == [len(set(window[: t + 1])) - 1 for t in range(block_size)]


def test_number_documents_counts_hundreds_in_one_window() -> None:
    ends = [np.arange(1, 2001, dtype="<u8"), np.array([2000], dtype="<u8")]
    numbers = number_documents(ends, np.array([1, 0]), np.array([5, 7]), 1024)
    assert not numbers[0].any() and numbers[1].tolist() == list(range(1024))
