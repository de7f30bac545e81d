"""train.py: what a run computes, prints and writes, and its errors."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from preprocess import __version__
from preprocess.shards.files import readable_json
from preprocess.shards.format import MANIFEST, seal
from tests.helpers.runs import (
    LONG,
    TINY,
    invoke,
    make_build,
    make_command,
    make_environment,
    read_losses,
    read_metric_rows,
    read_train_losses,
    read_val_losses,
    run_script,
    train_run,
    write_config,
)
from tests.helpers.terminal import COLOURS, render, run_on_terminal
from train.config import load_config
from train.data.batches import TrainingData
from train.data.builds import open_builds
from train.model import make_model

# What a run computes


def test_loss_falls_and_all_files_are_written(long_run: Path) -> None:
    train_losses, val_losses = read_train_losses(long_run), read_val_losses(long_run)
    assert len(train_losses) == 150
    assert train_losses[0] > 3 and train_losses[-1] < 0.5
    assert [*val_losses] == [0, 30, 60, 90, 120, 150]
    assert val_losses[150] < 0.4
    rows = read_metric_rows(long_run)
    assert set(rows[0]) == {
        "step",
        "val_loss",
        "val_loss_stderr",
        "perplexity",
        "bits_per_byte",
        "evaluation_share",
    }
    speed = {"tokens_per_s", "mfu", "peak_memory_bytes"}
    assert set(rows[1]) == {"step", "train_loss", "learning_rate", "grad_norm", "skipped_updates"} | speed
    assert rows[1]["peak_memory_bytes"] > 50e6  # of the process
    assert json.loads((long_run / "settings.json").read_text())["max_steps"] == 150
    files = {".lock", "build", "checkpoints", "completions.jsonl", "metrics.jsonl", "settings.json"}
    assert {p.name for p in long_run.iterdir()} == files
    # Every 20 steps, after the last, and after steps 30 and 90 because they were the best so far.
    assert len(list((long_run / "checkpoints").iterdir())) == 10


def test_optimizer_steps_agree_with_a_plain_loop(folder: Path) -> None:
    """Accumulation, clipping, warmup, betas and decay have values that change the losses."""
    settings = {
        "max_steps": 5,
        "warmup_steps": 2,
        "learning_rate": 0.02,
        "grad_clip": 0.3,
        "beta1": 0.8,
        "beta2": 0.9,
        "weight_decay": 0.5,
    }
    path = write_config(folder / "five.py", folder / "tiny", dropout=0.0, **settings)
    assert invoke("train.py", path).returncode == 0
    config, builds = load_config(path, {}), open_builds(str(folder / "tiny"))
    torch.manual_seed(config.seed)
    model = make_model(config, builds.vocab_size)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.9))
    data = TrainingData(builds, config, device=torch.device("cpu"))
    rates = [0.02 / 3, 0.04 / 3, *(0.001 + 0.5 * 0.019 * (1 + math.cos(math.pi * k / 2)) for k in range(3))]
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = sum(model(*data.batch(4 * (2 * step + micro), 4))[0] for micro in range(2)) / 2
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        row = next(r for r in read_metric_rows(folder / "five") if r["step"] == step + 1 and "train_loss" in r)
        assert row["learning_rate"] == pytest.approx(rate)
        assert (row["train_loss"], row["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-4)


def test_intervals_of_logging_and_evaluation_change_no_training_loss(folder: Path, long_run: Path) -> None:
    settings = {**LONG, "completion_interval": 15, "eval_tokens": 64}
    run = train_run(folder, "intervals", "--eval_interval=7", "--log_interval=5", **settings)
    rows = [row for row in read_losses(run) if "train_loss" in row]
    assert rows == [row for row in read_losses(long_run) if "train_loss" in row and row["step"] % 5 == 0]


def test_accumulation_equals_a_larger_batch(folder: Path) -> None:
    one = train_run(folder, "one", dropout=0.0, batch_size=8, gradient_accumulation_steps=1)
    four = train_run(folder, "four", dropout=0.0, batch_size=2, gradient_accumulation_steps=4)
    assert read_train_losses(one) == pytest.approx(read_train_losses(four), rel=1e-4)
    assert read_val_losses(one) == pytest.approx(read_val_losses(four), rel=1e-4)


def test_bf16_on_a_cpu_learns(folder: Path) -> None:
    config = write_config(folder / "bf16.py", folder / "tiny", precision="bf16")
    assert "in bf16" in invoke("train.py", config).stdout
    assert read_metric_rows(folder / "bf16")[-1]["val_loss"] < 2


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_model_has_the_same_losses_up_to_rounding(folder: Path) -> None:
    config = write_config(folder / "plain.py", folder / "tiny", dropout=0.0, max_steps=8, n_layer=1)
    assert invoke("train.py", config).returncode == 0
    result = invoke("train.py", config, "--compile=true", f"--out_dir={folder / 'compiled'}")
    assert result.returncode == 0, result.stderr
    # A bench reads the time of compilation from this line.
    assert re.search(r"^preflight: compiled in [1-9]\d*\.\d s$", result.stdout, re.MULTILINE)
    assert read_train_losses(folder / "compiled") == pytest.approx(read_train_losses(folder / "plain"), rel=1e-4)
    assert read_val_losses(folder / "compiled") == pytest.approx(read_val_losses(folder / "plain"), rel=1e-4)


def test_each_setting_changes_the_losses_except_gradient_checkpointing(folder: Path) -> None:
    short = {"max_steps": 3, "warmup_steps": 0, "dropout": 0.0, "eval_interval": 100, "checkpoint_interval": 100}
    plain = read_train_losses(train_run(folder, "short", **short))
    changes = {
        "data_order": "epochs",
        "optimizer": "muon",
        "arch": "modern",
        "mask_documents": True,
        "precision": "bf16",
    }
    for key, value in changes.items():
        assert read_train_losses(train_run(folder, key, **short, **{key: value})) != plain, key
    recomputed = train_run(folder, "recomputed", **short, gradient_checkpointing=True)
    assert read_train_losses(recomputed) == pytest.approx(plain, rel=1e-6)


# What it prints


def test_console_shows_settings_model_progress_and_a_completion(folder: Path) -> None:
    result = run_script(
        "train.py",
        write_config(folder / "prints.py", folder / "tiny", log_interval=10, completion_author="Anna Akimova"),
    )
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert f"n_embd                       {TINY['n_embd']}" in lines
    assert not any(line.startswith("weight_decay ") for line in lines), "it has its default"
    device = "on cpu in fp32, MFU n/a: the peak rate of the device is not known"
    assert f"26,976 parameters, 128 tokens per step, {device}" in lines
    assert "\r" not in result.stdout and "\x1b" not in result.stdout
    (step,) = [line for line in lines if line.startswith("step 10/24  loss ")]
    assert "  lr 8.5e-3  " in step and step.endswith(" left") and " tokens/s  " in step
    (evaluation,) = [line for line in lines if line.startswith("step 24/24  val loss ")]
    assert "  perplexity " in evaluation and "  bits per byte " in evaluation
    assert any(line.startswith("<author_Anna_Akimova> ") for line in lines)


def test_terminal_shows_progress_in_one_line(folder: Path) -> None:
    config = write_config(folder / "terminal.py", folder / "tiny", max_steps=400, eval_interval=200)
    status, output = run_on_terminal(make_command("train.py", config), columns=60, env=make_environment())
    assert status == 0 and output.startswith("\rimporting PyTorch")
    assert re.search(r"\rstep \d+/400 .*loss \d\.\d{4}, \ds left, [\d,]+ tokens/s", output)
    assert max(len(drawn) for drawn in re.findall(r"\r([^\r\n]*)\x1b\[K", COLOURS.sub("", output))) < 60
    for activity in ("preflight: measuring memory", "preflight: trying a pass of 4 windows", "saving a checkpoint"):
        assert f"\r{activity}" in output
    lines = render(output)
    (position,) = [i for i, line in enumerate(lines) if line.startswith("step 200/400  val loss ")]
    assert lines[position + 1].startswith("step 400/400  val loss ")  # nothing is left of the live line


def test_start_is_announced_if_stdout_is_not_a_terminal(folder: Path) -> None:
    config = write_config(folder / "lines.py", folder / "tiny", log_interval=10)
    lines = run_script("train.py", config).stdout.splitlines()
    assert lines[0] == "importing PyTorch"
    steps = [line.split()[1] for line in lines if line.startswith("step ") and " val loss " not in line]
    assert steps == ["1/24", "10/24", "20/24", "24/24"]
    assert run_script("train.py", config, "--quiet", "--restart").stdout == ""


def test_log_interval_in_seconds_logs_after_every_tenth_step_at_most(folder: Path) -> None:
    settings = {"max_steps": 45, "eval_interval": 1000, "checkpoint_interval": 1000}
    for interval, expected in (("0s", [10, 20, 30, 40, 45]), ("1000s", [45])):
        config = write_config(folder / f"seconds_{interval}.py", folder / "tiny", log_interval=interval, **settings)
        assert invoke("train.py", config).returncode == 0
        rows = read_metric_rows(config.with_suffix(""))
        assert [row["step"] for row in rows if "train_loss" in row] == expected
    result = invoke("train.py", config, "--log_interval=10m")
    assert result.returncode == 2 and "seconds such as 10s, got '10m'" in result.stderr


def test_quiet_prints_nothing_but_warnings(folder: Path) -> None:
    settings = {"completion_author": "Anna Akimova", "completion_interval": 9}
    config = write_config(folder / "quiet.py", folder / "tiny", **settings)
    result = invoke("train.py", config, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(read_train_losses(folder / "quiet")) == 24
    finished = invoke("train.py", config, "--quiet")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    newest = folder / "quiet" / "checkpoints" / "step-00000024"
    os.truncate(newest / "model.safetensors", 100)
    resumed = invoke("train.py", config, "--quiet")
    assert (resumed.returncode, resumed.stdout, resumed.stderr.count("\n")) == (0, "", 1)
    assert resumed.stderr.startswith("warning: ") and "skipped, trying the previous one" in resumed.stderr
    failed = invoke("train.py", config, "--quiet", "--learning_rate=0.02")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)


def test_run_continues_if_stdout_and_stderr_are_closed(folder: Path) -> None:
    path = write_config(folder / "closed.py", folder / "tiny")
    line = " ".join(f"'{word}'" for word in make_command("train.py", path)) + " >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], env=make_environment(), timeout=120).returncode == 0
    assert len(list((folder / "closed" / "checkpoints").iterdir())) > 0


def test_help_lists_the_settings() -> None:
    result = run_script("train.py", "--help")
    assert result.returncode == 0 and "gradient_accumulation_steps" in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 100
    assert run_script("train.py").stdout == result.stdout


def test_version_is_printed() -> None:
    result = invoke("train.py", "--version")
    assert (result.returncode, result.stdout) == (0, f"folio, version {__version__}\n")


def test_help_does_not_import_torch() -> None:
    line = [sys.executable, "-X", "importtime", *make_command("train.py", "--help")[1:]]
    done = subprocess.run(line, capture_output=True, text=True, env=make_environment(), timeout=60)
    assert done.returncode == 0 and "torch" not in done.stderr


def test_help_on_a_full_device_is_one_line() -> None:
    line = " ".join(f"'{word}'" for word in make_command("train.py", "--help"))
    done = subprocess.run(
        ["bash", "-c", f"{line} > /dev/full"], capture_output=True, text=True, env=make_environment(), timeout=60
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1


# Errors: one line, the right exit status, and no run directory


def truncate_shard(folder: Path) -> None:
    os.truncate(folder / "tiny" / "val-00000.bin", 100)


def write_version_99(folder: Path) -> None:
    path = folder / "tiny" / MANIFEST
    path.write_bytes(readable_json(seal(json.loads(path.read_text()) | {"version": 99})))


def replace_config_by_folder(folder: Path) -> None:
    (folder / "run.py").unlink()
    (folder / "run.py").mkdir()


def change_nothing(folder: Path) -> None:
    pass


# Arguments, a change of the folder, the exit status, and a part of the message.
ERRORS: dict[str, tuple[list[str], Callable[[Path], object], int, str]] = {
    "misspelled setting": (["--learning_rte=1"], change_nothing, 2, "did you mean 'learning_rate'?"),
    "block longer than val": (
        ["--block_size=300"],
        change_nothing,
        2,
        "block_size 300 needs 301 consecutive tokens, but the longest val shard has 276",
    ),
    "truncated shard": ([], truncate_shard, 1, "val-00000.bin has 100 bytes, its manifest says 552"),
    "version 99": ([], write_version_99, 1, "has version 99, this Folio reads version 1"),
    "missing build": (["--data=nowhere"], change_nothing, 2, "no build 'nowhere'"),
    "out_dir is a file": (
        [],
        lambda f: (f / "run").write_text(""),
        2,
        "run must be a folder, but a file is in the way",
    ),
    "out_dir under a file": (["--out_dir=run.py/x"], change_nothing, 2, "must be a folder, but a file is in the way"),
    "missing config": ([], lambda f: (f / "run.py").unlink(), 2, "the config file run.py does not exist"),
    "config is a folder": ([], replace_config_by_folder, 2, "the config file run.py is not a regular file"),
    "config is not UTF-8": ([], lambda f: (f / "run.py").write_bytes(b"data = '\xff'"), 2, "is not UTF-8"),
    "unknown author": (["--completion_author=Ana Akimova"], change_nothing, 2, "did you mean 'Anna_Akimova'?"),
    "missing device": (["--device=cuda:99"], change_nothing, 2, "is not available"),
    "precision of another device": (
        ["--precision=tf32"],
        change_nothing,
        2,
        "device cpu does not support precision tf32, only fp32, bf16, fp16; set --precision=auto",
    ),
    "terminal escapes": (["--data=\x1b[31mred"], change_nothing, 2, r"\x1b[31mred"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_at_the_start_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, change, status, message = ERRORS[name]
    monkeypatch.chdir(tmp_path)
    make_build(tmp_path / "tiny")
    write_config(tmp_path / "run.py", tmp_path / "tiny")
    change(tmp_path)
    result = invoke("train.py", "run.py", *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert not (tmp_path / "run").is_dir()


def test_error_of_the_script_itself_is_one_line(tmp_path: Path) -> None:
    result = run_script("train.py", "nowhere.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "importing PyTorch\n")
    message = "name a file of assignments such as max_steps = 100, as in configs/small.py"
    assert result.stderr == f"error: the config file nowhere.py does not exist; {message}\n"


def test_invalid_token_in_a_shard_is_reported(folder: Path, tmp_path: Path) -> None:
    build = make_build(tmp_path / "flipped")
    shard = build / "val-00000.bin"
    data = bytearray(shard.read_bytes())
    data[1] = 0xFF
    shard.write_bytes(data)
    done = invoke("train.py", write_config(tmp_path / "run.py", build))
    assert done.returncode == 1 and "its vocabulary ends at" in done.stderr and "preprocess verify" in done.stderr


def test_missing_config_and_missing_build_are_reported_with_what_helps(folder: Path) -> None:
    config = write_config(folder / "nearest.py", folder / "tiny")
    missing = invoke("train.py", folder / "neares.py")
    assert missing.returncode == 2 and f"does not exist; did you mean {config}? name a file" in missing.stderr
    result = invoke("train.py", config, f"--data={folder / 'gone'}")
    assert result.returncode == 2 and f", and the first lines of {config} may name the command" in result.stderr
