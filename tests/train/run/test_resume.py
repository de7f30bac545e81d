"""A run that was interrupted and continued equals one that was not, bit for bit, with any settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from preprocess.shards.files import readable_json
from tests.helpers.runs import (
    delete_checkpoints_after,
    invoke,
    make_build,
    read_losses,
    read_metric_rows,
    read_train_losses,
    read_val_losses,
    train_run,
    write_config,
)
from train.run.checkpoint import list_checkpoints
from train.run.checkpoint_info import INFO_FILE, MUON_BY_HEAD, seal_info

# Each differs from TINY, which has dropout, two micro-batches per step, random windows, AdamW and
# fp32.
VARIANTS: dict[str, dict[str, Any]] = {
    "epochs": {"data_order": "epochs"},
    "epochs, muon, bf16": {"data_order": "epochs", "optimizer": "muon", "precision": "bf16"},
    "muon, modern": {"optimizer": "muon", "arch": "modern"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "gradient checkpointing, wsd": {"gradient_checkpointing": True, "schedule": "wsd", "warmup_steps": 2},
    "masked documents, linear": {"mask_documents": True, "schedule": "linear"},
    "documents": {"data_order": "documents", "mask_documents": True},
    "documents, into the third epoch": {"data_order": "documents", "mask_documents": True, "block_size": 48},
    "no accumulation": {"gradient_accumulation_steps": 1, "optimizer": "muon"},
}


def interrupt(out_dir: Path, *, after: int) -> Path:
    """Return a copy of a finished run, as if it had been killed after the checkpoint of `after`."""
    copy = out_dir.with_name(f"{out_dir.name}_from_{after}")
    shutil.copytree(out_dir, copy)
    delete_checkpoints_after(copy, after)
    return copy


def assert_same_end(resumed: Path, uninterrupted: Path) -> None:
    assert read_losses(resumed) == read_losses(uninterrupted)
    last_checkpoints = [list_checkpoints(run)[-1] for run in (resumed, uninterrupted)]
    for file in ("model.safetensors", "training.safetensors"):
        contents = [(checkpoint / file).read_bytes() for checkpoint in last_checkpoints]
        assert contents[0] == contents[1], file


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_an_uninterrupted_one(folder: Path, variant: str) -> None:
    name = variant.replace(", ", "_").replace(" ", "_")
    run = train_run(folder, name, max_steps=12, checkpoint_interval=4, eval_interval=5, **VARIANTS[variant])
    for after in (4, 8):
        copy = interrupt(run, after=after)
        assert invoke("train.py", folder / f"{name}.py", f"--out_dir={copy}").returncode == 0
        assert_same_end(copy, run)


def test_run_with_muon_of_an_earlier_version_keeps_its_update(folder: Path) -> None:
    settings = {"max_steps": 12, "checkpoint_interval": 4, "keep_checkpoints": 9, "optimizer": "muon"}
    run = train_run(folder, "by_head", **settings)
    whole = interrupt(run, after=4)
    content = json.loads((list_checkpoints(whole)[-1] / INFO_FILE).read_bytes())
    assert content.pop(MUON_BY_HEAD) is True
    (list_checkpoints(whole)[-1] / INFO_FILE).write_bytes(readable_json(seal_info(content)))
    config = [folder / "by_head.py", f"--out_dir={whole}"]
    result = invoke("train.py", *config)
    assert result.returncode == 0 and "Muon updates the matrices of all heads as one" in result.stdout
    assert read_train_losses(whole)[:5] == read_train_losses(run)[:5], "those of the checkpoint's weights"
    assert read_train_losses(whole)[5:] != read_train_losses(run)[5:]
    again = interrupt(whole, after=8)
    assert invoke("train.py", config[0], f"--out_dir={again}").returncode == 0
    assert_same_end(again, whole)


def test_resumed_mixture_equals_an_uninterrupted_one(folder: Path) -> None:
    make_build(folder / "other", train_repeats=30)
    data = f"{folder / 'tiny'}:0.7, {folder / 'other'}:0.3"
    config = write_config(folder / "mixed.py", folder / "tiny", data=data, max_steps=12, checkpoint_interval=4)
    result = invoke("train.py", config)
    assert result.returncode == 0 and "tiny 70.0%, other 30.0%" in result.stdout
    copy = interrupt(folder / "mixed", after=4)
    assert invoke("train.py", config, f"--out_dir={copy}").returncode == 0
    assert_same_end(copy, folder / "mixed")
    other_weights = invoke("train.py", config, f"--data={data.replace('0.3', '0.4')}")
    assert other_weights.returncode == 2 and "holds a run with other settings (data " in other_weights.stderr


def test_run_continues_with_another_micro_batch_and_the_same_samples(folder: Path) -> None:
    config = write_config(folder / "micro.py", folder / "tiny", max_steps=12, checkpoint_interval=4, dropout=0.0)
    assert invoke("train.py", config).returncode == 0
    copy = interrupt(folder / "micro", after=4)
    smaller = ["--batch_size=2", "--gradient_accumulation_steps=4"]
    assert invoke("train.py", config, f"--out_dir={copy}", *smaller).returncode == 0
    assert read_train_losses(copy) == pytest.approx(read_train_losses(folder / "micro"), rel=1e-5)
    assert read_val_losses(copy) == pytest.approx(read_val_losses(folder / "micro"), rel=1e-5)
    other = invoke("train.py", config, f"--out_dir={copy}", "--batch_size=3")
    assert other.returncode == 2 and "batch_size × gradient_accumulation_steps 8 → 6" in other.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"precision": "bf16"}, "; precision fp32 → bf16: the losses"),
        (
            {"batch_size": 8, "gradient_accumulation_steps": 1},
            "; batch_size 4 → 8, gradient_accumulation_steps 2 → 1: the losses",
        ),
        ({"checkpoint_interval": 5}, None),
    ],
)
def test_continuing_names_each_changed_setting_that_changes_the_rounding(
    folder: Path, change: dict[str, Any], named: str | None
) -> None:
    settings = {"max_steps": 8, "checkpoint_interval": 4}
    if not (folder / "rounded").exists():
        train_run(folder, "rounded", **settings)
    copy = folder / f"rounded_{'_'.join(change)}"
    shutil.copytree(folder / "rounded", copy)
    delete_checkpoints_after(copy, 4)
    result = invoke("train.py", write_config(copy.with_suffix(".py"), folder / "tiny", **{**settings, **change}))
    [line] = [line for line in result.stderr.splitlines() + result.stdout.splitlines() if "continuing after" in line]
    assert result.returncode == 0
    assert (named in line) if named else line.endswith("step-00000004")


def test_resumed_run_stops_early_at_the_same_step(folder: Path) -> None:
    """It is interrupted between two evaluations without an improvement."""
    settings = {
        "max_steps": 60,
        "warmup_steps": 60,
        "learning_rate": 2.0,
        "dropout": 0.0,
        "eval_interval": 2,
        "checkpoint_interval": 3,
    }
    run = train_run(folder, "counted", **settings, keep_checkpoints=99, patience=5)
    stopped = max(row["step"] for row in read_metric_rows(run))
    copy = interrupt(run, after=stopped - 4)
    assert invoke("train.py", folder / "counted.py", f"--out_dir={copy}").returncode == 0
    assert_same_end(copy, run)
