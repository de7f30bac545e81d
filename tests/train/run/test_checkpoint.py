"""Checkpoints: what goes in comes out, what is not whole or not ours is refused, and a full disk loses nothing."""

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
from tests.helpers.runs import TINY, VOCAB_SIZE, small_disk
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
from train.run.state import Training, new_training

CPU = torch.device("cpu")
CONFIG = Config(**({"data": "x", "out_dir": "y"} | TINY))  # type: ignore[arg-type]
# A pickle that makes a folder when it is loaded.
TRAP = b"cos\nmkdir\n(S'trapped'\ntR."
ORIGIN = Origin(settings=CONFIG.as_dict(), build_id="0" * 64, tokenizer_sha256="1" * 64)


def make_training(config: Config = CONFIG) -> Training:
    return new_training(config, VOCAB_SIZE, device=CPU)


def take_step(training: Training) -> float:
    """One update, on tokens that follow from the step as a run's samples do."""
    torch.manual_seed(training.step)
    ids = torch.randint(VOCAB_SIZE, (4, 17))
    loss = training.model(ids[:, :-1], ids[:, 1:])[0]
    loss.backward()
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    training.step += 1
    training.num_samples += 4
    return float(loss)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Training, Path]:
    torch.manual_seed(0)
    training = make_training()
    take_step(training)
    return training, save(training, tmp_path, origin=ORIGIN, keep=3)


def fail_on_warning(line: str) -> None:
    raise AssertionError(line)


def test_what_comes_back_goes_on_alike(saved: tuple[Training, Path]) -> None:
    training, folder = saved
    ahead = [take_step(training) for _ in range(3)]
    torch.manual_seed(99)
    other = make_training()
    checkpoint = open_checkpoint(folder)
    restore(checkpoint, other)
    assert (other.step, checkpoint.origin, checkpoint.vocab_size) == (1, ORIGIN, VOCAB_SIZE)
    assert [take_step(other) for _ in range(3)] == ahead


def test_files_are_plain_and_readable_by_whoever_may_read_the_folder(saved: tuple[Training, Path]) -> None:
    _, folder = saved
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "training.safetensors", "checkpoint.json"}
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1
    assert "h.0.attn.c_attn.weight.exp_avg_sq" in load_file(folder / "training.safetensors")


def edit_info(folder: Path, **fields: object) -> None:
    path = folder / "checkpoint.json"
    path.write_bytes(readable_json(json.loads(path.read_text()) | fields))


