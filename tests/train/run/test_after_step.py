"""What follows a step: completions, early stopping, checkpoints; and a disk that is full."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import (
    LONG,
    invoke,
    list_steps,
    make_build,
    make_command,
    make_environment,
    read_losses,
    read_metric_rows,
    read_val_losses,
    run_until,
    small_disk,
    write_config,
)
from train.config import Config
from train.run.after_step import CHECK_INTERVAL, due_after
from train.run.checkpoint import find_newest_checkpoint, list_checkpoints, open_checkpoint

# The learning rate rises until the end: the loss falls at first, then rises.
RISING = {"warmup_steps": 60, "max_steps": 60, "learning_rate": 2.0, "dropout": 0.0, "eval_interval": 2}


def test_due_after_follows_the_intervals_and_the_last_step() -> None:
    intervals = {"log_interval": 3, "eval_interval": 4, "checkpoint_interval": 6, "completion_interval": 5}
    config = Config(data="x", out_dir="y", max_steps=25, warmup_steps=0, **intervals)  # type: ignore[arg-type]
    steps = {
        name: [step for step in range(1, 26) if getattr(due_after(step, config), name)]
        for name in ("log", "evaluate", "save", "complete", "check")
    }
    assert steps == {
        "log": [3, 6, 9, 12, 15, 18, 21, 24, 25],
        "evaluate": [4, 8, 12, 16, 20, 24, 25],
        "save": [6, 12, 18, 24, 25],
        "complete": [5, 10, 15, 20],  # the completion after the last step follows the end of the run
        "check": [CHECK_INTERVAL, 2 * CHECK_INTERVAL],
    }
    assert not due_after(1, config).anything and due_after(3, config).anything


# Completions


def test_completions_are_printed_at_their_interval_and_at_the_end(folder: Path) -> None:
    other_intervals = {"log_interval": 1000, "eval_interval": 1000, "checkpoint_interval": 1000}
    path = write_config(
        folder / "completions.py",
        folder / "tiny",
        **other_intervals,
        completion_interval=7,
        completion_author="Anna Akimova",
    )
    # After 7, 14 and 21 steps, and at the end.
    assert invoke("train.py", path).stdout.count("<author_Anna_Akimova> ") == 4


def test_prompt_that_cannot_be_encoded_is_rejected_before_the_first_step(folder: Path) -> None:
    """A zero-width joiner is no control character, and so a valid prompt for other tokenizers."""
    path = write_config(folder / "joiner.py", folder / "tiny", max_steps=4)
    prompt = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    result = invoke("train.py", path, f"--completion_prompt={prompt}")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"completion_prompt '{prompt[:2]}" in result.stderr.replace("\\u200c", "") and "alphabet" in result.stderr
    assert not (folder / "joiner").exists()


def test_tokenizer_that_cannot_be_loaded_does_not_end_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "preprocess.tokenizers", None)  # as if its libraries were not installed
    path = write_config(folder / "no_tokenizer.py", folder / "tiny", max_steps=4, completion_prompt="fox")
    result = invoke("train.py", path)
    assert result.returncode == 0 and result.stderr.startswith("warning: there will be no completions: text needs")
    assert "no completion: " in result.stdout


# Early stopping and the best checkpoint


def test_best_checkpoint_is_kept_beside_the_last(folder: Path) -> None:
    settings = RISING | {"max_steps": 40, "warmup_steps": 40, "grad_clip": None}
    config = write_config(folder / "worse.py", folder / "tiny", **settings, checkpoint_interval=4, keep_checkpoints=2)
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    val_losses = {step: loss for step, loss in read_val_losses(folder / "worse").items() if step > 0}
    best = min(val_losses, key=lambda step: val_losses[step])
    assert best < 34
    assert f"the lowest validation loss was {val_losses[best]:.4f}, after step {best}" in result.stdout
    assert list_steps(folder / "worse") == [best, 36, 40]
    last = find_newest_checkpoint(folder / "worse", pytest.fail)
    assert last is not None and last.info.best_step == best
    assert open_checkpoint(list_checkpoints(folder / "worse")[0]).info.step == best


def test_patience_stops_a_run_and_higher_patience_continues_it(folder: Path) -> None:
    config = write_config(folder / "patient.py", folder / "tiny", **RISING, checkpoint_interval=50)
    result = invoke("train.py", config, "--patience=3")
    stopped = max(row["step"] for row in read_metric_rows(folder / "patient"))
    assert result.returncode == 0 and stopped < 60
    assert f"stopped early (3 evaluations without an improvement beyond noise) after step {stopped};" in result.stdout
    assert list_checkpoints(folder / "patient")[-1].name == f"step-{stopped:08d}"
    again = invoke("train.py", config, "--patience=3")
    assert again.returncode == 0 and "stopped early" in again.stdout and again.stdout.count("\n") == 1
    further = invoke("train.py", config, "--patience=6")
    assert further.returncode == 0 and f"continuing after step {stopped}" in further.stdout
    assert max(row["step"] for row in read_metric_rows(folder / "patient")) > stopped


def test_new_run_from_one_that_stopped_early_has_its_own_best(folder: Path, tmp_path: Path) -> None:
    """The best loss of the old run, on other data, does not count in the new run."""
    path = write_config(folder / "impatient.py", folder / "tiny", **RISING, patience=2)
    assert "stopped early" in invoke("train.py", path).stdout
    other = make_build(tmp_path / "other", train_repeats=30, val_repeats=6)
    fork = [path, f"--data={other}", f"--out_dir={tmp_path / 'fork'}", f"--resume={folder / 'impatient'}"]
    done = invoke("train.py", *fork, "--patience=none")
    assert done.returncode == 0 and "finished after step 60" in done.stdout, done.stderr
    newest = find_newest_checkpoint(tmp_path / "fork", pytest.fail)
    assert newest is not None and newest.info.best_step is not None
    assert invoke("sample.py", tmp_path / "fork", "--best", "--tokens", 2).returncode == 0


def test_run_without_evaluation_has_no_best_checkpoint(folder: Path) -> None:
    path = write_config(
        folder / "unknown.py", folder / "tiny", max_steps=100_000, eval_interval=100_000, checkpoint_interval=5
    )
    with subprocess.Popen(
        make_command("train.py", path), stdout=subprocess.PIPE, text=True, env=make_environment()
    ) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 6/"):
            assert process.poll() is None
        process.kill()
    done = invoke("sample.py", folder / "unknown", "--best")
    assert done.returncode == 2
    assert "has no best checkpoint: no evaluation was saved; leave --best out to use the newest" in done.stderr


# A folder that is deleted, and a full disk


@pytest.mark.parametrize("deleted", ["", "settings.json"])
def test_deleted_files_are_reported_and_what_is_saved_is_complete(folder: Path, deleted: str) -> None:
    run = folder / f"deleted_{deleted[:8]}"
    config = write_config(run.with_suffix(".py"), folder / "tiny", max_steps=100_000, checkpoint_interval=400)
    away = folder / "away"  # moving a folder is one step: while it is deleted, the run may write another file to it
    status, stderr = run_until(config, "step 5/", lambda _: (run / deleted).unlink() if deleted else run.rename(away))
    assert status == 1 and stderr.count("\n") == (1 if deleted else 2)
    assert ("metrics.jsonl was deleted or replaced while the run wrote to it" in stderr) == (not deleted)
    assert re.search(
        r"was deleted or moved while .* step \d+ is saved there now, with the settings and the rows", stderr
    )
    steps = [row["step"] for row in read_metric_rows(run) if "train_loss" in row]
    assert steps == list(range(1, list_steps(run)[-1] + 1))
    assert invoke("sample.py", run, "--tokens", 2).returncode == 0
    status, _ = run_until(config, "continuing after step ", lambda process: process.send_signal(signal.SIGTERM))
    assert status == 128 + signal.SIGTERM


def fill(disk: Path, *, left_bytes: int) -> None:
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - left_bytes))


def test_checkpoint_on_a_full_disk_is_one_line_and_the_run_continues_later(
    folder: Path, long_run: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", size_mb=4) as disk:
        config = write_config(disk / "run.py", folder / "tiny", **LONG | {"keep_checkpoints": 2})
        # A checkpoint has 0.35 MB.
        status, stderr = run_until(config, "step 25/", lambda _: fill(disk, left_bytes=100_000))
        message = r"error: cannot save the checkpoint of step \d+ .*; free some, .* which is complete\n"
        assert status == 1 and re.fullmatch(message, stderr)
        assert all(re.fullmatch(r"step-\d{8}", p.name) for p in (disk / "run" / "checkpoints").iterdir())
        (disk / "filler").unlink()
        assert invoke("train.py", config).returncode == 0
        assert read_losses(disk / "run") == read_losses(long_run)


def test_metrics_on_a_full_disk_are_one_line(folder: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mb=4) as disk:
        settings = {"checkpoint_interval": 10_000, "eval_interval": 10_000, "max_steps": 100_000}
        config = write_config(disk / "run.py", folder / "tiny", **settings)
        status, stderr = run_until(config, "step 5/", lambda _: fill(disk, left_bytes=0))
        assert (status, stderr.count("\n")) == (1, 1)
        assert "no space left" in stderr.lower()
