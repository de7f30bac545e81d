"""train.py as its user meets it: a loss that falls, runs that are interrupted and continued, and every refusal."""

from __future__ import annotations

import json
import math
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from preprocess.errors import FolioError
from preprocess.shards.files import readable_json
from preprocess.shards.format import MANIFEST, seal
from tests.helpers.runs import (
    TINY,
    VOCAB_SIZE,
    command,
    environment,
    invoke,
    losses,
    make_build,
    rows,
    run_script,
    small_disk,
    write_config,
)
from train.run.checkpoint import find_newest_checkpoint
from train.run.metrics import Metrics, format_duration, format_rate, read_rows

LONG = {"max_steps": 150, "checkpoint_interval": 20, "eval_interval": 30, "keep_checkpoints": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_build(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of 150 steps, dropout on, two micro-batches a step, never interrupted."""
    result = invoke("train.py", write_config(folder / "whole.py", folder / "tiny", **LONG))
    assert (result.returncode, result.stderr) == (0, "")
    return folder / "whole"


def text_of(out_dir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out_dir)): p.read_bytes() for p in sorted(out_dir.rglob("*")) if p.is_file()}


# A run, start to end


def test_the_loss_falls_and_everything_is_written(whole: Path) -> None:
    train = [row["train_loss"] for row in rows(whole) if "train_loss" in row]
    evaluations = [row for row in rows(whole) if "val_loss" in row]
    assert len(train) == 150
    assert train[0] > 3 and train[-1] < 0.5
    assert [row["step"] for row in evaluations] == [0, 30, 60, 90, 120, 150]
    assert evaluations[-1]["val_loss"] < 0.4
    assert set(evaluations[0]) == {
        "step",
        "val_loss",
        "val_loss_stderr",
        "perplexity",
        "bits_per_byte",
        "evaluation_share",
    }
    speed = {"tokens_per_s", "mfu", "peak_memory_bytes"}
    assert set(rows(whole)[1]) == {"step", "train_loss", "learning_rate", "grad_norm", "skipped_updates"} | speed
    assert json.loads((whole / "settings.json").read_text())["max_steps"] == 150
    assert {p.name for p in whole.iterdir()} == {".lock", "build", "checkpoints", "metrics.jsonl", "settings.json"}
    assert (
        len(list((whole / "checkpoints").iterdir())) == 10
    )  # every 20 steps, the last, and after 30 and 90 the best so far


def test_what_it_prints(folder: Path) -> None:
    result = run_script(
        "train.py",
        write_config(folder / "prints.py", folder / "tiny", log_interval=10, completion_author="Anna Akimova"),
    )
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert f"n_embd                       {TINY['n_embd']}" in lines
    assert "26,976 parameters, 128 tokens a step, on cpu in fp32, MFU n/a: its peak is not known" in lines
    assert "\r" not in result.stdout and "\x1b" not in result.stdout
    (step,) = [line for line in lines if line.startswith("step 10/24  loss ")]
    assert "  lr 8.5e-3  " in step and step.endswith(" left") and " tokens/s  " in step
    (evaluation,) = [line for line in lines if line.startswith("step 24/24  val loss ")]
    assert "  perplexity " in evaluation and "  bits per byte " in evaluation
    assert any(line.startswith("<author_Anna_Akimova> ") for line in lines)


def test_on_a_terminal_one_line_is_rewritten(folder: Path) -> None:
    config = write_config(folder / "terminal.py", folder / "tiny")
    master, slave = pty.openpty()
    with subprocess.Popen(command("train.py", config), stdout=slave, stderr=slave, env=environment()) as process:
        os.close(slave)
        output = b"".join(_read_until_closed(master))
    assert process.returncode == 0
    text = output.decode()
    assert text.count("\r\x1b[Kstep 7/24  loss ") == 1
    assert "left\r\n" not in text
    assert "\r\x1b[Kstep 24/24  val loss " in text


def _read_until_closed(fd: int) -> Iterator[bytes]:
    try:
        while data := os.read(fd, 1 << 16):
            yield data
    except OSError:  # Linux tells the end of a terminal so
        pass
    finally:
        os.close(fd)


def test_how_often_it_looks_changes_no_training_loss(folder: Path, whole: Path) -> None:
    config = write_config(folder / "looks.py", folder / "tiny", **LONG, completion_interval=15, eval_tokens=64)
    assert invoke("train.py", config, "--eval_interval=7", "--log_interval=5").returncode == 0
    ours = [row for row in losses(folder / "looks") if "train_loss" in row]
    assert ours == [row for row in losses(whole) if "train_loss" in row and row["step"] % 5 == 0]


def test_accumulation_is_a_larger_batch(folder: Path) -> None:
    for name, settings in (
        ("one", {"batch_size": 8, "gradient_accumulation_steps": 1}),
        ("four", {"batch_size": 2, "gradient_accumulation_steps": 4}),
    ):
        config = write_config(folder / f"{name}.py", folder / "tiny", dropout=0.0, **settings)
        assert invoke("train.py", config).returncode == 0
    one, four = ([r.get("train_loss") or r["val_loss"] for r in rows(folder / name)] for name in ("one", "four"))
    assert one == pytest.approx(four, rel=1e-4)


def test_bf16_on_cpu_learns_too(folder: Path) -> None:
    config = write_config(folder / "bf16.py", folder / "tiny", precision="bf16")
    assert "in bf16" in invoke("train.py", config).stdout
    assert rows(folder / "bf16")[-1]["val_loss"] < 2


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_is_the_same_to_rounding(folder: Path) -> None:
    config = write_config(folder / "plain.py", folder / "tiny", dropout=0.0, max_steps=8, n_layer=1)
    assert invoke("train.py", config).returncode == 0
    result = invoke("train.py", config, "--compile=true", f"--out_dir={folder / 'compiled'}")
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"^preflight: compiled in [1-9]\d*\.\d s$", result.stdout, re.MULTILINE
    )  # which is what a bench takes for its time
    plain, compiled = (
        [row.get("train_loss") or row["val_loss"] for row in rows(folder / name)] for name in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)


# Interrupted and continued


def run_until(config: Path, beginning: str, stop: Callable[[subprocess.Popen[str]], object]) -> tuple[int, str]:
    """Start a run, call `stop` when a line with this beginning appears; returns the status and stderr."""
    process = subprocess.Popen(
        command("train.py", config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith(beginning):
            stop(process)
            break
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_interrupted_is_as_never_interrupted(folder: Path, whole: Path, signum: signal.Signals) -> None:
    name = signum.name.lower()
    config = write_config(folder / f"{name}.py", folder / "tiny", **LONG)
    status, err = run_until(config, "step 47/150", lambda process: process.send_signal(signum))
    if signum == signal.SIGKILL:
        assert status == -signum
    else:
        assert status == 128 + signum
        assert "finishing step " in err and "saving; once more to abort" in err
    assert max(row["step"] for row in rows(folder / name)) < 150
    result = invoke("train.py", config)
    assert result.returncode == 0
    assert "continuing after step " in result.stdout
    assert losses(folder / name) == losses(whole)
    last = "checkpoints/step-00000150/model.safetensors"
    assert text_of(folder / name)[last] == text_of(whole)[last]


@pytest.mark.parametrize("step", [20, 100, 140])
def test_any_checkpoint_leads_to_the_same_losses(folder: Path, whole: Path, step: int) -> None:
    copy = folder / f"from_{step}"
    shutil.copytree(whole, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name[-8:]) > step:
            shutil.rmtree(checkpoint)
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"step": 151, "train_l')  # torn, as a crash leaves it
    assert invoke("train.py", folder / "whole.py", f"--out_dir={copy}").returncode == 0
    assert losses(copy) == losses(whole)


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    config = write_config(
        folder / "twice.py", folder / "tiny", max_steps=100_000, n_embd=256, block_size=128, batch_size=64
    )

    def stop(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGINT)
        assert process.stderr and select.select([process.stderr], [], [], 30)[0]
        process.send_signal(signal.SIGTERM)

    began = time.monotonic()
    assert run_until(config, "step 0/", stop)[0] == 128 + signal.SIGTERM
    assert time.monotonic() - began < 60
    assert not (folder / "twice" / "checkpoints").exists()


def test_a_signal_during_the_first_evaluation_is_heeded(folder: Path) -> None:
    config = write_config(folder / "early.py", folder / "tiny", max_steps=100_000)
    status, _ = run_until(config, "26,976 parameters", lambda process: process.send_signal(signal.SIGTERM))
    assert status == 128 + signal.SIGTERM
    assert [p.name for p in (folder / "early" / "checkpoints").iterdir()] == [
        f"step-{rows(folder / 'early')[-1]['step']:08d}"
    ]


def test_killed_before_the_first_checkpoint_it_begins_again(folder: Path) -> None:
    config = write_config(folder / "young.py", folder / "tiny", max_steps=100_000, checkpoint_interval=100_000)
    status, _ = run_until(config, "step 5/", lambda process: process.kill())
    assert status == -signal.SIGKILL and rows(folder / "young") and not (folder / "young" / "checkpoints").exists()
    assert run_until(config, "step 5/", lambda process: process.send_signal(signal.SIGTERM))[0] == 128 + signal.SIGTERM
    steps = [row["step"] for row in rows(folder / "young") if "train_loss" in row]
    assert steps == list(range(1, len(steps) + 1))


def test_the_damaged_newest_checkpoint_is_passed_over(folder: Path, whole: Path) -> None:
    copy = folder / "damaged"
    shutil.copytree(whole, copy)
    os.truncate(copy / "checkpoints" / "step-00000150" / "model.safetensors", 100)
    result = invoke("train.py", folder / "whole.py", f"--out_dir={copy}")
    assert result.returncode == 0
    assert result.stderr.startswith("warning: ") and "passed over" in result.stderr
    assert "continuing after step 140" in result.stdout
    assert losses(copy) == losses(whole)


# What is already there


def test_a_finished_run_is_left_alone(folder: Path, whole: Path) -> None:
    before = text_of(whole)
    result = invoke("train.py", folder / "whole.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1 and "is finished: all 150 steps are done" in result.stdout
    assert text_of(whole) == before


def test_changed_settings_are_named(folder: Path, whole: Path) -> None:
    before = text_of(whole)
    result = invoke("train.py", folder / "whole.py", "--learning_rate=0.02", "--max_steps=151", "--keep_checkpoints=1")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "max_steps 150 → 151, learning_rate 0.01 → 0.02" in result.stderr
    assert "keep_checkpoints" not in result.stderr
    assert "--restart" in result.stderr and "--out_dir" in result.stderr
    assert text_of(whole) == before


def test_changed_data_is_named(folder: Path, whole: Path) -> None:
    make_build(folder / "other", train_repeats=41)
    result = invoke("train.py", folder / "whole.py", f"--data={folder / 'other'}")
    assert result.returncode == 2
    assert f"data {folder / 'tiny'} " in result.stderr and f" → {folder / 'other'} " in result.stderr
    shutil.copytree(folder / "tiny", folder / "moved")
    assert (
        invoke("train.py", folder / "whole.py", f"--data={folder / 'moved'}").returncode == 0
    )  # the same build elsewhere


def test_restart_forgets_the_run_and_nothing_else(folder: Path) -> None:
    config, out_dir = write_config(folder / "again.py", folder / "tiny"), folder / "again"
    assert invoke("train.py", config).returncode == 0
    (out_dir / "notes.txt").write_text("mine")
    before = text_of(out_dir)
    assert invoke("train.py", config, "--restart", "--block_size=4000").returncode == 2
    assert invoke("train.py", config, "--restart", "--completion_author=Nobody").returncode == 2
    assert text_of(out_dir) == before  # what is refused deletes nothing
    assert invoke("train.py", config, "--restart", "--max_steps=7").returncode == 0
    assert [p.name for p in sorted((out_dir / "checkpoints").iterdir())] == ["step-00000006", "step-00000007"]
    assert max(row["step"] for row in rows(out_dir)) == 7
    assert (out_dir / "notes.txt").read_text() == "mine"


def test_resume_never_wants_an_empty_folder(folder: Path, whole: Path) -> None:
    result = invoke("train.py", folder / "whole.py", "--resume=never")
    assert result.returncode == 2 and "already holds a run" in result.stderr
    assert (
        invoke(
            "train.py", folder / "whole.py", "--resume=never", f"--out_dir={folder / 'fresh'}", "--max_steps=6"
        ).returncode
        == 0
    )


def test_resume_from_another_run(folder: Path, whole: Path) -> None:
    branch = folder / "branch"
    start = whole / "checkpoints" / "step-00000140"
    arguments = [folder / "whole.py", f"--resume={start}", f"--out_dir={branch}"]
    assert invoke("train.py", *arguments).returncode == 0
    assert losses(branch) == [row for row in losses(whole) if row["step"] > 140]
    assert [p.name for p in sorted((branch / "checkpoints").iterdir())] == ["step-00000140", "step-00000150"]
    again = invoke("train.py", *arguments)
    assert again.returncode == 2 and "already holds a run" in again.stderr
    past = invoke("train.py", folder / "whole.py", f"--resume={whole}", f"--out_dir={folder / 'past'}")
    assert past.returncode == 2 and "has done 150 steps; raise --max_steps" in past.stderr
    inside = invoke("train.py", folder / "whole.py", f"--resume={start}", "--restart")
    assert inside.returncode == 2 and "lies in out_dir" in inside.stderr
    assert start.exists()
    none = invoke("train.py", folder / "whole.py", f"--resume={folder / 'nowhere'}", f"--out_dir={folder / 'past'}")
    assert none.returncode == 2 and "neither a checkpoint nor a run" in none.stderr


def test_one_run_a_folder_at_a_time(folder: Path) -> None:
    config = write_config(folder / "locked.py", folder / "tiny")
    (folder / "locked").mkdir()
    with FileLock(folder / "locked" / ".lock"):
        result = invoke("train.py", config)
    assert result.returncode == 1 and "another process is training in" in result.stderr


# Refusals: one line, the right status, nothing that looks finished


def truncate_shard(build: Path) -> None:
    os.truncate(build / "val-00000.bin", 100)


def write_version_99(build: Path) -> None:
    manifest = json.loads((build / MANIFEST).read_text())
    (build / MANIFEST).write_bytes(readable_json(seal(manifest | {"version": 99})))


def put_a_file(path: Path) -> None:
    path.write_text("in the way")


REFUSALS: dict[str, tuple[list[str], Callable[[Path], object], int, str]] = {
    "misspelt setting": (["--learning_rte=1"], lambda t: None, 2, "did you mean 'learning_rate'?"),
    "block longer than val": (
        ["--block_size=300"],
        lambda t: None,
        2,
        "block_size 300 needs 301 tokens in a row, the longest val shard has 276",
    ),
    "truncated shard": (
        [],
        lambda t: truncate_shard(t / "tiny"),
        1,
        "val-00000.bin has 100 bytes, its manifest says 552",
    ),
    "version 99": ([], lambda t: write_version_99(t / "tiny"), 1, "has version 99, this Folio reads version 1"),
    "missing build": (["--data=nowhere"], lambda t: None, 2, "no build 'nowhere'"),
    "out_dir is a file": ([], lambda t: put_a_file(t / "run"), 2, "cannot be a folder"),
    "out_dir under a file": (["--out_dir=run.py/x"], lambda t: None, 2, "cannot be a folder"),
    "config not there": ([], lambda t: (t / "run.py").unlink(), 2, "is not there"),
    "config is a folder": ([], lambda t: ((t / "run.py").unlink(), (t / "run.py").mkdir()), 2, "is a folder"),
    "config is not UTF-8": ([], lambda t: (t / "run.py").write_bytes(b"data = '\xff'"), 2, "is not UTF-8"),
    "author unknown": (["--completion_author=Ana Akimova"], lambda t: None, 2, "did you mean 'Anna_Akimova'?"),
    "no such device": (["--device=cuda:99"], lambda t: None, 2, "is not there"),
    "precision of another device": (
        ["--precision=tf32"],
        lambda t: None,
        2,
        "precision tf32 does not go with device cpu",
    ),
    "terminal escapes": (["--data=\x1b[31mred"], lambda t: None, 2, r"\x1b[31mred"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, spoil, status, complaint = REFUSALS[name]
    monkeypatch.chdir(tmp_path)
    make_build(tmp_path / "tiny")
    write_config(tmp_path / "run.py", tmp_path / "tiny")
    spoil(tmp_path)
    result = invoke("train.py", "run.py", *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert result.stderr.startswith("error: ") and complaint in result.stderr
    assert not (tmp_path / "run").is_dir()


def test_refused_by_the_script_itself_too(tmp_path: Path) -> None:
    result = run_script("train.py", "nowhere.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr
        == "error: the config file nowhere.py is not there; wanted a Python file of assignments such as configs/small.py\n"
    )


def test_a_vocabulary_larger_than_the_model(folder: Path, whole: Path) -> None:
    make_build(folder / "larger", vocab_size=VOCAB_SIZE + 5)
    for arguments in ([], [f"--resume={whole}", f"--out_dir={folder / 'grown'}", "--max_steps=200"]):
        result = invoke("train.py", folder / "whole.py", f"--data={folder / 'larger'}", *arguments)
        assert result.returncode == 2
        assert "the vocabulary of larger, 36 ids, is larger than the model's 31" in result.stderr


def test_divergence_stops_with_its_step(folder: Path) -> None:
    config = write_config(
        folder / "diverges.py", folder / "tiny", learning_rate=1e18, min_lr=1e17, warmup_steps=0, grad_clip=None
    )
    result = invoke("train.py", config)
    assert result.returncode == 1
    assert " at step " in result.stderr and "lower learning_rate (now 1e+18)" in result.stderr
    assert not (folder / "diverges" / "checkpoints").exists()


def test_help_lists_the_settings() -> None:
    result = run_script("train.py", "--help")
    assert result.returncode == 0 and "gradient_accumulation_steps" in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 100


def test_help_is_there_before_torch_is() -> None:
    line = [sys.executable, "-X", "importtime", *command("train.py", "--help")[1:]]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 0 and "torch" not in done.stderr


def test_help_to_nobody_is_no_traceback() -> None:
    line = " ".join(f"'{word}'" for word in command("train.py", "--help"))
    done = subprocess.run(
        ["bash", "-c", f"{line} > /dev/full"], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_a_run_that_nohup_shields_goes_on(folder: Path) -> None:
    config = write_config(folder / "nohup.py", folder / "tiny", max_steps=60)
    line = ["bash", "-c", "trap '' HUP; exec " + " ".join(f"'{word}'" for word in command("train.py", config))]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 5/"):
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        assert "finished after step 60" in process.stdout.read()


def test_a_folder_that_is_deleted_meanwhile_is_told_and_what_is_left_is_whole(folder: Path) -> None:
    config = write_config(folder / "deleted.py", folder / "tiny", max_steps=100_000, checkpoint_interval=400)
    status, err = run_until(config, "step 5/", lambda _: shutil.rmtree(folder / "deleted"))
    assert status == 1 and err.count("\n") == 1
    assert re.search(r"was deleted or moved while this run wrote into it; step \d+ is saved there now", err)
    assert invoke("sample.py", folder / "deleted", "--tokens", 2).returncode == 0
    status, _ = run_until(config, "continuing after step ", lambda process: process.send_signal(signal.SIGTERM))
    assert status == 128 + signal.SIGTERM


def test_ctrl_c_while_the_last_sample_is_drawn_ends_it(folder: Path) -> None:
    make_build(folder / "endless", eot_id=None)  # whose texts nothing ends
    config = write_config(folder / "talks.py", folder / "endless", completion_tokens=1_000_000)
    status, err = run_until(
        config, "evaluations took", lambda process: (time.sleep(0.5), process.send_signal(signal.SIGINT))
    )
    assert (status, err) == (128 + signal.SIGINT, "")


def test_a_start_that_fails_leaves_no_folder(folder: Path) -> None:
    config = write_config(folder / "failed.py", folder / "tiny")
    for arguments in (["--resume=nowhere"], ["--init_from=nowhere"], ["--keep_checkpoints=100000000000"]):
        assert invoke("train.py", config, *arguments).returncode in (1, 2)
        assert not (folder / "failed").exists()


def fill(disk: Path, *, left_bytes: int) -> None:
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - left_bytes))


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(folder: Path, whole: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mb=4) as disk:
        config = write_config(disk / "run.py", folder / "tiny", **LONG | {"keep_checkpoints": 2})
        status, err = run_until(
            config, "step 25/", lambda _: fill(disk, left_bytes=100_000)
        )  # a checkpoint has 0.35 MB
        assert status == 1 and re.fullmatch(
            r"error: cannot save the checkpoint of step \d+ .*; free some, .* which is whole\n", err
        )
        assert all(re.fullmatch(r"step-\d{8}", p.name) for p in (disk / "run" / "checkpoints").iterdir())
        (disk / "filler").unlink()
        assert invoke("train.py", config).returncode == 0
        assert losses(disk / "run") == losses(whole)


def test_metrics_on_a_full_disk(folder: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mb=4) as disk:
        seldom = {"checkpoint_interval": 10_000, "eval_interval": 10_000, "max_steps": 100_000}
        config = write_config(disk / "run.py", folder / "tiny", **seldom)
        status, err = run_until(config, "step 5/", lambda _: fill(disk, left_bytes=0))
        assert (status, err.count("\n")) == (1, 1)
        assert "no space left" in err.lower()


def test_a_disk_that_cannot_hold_the_checkpoints_is_told_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        result = invoke("train.py", folder / "whole.py", f"--out_dir={disk / 'run'}")
        assert (result.returncode, result.stderr.count("\n")) == (1, 1) and "preflight" not in result.stdout
        assert (
            "will need 7.4 MB more, 1.0 MB are free there; free some, lower keep_checkpoints (now 20)" in result.stderr
        )
        assert not (disk / "run" / "metrics.jsonl").exists()


# Rows and words


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_bytes(b'{"step": 1}\n\0\0\0\n')  # zeros, as a machine that lost power leaves them
    assert read_rows(path) == [{"step": 1}]
    for row in (
        b'{"step": 1, "val_loss": "3.5"}',
        b'{"step": -1}',
        b'{"step": 1, "val_loss": [1]}',
        b'{"step": ' + b"9" * 300 + b"}",
    ):
        path.write_bytes(row + b'\n{"step": 2}\n')
        with pytest.raises(FolioError, match="line 1 is no row of metrics"):
            read_rows(path)
    path.write_bytes(b'{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(FolioError, match="line 2 is no row of metrics"):
        read_rows(path)


def test_a_number_that_json_cannot_hold_is_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, last_step=-1)
    metrics.write(3, perplexity=math.inf, val_loss=1.5)
    metrics.close()
    assert rows(tmp_path) == [{"step": 3, "perplexity": None, "val_loss": 1.5}]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0s"), (59.6, "1m 00s"), (80, "1m 20s"), (7500, "2h 05m"), (400_000, "111h 06m")]
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


@pytest.mark.parametrize(("rate", "words"), [(1e-3, "1.0e-3"), (6e-12, "6.0e-12"), (2.0, "2.0e0")])
def test_rates(rate: float, words: str) -> None:
    assert format_rate(rate) == words


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_fifty_times_in_the_middle_of_saving(folder: Path) -> None:
    """kill -9 while it saves after every step: nothing but whole checkpoints is ever found, and no more than one step is lost."""
    # 20 MB a checkpoint: saving takes nearly all of the time, so that nearly every kill falls into it.
    settings: dict[str, Any] = {
        "n_embd": 256,
        "max_steps": 600,
        "eval_interval": 600,
        "checkpoint_interval": 1,
        "gradient_accumulation_steps": 1,
    }
    config, out_dir = write_config(folder / "battered.py", folder / "tiny", **settings), folder / "battered"
    moments, half_done = random.Random(0), 0
    for _ in range(50):
        status, _ = run_until(config, "step ", lambda process: (time.sleep(moments.uniform(0.0, 0.15)), process.kill()))
        assert status == -signal.SIGKILL
        half_done += any((out_dir / "checkpoints").glob(".step-*"))
        found = find_newest_checkpoint(out_dir, pytest.fail)
        assert max(row["step"] for row in read_rows(out_dir / "metrics.jsonl")) - (found.step if found else 0) <= 1
    assert half_done > 25, "most were in the middle of a save"
    assert invoke("train.py", config).returncode == 0
    assert invoke("train.py", config, f"--out_dir={folder / 'unharmed'}", "--checkpoint_interval=600").returncode == 0
    assert losses(out_dir) == losses(folder / "unharmed")
    last = "checkpoints/step-00000600/model.safetensors"
    assert (out_dir / last).read_bytes() == (folder / "unharmed" / last).read_bytes()
