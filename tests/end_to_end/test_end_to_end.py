"""From a corpus to a falling loss: what `make demo` does, on less of everything."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.shards.format import Build
from tests.conftest import ROOT

SETTINGS = {
    "data": "synthetic", "out_dir": "run", "device": "cpu", "n_layer": 2, "n_head": 2, "n_embd": 48, "block_size": 32, "batch_size": 16,
    "max_steps": 120, "warmup_steps": 10, "learning_rate": 3e-3, "eval_interval": 60, "eval_tokens": 2048, "log_interval": 20,
    "checkpoint_interval": 60, "completion_tokens": 30,
}  # fmt: skip
SMALL = [f"--{key}={value}" for key, value in SETTINGS.items()]


def script(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train" / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)


def test_corpus_to_falling_loss_to_sample_to_plot(
    preprocess: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    built = preprocess("build", "--corpus", "synthetic", "--num-pairs", "2000", "--num-pieces", "600", "--quiet")
    assert built.returncode == 0, built.stderr
    trained = script(tmp_path, "train.py", str(ROOT / "configs/demo.py"), *SMALL)
    assert trained.returncode == 0, trained.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    val = [row for row in rows if "val_loss" in row]
    assert [row["step"] for row in val] == [0, 60, 120]
    assert val[-1]["val_loss"] < val[0]["val_loss"] - 2 and val[-1]["perplexity"] < val[0]["perplexity"] / 7
    train = [row["train_loss"] for row in rows if "train_loss" in row]
    assert train[-1] < train[0] - 0.8  # from step 20 on
    assert "perplexity" in trained.stdout and "<author_MagistrTheOne>" in trained.stdout
    again = script(tmp_path, "train.py", str(ROOT / "configs/demo.py"), *SMALL)
    assert again.returncode == 0 and rows == [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    sampled = script(tmp_path, "sample.py", "run", "--author", "MagistrTheOne", "--tokens", "10", "--device", "cpu")
    assert sampled.returncode == 0 and "<author_MagistrTheOne>" in sampled.stdout, sampled.stderr
    plotted = script(tmp_path, "plot.py", "run")
    assert plotted.returncode == 0, plotted.stderr
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")


def test_nanogpts_own_files_and_ours_hold_one_text(
    preprocess: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    """What is exported, decoded by hand, is the corpus: every document, its control tokens aside."""
    preprocess("build", "--corpus", "synthetic", "--num-pairs", "50", "--tokenizer", "byte", "--no-authors", "--quiet")
    assert preprocess("export", "synthetic", "--format", "nanogpt", "--output", "out").returncode == 0
    import numpy as np

    ids = np.fromfile(tmp_path / "out/val.bin", np.uint16)
    shown = "".join(preprocess("show", "synthetic", "--split", "val", "--document", str(n)).stdout for n in range(10))
    assert bytes(ids[ids < 256].tolist()).decode() == shown


def test_the_readmes_example_word_for_word(
    mirror: Path, tmp_path: Path, preprocess: Callable[..., subprocess.CompletedProcess]
) -> None:
    """The commands of README's section on bringing your own text, on the speeches it speaks of."""
    shutil.copytree(mirror / "inaugural", tmp_path / "inaugural")
    block = next(
        part for part in (ROOT / "README.md").read_text(encoding="utf-8").split("```") if "--name speeches" in part
    )
    printed = []
    for line in block.strip().splitlines():
        command, *arguments = shlex.split(line)
        assert command == "preprocess"
        done = preprocess(*arguments)
        assert done.returncode == 0, done.stderr
        printed.append(done)
    shown = printed[1]
    assert shown.stderr.splitlines() == ["<author_Washington> <year_1789>", "<|endoftext|>"]
    assert shown.stdout == (mirror / "inaugural/1789-Washington.txt").read_text()
    made = Build(tmp_path / "shards/speeches")
    spelled = {i: text for text, i in made.manifest["special_tokens"].items()}
    for split in ("train", "val"):
        for number, entry in enumerate(made.docs(split)):
            year, author = made.manifest["sources"][int(entry["source"])]["name"].removesuffix(".txt").split("-")
            assert [spelled[int(i)] for i in made.document(split, number)[:2]] == [
                f"<author_{author}>",
                f"<year_{year}>",
            ]


@pytest.mark.slow
def test_the_walk_through_word_for_word(tmp_path: Path, preprocess: Callable[..., subprocess.CompletedProcess]) -> None:
    """Every command of docs/training.md's walk-through, as it stands there, Ctrl-C included."""
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    lines = [
        line
        for part in text[text.index("## A walk-through") :].split("```")[1::2]
        for line in part.strip().splitlines()
    ]
    assert len(lines) == 6 and lines[1] == lines[2]
    assert preprocess(*shlex.split(lines[0])[1:]).returncode == 0
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, str(ROOT / arguments[1]), *arguments[2:]] for arguments in map(shlex.split, lines[1:])]
    with subprocess.Popen(
        commands[0], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 60/600"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "finishing step " in err and "go on with --resume=auto" in out
    results = [
        subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        for line in commands[1:]
    ]
    assert [(done.returncode, done.stderr) for done in results] == [(0, "")] * 4
    assert "continuing after step " in results[0].stdout and "the lowest validation loss was " in results[0].stdout
    kept = list((tmp_path / "runs/walk/checkpoints").iterdir())
    assert len(kept) in (3, 4)
    rows = (tmp_path / "runs/walk/evaluations.jsonl").read_text().splitlines()
    assert len(rows) == len(kept) and all(len(json.loads(row)["completions"]) == 2 for row in rows)
    assert results[2].stdout.count("--- sample ") == 2
    assert (tmp_path / "runs/walk/curves.svg").read_bytes().startswith(b"<?xml") and list(
        (tmp_path / "runs/walk/tensorboard").iterdir()
    )
