"""Tiny builds and runs for the tests of `train/`."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocess.shards.files import readable_json, sha256_bytes
from preprocess.shards.format import DOC_DTYPE, MANIFEST, STATS, seal
from tests.conftest import write_split
from train.core.cli import run_command

REPO = Path(__file__).parents[2]
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz"
OF_THE_CLOCK = ("tokens_per_s", "mfu", "evaluation_share")
EOT_ID = len(ALPHABET)
AUTHOR_ID = EOT_ID + 1
VOCAB_SIZE = EOT_ID + 3
SPECIAL_TOKENS = {"<|endoftext|>": EOT_ID, "<author_Anna_Akimova>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
SENTENCE = "the quick brown fox jumps over the lazy dog\n"
# On cores that are busy with something else, threads that wait for each other take ten times longer over such small tensors.
torch.set_num_threads(1)
# A model that takes a step in milliseconds; dropout on, so that a generator that is not restored shows.
TINY = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "batch_size": 4, "gradient_accumulation_steps": 2, "dropout": 0.1,
    "max_steps": 24, "warmup_steps": 4, "learning_rate": 1e-2, "min_lr": 1e-3, "log_interval": 1, "eval_interval": 6,
    "checkpoint_interval": 6, "completion_tokens": 8, "device": "cpu",
}  # fmt: skip


def ids_of(text: str) -> np.ndarray:
    return np.array([ALPHABET.index(c) for c in text], np.uint16)


def make_build(
    folder: Path, *, train_repeats: int = 40, val_repeats: int = 6, vocab_size: int = VOCAB_SIZE, **fields: Any
) -> Path:
    """A whole build of one learnable sentence, repeated; each document begins with its author's id and ends with eot."""
    folder.mkdir(parents=True)
    document = np.concatenate([[AUTHOR_ID], ids_of(SENTENCE), [EOT_ID]]).astype(np.uint16)
    splits = {}
    for split, repeats in (("train", train_repeats), ("val", val_repeats)):
        ids, ends = np.tile(document, repeats), np.arange(1, repeats + 1) * len(document)
        text_bytes = len(SENTENCE) * repeats
        splits[split] = write_split(
            folder, split, ids, ends, np.zeros(repeats, DOC_DTYPE), vocab_size=vocab_size, text_bytes=text_bytes
        )
    (folder / STATS).write_bytes(b"{}\n")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "alphabet.txt").write_text(ALPHABET, encoding="utf-8")
    manifest = {
        "format": "folio-shards", "version": 1, "name": folder.name, "dtype": "<u2", "vocab_size": vocab_size,
        "bos_id": None, "eot_id": EOT_ID, "pad_id": None, "unk_id": None, "special_tokens": SPECIAL_TOKENS,
        "tokenizer": {"kind": "char", "files": {"alphabet.txt": sha256_bytes(ALPHABET.encode())}, "settings": {}},
        "splits": splits, "recipe": {"bos": False, "eot": "append", "tokenizer": "char"}, "sources": [], "languages": {"0": "und"},
        "stats_sha256": sha256_bytes(b"{}\n"), "made_with": {},
    }  # fmt: skip
    (folder / MANIFEST).write_bytes(readable_json(seal(manifest | fields)))
    return folder


def write_config(path: Path, build: Path, **settings: Any) -> Path:
    """A config file of a tiny run on `build`; its out_dir is `<stem>` beside it."""
    values = {"data": str(build), "out_dir": str(path.with_suffix(""))} | TINY | settings
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()), encoding="utf-8")
    return path


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(REPO / "train" / script), *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def run_script(script: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, env=environment(), cwd=cwd, timeout=120
    )


def invoke(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """As run_script, but in this process: torch takes seconds to import."""
    module = importlib.import_module(f"train.{script.removesuffix('.py')}")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run_command(module.main, list(map(str, arguments)))
    return subprocess.CompletedProcess([script, *map(str, arguments)], status, out.getvalue(), err.getvalue())


@contextmanager
def small_disk(folder: Path, size_mb: int = 1) -> Iterator[Path]:
    """A disk of its own, mounted at `folder`; the test is skipped where that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def rows(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]


def rejects(out_dir: Path) -> list[dict[str, Any]]:
    """The rows without the values that are of the clock."""
    return [{key: value for key, value in row.items() if key not in OF_THE_CLOCK} for row in rows(out_dir)]
