"""Checkpoints: they restore what was saved, damage is detected, and a full disk loses none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import readable_json, sha256_file
from tests.helpers.runs import VOCAB_SIZE, invoke, list_steps, make_config, small_disk, train_run, write_config
from train.config import Config
from train.run.checkpoint import (
    CheckpointError,
    Origin,
    find_checkpoint,
    find_newest_checkpoint,
    list_checkpoints,
    open_checkpoint,
    remove_leftovers,
    restore,
    save,
)
from train.run.state import TrainingState, new_state

CPU = torch.device("cpu")
CONFIG = make_config()
# A pickle that creates a folder when it is loaded.
TRAP = b"cos\nmkdir\n(S'trapped'\ntR."
ORIGIN = Origin(settings=CONFIG.as_dict(), build_id="0" * 64, tokenizer_sha256="1" * 64)


def make_state(config: Config = CONFIG) -> TrainingState:
    return new_state(config, VOCAB_SIZE, device=CPU)


def take_step(state: TrainingState) -> float:
    """Update the weights once, on ids that follow from the step, and return the loss."""
    torch.manual_seed(state.step)
    ids = torch.randint(VOCAB_SIZE, (4, 17))
    loss = state.model(ids[:, :-1], ids[:, 1:])[0]
    loss.backward()
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    state.step += 1
    state.num_samples += 4
    return float(loss)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[TrainingState, Path]:
    """A state after one step, and its checkpoint."""
    torch.manual_seed(0)
    state = make_state()
    take_step(state)
    return state, save(state, tmp_path, origin=ORIGIN, keep=3)


def fail_on_warning(line: str) -> None:
    raise AssertionError(line)


def test_restored_state_continues_with_the_same_losses(saved: tuple[TrainingState, Path]) -> None:
    state, folder = saved
    expected = [take_step(state) for _ in range(3)]
    torch.manual_seed(99)
    restored = make_state()
    checkpoint = open_checkpoint(folder)
    restore(checkpoint, restored)
    assert (restored.step, checkpoint.origin, checkpoint.vocab_size) == (1, ORIGIN, VOCAB_SIZE)
    assert [take_step(restored) for _ in range(3)] == expected


def test_checkpoint_has_three_files_with_the_same_mode(saved: tuple[TrainingState, Path]) -> None:
    _, folder = saved
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "training.safetensors", "checkpoint.json"}
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1
    assert "h.0.attn.c_attn.weight.exp_avg_sq" in load_file(folder / "training.safetensors")


# Damage


def edit_info(folder: Path, **fields: object) -> None:
    path = folder / "checkpoint.json"
    path.write_bytes(readable_json(json.loads(path.read_text()) | fields))


def replace_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], file: str = "model.safetensors"
) -> None:
    """Change tensors and the size and hash in checkpoint.json."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    update_hash(folder, file)


def update_hash(folder: Path, file: str) -> None:
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    files[file] = {"bytes": (folder / file).stat().st_size, "sha256": sha256_file(folder / file)}
    edit_info(folder, files=files)


