"""Tensors of a checkpoint in parts: joined for any reader, and refused if rows are missing or twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from preprocess.errors import FolioError
from preprocess.shards.files import sha256_file
from tests.helpers.runs import VOCAB_SIZE, edit_checkpoint, make_config
from train.core.tensors import TensorFileError
from train.run.checkpoint import (
    Checkpoint,
    CheckpointError,
    find_newest_checkpoint,
    map_weights,
    open_checkpoint,
    read_weights,
    restore,
)
from train.run.checkpoint_info import Origin
from train.run.save_checkpoint import save
from train.run.state import new_state, optimizer_tensors
from train.run.stored_tensors import METADATA, OFFSETS, SAVED_OFFSETS, StoredTensor, map_tensors, part_files

CPU = torch.device("cpu")
CONFIG = make_config()
ORIGIN = Origin(settings=CONFIG.as_dict(), build_id="0" * 64, tokenizer_sha256="1" * 64)


def write_parts(paths: list[Path], tensors: dict[str, Tensor], ends: list[int], **offsets: Any) -> None:
    """Write to each path the rows up to the next of `ends` (the last: all). `offsets` replace those of a tensor."""
    first = 0
    for path, end in zip(paths, ends, strict=True):
        is_main = path == paths[0]
        held = {name: t[first:end].clone() if t.dim() else t for name, t in tensors.items() if t.dim() or is_main}
        info = {name: {SAVED_OFFSETS: [first, 0][: t.dim()]} for name, t in held.items()} | ({} if is_main else offsets)
        save_file(held, path, metadata=METADATA | {OFFSETS: json.dumps(info)})
        first = end


@given(sizes=st.lists(st.integers(0, 5), min_size=2, max_size=4), columns=st.integers(1, 3))
def test_parts_are_joined_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], columns: int
) -> None:
    num_rows = sum(sizes)
    if not num_rows:
        return
    folder = tmp_path_factory.mktemp("parts")
    matrix, count = torch.arange(num_rows * columns).view(num_rows, columns), torch.tensor(3.0)
    paths = [folder / name for name in part_files("model.safetensors", len(sizes))]
    write_parts(paths, {"matrix": matrix, "count": count}, [sum(sizes[: i + 1]) for i in range(len(sizes))])
    found = map_tensors(paths[::-1])
    assert found["matrix"].shape == matrix.shape and torch.equal(found["matrix"].whole(), matrix)
    assert found["count"].whole() == 3
    larger = torch.full((num_rows + 2, columns), -1)
    found["matrix"].copy_to(larger)
    assert torch.equal(larger, torch.cat([matrix, torch.full((2, columns), -1)]))


ROWS = torch.ones(6, 2)
DAMAGED_PARTS: dict[str, tuple[Any, str]] = {
    "rows are missing": ({SAVED_OFFSETS: [4, 0]}, "begins at row 4, expected 3"),
    "rows are there twice": ({SAVED_OFFSETS: [2, 0]}, "begins at row 2, expected 3"),
    "columns are divided": ({SAVED_OFFSETS: [3, 1]}, "does not say which rows of weight it has"),
    "too few numbers": ({SAVED_OFFSETS: [3]}, "does not say which rows of weight it has"),
    "no whole number": ({SAVED_OFFSETS: [3.0, 0]}, "does not say which rows of weight it has"),
    "no offsets": (None, "does not say which rows of weight it has"),
    "not an object": ([3, 0], "does not say which rows of weight it has"),
}


@pytest.mark.parametrize("name", DAMAGED_PARTS)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    entry, message = DAMAGED_PARTS[name]
    paths = [tmp_path / file for file in part_files("model.safetensors", 2)]
    write_parts(paths, {"weight": ROWS}, [3, 6], weight=entry)
    with pytest.raises(TensorFileError, match=message):
        map_tensors(paths)


def test_parts_of_other_shapes_and_files_without_offsets_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / file for file in part_files("model.safetensors", 2)]
    write_parts(paths, {"weight": ROWS}, [3, 6])
    offsets = METADATA | {OFFSETS: json.dumps({"weight": {SAVED_OFFSETS: [3, 0]}})}
    for other in (torch.ones(3, 1), torch.ones(3, 2).double()):
        save_file({"weight": other}, paths[1], metadata=offsets)
        with pytest.raises(TensorFileError, match="the parts of weight in .* have different dtypes or shapes"):
            map_tensors(paths)
    for metadata in (None, {OFFSETS: "{"}, {OFFSETS: "[]"}):
        save_file({"weight": ROWS[3:].clone()}, paths[1], metadata=metadata)
        with pytest.raises(TensorFileError, match="does not say which rows"):
            map_tensors(paths)


def split(folder: Path) -> Path:
    """Turn a checkpoint into one of two parts, as two processes write it."""
    files = {}
    for kind in ("model.safetensors", "training.safetensors"):
        tensors = load_file(folder / kind)
        (folder / kind).unlink()
        paths = [folder / name for name in part_files(kind, 2)]
        for path in paths:
            held = {}
            for name, tensor in tensors.items():
                half = (len(tensor) + 1) // 2 if tensor.dim() else 0
                if tensor.dim() or path == paths[0]:
                    rows = tensor if not tensor.dim() else tensor[:half] if path == paths[0] else tensor[half:]
                    held[name] = (half if path == paths[1] else 0, rows.clone())
            offsets = {
                name: {SAVED_OFFSETS: [first, *[0] * (rows.dim() - 1)][: rows.dim()]}
                for name, (first, rows) in held.items()
            }
            save_file({name: rows for name, (_, rows) in held.items()}, path, metadata={OFFSETS: json.dumps(offsets)})
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    edit_checkpoint(folder, version=3, num_parts=2, files=files)
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint of two parts of a state with random weights and moments."""
    state = new_state(CONFIG, VOCAB_SIZE, device=CPU)
    for number, (_, tensor) in enumerate(optimizer_tensors(state)):
        tensor.fill_(number)
    return split(save(state, tmp_path, origin=ORIGIN, keep=3))


