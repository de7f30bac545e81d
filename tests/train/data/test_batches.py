"""Batches: which tokens a sample has, for any number of processes and any micro-batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preprocess.errors import FolioError, MisuseError
from tests.helpers.runs import make_build
from train.config import Config
from train.core.distributed import World
from train.data.batches import (
    LOOKAHEAD_SAMPLES,
    Prefetcher,
    TrainingData,
    ValidationData,
    largest_micro_batch,
    windows_per_process,
)
from train.data.builds import Builds, open_builds
from train.data.mixed_split import to_device

CPU = torch.device("cpu")


def make_config(**settings: object) -> Config:
    if settings.get("data_order") == "documents":
        settings = {"mask_documents": True} | settings
    return Config(**({"data": "x", "out_dir": "y", "block_size": 16, "batch_size": 4} | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return open_builds(str(make_build(tmp_path_factory.mktemp("builds") / "tiny")))


def test_targets_are_the_next_tokens(builds: Builds) -> None:
    ids, targets, documents = TrainingData(builds, make_config(), device=CPU).batch(0, 4)
    assert documents is None
    assert ids.shape == targets.shape == (4, 16)
    assert ids.dtype == targets.dtype == torch.int64
    assert torch.equal(ids[:, 1:], targets[:, :-1])
    tokens = builds.vocabulary.shards("train")[0].tokens
    windows = np.lib.stride_tricks.sliding_window_view(tokens, 17)
    assert all(
        (windows == np.concatenate([x, y[-1:]])).all(axis=1).any()
        for x, y in zip(ids.numpy(), targets.numpy(), strict=True)
    )


def test_samples_depend_only_on_their_number_and_the_seed(builds: Builds) -> None:
    in_batches = torch.cat([TrainingData(builds, make_config(), device=CPU).batch(4 * n, 4)[0] for n in range(6)])
    one_by_one = torch.cat([TrainingData(builds, make_config(), device=CPU).batch(n, 1)[0] for n in range(24)])
    assert torch.equal(in_batches, one_by_one)
    assert not torch.equal(in_batches[:4], TrainingData(builds, make_config(seed=1), device=CPU).batch(0, 4)[0])


@pytest.mark.parametrize("data_order", ["random", "epochs", "documents"])
def test_lookahead_changes_no_sample(builds: Builds, data_order: str) -> None:
    """Batches of 12 do not divide the lookahead.

    Then go back, and on with the stride of one process of three.
    """
    data = TrainingData(builds, make_config(data_order=data_order), device=CPU)
    firsts = [*range(0, 3 * LOOKAHEAD_SAMPLES, 12), 0, 12, *range(24, 3000, 36), 1, 3 * LOOKAHEAD_SAMPLES]
    num_samples = 3 * LOOKAHEAD_SAMPLES + 12
    expected = TrainingData(builds, make_config(data_order=data_order), device=CPU).batch(0, num_samples)[0]
    assert LOOKAHEAD_SAMPLES % 12 != 0
    for first in firsts:
        assert torch.equal(data.batch(first, 12)[0], expected[first : first + 12])


def test_validation_data_yields_each_window_in_order(builds: Builds) -> None:
    data = ValidationData(builds, make_config(), device=CPU)
    tokens = torch.from_numpy(builds.vocabulary.shards("val")[0].tokens.astype(np.int64))
    assert data.num_windows == (len(tokens) - 1) // 16 == 17
    inputs, outputs = torch.zeros(17, 16, dtype=torch.int64), torch.zeros(17, 16, dtype=torch.int64)
    indices_of_batches = []
    for indices, (ids, targets, _) in data.batches(4):
        assert len(ids) == 4, "a compiled model would be compiled again for another shape"
        inputs[indices], outputs[indices] = ids, targets
        indices_of_batches.append(indices.tolist())
    assert indices_of_batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [13, 14, 15, 16]]
    assert torch.equal(inputs.flatten(), tokens[: data.num_windows * 16])
    assert torch.equal(outputs.flatten(), tokens[1 : data.num_windows * 16 + 1])
    assert [len(indices) for indices, _ in data.batches(20)] == [17]


def test_validation_windows_are_shared_among_ranks(builds: Builds) -> None:
    data = ValidationData(builds, make_config(), device=CPU)
    batches_by_rank = [list(data.batches(3, rank=rank, num_ranks=4)) for rank in range(4)]
    indices_by_rank = [{n for indices, _ in batches for n in indices.tolist()} for batches in batches_by_rank]
    assert sum(map(len, indices_by_rank)) == data.num_windows
    assert set.union(*indices_by_rank) == {*range(data.num_windows)}
    windows = next(data.batches(data.num_windows))[1][0]
    for batches in batches_by_rank:
        for indices, (ids, _, _) in batches:
            assert torch.equal(ids, windows[indices])


@pytest.mark.parametrize(("eval_tokens", "num_windows"), [(16, 1), (47, 2), (48, 3), (1 << 40, 17)])
def test_eval_tokens_limits_validation_windows(builds: Builds, eval_tokens: int, num_windows: int) -> None:
    assert ValidationData(builds, make_config(eval_tokens=eval_tokens), device=CPU).num_windows == num_windows


def test_block_longer_than_every_shard_is_rejected(builds: Builds) -> None:
    with pytest.raises(FolioError, match="longest val shard has 276; set block_size=275 or less"):
        ValidationData(builds, make_config(block_size=276), device=CPU)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_to_device_keeps_values(dtype: str, device: str) -> None:
    tokens = np.array([[0, 1, 32_767], [32_768, 65_535, np.iinfo(dtype).max]], dtype)
    assert to_device(tokens, torch.device(device)).tolist() == tokens.tolist()


@pytest.mark.parametrize("data_order", ["random", "epochs", "documents"])
def test_step_has_the_same_samples_for_any_number_of_processes_and_micro_batch(builds: Builds, data_order: str) -> None:
    data = TrainingData(builds, make_config(data_order=data_order), device=CPU)
    steps = []
    for size in (1, 2, 4):
        for max_windows in (1, 2, 8):
            share = windows_per_process(16, World(size=size))
            micro_batch = largest_micro_batch(share, max_windows)
            samples = []
            for rank in range(size):
                prefetcher = Prefetcher(
                    data, windows_per_step=16, micro_batch=micro_batch, world=World(rank=rank, size=size)
                )
                assert prefetcher.num_micro_batches == share // micro_batch
                for micro in range(prefetcher.num_micro_batches):
                    first = prefetcher.first_sample(48, micro)
                    assert prefetcher.first_sample(48, prefetcher.num_micro_batches) == prefetcher.first_sample(64, 0)
                    ids = prefetcher.take(first)[0].tolist()
                    samples += list(zip(range(first, first + micro_batch), ids, strict=True))
            steps.append(sorted(samples))
    assert all(step == steps[0] for step in steps)
    assert [number for number, _ in steps[0]] == list(range(48, 64))


@pytest.mark.parametrize(
    ("num_windows", "max_windows", "expected"),
    [(12, 12, 12), (12, 11, 6), (12, 5, 4), (7, 6, 1), (1, 100, 1), (10**15, 10**15, 64_000)],
)
def test_largest_micro_batch_is_the_largest_divisor(num_windows: int, max_windows: int, expected: int) -> None:
    assert largest_micro_batch(num_windows, max_windows) == expected


def test_windows_per_process_rejects_a_step_that_cannot_be_shared() -> None:
    with pytest.raises(MisuseError, match="must be a multiple of the 4 processes, got 6; change one of them"):
        windows_per_process(6, World(size=4))


def test_prefetcher_uses_the_prepared_batch_only_for_its_sample(builds: Builds) -> None:
    data = TrainingData(builds, make_config(), device=CPU)
    prefetcher = Prefetcher(data, windows_per_step=4, micro_batch=4, world=World())
    prefetcher.prepare(8)
    for first in (0, 8, 4):
        assert np.array_equal(prefetcher.take(first)[0], data.batch(first, 4)[0])