def flip_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def write_pickle_as_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(TRAP)
    update_hash(folder, "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda f: (f / "training.safetensors").unlink(), "training.safetensors is missing"),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 1000), "has 1,000 bytes"),
    "flipped bit": (flip_bit, "does not have the sha256"),
    "no info": (lambda f: (f / "checkpoint.json").unlink(), "has no checkpoint.json"),
    "truncated info": (lambda f: os.truncate(f / "checkpoint.json", 100), "is not JSON"),
    "deeply nested info": (lambda f: (f / "checkpoint.json").write_text("[" * 100_000), "is not JSON"),
    "other format": (lambda f: edit_info(f, format="elsewhere"), "does not have the format 'folio-checkpoint'"),
    "other version": (lambda f: edit_info(f, version=99), "has version 99, this Folio reads version 2"),
    "step is text": (lambda f: edit_info(f, step="many"), "malformed"),
    "no files": (lambda f: edit_info(f, files=[]), "malformed"),
    "additional pickle": (lambda f: (f / "extra.pt").write_bytes(TRAP), "contains 'extra.pt'"),
    "pickle as model": (write_pickle_as_model, "is not a safetensors file"),
    "other shape": (
        lambda f: replace_tensors(f, lambda t: t.update({"ln_f.bias": torch.zeros(7)})),
        r"has \(7,\) for ln_f.bias",
    ),
    "missing tensor": (lambda f: replace_tensors(f, lambda t: t.pop("ln_f.bias")), "has nothing for ln_f.bias"),
    "additional tensor": (
        lambda f: replace_tensors(f, lambda t: t.update({"x": torch.zeros(7)})),
        "the model needs nothing",
    ),
    "missing moment": (
        lambda f: replace_tensors(f, lambda t: t.pop("ln_f.bias.exp_avg"), "training.safetensors"),
        "has nothing for ln_f.bias.exp_avg",
    ),
    "number of samples is text": (lambda f: edit_info(f, num_samples="all"), "cannot be continued"),
    "negative number of samples": (lambda f: edit_info(f, num_samples=-1), "cannot be continued"),
    "no early stopping": (lambda f: edit_info(f, watch=None), "malformed"),
    "best step without a loss": (
        lambda f: edit_info(f, watch={"best_step": 1, "best_loss": None, "num_since": 0}),
        "cannot be continued",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoint_is_one_line(
    saved: tuple[TrainingState, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved
    monkeypatch.chdir(folder.parent)
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(FolioError, match=message) as error:
        restore(open_checkpoint(folder), make_state())
    assert "\n" not in str(error.value)
    assert not Path("trapped").exists()


# Changes of checkpoint.json, and a part of the message.
INVALID_NUMBERS: dict[str, tuple[dict[str, object], str]] = {
    "scale is text": ({"scaler": {"scale": "x"}}, "cannot be continued"),
    "negative scale": ({"scaler": {"scale": -1.0}}, "cannot be continued"),
    "interval is text": ({"scaler": {"growth_interval": "x"}}, "cannot be continued"),
    "backoff factor above 1": ({"scaler": {"backoff_factor": 2.0}}, "cannot be continued"),
    "micro-batch is text": ({"micro_batch": "all"}, "cannot be continued"),
    "huge context": ({"settings": {"block_size": 10**13}}, "block_size must be at most 16,777,216, got 10000000000000"),
    "huge depth": ({"settings": {"n_layer": 10**9}}, "n_layer must be at most 1,000, got 1000000000"),
}


@pytest.mark.parametrize("name", INVALID_NUMBERS)
def test_invalid_number_in_a_checkpoint_is_one_line(folder: Path, name: str) -> None:
    path = write_config(folder / "strange.py", folder / "tiny", precision="fp16", arch="modern")
    assert invoke("train.py", path, "--restart").returncode == 0
    changes, message = INVALID_NUMBERS[name]
    for checkpoint in list_checkpoints(folder / "strange"):
        info = json.loads((checkpoint / "checkpoint.json").read_text())
        for key, value in changes.items():
            info[key] = info[key] | value if isinstance(value, dict) else value
        (checkpoint / "checkpoint.json").write_text(json.dumps(info))
    if "settings" in changes:
        done = invoke("sample.py", folder / "strange")
    else:
        fork = [f"--resume={folder / 'strange'}", f"--out_dir={folder / 'fork'}", "--max_steps=30"]
        done = invoke("train.py", path, *fork)
    status = 2 if "settings" in changes else 1
    assert (done.returncode, done.stderr.count("\n")) == (status, 1) and message in done.stderr, done.stderr


@pytest.mark.parametrize(
    "edit",
    [
        {"step": -5},
        {"step": 5},
        {"step": 10**400},
        {"vocab_size": -64},
        {"vocab_size": 10**15},
        {"tokenizer_sha256": None},
    ],
)
def test_checkpoint_with_malformed_info_is_skipped(folder: Path, edit: dict) -> None:
    path = write_config(folder / "edited.py", folder / "tiny")
    assert invoke("train.py", path, "--restart").returncode == 0
    edit_info(list_checkpoints(folder / "edited")[-1], **edit)
    done = invoke("train.py", path)
    assert done.returncode == 0 and "is malformed" in done.stderr and "continuing after step 18" in done.stdout


def test_additional_file_is_an_error_and_a_hidden_one_is_ignored(folder: Path) -> None:
    run = train_run(folder, "stray")
    steps = list_steps(run)
    (list_checkpoints(run)[-1] / ".DS_Store").write_bytes(b"")
    assert "is finished" in invoke("train.py", folder / "stray.py").stdout
    (list_checkpoints(run)[-1] / "notes.txt").write_text("")
    done = invoke("train.py", folder / "stray.py")
    assert done.returncode == 1 and "remove it if you trust the rest" in done.stderr and list_steps(run) == steps


def test_checkpoint_of_a_model_of_other_settings_is_an_error(saved: tuple[TrainingState, Path]) -> None:
    wider = Config(**(CONFIG.as_dict() | {"n_embd": 64}))
    message = r"has \(96,\) for h.0.attn.c_attn.bias, but the model needs \(192,\)"
    with pytest.raises(CheckpointError, match=message):
        restore(open_checkpoint(saved[1]), make_state(wider))


# The checkpoints of a run


def test_save_keeps_only_the_last(tmp_path: Path) -> None:
    state = make_state()
    for _ in range(5):
        take_step(state)
        save(state, tmp_path, origin=ORIGIN, keep=2)
    assert list_steps(tmp_path) == [4, 5]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_damaged_newest_checkpoint_is_skipped_with_a_warning(tmp_path: Path) -> None:
    state = make_state()
    for _ in range(3):
        take_step(state)
        save(state, tmp_path, origin=ORIGIN, keep=3)
    flip_bit(list_checkpoints(tmp_path)[-1])
    warnings: list[str] = []
    checkpoint = find_newest_checkpoint(tmp_path, warnings.append)
    assert checkpoint is not None and checkpoint.step == 2
    assert len(warnings) == 1 and "step-00000003/model.safetensors" in warnings[0]

    restore(checkpoint, state)
    save(state, tmp_path, origin=ORIGIN, keep=1)  # the damaged one of a later step must not replace this one
    assert list_steps(tmp_path) == [2]

    flip_bit(list_checkpoints(tmp_path)[0])
    with pytest.raises(FolioError, match="all 1 checkpoints in .* are damaged; restore one, or start again"):
        find_newest_checkpoint(tmp_path, warnings.append)


def test_checkpoint_of_a_newer_version_is_not_skipped(tmp_path: Path) -> None:
    state = make_state()
    for _ in range(2):
        take_step(state)
        save(state, tmp_path, origin=ORIGIN, keep=3)
    edit_info(list_checkpoints(tmp_path)[-1], version=3)
    with pytest.raises(FolioError, match="has version 3"):
        find_newest_checkpoint(tmp_path, fail_on_warning)


def test_interrupted_saves_are_ignored_and_removed(saved: tuple[TrainingState, Path], tmp_path: Path) -> None:
    _, folder = saved
    shutil.copytree(folder, folder.with_name(".step-00000009.123.partial"))
    shutil.copytree(folder, folder.with_name(".step-00000000.123.removed"))
    newest = find_newest_checkpoint(tmp_path, fail_on_warning)
    assert newest is not None and newest.folder == folder
    remove_leftovers(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [folder]


def test_find_checkpoint_accepts_a_run_or_a_checkpoint(saved: tuple[TrainingState, Path], tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, fail_on_warning) == find_checkpoint(saved[1], fail_on_warning)
    with pytest.raises(MisuseError, match="neither a checkpoint nor a run"):
        find_checkpoint(tmp_path / "nowhere", fail_on_warning)


def test_full_disk_keeps_the_last_complete_checkpoint(tmp_path: Path) -> None:
    state = make_state()
    message = r"cannot save the checkpoint of step 3 .*No space left.*it needs 0.3 MB, 0.\d MB are free; free some"
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(FolioError, match=message):
            for _ in range(9):
                take_step(state)
                save(state, disk, origin=ORIGIN, keep=9)
        assert sorted(p.name for p in (disk / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
        newest = find_newest_checkpoint(disk, fail_on_warning)
    assert newest is not None and newest.step == state.step - 1
