"""Pushing builds to folders, object stores and a stand-in for the hub."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.progress import Progress
from preprocess.shards.format import Build
from preprocess.shards.manifest_file import MANIFEST, ShardError
from preprocess.sharing import push as push_module
from preprocess.sharing.object_folder import ObjectFolder
from preprocess.sharing.pull import pull
from preprocess.sharing.push import RECEIPTS, push
from tests.conftest import ROOT, assert_one_line, file_bytes
from tests.helpers.buckets import Bucket
from tests.helpers.hub_server import HubServer
from tests.preprocess.inputs.remote.test_object_store import Stopped, StoppingProgress
from tests.preprocess.sharing.helpers import QUIET, flip_bit, list_all


def run_push(build: Build, address: object, *, replace: bool = False, progress: Progress = QUIET) -> bool:
    return push(build, str(address), replace=replace, progress=progress)


def read_bucket(url: str) -> dict[str, bytes]:
    """Return the content of all objects in a folder, by their path in it."""
    system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {path.removeprefix(f"{root}/"): system.cat_file(path) for path in system.find(root)}


@pytest.fixture
def other(build: Build, build_text: Callable[..., Build]) -> Build:
    return build_text("Another text.\n\nAnd more.\n" * 20, name="other")


@pytest.mark.parametrize("address", ["{}/disk/own", "file://{}/disk/own"])
def test_push_copies_to_a_folder(build: Build, tmp_path: Path, address: str) -> None:
    address = address.format(tmp_path)
    assert run_push(build, address) and not run_push(build, address)
    assert file_bytes(tmp_path / "disk/own") == file_bytes(build.folder)
    assert list_all(tmp_path / "disk")[0] == "own"


def test_push_replaces_another_build_only_if_it_is_told_to(build: Build, other: Build, tmp_path: Path) -> None:
    run_push(other, tmp_path / "disk/x")
    with pytest.raises(
        MisuseError, match=r"disk/x holds another build .*; pass --replace, or choose another name or f"
    ):
        run_push(build, tmp_path / "disk/x")
    assert file_bytes(tmp_path / "disk/x") == file_bytes(other.folder)
    assert run_push(build, tmp_path / "disk/x", replace=True)
    assert file_bytes(tmp_path / "disk/x") == file_bytes(build.folder)


@pytest.mark.parametrize(("address", "message"), [
    ("https://host/builds", "https://host/builds: builds can be pulled from https://, and not pushed; name a folder"),
    ("http://user:SECRET@host/b", "http://host/b: builds can be pulled from http://"),
    ("hf://spaces/ann/x", "is not the address of a dataset; expected hf://datasets/OWNER/NAME"),
    ("hf://datasets/ann/x@" + "0" * 40, "names a commit, which cannot be changed; name a branch"),
    ("nonsense://x/y", "nonsense://x/y has an unknown scheme"),
    ("{build}/copy", "is inside the build; choose another folder"),
    ("{build}/..", "exists and is not a build; move it away, or choose another name or folder"),
])  # fmt: skip
def test_push_refuses_places_for_no_build(build: Build, address: str, message: str) -> None:
    with pytest.raises(MisuseError, match=message) as caught:
        run_push(build, address.format(build=build.folder))
    assert_one_line(str(caught.value))
    assert "SECRET" not in str(caught.value)


def test_push_refuses_a_damaged_build(bucket: Bucket, build: Build, tmp_path: Path) -> None:
    path = build.folder / "train-00001.docs"
    path.write_bytes(flip_bit(path.read_bytes(), 100))
    for address in (tmp_path / "disk/own", f"{bucket.url}/own"):
        with pytest.raises(ShardError, match=r"train-00001\.docs.* does not have the size and sha256 in its manifest"):
            run_push(build, address)
    assert not (tmp_path / "disk/own").exists() and MANIFEST not in read_bucket(f"{bucket.url}/own")


def test_push_copies_to_an_object_store(bucket: Bucket, build: Build, shards: Path) -> None:
    url = f"{bucket.url}/builds/own"
    assert run_push(build, url) and not run_push(build, f"{url}/")
    assert read_bucket(url) == file_bytes(build.folder)  # and no receipts
    pull(url, None, replace=False, progress=QUIET)
    assert file_bytes(shards / "own") == file_bytes(build.folder)


def test_push_writes_the_manifest_last(bucket: Bucket, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket.url}/own"
    seen: list[dict[str, bytes]] = []
    write = ObjectFolder.write

    def watch(folder: ObjectFolder, name: str, data: bytes) -> None:
        if name == MANIFEST:
            seen.append(read_bucket(url))
        write(folder, name, data)

    monkeypatch.setattr(ObjectFolder, "write", watch)
    run_push(build, url)
    assert [set(files) for files in seen] == [set(file_bytes(build.folder)) - {MANIFEST}]


def test_push_replaces_objects(bucket: Bucket, build: Build, other: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket.url}/own"
    run_push(build, url)
    with pytest.raises(MisuseError, match=r"own/? holds another build .*; pass --replace, or choose another folder"):
        run_push(other, url)
    assert read_bucket(url) == file_bytes(build.folder)
    run_push(other, url, replace=True)
    assert read_bucket(url) == file_bytes(other.folder)  # the files of the first build are deleted
    bucket.write("own/val-00000.bin", b"short")
    with pytest.raises(ShardError, match=r"val-00000\.bin of .* is missing or has another size; pass --replace to"):
        run_push(other, url)
    assert run_push(other, url, replace=True)
    assert read_bucket(url) == file_bytes(other.folder)


def test_push_leaves_other_objects_alone(bucket: Bucket, build: Build) -> None:
    bucket.write("own/thesis.txt", b"mine")
    for replace in (False, True):
        with pytest.raises(MisuseError, match=r"has other files, such as 'thesis\.txt'; choose an empty folder"):
            run_push(build, f"{bucket.url}/own", replace=replace)
    assert read_bucket(f"{bucket.url}/own") == {"thesis.txt": b"mine"}


def test_push_continues_an_interrupted_one(bucket: Bucket, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket.url}/own"
    monkeypatch.setattr(push_module, "NOTE_BYTES", 0)
    monkeypatch.setattr(push_module, "NUM_TRANSFERS", 1)
    with pytest.raises(Stopped):
        run_push(build, url, progress=StoppingProgress(stop_after=5_000))
    first = read_bucket(url)
    assert RECEIPTS in first and MANIFEST not in first
    bucket.write("own/train-00000.bin", flip_bit(first["train-00000.bin"], 0))  # by somebody else
    rest = StoppingProgress(stop_after=1 << 40)
    assert run_push(build, url, progress=rest)
    assert read_bucket(url) == file_bytes(build.folder)
    total = sum(len(data) for name, data in file_bytes(build.folder).items() if name != MANIFEST)
    assert len(first["train-00000.bin"]) < sum(rest.amounts) < total - 1_500


def test_push_does_not_replace_a_build_that_another_push_finishes_meanwhile(
    bucket: Bucket, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, other = ObjectFolder.upload, b'{"build_id": "of another push"}'

    def disturb(folder: ObjectFolder, file: Any, local: Path, transfers: Any) -> str:
        bucket.write(f"own/{MANIFEST}", other)
        return upload(folder, file, local, transfers)

    monkeypatch.setattr(ObjectFolder, "upload", disturb)
    with pytest.raises(FolioError, match="got another build during the push"):
        run_push(build, f"{bucket.url}/own")
    assert read_bucket(f"{bucket.url}/own")[MANIFEST] == other


def test_push_notices_objects_that_change_meanwhile(
    bucket: Bucket, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = ObjectFolder.upload

    def disturb(folder: ObjectFolder, file: Any, local: Path, transfers: Any) -> str:
        version = upload(folder, file, local, transfers)
        if file.name == "val-00000.bin":
            bucket.write("own/val-00000.bin", b"of another push")
        return version

    monkeypatch.setattr(ObjectFolder, "upload", disturb)
    with pytest.raises(FolioError, match=r"val-00000\.bin of .* was changed or deleted during the push, perhaps by"):
        run_push(build, f"{bucket.url}/own")
    assert MANIFEST not in read_bucket(f"{bucket.url}/own")


def make_large_build(build_text: Callable[..., Build], num_bytes: int) -> Build:
    line = "A line of the text of a large build, which takes a while to push. " * 100 + "\n"
    return build_text(
        line * (num_bytes // len(line)), split="exact", document="line", group_by="source", val_fraction=0.0,
        tokenizer="byte", dedup=False, shard_tokens=1_000_000,
    )  # fmt: skip


@pytest.mark.slow
def test_push_that_is_killed_is_continued(
    s3: Bucket, build_text: Callable[..., Build], shards: Path, tmp_path: Path
) -> None:
    build = make_large_build(build_text, 12 << 20)
    url = f"{s3.url}/own"
    script = f"""
        import os, signal
        from pathlib import Path
        from preprocess.progress import Progress
        from preprocess.shards.format import Build
        from preprocess.sharing import push
        push.NOTE_BYTES = 0
        note, count = push._ObjectPush._write_receipts, 0
        def write_receipts(self):
            global count
            note(self)
            count += 1
            if count == 8:
                os.kill(os.getpid(), signal.SIGKILL)
        push._ObjectPush._write_receipts = write_receipts
        push.push(Build(Path({str(build.folder)!r})), {url!r}, replace=False, progress=Progress(quiet=True))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert MANIFEST not in read_bucket(url)
    with pytest.raises(FolioError, match="does not exist"):
        pull(url, None, replace=False, progress=QUIET)
    rest = StoppingProgress(stop_after=1 << 40)
    assert run_push(build, url, progress=rest)
    total = sum(len(data) for name, data in file_bytes(build.folder).items() if name != MANIFEST)
    assert read_bucket(url) == file_bytes(build.folder) and 0 < sum(rest.amounts) < total - (2 << 20)
    pull(url, None, replace=False, progress=QUIET)
    assert file_bytes(shards / "own") == file_bytes(build.folder)


