"""Whole documents: ids, control tokens, padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from preprocess.shards.format import Build
from preprocess.shards.torch_dataset import Documents, make_loader, pad_documents
from tests.helpers.runs import make_build
from tests.preprocess.shards.conftest import LENGTHS


def test_documents_equal_those_of_the_build(build: Build) -> None:
    dataset = Documents(build)
    assert len(dataset) == len(LENGTHS)
    for number, ids in enumerate(dataset):
        assert ids.dtype == torch.int64 and np.array_equal(ids, build.document("train", number))
    assert [len(ids) for ids in Documents(build, max_tokens=8)] == [min(n, 8) for n in LENGTHS]
    assert dataset[-1].tolist() == Documents(build, max_tokens=8)[15].tolist()


def test_documents_keep_control_tokens(tmp_path: Path) -> None:
    folder = make_build(tmp_path / "tiny")
    dataset = Documents(folder, "val")
    manifest = Build(folder).manifest
    assert (dataset.bos_id, dataset.eot_id, dataset.pad_id) == (None, manifest.eot_id, manifest.eot_id)
    assert all(
        ids[0] == manifest.special_tokens["<author_Anna_Akimova>"] and ids[-1] == dataset.eot_id for ids in dataset
    )


def test_documents_reject_a_build_without_documents_or_pad_id(tmp_path: Path) -> None:
    empty = make_build(tmp_path / "empty", val_repeats=0)
    with pytest.raises(MisuseError, match="has no document in its val split"):
        Documents(empty, "val")
    dataset = Documents(make_build(tmp_path / "bare", eot_id=None))
    with pytest.raises(MisuseError, match="neither a padding id nor an end-of-text id"):
        dataset.collate([dataset[0]])
    padded = Documents(make_build(tmp_path / "padded", pad_id=0))
    assert padded.pad_id == 0 and padded.eot_id != 0


def test_pad_documents_golden_batch() -> None:
    batch = pad_documents([torch.tensor([5, 6, 9]), torch.tensor([7]), torch.tensor([], dtype=torch.int64)], 9)
    assert {name: part.tolist() for name, part in batch.items()} == {
        "input_ids": [[5, 6, 9], [7, 9, 9], [9, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0], [0, 0, 0]],
        "labels": [[5, 6, 9], [7, -100, -100], [-100, -100, -100]],
    }
    assert all(part.dtype == torch.int64 for part in batch.values())


@given(st.lists(st.lists(st.integers(0, 100), max_size=9), min_size=1, max_size=5))
def test_pad_documents_keeps_every_token(documents: list[list[int]]) -> None:
    batch = pad_documents([torch.tensor(ids, dtype=torch.int64) for ids in documents], 0)
    assert batch["input_ids"].shape == (len(documents), max(map(len, documents)))
    for row, ids in enumerate(documents):
        mask = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][mask].tolist() == batch["labels"][row][mask].tolist() == ids
        assert set(batch["labels"][row][~mask].tolist()) <= {-100}


def test_loader_pads_documents(build: Build) -> None:
    batches = list(make_loader(Documents(build), batch_size=4))
    assert [batch["input_ids"].shape[1] for batch in batches] == [40, 90, 33, 70]
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == sum(LENGTHS)
