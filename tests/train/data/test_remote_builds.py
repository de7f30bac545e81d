"""Training on a build at a URL: copied to the cache first, or read while it arrives."""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.sharing import arrivals, arriving_file, streamed_build
from tests.conftest import assert_one_line, file_bytes
from tests.helpers.file_server import Fault, FileServer, Request
from tests.helpers.runs import invoke, list_steps, make_build, make_config, read_losses, write_config
from tests.preprocess.inputs.remote.conftest import remote_cache, server  # noqa: F401 (fixtures)
from train.core.distributed import World
from train.data.batches import open_data
from train.data.builds import Builds, open_builds
from train.data.streams import open_data_source
from train.train import main  # noqa: F401 (its import takes seconds)

CPU = torch.device("cpu")
TOKENS = "/builds/tiny/train-00000.bin"
ORDERS = [{}, {"data_order": "epochs", "mask_documents": True}, {"data_order": "documents", "mask_documents": True}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a build of some hundred blocks."""
    return make_build(tmp_path_factory.mktemp("remote") / "tiny", train_repeats=2_000, val_repeats=100, learnt=slice(9))


@pytest.fixture
def served(server: FileServer, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:  # noqa: F811
    monkeypatch.setattr(arriving_file, "BLOCK_BYTES", 512)
    monkeypatch.setattr(arrivals, "FILL_BYTES", 4_096)
    server.files = {f"/builds/tiny/{name}": data for name, data in file_bytes(whole).items()}
    yield server
    streamed_build.close_streams()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache/builds"


def open_url(server: FileServer, *, stream_shards: bool = True) -> Builds:  # noqa: F811
    return open_builds(f"{server.url}/builds/tiny", stream_shards=stream_shards, quiet=True)


def read_all(builds: Builds, **settings: object) -> list[np.ndarray]:
    """Return batches from the beginning and from anywhere, and all validation windows."""
    data = open_data(builds, make_config(**settings), device=CPU)
    batches = [data.train.batch(first, 6) for first in (0, 6, 12, 5_000)]
    batches += [batch for _, batch in data.val.batches(16)]
    return [tensor.numpy() for batch in batches for tensor in batch if tensor is not None]


def wait_until_whole(builds: Builds) -> None:
    deadline = time.monotonic() + 60
    [build] = builds.builds
    while build._arrivals.num_unchecked and not build._arrivals._failure:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_train_copies_the_build_at_a_url_once(served: FileServer, whole: Path, cache: Path, tmp_path: Path) -> None:
    url = f"{served.url}/builds/tiny"
    run_local = invoke("train.py", write_config(tmp_path / "local.py", whole, max_steps=4))
    for name in ("first", "second"):
        served.requests.clear()
        config = write_config(tmp_path / f"{name}.py", Path("x"), max_steps=4)
        result = invoke("train.py", config, f"--data={url}")
        assert result.returncode == run_local.returncode == 0, result.stderr
        assert read_losses(tmp_path / name) == read_losses(tmp_path / "local")
    assert {request.path for request in served.requests} == {"/builds/tiny/manifest.json"}  # nothing is moved
    [copy] = [path for path in cache.iterdir() if (path / "manifest.json").is_file()]
    assert file_bytes(copy) == file_bytes(whole)


def test_a_build_in_the_cache_is_read_offline(
    served: FileServer, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{served.url}/builds/tiny"
    assert open_builds(url).build_id == Build(whole).build_id
    served.close()
    assert open_builds(url).build_id == Build(whole).build_id
    warning = capsys.readouterr().err.splitlines()[-1]
    assert (
        warning.startswith("warning: ") and "no connection" in warning and "the build in the cache is read" in warning
    )
    with pytest.raises(FolioError, match="no connection; go online"):
        open_builds(url.replace("tiny", "other"))


def test_a_damaged_build_in_the_cache_is_named(served: FileServer, cache: Path) -> None:
    url = f"{served.url}/builds/tiny"
    folder = cache / open_builds(url, quiet=True).build_id
    (folder / "train-00000.bin").unlink()
    with pytest.raises(FolioError, match="delete this folder of the cache, and run the same command") as caught:
        open_builds(url, quiet=True)
    assert_one_line(str(caught.value))
    assert str(folder) in str(caught.value) and "--replace" not in str(caught.value)
    shutil.rmtree(folder)
    assert open_builds(url, quiet=True).builds[0].folder == folder


@pytest.mark.parametrize("url", ["http://ann:secret@127.0.0.1:9/x", "http://127.0.0.1:9/x?token=secret"])
def test_urls_with_credentials_are_not_stored(url: str) -> None:
    with pytest.raises(MisuseError, match="with a password or a query, which a run would store") as caught:
        open_builds(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("settings", ORDERS)
def test_streamed_batches_are_those_of_the_whole_build(
    served: FileServer, whole: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    monkeypatch.setattr(arrivals, "NUM_FILLING", 0)  # only what is asked for is copied
    served.delay_s = 0.002
    served.requests.clear()
    streamed = open_url(served)
    found, expected = read_all(streamed, **settings), read_all(open_builds(str(whole)), **settings)
    assert len(found) == len(expected) and all(map(np.array_equal, found, expected))
    num_parts = sum(request.path == TOKENS for request in served.requests)
    assert 0 < num_parts < len(served.files[TOKENS]) / 512 / 2  # most of the tokens have not arrived


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_streamed_build_becomes_a_whole_one(served: FileServer, whole: Path, cache: Path, has_ranges: bool) -> None:
    served.has_ranges = has_ranges
    served.faults = [Fault(), Fault(), Fault(cut_after=700), Fault(status=503), Fault(cut_after=0)]
    builds = open_url(served)
    assert builds.builds[0].is_streamed and "still arriving" in builds.describe()
    assert open_url(served).builds[0] is builds.builds[0]  # the process opens it once
    wait_until_whole(builds)
    streamed_build.close_streams()
    served.requests.clear()
    [build] = open_url(served).builds
    assert not build.is_streamed and list(verify(build)) == []
    assert not {request.path for request in served.requests} & {TOKENS, TOKENS.replace(".bin", ".docs")}
    assert file_bytes(build.folder) == file_bytes(whole)
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] in (
        ["addresses", build.build_id],
        [build.build_id, "addresses"],
    )


def test_a_build_that_arrived_in_part_is_continued(
    served: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arrivals, "NUM_FILLING", 0)
    expected = read_all(open_url(served))
    streamed_build.close_streams()
    assert re.search("[34] files of tiny did not arrive completely", capsys.readouterr().err)
    served.requests.clear()
    assert all(map(np.array_equal, read_all(open_url(served)), expected))
    assert TOKENS not in {request.path for request in served.requests}
    streamed_build.close_streams()
    [build] = open_url(served, stream_shards=False).builds  # what is missing is copied, and everything is checked
    assert list(verify(build)) == [] and sorted(path.name for path in cache.iterdir() if path.is_dir()) == sorted(
        ["addresses", build.build_id]
    )


def test_a_full_disk_at_the_end_is_one_line(
    served: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arrivals, "NUM_FILLING", 0)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "note")

    open_url(served)
    monkeypatch.setattr(arriving_file, "write_durable", fail)
    streamed_build.close_streams()
    lines = capsys.readouterr().err.splitlines()  # the server writes there, too, that its client has gone
    first, *others = [line for line in lines if line.startswith("warning: ")]
    assert first.startswith("warning: no space left on the disk (note)") and len(others) == 1


def test_a_lost_connection_ends_the_wait_in_one_line(served: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "NUM_FILLING", 0)
    builds = open_url(served)
    data = open_data(builds, make_config(eval_tokens=16), device=CPU)
    served.close()
    with pytest.raises(FolioError, match="no connection") as caught:
        data.train.batch(0, 6)
    assert_one_line(str(caught.value))
    with pytest.raises(FolioError, match="no connection"):  # and not another wait
        data.train.batch(6, 6)


def test_a_streamed_run_that_loses_its_connection_is_continued(
    served: FileServer, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "NUM_FILLING", 0)
    steps = {"max_steps": 60, "checkpoint_interval": 40, "eval_interval": 60}  # the preflight reads the first samples
    assert invoke("train.py", write_config(tmp_path / "local.py", whole, **steps)).returncode == 0

    def break_down(request: Request) -> None:
        if request.path == TOKENS and list_steps(tmp_path / "streamed"):  # after the first checkpoint
            served.faults = [Fault(status=503)]

    served.before_answer = break_down
    config = write_config(tmp_path / "streamed.py", Path("x"), **steps)
    arguments = ("train.py", config, f"--data={served.url}/builds/tiny", "--stream-shards=True")
    result = invoke(*arguments)
    assert result.returncode == 1
    assert_one_line(result.stderr.strip().splitlines()[-1])
    assert "answered 503" in result.stderr and "run the same command again" in result.stderr
    streamed_build.close_streams()
    served.before_answer, served.faults = lambda request: None, []
    result = invoke(*arguments)
    assert result.returncode == 0 and "continu" in result.stdout, result.stderr
    assert read_losses(tmp_path / "streamed") == read_losses(tmp_path / "local")


def test_damaged_tokens_are_found_when_their_file_is_whole(served: FileServer, whole: Path, cache: Path) -> None:
    right = served.files[TOKENS]
    served.files[TOKENS] = right[:-2] + b"\0\0"
    builds = open_url(served)
    data = open_data(builds, make_config(), device=CPU)
    wait_until_whole(builds)
    with pytest.raises(
        FolioError, match=r"train-00000\.bin of .* does not have the sha256 .* start the run again"
    ) as e:
        data.train.batch(0, 6)
    assert_one_line(str(e.value))
    streamed_build.close_streams()
    with pytest.raises(FolioError, match="does not have the size and sha256"):
        open_url(served, stream_shards=False)
    assert not (cache / builds.build_id).exists()
    served.files[TOKENS] = right
    streamed = open_url(served)
    assert all(map(np.array_equal, read_all(streamed), read_all(open_builds(str(whole)))))


def test_streaming_is_refused_for_several_processes_and_without_a_url(whole: Path, tmp_path: Path) -> None:
    world = dataclasses.replace(World(), size=2)
    with pytest.raises(MisuseError, match="stream_shards is True, but the run has 2 processes"):
        open_data_source("https://host/x", world=world, stream_shards=True)
    result = invoke("train.py", write_config(tmp_path / "local.py", whole), "--stream-shards=True")
    assert result.returncode == 2 and "stream_shards" in result.stderr and "a build at a URL" in result.stderr


def test_two_processes_do_not_stream_the_same_build(served: FileServer, cache: Path) -> None:
    builds = open_url(served)
    lock = streamed_build.OPENED.pop(cache / builds.build_id)  # as if another process had opened it
    with pytest.raises(FolioError, match="is running; wait for it"):
        open_url(served)
    streamed_build.OPENED[cache / builds.build_id] = lock
    streamed_build.close_streams()
    shutil.rmtree(cache)
