"""The loss mask of a build with chats: which targets of a batch count, and how many of a step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.errors import FolioError
from preprocess.shards.loss_mask import gather_mask
from tests.helpers.runs import make_build
from train.config import Config
from train.core.distributed import World
from train.core.targets import IGNORE_INDEX
from train.data.batches import Prefetcher, TrainingData, ValidationData
from train.data.builds import Builds, open_builds

CPU = torch.device("cpu")
LEARNT = slice(30, 46)  # of the 46 tokens of a document


def make_config(**settings: object) -> Config:
    return Config(**({"data": "x", "out_dir": "y", "block_size": 16, "batch_size": 4} | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    make_build(folder / "plain")
    make_build(folder / "chats", learnt=LEARNT)
    make_build(folder / "silent", learnt=slice(0, 0))
    return folder


@pytest.fixture(scope="module")
def builds(folder: Path) -> Builds:
    return open_builds(str(folder / "chats"))


def test_gather_mask_equals_the_bits_at_each_token() -> None:
    rng = np.random.default_rng(0)
    bits = [rng.random(n) < 0.5 for n in (50, 64, 33)]
    masks = [np.packbits(bits[0], bitorder="little"), None, np.packbits(bits[2], bitorder="little")]
    shard, start = np.array([0, 2, 1, 0, 2]), np.array([0, 16, 5, 33, 0])
    expected = [bits[s][i : i + 17] if s != 1 else np.ones(17, bool) for s, i in zip(shard, start, strict=True)]
    assert (gather_mask(masks, shard, start, 17) == np.array(expected)).all()
    assert gather_mask(masks, np.array([2]), np.array([32]), 1).tolist() == [[bits[2][32]]]


@pytest.mark.parametrize("data_order", ["random", "epochs"])
def test_targets_outside_of_the_loss_mask_are_ignored(builds: Builds, folder: Path, data_order: str) -> None:
    config = make_config(data_order=data_order)
    ids, targets, _ = TrainingData(builds, config, device=CPU).batch(0, 64)
    same_ids, all_targets, _ = TrainingData(open_builds(str(folder / "plain")), config, device=CPU).batch(0, 64)
    assert torch.equal(ids, same_ids)
    is_counted = targets != IGNORE_INDEX
    assert torch.equal(targets[is_counted], all_targets[is_counted])
    # A document has its author's token at 0, which is found nowhere else, so it says where a window is.
    windows = torch.cat([ids[:, :1], all_targets], dim=1)
    document = torch.from_numpy(builds.builds[0].document("train", 0).astype(np.int64)).repeat(3)
    mask = torch.from_numpy(builds.builds[0].document_mask("train", 0)).repeat(3)
    starts = [next(i for i in range(46) if torch.equal(document[i : i + 17], window)) for window in windows]
    expected = torch.stack([mask[i + 1 : i + 17] for i in starts])
    assert torch.equal(is_counted, expected) and expected.any() and not expected.all()


def test_all_targets_of_a_build_without_masks_count_in_a_mixture(folder: Path) -> None:
    mixture = open_builds(f"{folder / 'plain'}:1,{folder / 'chats'}:1")
    data = TrainingData(mixture, make_config(), device=CPU)
    _, targets, _ = data.batch(0, 512)
    is_complete = (targets != IGNORE_INDEX).all(dim=1)
    assert 200 < is_complete.sum() < 300  # half of 512; a window of chats has 16 of 46 targets at most
    assert data.num_loss_tokens == 40 * 46 + 40 * 16


def test_loss_divisor_makes_the_mean_over_the_counted_targets_of_a_step(builds: Builds) -> None:
    data = TrainingData(builds, make_config(), device=CPU)
    _, targets, _ = data.batch(24, 12)
    num_counted = int((targets != IGNORE_INDEX).sum())
    for micro_batch, num_passes in ((12, 1), (4, 3), (1, 12)):
        prefetcher = Prefetcher(data, windows_per_step=12, micro_batch=micro_batch, world=World())
        divisor = prefetcher.loss_divisor(24)
        # Each pass divides its sum by its number of targets and by the divisor.
        assert divisor * micro_batch * 16 == pytest.approx(num_counted)
        assert prefetcher.num_micro_batches == num_passes
    two = Prefetcher(data, windows_per_step=12, micro_batch=2, world=dataclasses.replace(World(), size=2))
    assert two.loss_divisor(24) * 2 * 2 * 16 == pytest.approx(num_counted)  # gradients are averaged over two processes


def test_loss_divisor_of_a_build_without_masks_is_the_number_of_micro_batches(folder: Path) -> None:
    data = TrainingData(open_builds(str(folder / "plain")), make_config(), device=CPU)
    divisor = Prefetcher(data, windows_per_step=12, micro_batch=4, world=World()).loss_divisor(0)
    assert divisor == 3 and isinstance(divisor, int)
    assert data.num_loss_tokens is None


def test_loss_fraction_of_samples_without_counted_targets_is_above_zero(builds: Builds) -> None:
    data = TrainingData(builds, make_config(block_size=4), device=CPU)
    number = next(n for n in range(100) if (data.batch(n, 1)[1] == IGNORE_INDEX).all())
    assert data.loss_fraction(number, 1) == 1 / 4


def test_split_without_counted_tokens_is_an_error(folder: Path) -> None:
    silent = open_builds(str(folder / "silent"))
    with pytest.raises(FolioError, match=r"silent has no training token that the model is to learn; build it from"):
        TrainingData(silent, make_config(), device=CPU)
    with pytest.raises(FolioError, match=r"the validation windows of silent have no token that the model is to learn"):
        ValidationData(silent, make_config(), device=CPU)


def test_loss_fractions_of_validation_windows_are_those_of_their_targets(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.mixed_split.MASK_CHUNK", 64)  # four windows at a time
    data = ValidationData(builds, make_config(), device=CPU)
    _, targets, _ = data.batch(np.arange(data.num_windows))
    assert data.loss_fractions is not None
    assert data.loss_fractions.tolist() == (targets != IGNORE_INDEX).double().mean(dim=1).tolist()
