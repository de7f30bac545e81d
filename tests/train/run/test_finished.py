"""A finished run: what its message offers, and training it further."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.runs import invoke, make_build, read_losses, read_metric_rows, write_config

SCHEDULE = "the learning rate follows the schedule of 16 steps, so it changes from 1.0e-3 to 7.4e-3, and ends at 1.0e-3"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a run that is finished after 8 steps."""
    config = write_config(tmp_path / "run.py", make_build(tmp_path / "tiny"), max_steps=8, eval_interval=4)
    assert invoke("train.py", config).returncode == 0
    return config


def test_finished_run_names_a_command_that_trains_it_further(config: Path) -> None:
    run, copy = config.with_suffix(""), config.with_name("copy")
    message = invoke("train.py", config, "--max-steps=8").stdout
    offered = re.search(r"raise max_steps: python train/train.py (.*) \((.*)\); or start again with --restart", message)
    assert offered is not None and offered[1].endswith(f"{config} --max_steps=16") and offered[2] == SCHEDULE
    assert invoke("train.py", config, f"--resume={run}", f"--out_dir={copy}", "--max_steps=16").returncode == 0
    result = invoke("train.py", *shlex.split(offered[1]))
    assert result.returncode == 0 and f"max_steps is raised from 8 to 16: {SCHEDULE}\n" in result.stdout
    assert [row["step"] for row in read_metric_rows(run) if "train_loss" in row] == [*range(1, 17)]
    # As in a new run that starts from the checkpoint.
    assert [row for row in read_losses(run) if row["step"] > 8] == [row for row in read_losses(copy) if row["step"] > 8]
    assert json.loads((run / "settings.json").read_text(encoding="utf-8"))["max_steps"] == 16
    shorter = invoke("train.py", config)  # the earlier command
    assert shorter.returncode == 2 and "max_steps 16 → 8" in shorter.stderr


@pytest.mark.parametrize("arguments", [["--max_steps=7"], ["--max_steps=16", "--learning_rate=0.02"]])
def test_only_a_larger_max_steps_continues_a_finished_run(config: Path, arguments: list[str]) -> None:
    result = invoke("train.py", config, *arguments)
    assert result.returncode == 2 and f"max_steps 8 → {arguments[0].removeprefix('--max_steps=')}" in result.stderr


def test_run_that_stopped_early_names_a_command_that_trains_it_further(tmp_path: Path) -> None:
    settings = {"max_steps": 40, "eval_interval": 2, "patience": 1, "learning_rate": 1e-9, "min_lr": 0.0}
    config = write_config(tmp_path / "run.py", make_build(tmp_path / "tiny"), **settings)
    assert "stopped early" in invoke("train.py", config).stdout
    message = invoke("train.py", config).stdout
    offered = re.search(r"raise patience: python train/train.py (.*--patience=2); or start again", message)
    assert offered is not None, message
    assert "continuing after step" in invoke("train.py", *shlex.split(offered[1])).stdout
