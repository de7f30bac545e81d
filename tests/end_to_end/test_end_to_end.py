"""From a corpus to a falling loss, as `make demo` does, and the commands of the documentation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preprocess.shards.format import Build
from tests.conftest import ROOT
from tests.helpers.doc_commands import list_blocks

Preprocess = Callable[..., subprocess.CompletedProcess]
SETTINGS = {
    "data": "synthetic", "out_dir": "run", "device": "cpu", "n_layer": 2, "n_head": 2, "n_embd": 48,
    "block_size": 32, "batch_size": 16, "max_steps": 120, "warmup_steps": 10, "learning_rate": 3e-3,
    "eval_interval": 60, "eval_tokens": 2048, "log_interval": 20, "checkpoint_interval": 60, "completion_tokens": 30,
}  # fmt: skip
OPTIONS = [f"--{key}={value}" for key, value in SETTINGS.items()]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_script(tmp_path: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "train" / script), *arguments]
    return subprocess.run(line, cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=200)


def test_corpus_to_falling_loss_to_completion_to_plot(preprocess: Preprocess, tmp_path: Path) -> None:
    built = preprocess("build", "--corpus", "synthetic", "--num-pairs", "2000", "--num-pieces", "600", "--quiet")
    assert built.returncode == 0, built.stderr
    trained = run_script(tmp_path, "train.py", str(ROOT / "configs/demo.py"), *OPTIONS)
    assert trained.returncode == 0, trained.stderr
    metrics = tmp_path / "run/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    val = [row for row in rows if "val_loss" in row]
    assert [row["step"] for row in val] == [0, 60, 120]
    assert val[-1]["val_loss"] < val[0]["val_loss"] - 2 and val[-1]["perplexity"] < val[0]["perplexity"] / 7
    train_losses = [row["train_loss"] for row in rows if "train_loss" in row]
    assert train_losses[-1] < train_losses[0] - 0.8  # the first is that of step 20
    assert "perplexity" in trained.stdout and "<author_MagistrTheOne>" in trained.stdout
    again = run_script(tmp_path, "train.py", str(ROOT / "configs/demo.py"), *OPTIONS)
    assert again.returncode == 0 and rows == [json.loads(line) for line in metrics.read_text().splitlines()]
    options = ["--author", "MagistrTheOne", "--tokens", "10", "--device", "cpu"]
    sampled = run_script(tmp_path, "sample.py", "run", *options)
    assert sampled.returncode == 0 and "<author_MagistrTheOne>" in sampled.stdout, sampled.stderr
    plotted = run_script(tmp_path, "plot.py", "run")
    assert plotted.returncode == 0, plotted.stderr
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")


def test_exported_nanogpt_files_decode_to_the_documents(preprocess: Preprocess, tmp_path: Path) -> None:
    """The ids below 256 are bytes; the others are control tokens."""
    preprocess("build", "--corpus", "synthetic", "--num-pairs", "50", "--tokenizer", "byte", "--no-authors", "--quiet")
    assert preprocess("export", "synthetic", "--format", "nanogpt", "--output", "out").returncode == 0
    ids = np.fromfile(tmp_path / "out/val.bin", np.uint16)
    shown = "".join(preprocess("show", "synthetic", "--split", "val", "--document", str(n)).stdout for n in range(10))
    assert bytes(ids[ids < 256].tolist()).decode() == shown


def test_readme_example_of_an_own_corpus_runs_as_written(mirror: Path, tmp_path: Path, preprocess: Preprocess) -> None:
    shutil.copytree(mirror / "inaugural", tmp_path / "inaugural")
    block = next(block for block in list_blocks(ROOT / "README.md") if "--name speeches" in block.script)
    results = []
    for command, *arguments in block.list_commands():
        assert command == "preprocess"
        result = preprocess(*arguments)
        assert result.returncode == 0, result.stderr
        results.append(result)
    shown = results[1]
    place, *control_tokens = shown.stderr.splitlines()
    assert place == "document 0 of train: position 0 of 1789-Washington.txt"
    assert control_tokens == ["<author_Washington> <year_1789>", "<|endoftext|>"]
    assert shown.stdout == (mirror / "inaugural/1789-Washington.txt").read_text()
    build = Build(tmp_path / "shards/speeches")
    token_of_id = {i: token for token, i in build.manifest.special_tokens.items()}
    for split in ("train", "val"):
        for number, entry in enumerate(build.docs(split)):
            name = build.manifest.sources[int(entry["source"])]["name"]
            year, author = name.removesuffix(".txt").split("-")
            control_tokens = [token_of_id[int(i)] for i in build.document(split, number)[:2]]
            assert control_tokens == [f"<author_{author}>", f"<year_{year}>"]


@pytest.mark.slow
def test_walk_through_of_the_documentation_runs_as_written(tmp_path: Path, preprocess: Preprocess) -> None:
    """Run every command of the walk-through in docs/training.md, including the Ctrl-C."""
    blocks = list_blocks(ROOT / "docs/training.md")
    lines = [command for block in blocks if "runs/walk" in block.script for command in block.list_commands()]
    assert len(lines) == 6 and lines[1] == lines[2]
    assert preprocess(*lines[0][1:]).returncode == 0
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = os.environ | ENVIRONMENT
    commands = [[sys.executable, str(ROOT / arguments[1]), *arguments[2:]] for arguments in lines[1:]]
    with subprocess.Popen(
        commands[0], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 60/600"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "finishing step " in err and "run the same command again to continue" in out
    results = [
        subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        for line in commands[1:]
    ]
    assert [result.returncode for result in results] == [0] * 4
    assert not [result.stderr for result in results if "warning" in result.stderr or "error" in result.stderr]
    assert "continuing after step " in results[0].stdout and "the lowest validation loss was " in results[0].stdout
    checkpoints = list((tmp_path / "runs/walk/checkpoints").iterdir())
    assert len(checkpoints) in (3, 4)
    rows = (tmp_path / "runs/walk/evaluations.jsonl").read_text().splitlines()
    assert len(rows) == len(checkpoints) and all(len(json.loads(row)["completions"]) == 2 for row in rows)
    assert results[2].stdout.count("--- completion ") == 2
    assert (tmp_path / "runs/walk/curves.svg").read_bytes().startswith(b"<?xml")
    assert list((tmp_path / "runs/walk/tensorboard").iterdir())
