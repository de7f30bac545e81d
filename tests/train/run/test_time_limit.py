"""Runs with the setting `minutes`: planned, corrected, ended in time, and continued exactly."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from preprocess.shards.files import JsonObject
from tests.helpers.runs import (
    delete_checkpoints_after,
    invoke,
    make_build,
    read_losses,
    read_metric_rows,
    run_until,
    step_of,
)
from train.core import clock
from train.run import time_limit
from train.run.checkpoint import list_checkpoints
from train.run.context import TimeLimit
from train.run.step_speed import measure_step
from train.run.time_limit import CORRECTIONS, is_correction_due

BASE = """
arch = "modern"
optimizer = "muon"
warmup_steps = 0
min_lr = 0
n_layer = 9
max_steps = 7
log_interval = 1
completion_tokens = 1
device = "cpu"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose sizes are those of its base, on a build that no run of a second reads 40 times."""
    folder = tmp_path_factory.mktemp("time_limit")
    make_build(folder / "text", train_repeats=20_000, val_repeats=100)
    (folder / "base.py").write_text(BASE)
    path = folder / "timed.py"
    path.write_text(f'base = "base.py"\ndata = {str(folder / "text")!r}\n')
    return path


def run(config: Path, name: str, *arguments: str, status: int = 0) -> tuple[Path, str]:
    """Train in the folder `name` beside `config`. Return the folder and what was printed."""
    out_dir = config.with_name(name)
    result = invoke("train.py", config, f"--out_dir={out_dir}", *arguments)
    assert result.returncode == status, result.stderr
    return out_dir, result.stdout + result.stderr


def read_settings(out_dir: Path) -> JsonObject:
    settings: JsonObject = json.loads((out_dir / "settings.json").read_text())
    return settings


def test_run_is_planned_and_recorded_and_ends_near_its_time(config: Path) -> None:
    began = time.monotonic()
    out_dir, output = run(config, "planned", "--minutes=0.05")
    assert time.monotonic() - began < 30  # 3 s; the machine may be busy
    assert "plan: measuring the speed of cpu, to choose a model for 0.05 min" in output
    assert " layers of width " in output and "a larger model would read too few tokens" in output
    settings, last = read_settings(out_dir), list_checkpoints(out_dir)[-1]
    assert settings["n_layer"] < 9 and settings["minutes"] == 0.05
    assert last.name == f"step-{settings['max_steps']:08}"
    assert json.loads((last / "checkpoint.json").read_text())["settings"] == settings
    rows = read_metric_rows(out_dir)
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert max(rates) == rates[0] and rates[-1] == 0  # the schedule ends with the run, also if steps were added
    _, again = run(config, "planned", "--minutes=0.05")
    assert "is finished: all" in again and "measuring" not in again


@pytest.mark.parametrize("is_killed_early", [False, True])
def test_continued_run_keeps_its_plan_and_is_exact(config: Path, is_killed_early: bool) -> None:
    out_dir, _ = run(config, f"whole{is_killed_early}", "--minutes=0.05", "--checkpoint_interval=5")
    settings = read_settings(out_dir)
    copy = out_dir.with_name(f"copy{is_killed_early}")
    shutil.copytree(out_dir, copy)
    if is_killed_early:  # before the first checkpoint: only settings.json has the plan
        shutil.rmtree(copy / "checkpoints")
    else:
        delete_checkpoints_after(copy, step_of(list_checkpoints(out_dir)[-2]))  # a correction saves one
    _, output = run(config, copy.name, "--minutes=0.05", "--checkpoint_interval=5")
    assert "measuring" not in output and "instead of" not in output
    assert read_settings(copy) == settings | {"out_dir": str(copy)}
    if not is_killed_early:  # a correction during the run changes the schedule from then on
        assert read_losses(copy) == read_losses(out_dir)
        assert "continuing after step " in output
        weights = [(list_checkpoints(run)[-1] / "model.safetensors").read_bytes() for run in (copy, out_dir)]
        assert weights[0] == weights[1]


def test_steps_are_corrected_if_the_machine_is_slower_than_measured(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*args: Any, **kwargs: Any) -> tuple[float, float]:
        step_s, evaluation_s = measure_step(*args, **kwargs)
        return step_s / 20, evaluation_s / 20

    monkeypatch.setattr(time_limit, "measure_step", measure)
    out_dir, output = run(config, "slower", "--minutes=0.05", "--n_embd=32", "--batch_size=1")
    (line,) = (line for line in output.splitlines() if " tokens/s read " in line)
    planned = int(line.removeprefix("plan: ").partition(" ")[0].replace(",", ""))
    steps = read_settings(out_dir)["max_steps"]
    assert steps < planned / 5  # without a correction the run takes a minute
    assert f"plan: {steps:,} steps instead of " in output
    assert list_checkpoints(out_dir)[-1].name == f"step-{steps:08}"


@pytest.mark.parametrize(
    ("max_steps", "step", "num_timed_steps", "num_corrections", "is_due"),
    [
        (1_000, 39, 38, 0, False),
        (1_000, 40, 9, 0, False),
        (1_000, 40, 10, 0, True),
        (1_000, 199, 159, 1, False),
        (1_000, 200, 160, 1, True),
        (30, 3, 2, 0, False),  # long steps: after 11 of them it might be too late
        (30, 4, 3, 0, True),
    ],
)
def test_correction_is_due_after_enough_steps(
    max_steps: int, step: int, num_timed_steps: int, num_corrections: int, is_due: bool
) -> None:
    limit = TimeLimit(deadline=0, num_corrections=num_corrections)
    assert is_correction_due(limit, step, max_steps, num_timed_steps) is is_due


def test_no_correction_is_due_after_the_last() -> None:
    assert not is_correction_due(TimeLimit(deadline=0, num_corrections=len(CORRECTIONS)), 999, 1_000, 50)


def test_given_settings_are_kept_and_restart_plans_anew(config: Path) -> None:
    arguments = ["--minutes=0.02", "--n_layer=1", "--block_size=24", "--dropout=0.05"]
    out_dir, _ = run(config, "given", *arguments)
    settings = read_settings(out_dir)
    assert (settings["n_layer"], settings["block_size"], settings["dropout"]) == (1, 24, 0.05)
    assert "n_layer 1 → 2" in run(config, "given", *arguments, "--n_layer=2", status=2)[1]
    assert "minutes 0.02 → 0.03" in run(config, "given", *arguments, "--minutes=0.03", status=2)[1]
    _, output = run(config, "given", *arguments, "--n_layer=2", "--restart")
    assert "measuring" in output and read_settings(out_dir)["n_layer"] == 2


def test_settings_of_the_config_file_itself_are_given(config: Path) -> None:
    mine = config.with_name("mine.py")
    mine.write_text(config.read_text() + "n_embd = 48\nminutes = 0.02\n")
    out_dir, _ = run(mine, "mine")
    assert read_settings(out_dir)["n_embd"] == 48 and read_settings(out_dir)["n_layer"] != 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=0"], "minutes must be > 0, got 0"),
        (["--minutes=-1"], "minutes must be at least 0, got -1"),
        (["--minutes=nan"], "minutes must be at most 525,600, got nan"),
        (["--minutes=1e9"], "minutes must be at most 525,600, got 1000000000.0"),
        (["--minutes=ten"], "minutes must be a number or none, got 'ten'"),
        (["--minutes=1", "--max_steps=5"], "minutes is 1 and max_steps is 5, but minutes determines the number"),
        (["--minutes=1", "--init_from=x"], "which chooses the size of a new model, but init_from is 'x'"),
        (["--minutes=1", "--resume=x"], "which chooses the size of a new model, but resume is 'x'"),
        (
            ["--minutes=1", "--max_params=9"],
            "max_params is 9, but the smallest model for the 31 ids of text has 38,848",
        ),
        (["--max_params=10M"], "max_params is 10000000, which has no effect because minutes is none"),
    ],
)
def test_contradictions_and_absurd_values_are_one_line(config: Path, arguments: list[str], message: str) -> None:
    _, output = run(config, "refused", *arguments, status=2)
    error = output.splitlines()[-1]
    assert message in error and error.startswith("error: ")
    assert not config.with_name("refused").exists()


def test_a_short_text_is_planned_and_a_too_short_one_is_one_line(config: Path) -> None:
    short, shorter = (config.with_name(name) for name in ("short", "shorter"))
    make_build(short, train_repeats=6, val_repeats=1)  # 300 bytes
    out_dir, output = run(config, "brief", f"--data={short}", "--minutes=2")  # it ends within seconds
    assert "short is short for this time: the run ends after about " in output
    assert read_settings(out_dir)["block_size"] == 16
    make_build(shorter, train_repeats=1, val_repeats=0)
    _, output = run(config, "none", f"--data={shorter}", "--minutes=0.2", "--block_size=64", status=2)
    assert output.splitlines()[-1].startswith("error: block_size 64 needs 65 consecutive tokens")


def test_start_is_that_of_the_process_once_if_it_runs_a_command() -> None:
    before = time.monotonic()
    assert before <= clock.take_start() <= time.monotonic()
    clock.record_start()
    assert clock.take_start() < before - 0.1  # importing torch took longer
    assert before <= clock.take_start() <= time.monotonic()


@pytest.mark.slow
def test_killed_run_continues_with_the_same_command(config: Path) -> None:
    killed, out_dir = config.with_name("killed.py"), config.with_name("killed")
    text = config.read_text() + "minutes = 0.1\ncheckpoint_interval = 2\n"
    killed.write_text(text + f"out_dir = {str(out_dir)!r}\n")
    status, _ = run_until(killed, "step 6/", lambda process: process.send_signal(signal.SIGKILL))
    assert status == -signal.SIGKILL
    timed = config.with_name("timed_by_file.py")
    timed.write_text(text)
    for name in ("first", "second"):
        shutil.copytree(out_dir, config.with_name(name))
        copy, output = run(timed, name)
        assert "continuing after step " in output and "measuring" not in output and "instead of" not in output
        assert list_checkpoints(copy)[-1].name == f"step-{read_settings(copy)['max_steps']:08}"
    assert read_losses(config.with_name("first")) == read_losses(config.with_name("second"))
