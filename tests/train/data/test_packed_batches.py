"""Batches with data_order "documents": rows of one or more builds, their targets and divisors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.chats import make_packed_builds
from train.config import Config
from train.core.distributed import World
from train.core.targets import IGNORE_INDEX
from train.data import batches
from train.data.batches import Prefetcher, TrainingData, ValidationData
from train.data.builds import Builds, open_builds
from train.data.mixed_split import MixedSplit

CPU = torch.device("cpu")


def make_config(**settings: object) -> Config:
    values = {"data": "x", "out_dir": "y", "block_size": 60, "data_order": "documents", "mask_documents": True}
    return Config(**(values | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packed_builds(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def chats(folder: Path) -> Builds:
    return open_builds(str(folder / "chats"))


def list_documents(ids: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor) -> list[list[list[int]]]:
    """Return the inputs and the targets of each document of the rows, without padding."""
    return [
        [ids[row][documents[row] == number].tolist(), targets[row][documents[row] == number].tolist()]
        for row in range(len(ids))
        for number in range(int(documents[row].max()))  # the last one is padding, or the row is full
    ]


def test_rows_have_whole_chats_of_which_the_learnt_tokens_are_targets(chats: Builds) -> None:
    data = TrainingData(chats, make_config(), device=CPU)
    assert data.windows_per_epoch == 40, "a row of 60 has two chats of 25 and 26 pairs"
    ids, targets, documents = data.batch(0, 40)
    assert documents is not None and ids.shape == targets.shape == documents.shape == (40, 60)
    build, expected = chats.builds[0], []
    for number in range(80):
        tokens = build.document("train", number).astype(int)
        is_learnt = build.document_mask("train", number)[1:]
        expected.append([tokens[:-1].tolist(), np.where(is_learnt, tokens[1:], IGNORE_INDEX).tolist()])
    assert sorted(list_documents(ids, targets, documents)) == sorted(expected)
    assert int((targets != IGNORE_INDEX).sum()) == data.num_loss_tokens


def test_padding_of_a_build_without_masks_does_not_count(folder: Path) -> None:
    data = TrainingData(open_builds(str(folder / "plain")), make_config(), device=CPU)
    assert data.num_loss_tokens is None and data.windows_per_epoch == 40
    ids, targets, _ = data.batch(0, 8)
    assert (ids[:, 45:] == 0).all() and (targets[:, 45:] == IGNORE_INDEX).all()
    assert torch.equal(ids[:, 1:45], targets[:, :44])
    assert data.loss_fraction(0, 8) == 45 / 60
    prefetcher = Prefetcher(data, windows_per_step=8, micro_batch=2, world=World())
    assert prefetcher.loss_divisor(0) == 4 * 45 / 60


def test_mixture_has_rows_of_each_build(folder: Path) -> None:
    mixture = open_builds(f"{folder / 'plain'}:1,{folder / 'masked'}:3")
    data = TrainingData(mixture, make_config(), device=CPU)
    assert data.windows_per_epoch is None and len(data.packed) == 2
    _, targets, _ = data.batch(0, 400)
    num_counted = (targets != IGNORE_INDEX).sum(dim=1)
    assert {*num_counted.tolist()} == {45, 16} and 80 < int((num_counted == 45).sum()) < 120
    assert data.loss_fraction(0, 400) == pytest.approx(int(num_counted.sum()) / targets.numel())


def test_validation_rows_have_each_document_once_for_any_seed(chats: Builds) -> None:
    found = []
    for seed in (0, 1):
        data = ValidationData(chats, make_config(seed=seed), device=CPU)
        batch = data.batch(np.arange(data.num_windows))
        assert data.loss_fractions is not None
        assert data.loss_fractions.tolist() == (batch[1] != IGNORE_INDEX).double().mean(dim=1).tolist()
        assert batch[2] is not None and len(list_documents(batch[0], batch[1], batch[2])) == 80
        found.append(batch[0])
    assert torch.equal(*found)
    assert ValidationData(chats, make_config(eval_tokens=300), device=CPU).num_windows == 5


@pytest.mark.parametrize("data_order", ["epochs", "documents"])
@pytest.mark.parametrize("micro_batch", [8, 2])
def test_mask_of_each_sample_is_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data_order: str, micro_batch: int
) -> None:
    monkeypatch.setattr(batches, "LOOKAHEAD_SAMPLES", 64)
    data = TrainingData(
        open_builds(str(folder / "masked")), make_config(data_order=data_order, block_size=16), device=CPU
    )
    num_read = 0
    read_mask = MixedSplit.read_mask

    def count(self: MixedSplit, locations: tuple[np.ndarray, ...]) -> np.ndarray | None:
        nonlocal num_read
        num_read += len(locations[0])
        return read_mask(self, locations)  # type: ignore[arg-type]

    monkeypatch.setattr(MixedSplit, "read_mask", count)
    prefetcher = Prefetcher(data, windows_per_step=8, micro_batch=micro_batch, world=World())
    for step in range(16):  # 128 samples
        prefetcher.loss_divisor(8 * step)
        for micro in range(prefetcher.num_micro_batches):
            prefetcher.take(prefetcher.first_sample(8 * step, micro))
            if step < 15 or micro < prefetcher.num_micro_batches - 1:
                prefetcher.prepare(prefetcher.first_sample(8 * step, micro + 1))
    assert num_read == 128
