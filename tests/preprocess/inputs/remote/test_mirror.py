"""The folder PREPROCESS_MIRROR is asked before the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from preprocess.inputs.remote.fetch import FetchedFile

Fetch = Callable[..., list[FetchedFile]]
COMMIT = "0123456789" * 4
PATHS = (
    "https/example.org/data/a.txt",
    "https/example.org/data/b c.jsonl",
    "s3/bucket/x/a.parquet",
    "s3/bucket/x/README.md",
    "hf/datasets/some/stories/data/train-0.parquet",
    f"hf/datasets/some/stories@{COMMIT}/data/train-0.parquet",
    "hf/datasets/some/stories@refs%2Fpr%2F1/data/train-0.parquet",
)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    (tmp_path / "outside.txt").write_text("outside")
    monkeypatch.setenv("PREPROCESS_MIRROR", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    return folder


@pytest.mark.parametrize(
    ("url", "paths"),
    [
        ("https://example.org/data/a.txt", PATHS[:1]),
        ("https://user:secret@example.org/data/b%20c.jsonl", PATHS[1:2]),
        ("s3://bucket/x", PATHS[2:3]),
        ("s3://bucket/*/*.parquet", PATHS[2:3]),
        ("hf://datasets/some/stories", PATHS[4:5]),
        ("hf://datasets/some/stories/data/train", PATHS[4:5]),
        (f"hf://datasets/some/stories@{COMMIT}/**/*.parquet", PATHS[5:6]),
        ("hf://datasets/some/stories@refs/pr/1", PATHS[6:7]),
    ],
)
def test_fetch_reads_the_mirror(mirror: Path, fetch: Fetch, url: str, paths: tuple[str, ...]) -> None:
    files = fetch(url)
    assert [Path(file.path).read_text() for file in files] == list(paths)
    assert all(file.origin is None for file in files)
    assert "@" not in files[0].name  # the names are those of the network


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/data/a.txt?version=2",
        "https://example.org/../../outside.txt",
        "https://example.org/%2e%2e/%2e%2e/%2e%2e/outside.txt",
        "hf://datasets/some/stories@main",
        "hf://datasets/some/other",
    ],
)
def test_fetch_asks_the_network_for_what_the_mirror_has_not(mirror: Path, fetch: Fetch, url: str) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(FolioError, match="(no connection|HF_HUB_OFFLINE is set)"):
        fetch(url)