def replace_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], file: str = "model.safetensors"
) -> None:
    """Change tensors as one who also mends size and hash would."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    mend(folder, file)


def mend(folder: Path, file: str) -> None:
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    files[file] = {"bytes": (folder / file).stat().st_size, "sha256": sha256_file(folder / file)}
    edit_info(folder, files=files)


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def write_pickle_for_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(TRAP)
    mend(folder, "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda f: (f / "training.safetensors").unlink(), "training.safetensors is missing"),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 1000), "has 1,000 bytes"),
    "flipped bit": (flip_a_bit, "does not have the sha256"),
    "no info": (lambda f: (f / "checkpoint.json").unlink(), "has no checkpoint.json"),
    "info cut short": (lambda f: os.truncate(f / "checkpoint.json", 100), "is not JSON"),
    "info nested": (lambda f: (f / "checkpoint.json").write_text("[" * 100_000), "is not JSON"),
    "other format": (lambda f: edit_info(f, format="elsewhere"), "not of the format"),
    "other version": (lambda f: edit_info(f, version=99), "has version 99, this Folio reads version 2"),
    "no step": (lambda f: edit_info(f, step="many"), "malformed"),
    "no files": (lambda f: edit_info(f, files=[]), "malformed"),
    "pickle beside": (lambda f: (f / "extra.pt").write_bytes(TRAP), "holds 'extra.pt'"),
    "pickle instead": (write_pickle_for_model, "is no safetensors file"),
    "other shape": (
        lambda f: replace_tensors(f, lambda t: t.update({"ln_f.bias": torch.zeros(7)})),
        r"has \(7,\) for ln_f.bias",
    ),
    "tensor lacking": (lambda f: replace_tensors(f, lambda t: t.pop("ln_f.bias")), "has nothing for ln_f.bias"),
    "tensor more": (lambda f: replace_tensors(f, lambda t: t.update({"x": torch.zeros(7)})), "the model needs nothing"),
    "moment lacking": (
        lambda f: replace_tensors(f, lambda t: t.pop("ln_f.bias.exp_avg"), "training.safetensors"),
        "has nothing for ln_f.bias.exp_avg",
    ),
    "no samples": (lambda f: edit_info(f, num_samples="all"), "cannot be continued"),
    "negative samples": (lambda f: edit_info(f, num_samples=-1), "cannot be continued"),
    "no watch": (lambda f: edit_info(f, watch=None), "malformed"),
    "watch without a loss": (
        lambda f: edit_info(f, watch={"best_step": 1, "best_loss": None, "num_since": 0}),
        "cannot be continued",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_whole_or_not_ours_is_refused(
    saved: tuple[Training, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved
    monkeypatch.chdir(folder.parent)
    damage, complaint = DAMAGE[name]
    damage(folder)
    with pytest.raises(FolioError, match=complaint) as error:
        restore(open_checkpoint(folder), make_training())
    assert "\n" not in str(error.value)
    assert not Path("trapped").exists()


def test_a_model_of_other_settings_is_refused(saved: tuple[Training, Path]) -> None:
    wider = Config(**(CONFIG.as_dict() | {"n_embd": 64}))
    with pytest.raises(CheckpointError, match=r"has \(96,\) for h.0.attn.c_attn.bias, the model needs \(192,\)"):
        restore(open_checkpoint(saved[1]), make_training(wider))


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    training = make_training()
    for _ in range(5):
        take_step(training)
        save(training, tmp_path, origin=ORIGIN, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_the_damaged_newest_is_told_and_passed_over(tmp_path: Path) -> None:
    training = make_training()
    for _ in range(3):
        take_step(training)
        save(training, tmp_path, origin=ORIGIN, keep=3)
    flip_a_bit(list_checkpoints(tmp_path)[-1])
    warnings: list[str] = []
    checkpoint = find_newest_checkpoint(tmp_path, warnings.append)
    assert checkpoint is not None and checkpoint.step == 2
    assert len(warnings) == 1 and "step-00000003/model.safetensors" in warnings[0]

    restore(checkpoint, training)
    save(training, tmp_path, origin=ORIGIN, keep=1)  # the damaged one, of a later step, must not push this one out
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002"]

    flip_a_bit(list_checkpoints(tmp_path)[0])
    with pytest.raises(FolioError, match="none of the 1 checkpoints"):
        find_newest_checkpoint(tmp_path, warnings.append)


def test_a_newer_version_is_not_passed_over(tmp_path: Path) -> None:
    training = make_training()
    for _ in range(2):
        take_step(training)
        save(training, tmp_path, origin=ORIGIN, keep=3)
    edit_info(list_checkpoints(tmp_path)[-1], version=3)
    with pytest.raises(FolioError, match="has version 3"):
        find_newest_checkpoint(tmp_path, fail_on_warning)


def test_what_was_cut_short_does_not_count(saved: tuple[Training, Path], tmp_path: Path) -> None:
    _, folder = saved
    shutil.copytree(folder, folder.with_name(".step-00000009.123.partial"))
    shutil.copytree(folder, folder.with_name(".step-00000000.123.removed"))
    found = find_newest_checkpoint(tmp_path, fail_on_warning)
    assert found is not None and found.folder == folder
    remove_leftovers(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [folder]


def test_a_run_or_a_checkpoint_is_found(saved: tuple[Training, Path], tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, fail_on_warning) == find_checkpoint(saved[1], fail_on_warning)
    with pytest.raises(MisuseError, match="neither a checkpoint nor a run"):
        find_checkpoint(tmp_path / "nowhere", fail_on_warning)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    training = make_training()
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(
            FolioError,
            match=r"cannot save the checkpoint of step 3 .*No space left.*it needs 0.3 MB, 0.\d MB are free; free some",
        ):
            for _ in range(9):
                take_step(training)
                save(training, disk, origin=ORIGIN, keep=9)
        assert sorted(p.name for p in (disk / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
        found = find_newest_checkpoint(disk, fail_on_warning)
    assert found is not None and found.step == training.step - 1
