"""The build of each sample: in proportion to the weights, each number once, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from preprocess.shards.mixture import CYCLE, Mixture

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9)), min_size=1, max_size=6).filter(any)


def test_golden_assignments_never_change() -> None:
    mixture = Mixture([0.7, 0.2, 0.1], seed=1337)
    build, number = mixture.assign(np.array([0, 1, 2, 3, 65535, 65536, 65537, 2**40, 2**64 - 1], dtype=np.uint64))
    assert mixture.slots == (45875, 13107, 6554)
    assert build.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert number.tolist() == [34411, 8881, 1522, 22709, 1062, 72551, 85183, 769654789344, 12912664556601322938]


@given(WEIGHTS, st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_assign_uses_each_number_of_each_build_once(weights, seed, cycle) -> None:
    mixture = Mixture(weights, seed=seed)
    build, number = mixture.assign(np.arange(cycle * CYCLE, (cycle + 1) * CYCLE, dtype=np.uint64))
    assert (build.dtype, number.dtype) == (np.int64, np.uint64)
    for s, slots in enumerate(mixture.slots):
        assert np.sort(number[build == s]).tolist() == list(range(cycle * slots, (cycle + 1) * slots))


@given(WEIGHTS)
def test_slots_are_proportional_to_weights(weights) -> None:
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
def test_slots_are_apportioned_by_largest_remainder(weights, slots) -> None:
    assert Mixture(weights, seed=0).slots == slots


def test_any_prefix_is_about_proportional_to_weights() -> None:
    build, _ = Mixture([0.7, 0.2, 0.1], seed=5).assign(np.arange(3 * CYCLE))
    taken = np.cumsum(build[:, None] == np.arange(3), axis=0)
    expected = np.arange(1, len(build) + 1)[:, None] * np.array([0.7, 0.2, 0.1])
    # Independent draws would deviate by √(n · 0.21) on average: by 117 at the end of a cycle, at
    # which a mixture is exact.
    assert np.abs(taken - expected).max() < 4 * np.sqrt(CYCLE / 4 * 0.21)
    assert np.abs(taken - expected)[CYCLE - 1 :: CYCLE].max() < 3
    rows = build[: CYCLE // 64 * 64].reshape(-1, 64)
    assert 0.9 < (rows == 0).sum(axis=1).var() / (64 * 0.7 * 0.3) < 1.1


def test_assign_differs_between_cycles_and_seeds() -> None:
    samples = np.arange(2 * CYCLE)
    build, _ = Mixture([1, 1], seed=1).assign(samples)
    other, _ = Mixture([1, 1], seed=2).assign(samples)
    for same in (build[:CYCLE] == build[CYCLE:], build == other):
        assert abs(same.mean() - 0.5) < 0.02


def test_mixture_of_one_build_shuffles_within_cycles() -> None:
    build, number = Mixture([3], seed=1).assign(np.arange(2 * CYCLE))
    assert not build.any() and (number // CYCLE == np.arange(2 * CYCLE) // CYCLE).all()


@given(WEIGHTS, st.integers(0, 99), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30))
def test_assign_depends_on_seed_and_number_only(weights, seed, samples) -> None:
    build, number = Mixture(weights, seed=seed).assign(np.array(samples, dtype=np.uint64))
    for i, sample in enumerate(samples):
        alone = Mixture(weights, seed=seed).assign(np.array([sample], dtype=np.uint64))
        assert (alone[0][0], alone[1][0]) == (build[i], number[i])


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [float("nan")], [float("inf"), 1]])
def test_mixture_rejects_invalid_weights(weights) -> None:
    with pytest.raises(MisuseError, match="weights must be finite, at least 0 and not all 0, got "):
        Mixture(weights, seed=0)


def test_mixture_rejects_too_many_weights() -> None:
    with pytest.raises(MisuseError, match="65537 builds are too many"):
        Mixture([1] * (CYCLE + 1), seed=0)