def test_state_is_restored_from_parts(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.info.num_parts == 2 and len(checkpoint.info.model_sha256) == 64
    state, drawn = (new_state(make_config(seed=seed), VOCAB_SIZE, device=CPU) for seed in (5, CONFIG.seed))
    restore(checkpoint, state)
    assert all(torch.equal(tensor, drawn.model.state_dict()[name]) for name, tensor in state.model.state_dict().items())
    assert all((tensor == number).all() for number, (_, tensor) in enumerate(optimizer_tensors(state)))


def flip_byte(folder: Path) -> None:
    path = folder / "training-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def add_part(folder: Path) -> None:
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (flip_byte, "training-00002-of-00002.safetensors does not have the sha256"),
    "missing part": (lambda f: (f / "model-00001-of-00002.safetensors").unlink(), "is missing or not a file"),
    "one more part": (add_part, "contains 'model-00003-of-00003.safetensors', which is not part of a checkpoint"),
    "other number of parts": (lambda f: edit_checkpoint(f, num_parts=3), "it has no model-00001-of-00003.safetensors"),
    "one part": (lambda f: edit_checkpoint(f, num_parts=1), "num_parts must be from 2 to 65,536, got 1"),
    "ordinary version": (lambda f: edit_checkpoint(f, version=2), "it has no model.safetensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_sharded_checkpoint_is_refused(sharded: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(sharded)
    with pytest.raises(FolioError, match=message) as error:
        open_checkpoint(sharded)
    assert isinstance(error.value, CheckpointError) == (name != "one more part")


def test_weights_of_parts_can_be_read_after_they_were_deleted(sharded: Path) -> None:
    expected = read_weights(open_checkpoint(sharded))
    checkpoint: Checkpoint | None = find_newest_checkpoint(sharded.parent.parent, pytest.fail)
    assert checkpoint is not None
    mapped = map_weights(checkpoint)
    for path in sharded.iterdir():
        path.unlink()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_weights(mapped).items())


def test_whole_tensor_of_one_part_is_not_copied() -> None:
    tensor = torch.ones(3)
    assert StoredTensor((tensor,)).whole() is tensor
