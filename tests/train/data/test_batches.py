"""Batches: which tokens, in which order, as what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preprocess.errors import FolioError
from tests.helpers.runs import make_build
from train.config import Config
from train.data.batches import LOCATED_AT_ONCE, TrainingData, ValidationData, to_device
from train.data.builds import Builds, open_builds

CPU = torch.device("cpu")


def config_of(**settings: object) -> Config:
    return Config(**({"data": "x", "out_dir": "y", "block_size": 16, "batch_size": 4} | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return open_builds(str(make_build(tmp_path_factory.mktemp("builds") / "tiny")))


def test_targets_are_the_next_tokens(builds: Builds) -> None:
    ids, targets, documents = TrainingData(builds, config_of(), device=CPU).batch(0, 4)
    assert documents is None
    assert ids.shape == targets.shape == (4, 16)
    assert ids.dtype == targets.dtype == torch.int64
    assert torch.equal(ids[:, 1:], targets[:, :-1])
    text = builds.vocabulary.shards("train")[0].tokens
    windows = np.lib.stride_tricks.sliding_window_view(text, 17)
    assert all(
        (windows == np.concatenate([x, y[-1:]])).all(axis=1).any()
        for x, y in zip(ids.numpy(), targets.numpy(), strict=True)
    )


def test_samples_depend_on_their_number_and_the_seed_alone(builds: Builds) -> None:
    whole = torch.cat([TrainingData(builds, config_of(), device=CPU).batch(4 * n, 4)[0] for n in range(6)])
    one_by_one = torch.cat([TrainingData(builds, config_of(), device=CPU).batch(n, 1)[0] for n in range(24)])
    assert torch.equal(whole, one_by_one)
    assert not torch.equal(whole[:4], TrainingData(builds, config_of(seed=1), device=CPU).batch(0, 4)[0])


@pytest.mark.parametrize("data_order", ["random", "epochs"])
def test_places_that_were_located_ahead_are_those_of_the_samples(builds: Builds, data_order: str) -> None:
    """Batches of 12 do not divide what is located at once; then back, and on by the strides of one process of three."""
    data = TrainingData(builds, config_of(data_order=data_order), device=CPU)
    firsts = [*range(0, 3 * LOCATED_AT_ONCE, 12), 0, 12, *range(24, 3000, 36), 1, 3 * LOCATED_AT_ONCE]
    whole = TrainingData(builds, config_of(data_order=data_order), device=CPU).batch(0, 3 * LOCATED_AT_ONCE + 12)[0]
    assert LOCATED_AT_ONCE % 12 != 0
    for first in firsts:
        assert torch.equal(data.batch(first, 12)[0], whole[first : first + 12])


def test_validation_reads_each_window_in_order(builds: Builds) -> None:
    data = ValidationData(builds, config_of(), device=CPU)
    tokens = torch.from_numpy(builds.vocabulary.shards("val")[0].tokens.astype(np.int64))
    assert data.num_windows == (len(tokens) - 1) // 16 == 17
    inputs, wanted = torch.zeros(17, 16, dtype=torch.int64), torch.zeros(17, 16, dtype=torch.int64)
    numbers_of = []
    for numbers, (ids, targets, _) in data.batches(4):
        assert len(ids) == 4, "another shape would be compiled anew"
        inputs[numbers], wanted[numbers] = ids, targets
        numbers_of.append(numbers.tolist())
    assert numbers_of == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [13, 14, 15, 16]]
    assert torch.equal(inputs.flatten(), tokens[: data.num_windows * 16])
    assert torch.equal(wanted.flatten(), tokens[1 : data.num_windows * 16 + 1])
    assert [len(numbers) for numbers, _ in data.batches(20)] == [17]


@pytest.mark.parametrize(("eval_tokens", "num_windows"), [(16, 1), (47, 2), (48, 3), (1 << 40, 17)])
def test_eval_tokens_bounds_the_windows(builds: Builds, eval_tokens: int, num_windows: int) -> None:
    assert ValidationData(builds, config_of(eval_tokens=eval_tokens), device=CPU).num_windows == num_windows


def test_a_block_longer_than_every_shard_is_refused(builds: Builds) -> None:
    with pytest.raises(FolioError, match="longest val shard has 276; set block_size=275 or less"):
        ValidationData(builds, config_of(block_size=276), device=CPU)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_tokens_keep_their_values_on_the_way(dtype: str, device: str) -> None:
    tokens = np.array([[0, 1, 32_767], [32_768, 65_535, np.iinfo(dtype).max]], dtype)
    assert to_device(tokens, torch.device(device)).tolist() == tokens.tolist()
