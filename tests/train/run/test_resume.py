"""A run that was interrupted and continued is the run that never was, to the last bit, whatever its settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.helpers.runs import invoke, losses, make_build, rows, write_config
from train.run.checkpoint import find_newest_checkpoint, list_checkpoints, open_checkpoint

# Each differs from TINY, which has dropout, two micro-batches a step, random windows, AdamW and fp32.
KINDS: dict[str, dict[str, Any]] = {
    "epochs": {"data_order": "epochs"},
    "epochs, muon, bf16": {"data_order": "epochs", "optimizer": "muon", "precision": "bf16"},
    "muon, modern": {"optimizer": "muon", "arch": "modern"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "gradient checkpointing, wsd": {"gradient_checkpointing": True, "schedule": "wsd", "warmup_steps": 2},
    "masked documents, linear": {"mask_documents": True, "schedule": "linear"},
    "no accumulation": {"gradient_accumulation_steps": 1, "optimizer": "muon"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_build(folder / "tiny")
    make_build(folder / "other", train_repeats=30)
    return folder


def interrupt(out_dir: Path, *, after: int) -> Path:
    """A copy of a finished run as a kill after the checkpoint of step `after` would have left it."""
    copy = out_dir.with_name(f"{out_dir.name}_from_{after}")
    shutil.copytree(out_dir, copy)
    for checkpoint in list_checkpoints(copy):
        if int(checkpoint.name[-8:]) > after:
            shutil.rmtree(checkpoint)
    return copy


def assert_same_end(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    last = [list_checkpoints(run)[-1] for run in (one, other)]
    for file in ("model.safetensors", "training.safetensors"):
        assert (last[0] / file).read_bytes() == (last[1] / file).read_bytes(), file


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_as_never_interrupted(folder: Path, kind: str) -> None:
    name = kind.replace(", ", "_").replace(" ", "_")
    config = write_config(
        folder / f"{name}.py", folder / "tiny", max_steps=12, checkpoint_interval=4, eval_interval=5, **KINDS[kind]
    )
    assert invoke("train.py", config).returncode == 0
    for after in (4, 8):
        copy = interrupt(folder / name, after=after)
        assert invoke("train.py", config, f"--out_dir={copy}").returncode == 0
        assert_same_end(copy, folder / name)


def test_a_mixture_resumes_too(folder: Path) -> None:
    data = f"{folder / 'tiny'}:0.7, {folder / 'other'}:0.3"
    config = write_config(folder / "mixed.py", folder / "tiny", data=data, max_steps=12, checkpoint_interval=4)
    result = invoke("train.py", config)
    assert result.returncode == 0 and "tiny 70.0%, other 30.0%" in result.stdout
    copy = interrupt(folder / "mixed", after=4)
    assert invoke("train.py", config, f"--out_dir={copy}").returncode == 0
    assert_same_end(copy, folder / "mixed")
    other_weights = invoke("train.py", config, f"--data={data.replace('0.3', '0.4')}")
    assert other_weights.returncode == 2 and "holds a run with other settings (data " in other_weights.stderr


def test_the_settings_do_what_they_say(folder: Path) -> None:
    """Each switch changes the losses of the plain run, and gradient checkpointing does not."""
    short = {"max_steps": 3, "warmup_steps": 0, "dropout": 0.0, "eval_interval": 100, "checkpoint_interval": 100}
    assert invoke("train.py", write_config(folder / "plain.py", folder / "tiny", **short)).returncode == 0
    plain = [row["train_loss"] for row in rows(folder / "plain") if "train_loss" in row]
    for key, value in {
        "data_order": "epochs",
        "optimizer": "muon",
        "arch": "modern",
        "mask_documents": True,
        "precision": "bf16",
    }.items():
        assert (
            invoke("train.py", write_config(folder / f"{key}.py", folder / "tiny", **short, **{key: value})).returncode
            == 0
        )
        assert [row["train_loss"] for row in rows(folder / key) if "train_loss" in row] != plain, key
    recomputing = write_config(folder / "recomputing.py", folder / "tiny", **short, gradient_checkpointing=True)
    assert invoke("train.py", recomputing).returncode == 0
    assert [row["train_loss"] for row in rows(folder / "recomputing") if "train_loss" in row] == pytest.approx(
        plain, rel=1e-6
    )


def test_other_micro_batches_read_the_same_samples_and_may_take_over(folder: Path) -> None:
    config = write_config(folder / "micro.py", folder / "tiny", max_steps=12, checkpoint_interval=4, dropout=0.0)
    assert invoke("train.py", config).returncode == 0
    copy = interrupt(folder / "micro", after=4)
    assert (
        invoke("train.py", config, f"--out_dir={copy}", "--batch_size=2", "--gradient_accumulation_steps=4").returncode
        == 0
    )
    ours, theirs = (
        [row.get("train_loss") or row.get("val_loss") for row in rows(run)] for run in (copy, folder / "micro")
    )
    assert ours == pytest.approx(theirs, rel=1e-5)
    other = invoke("train.py", config, f"--out_dir={copy}", "--batch_size=3")
    assert other.returncode == 2 and "batch_size × gradient_accumulation_steps 8 → 6" in other.stderr


def test_the_best_checkpoint_stays_beside_the_last(folder: Path) -> None:
    """A learning rate that rises without end: the loss falls at first, then no longer."""
    settings = {
        "max_steps": 40,
        "warmup_steps": 40,
        "learning_rate": 2.0,
        "dropout": 0.0,
        "grad_clip": None,
        "eval_interval": 2,
    }
    config = write_config(folder / "worse.py", folder / "tiny", **settings, checkpoint_interval=4, keep_checkpoints=2)
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    evaluations = {
        row["step"]: row["val_loss"] for row in rows(folder / "worse") if "val_loss" in row and row["step"] > 0
    }
    best = min(evaluations, key=lambda step: evaluations[step])
    assert best < 34
    assert f"the lowest validation loss was {evaluations[best]:.4f}, after step {best}" in result.stdout
    assert [int(p.name[-8:]) for p in list_checkpoints(folder / "worse")] == [best, 36, 40]
    last = find_newest_checkpoint(folder / "worse", pytest.fail)
    assert last is not None and last.best_step == best
    assert open_checkpoint(list_checkpoints(folder / "worse")[0]).step == best


def test_patience_ends_a_run_and_a_higher_one_goes_on(folder: Path) -> None:
    settings = {
        "max_steps": 60,
        "warmup_steps": 60,
        "learning_rate": 2.0,
        "dropout": 0.0,
        "eval_interval": 2,
        "checkpoint_interval": 50,
    }
    config = write_config(folder / "patient.py", folder / "tiny", **settings)
    result = invoke("train.py", config, "--patience=3")
    stopped = max(row["step"] for row in rows(folder / "patient"))
    assert result.returncode == 0 and stopped < 60
    assert f"stopped early, 3 evaluations without an improvement beyond noise, after step {stopped};" in result.stdout
    assert list_checkpoints(folder / "patient")[-1].name == f"step-{stopped:08d}"
    again = invoke("train.py", config, "--patience=3")
    assert again.returncode == 0 and "stopped early" in again.stdout and again.stdout.count("\n") == 1
    further = invoke("train.py", config, "--patience=6")
    assert further.returncode == 0 and f"continuing after step {stopped}" in further.stdout
    assert max(row["step"] for row in rows(folder / "patient")) > stopped


def test_patience_counts_on_where_the_run_was_interrupted(folder: Path) -> None:
    """Interrupted between two evaluations that bring nothing, it stops at the step at which it would have stopped."""
    settings = {
        "max_steps": 60,
        "warmup_steps": 60,
        "learning_rate": 2.0,
        "dropout": 0.0,
        "eval_interval": 2,
        "checkpoint_interval": 3,
    }
    config = write_config(folder / "counted.py", folder / "tiny", **settings, keep_checkpoints=99, patience=5)
    assert invoke("train.py", config).returncode == 0
    stopped = max(row["step"] for row in rows(folder / "counted"))
    copy = interrupt(folder / "counted", after=stopped - 4)
    assert invoke("train.py", config, f"--out_dir={copy}").returncode == 0
    assert_same_end(copy, folder / "counted")


def test_a_checkpoint_holds_no_random_state(folder: Path) -> None:
    """So that it moves between devices and numbers of processes: what dropout draws follows from the sample number."""
    config = write_config(folder / "stateless.py", folder / "tiny", max_steps=2, warmup_steps=0, checkpoint_interval=1)
    assert invoke("train.py", config).returncode == 0
    names = load_file(list_checkpoints(folder / "stateless")[-1] / "training.safetensors").keys()
    assert {name.rsplit(".", 1)[1] for name in names} == {"step", "exp_avg", "exp_avg_sq", "reference"}
