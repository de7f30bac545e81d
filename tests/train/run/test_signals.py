"""Runs that are interrupted by a signal or `kill -9`, and what the same command then does."""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import (
    LONG,
    REPO,
    delete_checkpoints_after,
    invoke,
    make_build,
    make_command,
    make_environment,
    read_files,
    read_losses,
    read_metric_rows,
    run_until,
    write_config,
)
from tests.helpers.terminal import render, run_on_terminal
from train import train
from train.run.checkpoint import find_newest_checkpoint, list_checkpoints
from train.run.metrics import open_rows

LAST_MODEL = "checkpoints/step-00000150/model.safetensors"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_interrupted_run_equals_an_uninterrupted_one(folder: Path, long_run: Path, signum: signal.Signals) -> None:
    name = signum.name.lower()
    config = write_config(folder / f"{name}.py", folder / "tiny", **LONG)
    status, stderr = run_until(config, "step 47/150", lambda process: process.send_signal(signum))
    if signum == signal.SIGKILL:
        assert status == -signum
    else:
        assert status == 128 + signum
        assert "finishing step " in stderr and "saving; a second signal ends the run at once" in stderr
    assert max(row["step"] for row in read_metric_rows(folder / name)) < 150
    result = invoke("train.py", config)
    assert result.returncode == 0
    assert "continuing after step " in result.stdout
    assert read_losses(folder / name) == read_losses(long_run)
    assert read_files(folder / name)[LAST_MODEL] == read_files(long_run)[LAST_MODEL]


@pytest.mark.parametrize("step", [20, 100, 140])
def test_run_resumes_from_any_checkpoint_with_the_same_losses(folder: Path, long_run: Path, step: int) -> None:
    copy = folder / f"from_{step}"
    shutil.copytree(long_run, copy)
    delete_checkpoints_after(copy, step)
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"step": 151, "train_l')  # an incomplete row, as after a crash
    assert invoke("train.py", long_run.with_suffix(".py"), f"--out_dir={copy}").returncode == 0
    assert read_losses(copy) == read_losses(long_run)


def test_second_signal_ends_the_process_at_once(folder: Path) -> None:
    config = write_config(
        folder / "twice.py", folder / "tiny", max_steps=100_000, n_embd=256, block_size=128, batch_size=64
    )

    def send_two_signals(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGINT)
        assert process.stderr and select.select([process.stderr], [], [], 30)[0]
        process.send_signal(signal.SIGTERM)

    began = time.monotonic()
    assert run_until(config, "step 0/", send_two_signals)[0] == 128 + signal.SIGTERM
    assert time.monotonic() - began < 60
    assert not (folder / "twice" / "checkpoints").exists()


@pytest.mark.parametrize("shown", ["importing PyTorch", "step "])
def test_ctrl_c_on_a_terminal_leaves_a_clean_line(folder: Path, shown: str) -> None:
    config = write_config(folder / f"clean_{shown[:4].strip()}.py", folder / "tiny", max_steps=100_000)
    sent = []

    def interrupt(process: subprocess.Popen[bytes], output: str) -> None:
        is_training = not output.rpartition("\r")[2].startswith("step 0/")  # no step to finish before
        is_shown = re.search(rf"\r{shown}[ 0-9]+.*\x1b\[K$", output) and is_training
        if not sent and is_shown and "/100,000 val" not in output:
            sent.append(process.send_signal(signal.SIGINT))

    status, output = run_on_terminal(make_command("train.py", config), env=make_environment(), watch=interrupt)
    lines = render(output)
    assert status == 130 and lines.pop() == ""
    if shown == "step ":
        last = lines.pop()
        assert last.startswith("stopped after step ") and "run the same command again to continue" in last
        assert any(line.startswith("finishing step ") for line in lines)
        assert not [line for line in lines if "|" in line]  # no bar is left


def test_signal_during_the_first_evaluation_stops_after_a_step(folder: Path) -> None:
    config = write_config(folder / "early.py", folder / "tiny", max_steps=100_000)
    status, _ = run_until(config, "26,976 parameters", lambda process: process.send_signal(signal.SIGTERM))
    assert status == 128 + signal.SIGTERM
    assert [p.name for p in (folder / "early" / "checkpoints").iterdir()] == [
        f"step-{read_metric_rows(folder / 'early')[-1]['step']:08d}"
    ]


def test_run_killed_before_its_first_checkpoint_starts_again(folder: Path) -> None:
    config = write_config(folder / "young.py", folder / "tiny", max_steps=100_000, checkpoint_interval=100_000)
    status, _ = run_until(config, "step 5/", lambda process: process.kill())
    assert status == -signal.SIGKILL
    assert read_metric_rows(folder / "young") and not (folder / "young" / "checkpoints").exists()
    assert run_until(config, "step 5/", lambda process: process.send_signal(signal.SIGTERM))[0] == 128 + signal.SIGTERM
    steps = [row["step"] for row in read_metric_rows(folder / "young") if "train_loss" in row]
    assert steps == list(range(1, len(steps) + 1))


def test_damaged_newest_checkpoint_is_skipped(folder: Path, long_run: Path) -> None:
    copy = folder / "damaged"
    shutil.copytree(long_run, copy)
    os.truncate(copy / LAST_MODEL, 100)
    result = invoke("train.py", long_run.with_suffix(".py"), f"--out_dir={copy}")
    assert result.returncode == 0
    assert result.stderr.startswith("warning: ") and "skipped, trying the previous one" in result.stderr
    assert "continuing after step 140" in result.stdout
    assert read_losses(copy) == read_losses(long_run)


