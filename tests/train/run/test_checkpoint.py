"""Checkpoints: they restore what was saved, damage is detected, and a full disk loses none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import sha256_file
from tests.conftest import ROOT
from tests.helpers.runs import VOCAB_SIZE, edit_checkpoint, invoke, list_steps, make_config, small_disk, train_run
from train.config import Config
from train.run import checkpoint as checkpoint_module
from train.run.checkpoint import (
    find_checkpoint,
    find_newest_checkpoint,
    list_checkpoints,
    load_model,
    open_checkpoint,
    restore,
)
from train.run.checkpoint_info import ADVICE, CheckpointError, Origin, read_info
from train.run.save_checkpoint import remove_leftovers, save
from train.run.state import TrainingState, new_state

CPU = torch.device("cpu")
CONFIG = make_config()
# A pickle that creates a folder when it is loaded.
TRAP = b"cos\nmkdir\n(S'trapped'\ntR."
EARLIER = ROOT / "tests" / "fixtures" / "earlier"
SCALER = {"scale": 1.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 9, "_growth_tracker": 4}
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
    assert (restored.step, checkpoint.info.origin, checkpoint.info.vocab_size) == (1, ORIGIN, VOCAB_SIZE)
    assert [take_step(restored) for _ in range(3)] == expected


def test_checkpoint_has_three_files_with_the_same_mode(saved: tuple[TrainingState, Path]) -> None:
    _, folder = saved
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "training.safetensors", "checkpoint.json"}
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1
    assert "h.0.attn.c_attn.weight.exp_avg_sq" in load_file(folder / "training.safetensors")


# Damage


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
    edit_checkpoint(folder, files=files)


def replace_text(folder: Path, old: str, new: str) -> None:
    """Change checkpoint.json as damage does, without changing its checksum."""
    path = folder / "checkpoint.json"
    content = path.read_text()
    assert content.count(old) == 1
    path.write_text(content.replace(old, new))


def replace_info(folder: Path, make: Callable[[Path], object], name: str = "checkpoint.json") -> None:
    (folder / name).unlink()
    make(folder / name)


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
    "info is a list": (lambda f: (f / "checkpoint.json").write_text("[]"), "does not have the format"),
    "info is empty": (lambda f: (f / "checkpoint.json").write_text("{}"), "does not have the format"),
    "info is a folder": (lambda f: replace_info(f, Path.mkdir), "is not a regular file"),
    "info is a pipe": (lambda f: replace_info(f, os.mkfifo), "is not a regular file"),
    "info is a device": (lambda f: replace_info(f, lambda p: p.symlink_to("/dev/zero")), "is not a regular file"),
    "info is huge": (lambda f: os.truncate(f / "checkpoint.json", 1 << 30), "bytes, expected at most"),
    "weights are a pipe": (lambda f: replace_info(f, os.mkfifo, "model.safetensors"), "is missing or not a file"),
    "other format": (lambda f: edit_checkpoint(f, format="x"), "does not have the format 'folio-checkpoint'"),
    "other version": (lambda f: edit_checkpoint(f, version=99), "has version 99, this Folio reads versions 2 and 3"),
    "changed number": (lambda f: replace_text(f, '"num_samples": 4', '"num_samples": 8'), "not have the checksum"),
    "changed setting": (lambda f: replace_text(f, '"seed": 1337', '"seed": 1339'), "does not have the checksum"),
    "changed checksum": (lambda f: replace_text(f, '"checksum": "', '"checksum": "0'), "does not have the checksum"),
    "misspelled checksum": (lambda f: replace_text(f, '"checksum"', '"chedksum"'), "has no checksum"),
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
    "reference is one number": (
        lambda f: replace_tensors(f, lambda t: t.update({"watch.reference": torch.ones(())}), "training.safetensors"),
        "watch.reference must have one dimension",
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


# Values of checkpoint.json that no run writes, with a valid checksum, and a part of the message.
INVALID_VALUES: list[tuple[dict[str, object], str]] = [
    ({"step": "many"}, "step is 'many'"),
    ({"step": -5}, "step must be from 0 to 24, got -5"),
    ({"step": 10**400}, "step must be from 0 to 24, got 1000"),
    ({"step": 2}, "step is 2, unlike its folder's"),
    ({"num_samples": "all"}, "num_samples is 'all'"),
    ({"num_samples": 0}, "num_samples must be from 1 to 9,007,199,254,740,992, got 0"),
    ({"num_samples": True}, "num_samples is True"),
    ({"skipped_updates": 5}, "skipped_updates must be from 0 to 4, got 5"),
    ({"micro_batch": "all"}, "micro_batch is 'all'"),
    ({"micro_batch": 3}, "micro_batch must divide a step's 8 windows, got 3"),
    ({"vocab_size": 10**15}, "vocab_size must be from 1 to 4,294,967,296, got 1000000000000000"),
    ({"tokenizer_sha256": None}, "tokenizer_sha256 is None"),
    ({"build_id": "../x"}, "build_id must be a SHA-256 in hexadecimal, got '../x'"),
    ({"files": []}, "files is []"),
    ({"files": {"model.safetensors": 3}}, "model.safetensors is 3"),
    ({"files": {"model.safetensors": {"bytes": "x", "sha256": "0" * 64}}}, "it has no training.safetensors"),
    ({"watch": None}, "watch is None"),
    ({"watch": {"best_step": None}}, "it has no num_since"),
    ({"watch": {"best_step": 1, "best_loss": None, "num_since": 0}}, "best_loss is None"),
    ({"watch": {"best_step": 2, "best_loss": 1.0, "num_since": 0}}, "best_step must be from 0 to 1, got 2"),
    ({"watch": {"best_step": 1, "best_loss": 1.0, "num_since": 2}}, "num_since must be from 0 to 1, got 2"),
    ({"streams": []}, "streams must be a list with an object for each process, got []"),
    ({"streams": [1]}, "streams must be a list with an object for each process, got [1]"),
    ({"streams": [{}, {}, {}]}, "streams must be a list with an object for each process"),
    ({"scaler": [1]}, "scaler is [1]"),
    ({"scaler": SCALER | {"scale": "x"}}, "scale is 'x'"),
    ({"scaler": SCALER | {"scale": 0.0}}, "scaler must have scale > 0"),
    ({"scaler": SCALER | {"scale": 1e300}}, "scale must be from 0 to 3.4e+38, got 1e+300"),
    ({"scaler": SCALER | {"backoff_factor": 2.0}}, "scaler must have scale > 0"),
    ({"scaler": SCALER | {"growth_interval": 3}}, "scaler must have a _growth_tracker below its"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID_VALUES, ids=str)
def test_value_that_no_run_writes_is_one_line(
    saved: tuple[TrainingState, Path], fields: dict[str, object], message: str
) -> None:
    _, folder = saved
    edit_checkpoint(folder, **fields)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    text = str(error.value)
    assert text.startswith(f"{folder / 'checkpoint.json'} is malformed: {message}"), text
    assert text.endswith(ADVICE) and "\n" not in text and len(text) < len(str(folder)) + 150


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 10**13}, "block_size must be at most 16,777,216, got 10000000000000"),
        ({"n_layer": 10**9}, "n_layer must be at most 1,000, got 1000000000"),
        ({"n_layer": []}, "n_layer must be a whole number, got []"),
        ({"unknown": 1}, "no setting is called 'unknown'"),
    ],
    ids=str,
)
def test_invalid_setting_in_a_checkpoint_names_the_file(
    saved: tuple[TrainingState, Path], settings: dict[str, object], message: str
) -> None:
    _, folder = saved
    edit_checkpoint(folder, settings=CONFIG.as_dict() | settings)
    with pytest.raises(MisuseError) as error:
        open_checkpoint(folder)
    assert str(error.value).startswith(f"{folder / 'checkpoint.json'}: {message}")


def test_flipped_bits_of_checkpoint_json_are_noticed(saved: tuple[TrainingState, Path]) -> None:
    """Only the case of a letter in a number's exponent, and white space, have no meaning."""
    _, folder = saved
    path, expected = folder / "checkpoint.json", read_info(folder)
    data = path.read_bytes()
    num_noticed = 0
    for bit in range(0, 8 * len(data), 61):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert read_info(folder) == expected, flipped[bit // 8 - 20 : bit // 8 + 20]
        except CheckpointError:
            num_noticed += 1
    assert num_noticed > 0.6 * 8 * len(data) / 61


def test_checkpoint_of_an_earlier_version_has_no_checksum_and_is_read() -> None:
    folder = EARLIER / "runs" / "gpt2" / "checkpoints" / "step-00000016"
    assert "checksum" not in json.loads((folder / "checkpoint.json").read_text())
    assert open_checkpoint(folder).info.num_samples == 64


def test_damaged_checkpoint_without_a_checksum_is_skipped_like_others(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(EARLIER / "runs" / "gpt2" / "checkpoints", checkpoints)
    newer = Path(shutil.copytree(checkpoints / "step-00000016", checkpoints / "step-00000017"))
    for old, new in (('"beta1"', '"beta7"'), ('"max_steps": 24', '"max_steps": "x"'), ('"streams"', '"strgams"')):
        shutil.copyfile(checkpoints / "step-00000016" / "checkpoint.json", newer / "checkpoint.json")
        replace_text(newer, old, new)
        warnings: list[str] = []
        found = find_newest_checkpoint(tmp_path, warnings.append)
        assert found is not None and found.info.step == 16
        assert len(warnings) == 1 and "skipped, trying the previous one" in warnings[0]


@pytest.mark.parametrize("damage", ["{}", "[]", "pipe", "folder", "huge"])
def test_unreadable_newest_checkpoint_is_skipped(tmp_path: Path, damage: str) -> None:
    state = make_state()
    for _ in range(2):
        take_step(state)
        save(state, tmp_path, origin=ORIGIN, keep=3)
    newest = list_checkpoints(tmp_path)[-1]
    makers = {"pipe": os.mkfifo, "folder": Path.mkdir, "huge": lambda path: (path.touch(), os.truncate(path, 1 << 30))}
    replace_info(newest, makers.get(damage, lambda path: path.write_text(damage)))
    warnings: list[str] = []
    found = find_newest_checkpoint(tmp_path, warnings.append)
    assert found is not None and found.info.step == 1
    assert len(warnings) == 1 and str(newest) in warnings[0] and "\n" not in warnings[0]
    take_step(state)
    save(state, tmp_path, origin=ORIGIN, keep=1)  # deletes the damaged one
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_link_to_a_missing_folder_is_skipped(saved: tuple[TrainingState, Path], tmp_path: Path) -> None:
    saved[1].with_name("step-00000009").symlink_to("nowhere")
    warnings: list[str] = []
    found = find_newest_checkpoint(tmp_path, warnings.append)
    assert found is not None and found.folder == saved[1] and len(warnings) == 1


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
    assert checkpoint is not None and checkpoint.info.step == 2
    assert len(warnings) == 1 and "step-00000003/model.safetensors" in warnings[0]

    restore(checkpoint, state)
    save(state, tmp_path, origin=ORIGIN, keep=1)  # the damaged one of a later step must not replace this one
    assert list_steps(tmp_path) == [2]

    flip_bit(list_checkpoints(tmp_path)[0])
    with pytest.raises(FolioError, match="all 1 checkpoints in .* are damaged; restore one, or start again"):
        find_newest_checkpoint(tmp_path, warnings.append)


def test_thousands_of_empty_checkpoints_get_few_warnings(tmp_path: Path) -> None:
    for step in range(2_000):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    warnings: list[str] = []
    with pytest.raises(FolioError, match="all 2000 checkpoints in .* are damaged"):
        find_newest_checkpoint(tmp_path, warnings.append)
    assert "step-00001999" in warnings[0] and warnings[-1] == "1,995 more checkpoints skipped"
    assert len(warnings) == 6


def test_checkpoint_of_a_newer_version_is_not_skipped(tmp_path: Path) -> None:
    state = make_state()
    for _ in range(2):
        take_step(state)
        save(state, tmp_path, origin=ORIGIN, keep=3)
    edit_checkpoint(list_checkpoints(tmp_path)[-1], version=4)
    with pytest.raises(FolioError, match="has version 4"):
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


def replace_when_opened(monkeypatch: pytest.MonkeyPatch, out_dir: Path, *, num_times: int) -> list[Path]:
    """Let a training process save a step and delete all others whenever a checkpoint is opened."""
    original, deleted = checkpoint_module._check_file, []

    def train_on(path: Path, info: Any) -> None:
        if len(deleted) < num_times:
            deleted.append(path.parent)
            newer = Path(shutil.copytree(path.parent, path.parent.with_name(f"step-{info.step + 1:08d}")))
            edit_checkpoint(newer, step=info.step + 1, num_samples=4 * (info.step + 1))
            shutil.rmtree(path.parent)
        original(path, info)

    monkeypatch.setattr(checkpoint_module, "_check_file", train_on)
    return deleted


def test_checkpoint_that_training_deletes_is_replaced_by_the_newest(
    saved: tuple[TrainingState, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_when_opened(monkeypatch, tmp_path, num_times=7)
    assert find_checkpoint(tmp_path, fail_on_warning).info.step == 8


def test_checkpoints_that_are_always_deleted_are_not_called_damaged(
    saved: tuple[TrainingState, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = replace_when_opened(monkeypatch, tmp_path, num_times=10**9)
    monkeypatch.setattr(checkpoint_module, "MAX_LISTINGS", 5)
    with pytest.raises(FolioError, match="was deleted by the process that trains the run before it could be read"):
        find_newest_checkpoint(tmp_path, fail_on_warning)
    assert len(deleted) == 5


def test_weights_of_a_checkpoint_that_was_found_are_read_after_its_deletion(
    saved: tuple[TrainingState, Path], tmp_path: Path
) -> None:
    state, folder = saved
    found = find_checkpoint(tmp_path, fail_on_warning)
    shutil.rmtree(folder)
    model = make_state().model
    load_model(found, model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), state.model.parameters(), strict=True))


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
    assert newest is not None and newest.info.step == state.step - 1


def test_reason_of_a_failed_save_is_named(saved: tuple[TrainingState, Path], tmp_path: Path) -> None:
    """The disk has room, but files must not be larger than 100,000 bytes."""
    resource = pytest.importorskip("resource")
    state, _ = saved
    take_step(state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(FolioError) as error:
            save(state, tmp_path, origin=ORIGIN, keep=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == (
        f"cannot save the checkpoint of step 2 in {tmp_path}: File too large; solve that, then run the same command "
        "again: it continues from step-00000001, which is complete"
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
