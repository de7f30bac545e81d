"""Datasets stop and resume at any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import Build
from preprocess.shards.torch_dataset import Documents, ShuffledWindows, TokenWindows
from tests.conftest import assert_one_line

PASSES = 3


def read_batches(loader: Any) -> list[list[list[int]]]:
    """Return the inputs of one pass, batch by batch."""
    return [x.tolist() for x, _ in loader]


@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, False), (2, True)])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(("passes_before", "k"), [(0, 3), (1, 4), (1, 0)])
def test_stateful_loader_resumes_at_the_next_batch(
    build: Build, num_workers: int, persistent: bool, passes_before: int, k: int
) -> None:
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> Any:
        dataset = ShuffledWindows(build, block_size=6, rank=1, world_size=2)
        return stateful_dataloader.StatefulDataLoader(
            dataset, 3, num_workers=num_workers, persistent_workers=persistent
        )

    straight = make()
    expected = [read_batches(straight) for _ in range(PASSES)]
    stopped = make()
    for number in range(passes_before):
        assert read_batches(stopped) == expected[number]
    if k:
        iterator = iter(stopped)
        assert [next(iterator)[0].tolist() for _ in range(k)] == expected[passes_before][:k]
    state = stopped.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    # A state saved between two passes belongs to the pass that ended, so the whole next pass
    # follows.
    assert read_batches(resumed) == expected[passes_before][k:]
    for number in range(passes_before + 1, PASSES):
        assert read_batches(resumed) == expected[number]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("kind", [TokenWindows, Documents])
def test_stateful_loader_resumes_shuffled_items(build: Build, num_workers: int, kind: Any) -> None:
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")
    dataset = kind(build, **({"block_size": 6} if kind is TokenWindows else {}))

    def make() -> Any:
        torch.manual_seed(1)
        return stateful_dataloader.StatefulDataLoader(dataset, None, shuffle=True, num_workers=num_workers)

    expected = list(map(str, make()))
    stopped, resumed = make(), make()
    iterator = iter(stopped)
    assert [str(next(iterator)) for _ in range(5)] == expected[:5]
    resumed.load_state_dict(stopped.state_dict())
    assert list(map(str, resumed)) == expected[5:]


def test_dataset_resumes_without_a_loader(build: Build) -> None:
    dataset, again = ShuffledWindows(build, block_size=6), ShuffledWindows(build, block_size=6)
    expected = [x.tolist() for _ in range(2) for x, _ in dataset]
    dataset.set_epoch(0)
    iterator = iter(dataset)
    for _ in range(5):
        next(iterator)
    state = dataset.state_dict()
    assert (state["pass"], state["taken"]) == (0, 5)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert [x.tolist() for _ in range(2) for x, _ in again] == expected[5:]


def test_workers_reject_the_state_of_a_dataset_without_workers(build: Build) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    iterator = iter(dataset)
    state = [next(iterator) for _ in range(10)] and dataset.state_dict()
    resumed = ShuffledWindows(build, block_size=6)
    resumed.load_state_dict(state)
    with pytest.raises(MisuseError, match="the state belongs to .* no workers; this is .* worker 0 of 2"):
        list(DataLoader(resumed, 5, num_workers=2))


def test_state_dict_rejects_a_dataset_that_workers_read(build: Build) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    assert dataset.state_dict()["taken"] == 0
    iterator = iter(DataLoader(dataset, 5, num_workers=1))
    next(iterator)
    with pytest.raises(MisuseError, match="save the state of a StatefulDataLoader") as raised:
        dataset.state_dict()
    assert_one_line(str(raised.value))


@pytest.mark.parametrize("damage", [{"taken": -5}, {"pass": "1"}, {"pass": None}, {"taken": True}])
def test_load_state_dict_rejects_a_damaged_state(build: Build, damage: dict[str, Any]) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    with pytest.raises(FolioError, match="has no valid position in a pass; use another checkpoint"):
        dataset.load_state_dict(dataset.state_dict() | damage)
    with pytest.raises(MisuseError, match="the state belongs to None"):
        dataset.load_state_dict({})


def test_load_state_dict_rejects_the_state_of_another_dataset(build: Build) -> None:
    state = ShuffledWindows(build, block_size=6, seed=1).state_dict()
    for other in ({"seed": 2}, {"seed": 1, "rank": 0, "world_size": 2}, {"seed": 1, "num_samples": 5}):
        with pytest.raises(
            MisuseError, match="resume with the data, settings, processes and workers of the state"
        ) as raised:
            ShuffledWindows(build, block_size=6, **other).load_state_dict(state)
        assert_one_line(str(raised.value))