def test_ignored_sighup_does_not_stop_the_run(folder: Path) -> None:
    """nohup starts a process that ignores SIGHUP."""
    config = write_config(folder / "nohup.py", folder / "tiny", max_steps=60)
    line = ["bash", "-c", "trap '' HUP; exec " + " ".join(f"'{word}'" for word in make_command("train.py", config))]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=make_environment()) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 5/"):
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        assert "finished after step 60" in process.stdout.read()


@pytest.mark.parametrize("streams", ["stdout", "both"])
def test_checkpoint_is_saved_if_the_reader_of_the_output_ends_first(folder: Path, streams: str) -> None:
    """With `train.py … 2>&1 | tee log`, the terminal sends Ctrl-C to both programs."""
    path = write_config(folder / f"tee_{streams}.py", folder / "tiny", max_steps=100_000)
    stderr = subprocess.STDOUT if streams == "both" else subprocess.DEVNULL
    with subprocess.Popen(
        make_command("train.py", path), stdout=subprocess.PIPE, stderr=stderr, text=True, env=make_environment()
    ) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 5/"):
            assert process.poll() is None
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGINT
    assert len(list_checkpoints(folder / f"tee_{streams}")) > 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_the_last_completion_ends_the_process(folder: Path, signum: signal.Signals) -> None:
    build = folder / f"endless_{signum.name}"
    make_build(build, eot_id=None)  # a completion of its text has no end
    config = write_config(folder / f"talks_{signum.name}.py", build, completion_tokens=1_000_000)
    status, stderr = run_until(
        config, "evaluations took", lambda process: (time.sleep(0.5), process.send_signal(signum))
    )
    assert (status, stderr) == (128 + signum, "")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_end_at_once_does_not_wait_for_a_call_of_c_code(signum: signal.Signals) -> None:
    program = (
        "import sys; sys.path[:0] = [sys.argv[1]]\nfrom train.run.signals import end_at_once\n"
        "with end_at_once():\n    print('ready', flush=True)\n    7 ** (1 << 28)\n"  # takes minutes
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(REPO)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(signum)
        assert (process.wait(timeout=60), process.stderr.read()) == (-signum, "")
        assert time.monotonic() - began < 2


def test_signals_end_a_run_at_once_only_until_the_first_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = (signal.SIGINT, signal.SIGTERM)
    before, handlers = [*map(signal.getsignal, signals)], {}

    def record(name: str) -> None:
        original = getattr(train, name)
        monkeypatch.setattr(
            train, name, lambda *args: (handlers.update({name: [*map(signal.getsignal, signals)]}), original(*args))[1]
        )

    record("preflight")
    record("training_loop")
    assert invoke("train.py", write_config(folder / "handlers.py", folder / "tiny", max_steps=4)).returncode == 0
    assert handlers["preflight"] == [signal.SIG_DFL, signal.SIG_DFL]
    assert all(callable(handler) for handler in handlers["training_loop"])
    assert [*map(signal.getsignal, signals)] == before


def test_signal_during_the_last_evaluation_ends_a_complete_run(folder: Path) -> None:
    """The weights are saved, and no completion is printed, which could take long."""
    config = write_config(folder / "last.py", folder / "tiny", max_steps=8, checkpoint_interval=100)
    program = (
        "import os, signal, sys; sys.path[:0] = [sys.argv[1]]\nfrom train import train\n"
        "from train.core.cli import run_command\noriginal = train.evaluate_and_log\n"
        "def evaluate_and_log(run, state, *args, **kwargs):\n"
        "    if state.step == 8: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return original(run, state, *args, **kwargs)\n"
        "train.evaluate_and_log = evaluate_and_log\nsys.exit(run_command(train.main, [sys.argv[2]]))\n"
    )
    command = [sys.executable, "-c", program, str(REPO), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, env=make_environment())
    assert done.returncode == 0 and [path.name for path in list_checkpoints(folder / "last")] == [
        "step-00000006",
        "step-00000008",
    ]
    assert done.stdout.splitlines()[-1].startswith("evaluations took")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_kills_during_saves_leave_only_complete_checkpoints(folder: Path) -> None:
    """A run saves after every step and is killed: it loses one step at most, and no loss changes."""
    # A checkpoint has 20 MB, so saving takes nearly all of the time and nearly every kill falls
    # into it.
    settings: dict[str, Any] = {
        "n_embd": 256,
        "max_steps": 600,
        "eval_interval": 600,
        "checkpoint_interval": 1,
        "gradient_accumulation_steps": 1,
    }
    config, out_dir = write_config(folder / "battered.py", folder / "tiny", **settings), folder / "battered"
    delays, num_partial = random.Random(0), 0
    for _ in range(50):
        status, stderr = run_until(
            config, "step ", lambda process: (time.sleep(delays.uniform(0.0, 0.15)), process.kill())
        )
        assert status == -signal.SIGKILL, stderr
        num_partial += any((out_dir / "checkpoints").glob(".step-*"))
        newest = find_newest_checkpoint(out_dir, pytest.fail)
        newest_step = newest.info.step if newest else 0
        assert max(row.step for row in open_rows(out_dir / "metrics.jsonl")) - newest_step <= 1
    # Most of them on an idle machine: 30 or more. On a busy one a kill comes late.
    assert num_partial > 12, "many kills were in the middle of a save"
    assert invoke("train.py", config).returncode == 0
    assert invoke("train.py", config, f"--out_dir={folder / 'unharmed'}", "--checkpoint_interval=600").returncode == 0
    assert read_losses(out_dir) == read_losses(folder / "unharmed")
    last_model = "checkpoints/step-00000600/model.safetensors"
    assert (out_dir / last_model).read_bytes() == (folder / "unharmed" / last_model).read_bytes()
