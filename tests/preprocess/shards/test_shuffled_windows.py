"""ShuffledWindows: the data order, and its division among processes and workers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from preprocess.errors import MisuseError
from preprocess.shards import torch_dataset
from preprocess.shards.format import Build
from preprocess.shards.torch_dataset import ShuffledWindows, make_loader
from preprocess.shards.windows import EpochWindows, RandomWindows
from tests.preprocess.shards.helpers import FakeWorker, read_windows

PASSES = 3


@pytest.mark.parametrize(("order", "windows"), [("epochs", EpochWindows), ("random", RandomWindows)])
def test_shuffled_windows_follow_the_data_order(build: Build, order: str, windows: Any) -> None:
    dataset = ShuffledWindows(build, block_size=6, order=order, seed=3)
    shards = build.shards("train")
    lengths = [len(shard.tokens) for shard in shards]
    expected = windows(lengths, 6, seed=3).locate(np.arange(PASSES * dataset.num_samples, dtype=np.uint64))
    read = [pair for _ in range(PASSES) for pair in dataset]
    assert dataset.num_samples == EpochWindows(lengths, 6, seed=0).windows_per_epoch
    for (x, y), shard, start in zip(read, *expected, strict=True):
        assert np.array_equal(x, shards[shard].tokens[start : start + 6])
        assert np.array_equal(y, shards[shard].tokens[start + 1 : start + 7])


def test_shuffled_windows_have_each_target_once_per_epoch(build: Build) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    for _ in range(PASSES):
        targets = torch.cat([y for _, y in dataset])
        assert len(targets.unique()) == len(targets) == 6 * dataset.num_samples


def test_next_pass_begins_after_the_last_sample(build: Build) -> None:
    whole = [x.tolist() for x, _ in ShuffledWindows(build, block_size=6, num_samples=30)]
    parts = ShuffledWindows(build, block_size=6, num_samples=10)
    assert [x.tolist() for _ in range(3) for x, _ in parts] == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 120), st.integers(1, 5), st.integers(1, 5))
def test_readers_divide_a_pass_without_overlap(
    build: Build, monkeypatch: Any, num_samples: int, world_size: int, num_workers: int
) -> None:
    options = {"block_size": 6, "order": "random", "num_samples": num_samples}
    monkeypatch.setattr(torch_dataset, "get_worker_info", lambda: None)
    whole = sorted(x.tolist() for x, _ in ShuffledWindows(build, **options))
    shared: list[list[list[int]]] = []
    for rank in range(world_size):
        of_rank = []
        dataset = ShuffledWindows(build, **options, rank=rank, world_size=world_size)
        for worker in range(num_workers):
            monkeypatch.setattr(torch_dataset, "get_worker_info", lambda worker=worker: FakeWorker(worker, num_workers))
            of_rank += [x.tolist() for x, _ in dataset]
        shared.append(of_rank)
    assert sorted(window for of_rank in shared for window in of_rank) == whole
    assert max(map(len, shared)) - min(map(len, shared)) <= 1


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("persistent", [False, True])
def test_two_workers_in_two_processes_read_the_samples_of_one(build: Build, batch_size: int, persistent: bool) -> None:
    alone = ShuffledWindows(build, block_size=6)
    loaders = [
        DataLoader(
            ShuffledWindows(build, block_size=6, rank=rank, world_size=2),
            batch_size,
            num_workers=2,
            persistent_workers=persistent,
        )
        for rank in range(2)
    ]
    passes = []
    for _ in range(PASSES):
        passes.append(read_windows(DataLoader(alone, batch_size)))
        assert sorted(read_windows(loaders[0]) + read_windows(loaders[1])) == passes[-1]
    assert passes[0] != passes[1] != passes[2]


def test_workers_of_a_copied_dataset_advance_to_the_next_pass(build: Build) -> None:
    loader = DataLoader(copy.deepcopy(ShuffledWindows(build, block_size=6)), 5, num_workers=1)
    assert read_windows(loader) != read_windows(loader)


def test_reading_in_this_process_does_not_advance_workers(build: Build) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    first = read_windows(make_loader(ShuffledWindows(build, block_size=6)))
    next(iter(dataset))
    assert read_windows(make_loader(dataset, num_workers=2)) == first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_set_epoch_repeats_a_pass(build: Build, num_workers: int) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    loader = make_loader(dataset, num_workers=num_workers)
    passes = [read_windows(loader) for _ in range(PASSES)]
    dataset.set_epoch(1)
    assert [read_windows(loader), read_windows(loader)] == passes[1:]


def test_rank_and_world_size_default_to_torchrun(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    windows = [x.tolist() for x, _ in ShuffledWindows(build, block_size=6)]
    assert windows == [x.tolist() for x, _ in ShuffledWindows(build, block_size=6, rank=1, world_size=3)]
    alone = ShuffledWindows(build, block_size=6, rank=0, world_size=1)
    assert windows == [x.tolist() for x, _ in alone][1::3]
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(MisuseError, match="RANK='one'"):
        ShuffledWindows(build, block_size=6)


def test_initialised_process_group_takes_precedence_over_torchrun(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        dataset = ShuffledWindows(build, block_size=6)
    finally:
        torch.distributed.destroy_process_group()
    assert (dataset.rank, dataset.world_size) == (0, 1)


def test_shuffled_windows_reject_too_many_workers(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShuffledWindows(build, block_size=6)
    monkeypatch.setattr(torch_dataset, "get_worker_info", lambda: FakeWorker(0, 65))
    with pytest.raises(MisuseError, match="65 workers are too many; set num_workers to 64 or less"):
        iter(dataset)
