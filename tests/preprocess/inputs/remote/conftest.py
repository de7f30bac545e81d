"""A server, an empty cache, and no waiting between attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preprocess.inputs.remote.fetch import FetchedFile, fetch_inputs
from preprocess.progress import Progress
from tests.helpers.buckets import bucket, gs, memory, s3  # noqa: F401 (fixtures)
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer

QUIET = Progress(quiet=True)


@pytest.fixture(autouse=True)
def remote_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of remote files in an empty cache."""
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("PREPROCESS_MIRROR", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("preprocess.inputs.remote.transfer.BACKOFF_S", 0.001)
    return tmp_path / "cache/remote"


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Start a stand-in for the hub, and let huggingface_hub use it and an empty cache."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'folio-lm[hub]'")
    hub = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    # The library reads the variable when it is imported, perhaps by a test that had set it.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield hub
    hub.close()


@pytest.fixture
def fetch() -> Callable[..., list[FetchedFile]]:
    """Return a function that fetches URLs."""

    def run(*urls: str, recipe_format: str = "auto") -> list[FetchedFile]:
        return fetch_inputs(list(urls), recipe_format, QUIET)

    return run
