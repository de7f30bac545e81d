"""Tiny builds and runs for the tests of `train/`."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocess import console
from preprocess.shards.files import readable_json, sha256_bytes
from preprocess.shards.format import DOC_DTYPE, MANIFEST, STATS, seal
from tests.conftest import write_split
from train.config import Config
from train.core.cli import run_command
from train.run.checkpoint import list_checkpoints
from train.run.checkpoint_info import INFO_FILE, seal_info

REPO = Path(__file__).parents[2]
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz"
EOT_ID = len(ALPHABET)
AUTHOR_ID = EOT_ID + 1
VOCAB_SIZE = EOT_ID + 3
SPECIAL_TOKENS = {"<|endoftext|>": EOT_ID, "<author_Anna_Akimova>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
SENTENCE = "the quick brown fox jumps over the lazy dog\n"
# Keys of metrics.jsonl that differ between equal runs.
TIMING_KEYS = ("tokens_per_s", "mfu", "evaluation_share", "peak_memory_bytes")
# On cores that are busy with other work, threads that wait for each other take ten times longer
# over such small tensors.
torch.set_num_threads(1)
# A model whose step takes milliseconds. Dropout is on, so that a test notices random numbers that
# are not restored.
TINY = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "dropout": 0.1,
    "batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 24, "warmup_steps": 4,
    "learning_rate": 1e-2, "min_lr": 1e-3, "log_interval": 1, "eval_interval": 6,
    "checkpoint_interval": 6, "completion_tokens": 8, "device": "cpu", "precision": "fp32",
}  # fmt: skip
# Changes TINY to a run of a second, with many checkpoints. The fixture `long_run` is one.
LONG: dict[str, Any] = {"max_steps": 150, "checkpoint_interval": 20, "eval_interval": 30, "keep_checkpoints": 20}


def encode(text: str) -> np.ndarray:
    """Return the ids of `text` in the builds of `make_build`."""
    return np.array([ALPHABET.index(c) for c in text], np.uint16)


def make_build(
    folder: Path,
    *,
    train_repeats: int = 40,
    val_repeats: int = 6,
    vocab_size: int = VOCAB_SIZE,
    learnt: slice | None = None,
    **fields: Any,
) -> Path:
    """Write a complete build of one sentence, repeated.

    Each document begins with its author's id and ends with eot.

    `learnt`: the tokens of each document that are in the loss mask; None: the build has no masks.
    `fields` replace fields of the manifest.
    """
    folder.mkdir(parents=True)
    document = np.concatenate([[AUTHOR_ID], encode(SENTENCE), [EOT_ID]]).astype(np.uint16)
    splits = {}
    for split, repeats in (("train", train_repeats), ("val", val_repeats)):
        ids, ends = np.tile(document, repeats), np.arange(1, repeats + 1) * len(document)
        mask = None
        if learnt is not None:
            mask = np.zeros((repeats, len(document)), bool)
            mask[:, learnt] = True
        splits[split] = write_split(
            folder,
            split,
            ids,
            ends,
            np.zeros(repeats, DOC_DTYPE),
            vocab_size=vocab_size,
            text_bytes=len(SENTENCE) * repeats,
            mask=None if mask is None else mask.ravel(),
        )
    (folder / STATS).write_bytes(b"{}\n")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "alphabet.txt").write_text(ALPHABET, encoding="utf-8")
    manifest = {
        "format": "folio-shards", "version": 1, "name": folder.name, "dtype": "<u2", "vocab_size": vocab_size,
        "bos_id": None, "eot_id": EOT_ID, "pad_id": None, "unk_id": None, "special_tokens": SPECIAL_TOKENS,
        "tokenizer": {"kind": "char", "files": {"alphabet.txt": sha256_bytes(ALPHABET.encode())}, "settings": {}},
        "splits": splits, "recipe": {"bos": False, "eot": "append", "tokenizer": "char"},
        "sources": [], "languages": {"0": "und"}, "stats_sha256": sha256_bytes(b"{}\n"), "made_with": {},
    }  # fmt: skip
    (folder / MANIFEST).write_bytes(readable_json(seal(manifest | fields)))
    return folder


def make_config(**settings: Any) -> Config:
    """Return the Config of a tiny run."""
    return Config(**({"data": "x", "out_dir": "y"} | TINY | settings))


def write_config(path: Path, build: Path, **settings: Any) -> Path:
    """Write the config file of a tiny run on `build`; its out_dir is `<stem>` beside it."""
    values = {"data": str(build), "out_dir": str(path.with_suffix(""))} | TINY | settings
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()), encoding="utf-8")
    return path


def make_command(script: str, *arguments: object) -> list[str]:
    """Return the command line that starts a script of `train/`."""
    return [sys.executable, str(REPO / "train" / script), *map(str, arguments)]


def make_environment() -> dict[str, str]:
    """Return the environment variables for `make_command`."""
    return os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def run_script(script: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script of `train/` in a new process."""
    return subprocess.run(
        make_command(script, *arguments), capture_output=True, text=True, env=make_environment(), cwd=cwd, timeout=120
    )


