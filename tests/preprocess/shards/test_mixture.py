"""Sample number → source and number in it: by weight, each number once, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from preprocess.shards.mixture import CYCLE, Mixture

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9)), min_size=1, max_size=6).filter(any)


def test_orders_never_change() -> None:
    mixture = Mixture([0.7, 0.2, 0.1], seed=1337)
    source, number = mixture.assign(np.array([0, 1, 2, 3, 65535, 65536, 65537, 2**40, 2**64 - 1], dtype=np.uint64))
    assert mixture.slots == (45875, 13107, 6554)
    assert source.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert number.tolist() == [34411, 8881, 1522, 22709, 1062, 72551, 85183, 769654789344, 12912664556601322938]


@given(WEIGHTS, st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_each_number_of_each_source_is_used_once(weights, seed, cycle) -> None:
    mixture = Mixture(weights, seed=seed)
    source, number = mixture.assign(np.arange(cycle * CYCLE, (cycle + 1) * CYCLE, dtype=np.uint64))
    assert (source.dtype, number.dtype) == (np.int64, np.uint64)
    for s, slots in enumerate(mixture.slots):
        assert np.sort(number[source == s]).tolist() == list(range(cycle * slots, (cycle + 1) * slots))


@given(WEIGHTS)
def test_slots_follow_the_weights(weights) -> None:
    slots = Mixture(weights, seed=0).slots
    assert sum(slots) == CYCLE and [n > 0 for n in slots] == [w > 0 for w in weights]
    for n, weight in zip(slots, weights, strict=True):
        share = weight / sum(weights) * CYCLE
        assert abs(n - share) < 1 + len(weights) or n == 1
    assert Mixture([8 * w for w in weights], seed=0).slots == slots


@pytest.mark.parametrize(
    ("weights", "slots"),
    [
        ([1], (CYCLE,)),
        ([7, 0, 3], (45875, 0, 19661)),
        ([1, 1, 1], (21846, 21845, 21845)),
        ([5e-324, 1e308], (1, CYCLE - 1)),
        ([1.0] * CYCLE, (1,) * CYCLE),
    ],
)
def test_slots_by_largest_remainder(weights, slots) -> None:
    assert Mixture(weights, seed=0).slots == slots


def test_any_prefix_has_about_the_weights_proportions() -> None:
    source, _ = Mixture([0.7, 0.2, 0.1], seed=5).assign(np.arange(3 * CYCLE))
    taken = np.cumsum(source[:, None] == np.arange(3), axis=0)
    wanted = np.arange(1, len(source) + 1)[:, None] * np.array([0.7, 0.2, 0.1])
    # Independent draws would stray by √(n · 0.21) at most on average: 117 at a cycle's end, where a cycle has come out even.
    assert np.abs(taken - wanted).max() < 4 * np.sqrt(CYCLE / 4 * 0.21)
    assert np.abs(taken - wanted)[CYCLE - 1 :: CYCLE].max() < 3
    rows = source[: CYCLE // 64 * 64].reshape(-1, 64)
    assert 0.9 < (rows == 0).sum(axis=1).var() / (64 * 0.7 * 0.3) < 1.1


def test_cycles_and_seeds_differ() -> None:
    samples = np.arange(2 * CYCLE)
    source, _ = Mixture([1, 1], seed=1).assign(samples)
    other, _ = Mixture([1, 1], seed=2).assign(samples)
    for same in (source[:CYCLE] == source[CYCLE:], source == other):
        assert abs(same.mean() - 0.5) < 0.02


def test_a_mixture_of_one_shuffles_within_cycles() -> None:
    source, number = Mixture([3], seed=1).assign(np.arange(2 * CYCLE))
    assert not source.any() and (number // CYCLE == np.arange(2 * CYCLE) // CYCLE).all()


@given(WEIGHTS, st.integers(0, 99), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30))
def test_a_sample_depends_on_seed_and_number_alone(weights, seed, samples) -> None:
    source, number = Mixture(weights, seed=seed).assign(np.array(samples, dtype=np.uint64))
    for i, sample in enumerate(samples):
        one = Mixture(weights, seed=seed).assign(np.array([sample], dtype=np.uint64))
        assert (one[0][0], one[1][0]) == (source[i], number[i])


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [float("nan")], [float("inf"), 1]])
def test_weights_that_are_none_are_refused(weights) -> None:
    with pytest.raises(MisuseError, match="are no mixture"):
        Mixture(weights, seed=0)


def test_too_many_weights_are_refused() -> None:
    with pytest.raises(MisuseError, match="65537 builds are too many"):
        Mixture([1] * (CYCLE + 1), seed=0)
