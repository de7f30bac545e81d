"""Fixtures and helpers of several test files: corpora, builds, and the command `preprocess`."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from preprocess.build.build import build
from preprocess.progress import Progress
from preprocess.recipes.schema import CorpusFile, Recipe
from preprocess.shards.format import Build
from preprocess.shards.writer import (
    EncodedDocuments,
    ShardPlan,
    ShardSealer,
    WriteOffset,
    create_shard,
    cut_shards,
    write_documents,
)

# The time of an example depends on what else the machine does, and so does the time in which it is drawn.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent
VERSE = (
    "O Romeo, Romeo! wherefore art thou Romeo?\nDeny thy father and refuse thy name;\n\n"
    "Or, if thou wilt not, be but sworn my love,\n\n"
)


# Variables that a user, a terminal, a CI service or torchrun may set, and that change what commands do or print.
CHANGING_VARIABLES = (
    "CI", "COLUMNS", "FOLIO_SHARDS", "FOLIO_STREAM_CACHE_GB", "FORCE_COLOR", "HF_HUB_OFFLINE", "LINES",
    "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI", "NO_COLOR", "PYTHONUNBUFFERED", "RANK", "RAY_ADDRESS",
    "TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "WANDB_DIR", "WANDB_MODE", "WANDB_NAME", "WANDB_PROJECT", "WORLD_SIZE",
)  # fmt: skip


def pytest_configure() -> None:
    """Make the tests and the processes that they start independent of the environment, and use one thread.

    A shell ignores SIGINT for background processes, and nohup ignores SIGHUP, so the default handlers
    are restored. Threads of several processes on the same cores would wait for each other.
    """
    for name in CHANGING_VARIABLES:
        os.environ.pop(name, None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Use an empty cache, so that no test depends on what the user has downloaded."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["FOLIO_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def mirror() -> Path:
    """Return the folder of real corpora, $PREPROCESS_MIRROR. Without it the test is skipped."""
    folder = os.environ.get("PREPROCESS_MIRROR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real corpora: set PREPROCESS_MIRROR to a folder laid out as <corpus>/<file name>")
    return Path(folder)


@pytest.fixture
def text_recipe(tmp_path: Path) -> Callable[..., tuple[Recipe, Path]]:
    """Return a function that writes a text to a file, and returns a recipe for it and the path."""

    def make(text: str | bytes = VERSE * 40, **settings: Any) -> tuple[Recipe, Path]:
        data = text.encode() if isinstance(text, str) else text
        path = tmp_path / "input.txt"
        path.write_bytes(data)
        file = CorpusFile(
            name="input.txt", sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), url="http://127.0.0.1:9/none"
        )
        settings = {"dedup": False, "split": "contiguous", "tokenizer": "byte", **settings}
        return Recipe(corpus="own", description="", licence="", format="text", files=(file,), **settings), path

    return make


@pytest.fixture
def build_text(text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path) -> Callable[..., Build]:
    """Return a function that makes a build of a text and opens it."""

    def make(text: str | bytes = VERSE * 40, *, name: str = "own", replace: bool = False, **settings: Any) -> Build:
        recipe, path = text_recipe(text, **settings)
        folder = tmp_path / "shards" / name
        build(recipe, folder, name=name, source=path, replace=replace, progress=Progress(quiet=True))
        return Build(folder)

    return make


@pytest.fixture
def preprocess(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the command `preprocess` in `tmp_path`, without a network."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        # Nothing listens on the proxy's port, so that only loopback can be reached.
        offline = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
        offline |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        environment = {k: v for k, v in os.environ.items() if k != "PREPROCESS_MIRROR"} | offline | (env or {})
        command = [sys.executable, "-m", "preprocess", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout)

    return run


def write_split(
    folder: Path,
    split: str,
    ids: Any,
    ends: Any,
    docs: Any,
    *,
    vocab_size: int,
    shard_tokens: int = 1 << 20,
    text_bytes: int = 0,
    mask: Any = None,
) -> dict[str, Any]:
    """Write documents to shards, and return the manifest's entry of the split.

    `ids`: (N,) of all documents. `ends`: (D,) exclusive end of each in `ids`. `docs`: (D,) of
    DOC_DTYPE. `mask`: (N,) bool, the loss mask, if the build has one.
    """
    ends = np.asarray(ends, np.int64)
    lengths = np.diff(ends, prepend=0)
    shards: list[dict[str, Any]] = []
    for first, last, _ in cut_shards(lengths, 0, shard_tokens):
        begin, end = int(ends[first] - lengths[first]), int(ends[last - 1])
        plan = ShardPlan(split, len(shards), end - begin, last - first, has_mask=mask is not None)
        create_shard(folder, plan, vocab_size=vocab_size)
        part_mask = None if mask is None else mask[begin:end]
        part = EncodedDocuments(ids[begin:end], ends[first:last] - begin, docs[first:last], part_mask)
        max_id = write_documents(folder, plan, WriteOffset(0, 0), part, vocab_size=vocab_size)
        shards.append(ShardSealer(folder, plan, vocab_size=vocab_size).finish(max_id).as_dict())
    return {"tokens": len(ids), "documents": len(ends), "text_bytes": text_bytes, "shards": shards}


def assert_one_line(message: str) -> None:
    """Assert that a message is short, and is one line on any terminal."""
    assert len(message) < 500 and not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in message), ascii(
        message
    )


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a build, except build_log.json, which may differ."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "build_log.json"
    }