def invoke(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of `train/` in this process, without the seconds that the import of torch takes.

    It prints no lines that depend on the clock.
    """
    module = importlib.import_module(f"train.{script.removesuffix('.py')}")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "FIRST_LINE_S", math.inf)
        status = run_command(module.main, list(map(str, arguments)))
    return subprocess.CompletedProcess([script, *map(str, arguments)], status, out.getvalue(), err.getvalue())


def train_run(folder: Path, name: str, *arguments: object, **settings: Any) -> Path:
    """Train a tiny run on the build `folder`/tiny and return its directory, `folder`/`name`."""
    result = invoke("train.py", write_config(folder / f"{name}.py", folder / "tiny", **settings), *arguments)
    assert result.returncode == 0, result.stderr
    return folder / name


def run_until(config: Path, prefix: str, action: Callable[[subprocess.Popen[str]], object]) -> tuple[int, str]:
    """Start train.py in a process, and call `action` at the first line with `prefix`.

    Return exit status and stderr.
    """
    process = subprocess.Popen(
        make_command("train.py", config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=make_environment(),
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith(prefix):
            action(process)
            break
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, stderr


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in `folder` by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint folder."""
    return int(checkpoint.name.removeprefix("step-"))


def list_steps(out_dir: Path) -> list[int]:
    """Return the steps of a run's checkpoints."""
    return [step_of(checkpoint) for checkpoint in list_checkpoints(out_dir)]


def edit_checkpoint(checkpoint: Path, **fields: Any) -> None:
    """Change keys of a checkpoint.json, such that its checksum is valid."""
    path = checkpoint / INFO_FILE
    path.write_bytes(readable_json(seal_info(json.loads(path.read_bytes()) | fields)))


def delete_checkpoints_after(out_dir: Path, step: int) -> None:
    """Leave a run as if it had been killed after the checkpoint of `step`."""
    for checkpoint in list_checkpoints(out_dir):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)


@contextmanager
def small_disk(folder: Path, size_mb: int = 1) -> Iterator[Path]:
    """Mount a file system of `size_mb` at `folder`.

    The test is skipped if that is not permitted.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def read_metric_rows(out_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]


def read_losses(out_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl without the values that depend on the clock."""
    return [{key: value for key, value in row.items() if key not in TIMING_KEYS} for row in read_metric_rows(out_dir)]


def read_train_losses(out_dir: Path) -> list[float]:
    """Return the training loss of each logged step."""
    return [row["train_loss"] for row in read_metric_rows(out_dir) if "train_loss" in row]


def read_val_losses(out_dir: Path) -> dict[int, float]:
    """Return the validation loss of each evaluation by its step."""
    return {row["step"]: row["val_loss"] for row in read_metric_rows(out_dir) if "val_loss" in row}
