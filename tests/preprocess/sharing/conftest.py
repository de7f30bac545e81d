"""A build of several shards, folders for those that arrive, and the services of remote inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.shards.format import Build
from tests.preprocess.inputs.remote.conftest import (  # noqa: F401 (fixtures)
    bucket,
    gs,
    hub,
    memory,
    remote_cache,
    s3,
    server,
)

TEXT = "".join(f"Document {i}, of {i % 17} words:{' word' * (i % 17)}.\n" for i in range(200))


@pytest.fixture
def build(build_text: Callable[..., Build]) -> Build:
    """Return a build of several shards with a trained tokenizer, which has files."""
    build = build_text(TEXT, split="exact", document="line", tokenizer="char", shard_tokens=700, lang="en")
    assert len(build.manifest.splits["train"].shards) > 3 and build.manifest.tokenizer.files
    return build


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which received builds are."""
    folder = tmp_path / "received"
    folder.mkdir()
    monkeypatch.setenv("FOLIO_SHARDS", str(folder))
    return folder
