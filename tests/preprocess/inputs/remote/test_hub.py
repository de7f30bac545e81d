"""Datasets of the hub, read by huggingface_hub from a stand-in at HF_ENDPOINT."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.remote.fetch import FetchedFile
from tests.helpers.file_server import Fault
from tests.helpers.hub_server import HubServer

Fetch = Callable[..., list[FetchedFile]]
TRAIN, VALIDATION = b'{"text": "one"}\n' * 500, b'{"text": "two"}\n'
FILES = {"README.md": b"# A card", "data/train-0.jsonl": TRAIN, "data/validation-0.jsonl": VALIDATION}
ADDRESS = "hf://datasets/some/stories"


def read(files: list[FetchedFile]) -> dict[str, bytes]:
    return {file.name: Path(file.path).read_bytes() for file in files}


def test_fetch_reads_the_data_files_of_a_dataset(hub: HubServer, fetch: Fetch) -> None:
    commit = hub.commit("some/stories", FILES)
    files = fetch(ADDRESS)
    names = ["hf/datasets/some/stories/data/train-0.jsonl", "hf/datasets/some/stories/data/validation-0.jsonl"]
    assert read(files) == dict(zip(names, (TRAIN, VALIDATION), strict=True))
    assert [file.origin.version for file in files if file.origin] == [commit, commit]
    assert files[0].origin is not None and files[0].origin.url == f"{ADDRESS}/data/train-0.jsonl"
    page = "https://huggingface.co/datasets/some/stories"
    for url in ("hf://some/stories/data", f"{page}/tree/main/data", page, f"{page}/", f"{page}/tree/main?row=1"):
        assert fetch(url) == files
    for url in (f"{page}/blob/main/data/train%2D0.jsonl", f"{page}/viewer/data/train"):
        assert fetch(url) == files[:1]


def test_fetch_reads_the_named_revision(hub: HubServer, fetch: Fetch) -> None:
    old = hub.commit("some/stories", {"a.txt": b"old"})
    hub.commit("some/stories", {"a.txt": b"new"})
    hub.commit("some/stories", {"a.txt": b"converted"}, branch="refs/convert/parquet")
    found = {
        revision: read(fetch(f"{ADDRESS}{revision}/a.txt"))["hf/datasets/some/stories/a.txt"]
        for revision in ("", "@main", f"@{old}", "@refs/convert/parquet", "@refs%2Fconvert%2Fparquet")
    }
    assert list(found.values()) == [b"new", b"new", b"old", b"converted", b"converted"]


def test_fetch_reads_a_pinned_commit_without_the_network(hub: HubServer, fetch: Fetch) -> None:
    commit = hub.commit("some/stories", FILES)
    files = fetch(f"{ADDRESS}@{commit}")
    hub.requests.clear()
    assert fetch(f"{ADDRESS}@{commit}") == files and not hub.requests
    assert fetch(ADDRESS) != [] and hub.requests


def test_fetch_copies_only_files_that_a_commit_changes(hub: HubServer, fetch: Fetch) -> None:
    hub.commit("some/stories", FILES)
    first = fetch(ADDRESS)
    hub.storage.requests.clear()
    commit = hub.commit("some/stories", FILES | {"data/train-1.jsonl": TRAIN[:-16]})
    second = fetch(ADDRESS)
    assert [file.path for file in second if file.path not in {f.path for f in first}] == [second[1].path]
    assert len(hub.storage.requests) == 1 and {f.origin.version for f in second if f.origin} == {commit}


def test_fetch_reads_the_cache_without_the_hub(
    hub: HubServer, fetch: Fetch, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.commit("some/stories", FILES)
    files = fetch(ADDRESS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    assert fetch(ADDRESS) == files and not hub.requests
    warning = f"{ADDRESS}: HF_HUB_OFFLINE is set; the copies in the cache are read (version {commit})"
    assert warning in capfd.readouterr().err
    with pytest.raises(FolioError, match="HF_HUB_OFFLINE is set; unset it, because the cache has not all files"):
        fetch(f"{ADDRESS}/data/train-0.jsonl")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.close()
    assert fetch(ADDRESS) == files
    with pytest.raises(FolioError, match=r"the hub at http://127\.0\.0\.1:\d+ cannot be reached \(\w+\); go online"):
        fetch("hf://datasets/some/other")


def test_fetch_reads_the_cache_of_huggingface_hub(hub: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.commit("some/stories", FILES)
    hf_hub_download("some/stories", "data/train-0.jsonl", repo_type="dataset", endpoint=hub.url,
                    cache_dir=str(tmp_path / "hf"))  # fmt: skip
    hub.storage.requests.clear()
    [file] = fetch(f"{ADDRESS}/data/train-0.jsonl")
    assert Path(file.path).read_bytes() == TRAIN and str(tmp_path / "hf") in file.path and not hub.storage.requests
    hub.close()
    assert fetch(f"{ADDRESS}/data/train-0.jsonl") == [file]


def test_fetch_continues_after_a_break_and_checks_the_digest(hub: HubServer, fetch: Fetch, remote_cache: Path) -> None:
    hub.commit("some/stories", FILES)
    hub.storage.faults = [Fault(cut_after=3_000), Fault(cut_after=2_000)]
    [file] = fetch(f"{ADDRESS}/data/train-0.jsonl")
    assert Path(file.path).read_bytes() == TRAIN
    assert [request.start for request in hub.storage.requests] == [None, 3_000, 5_000]
    [path] = [path for path in hub.storage.files if hub.storage.files[path] == TRAIN]
    Path(file.path).unlink()
    hub.storage.files[path] = TRAIN[:-3] + b"!!\n"
    for _ in range(2):  # nothing of the damaged copy is kept
        with pytest.raises(FolioError, match=r"data/train-0\.jsonl was damaged on the way \(it has another sha256\)"):
            fetch(f"{ADDRESS}/data/train-0.jsonl")
    assert not list(remote_cache.rglob("*.partial"))


def test_fetch_checks_the_digest_of_small_files(hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("some/stories", FILES)

    def damage(handler: Any, data: bytes, commit: str) -> None:
        hub.send(handler, 200, {}, data[::-1])

    monkeypatch.setattr(hub, "resolve", damage)
    with pytest.raises(FolioError, match=r"validation-0\.jsonl was damaged on the way \(it has another sha1\)"):
        fetch(f"{ADDRESS}/data/validation-0.jsonl")


def test_fetch_sends_the_token_to_the_hub_only(
    hub: HubServer, fetch: Fetch, remote_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit("some/stories", FILES, token="hf_secret", is_gated=True)
    with pytest.raises(FolioError, match="the hub has no dataset some/stories, or it is private; .* set HF_TOKEN"):
        fetch(ADDRESS)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert len(fetch(ADDRESS)) == 2
    assert all("Authorization" not in request.headers for request in hub.storage.requests)
    stored = b"".join(path.read_bytes() for path in remote_cache.rglob("*") if path.is_file())
    assert b"hf_secret" not in stored


def test_fetch_explains_a_gated_dataset(hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("some/stories", FILES, is_gated=True)
    monkeypatch.setattr(hub, "resolve", lambda handler, *_: hub.send(handler, 403, {"X-Error-Code": "GatedRepo"}, b""))
    gated = r"the dataset some/stories is gated or private, and {}; accept its conditions at .*/datasets/some/stories"
    with pytest.raises(FolioError, match=gated.format("HF_TOKEN is not set")):
        fetch(ADDRESS)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(FolioError, match=gated.format("the token in HF_TOKEN may not read it")) as error:
        fetch(ADDRESS)
    assert "hf_other" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://datasets/some/other", "the hub has no dataset some/other"),
        (f"{ADDRESS}@v9", "the dataset some/stories has no revision v9; name a branch, a tag or a commit"),
        (f"{ADDRESS}/data/trian-0.jsonl", r"matches no file of the dataset; did you mean 'data/train-0\.jsonl'\?"),
        (f"{ADDRESS}/zzz/*.csv", "matches no file of the dataset; check the path"),
        ("hf://datasets/stories", r"is not the address of a dataset; expected hf://datasets/OWNER/NAME\[@REVISION\]"),
        ("hf://models/some/stories", "is not the address of a dataset"),
    ],
)
def test_fetch_explains_wrong_addresses(hub: HubServer, fetch: Fetch, url: str, message: str) -> None:
    hub.commit("some/stories", FILES)
    with pytest.raises(FolioError, match=message):
        fetch(url)


def test_fetch_tries_a_busy_hub_again(hub: HubServer, fetch: Fetch) -> None:
    hub.commit("some/stories", FILES)
    hub.faults = [Fault(429, {"Retry-After": "0"}, is_probe_spared=False)]
    assert len(fetch(ADDRESS)) == 2


def test_fetch_names_the_extra_that_is_missing(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def fail(name: str, *args: Any, **options: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(
        MisuseError, match=r"hf:// needs huggingface_hub; install it with pip install 'folio-lm\[hub\]'"
    ):
        fetch(ADDRESS)