@pytest.mark.slow
def test_push_explains_missing_buckets_and_keys(s3: Bucket, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FolioError, match=r"s3://none/own does not exist; check the bucket and the path"):
        run_push(build, "s3://none/own")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(FolioError, match=r"rejected \(NoCredentialsError\); check address, region and credentials"):
        run_push(build, f"{s3.url}/own")


@pytest.mark.parametrize("folder", ["", "/builds/own"])
def test_push_copies_to_the_hub(
    hub: HubServer, build: Build, other: Build, shards: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "token-secret")
    url = f"hf://datasets/ann/new{folder}"
    assert run_push(build, url)
    dataset = hub.datasets["ann/new"]
    assert len(dataset.commits) == 2 and dataset.is_private  # an empty one, and that of all files
    assert not run_push(build, url) and len(dataset.commits) == 2
    pull(url, None, replace=False, progress=QUIET)
    assert file_bytes(shards / "own") == file_bytes(build.folder)
    with pytest.raises(MisuseError, match="holds another build"):
        run_push(other, url)
    assert run_push(other, url, replace=True)
    pull(url, None, replace=True, progress=QUIET)
    files = dataset.commits[dataset.branches["main"]]
    assert {name.removeprefix(f"{folder[1:]}/") for name in files} == set(file_bytes(other.folder))


def test_push_to_the_hub_sends_no_file_twice(hub: HubServer, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.commit_status = 403
    with pytest.raises(FolioError, match="does not let this account write to ann/new; set HF_TOKEN to a token with wr"):
        run_push(build, "hf://datasets/ann/new")
    sent = len(hub.uploads)
    hub.commit_status = 0
    assert sent and run_push(build, "hf://datasets/ann/new") and len(hub.uploads) == sent
