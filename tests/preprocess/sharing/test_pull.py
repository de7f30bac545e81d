"""Pulling builds from folders, a web server, object stores and a stand-in for the hub."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.progress import Progress
from preprocess.shards.format import Build
from preprocess.shards.manifest_file import MANIFEST, ShardError
from preprocess.sharing.pull import pull
from tests.conftest import assert_one_line, file_bytes
from tests.helpers.buckets import Bucket
from tests.helpers.file_server import Fault, FileServer
from tests.helpers.hub_server import HubServer
from tests.preprocess.inputs.remote.test_object_store import Stopped, StoppingProgress
from tests.preprocess.sharing.helpers import QUIET, edit_manifest, flip_bit, list_all

LARGEST = "train-00001.bin"


def run_pull(address: object, name: str | None = None, *, replace: bool = False, progress: Progress = QUIET) -> Any:
    return pull(str(address), name, replace=replace, progress=progress)


@pytest.fixture
def served(server: FileServer, build: Build) -> FileServer:
    """Return a server that has the build at /builds/own."""
    server.files = {f"/builds/own/{name}": data for name, data in file_bytes(build.folder).items()}
    return server


@pytest.fixture
def python_server(build: Build) -> Iterator[str]:
    """Start the server of `python -m http.server`, which knows no ranges and no ETags."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(build.folder.parent)))
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/{build.folder.name}"
    http.shutdown()
    http.server_close()


def check_refused(address: object, shards: Path, message: str, error: type[FolioError] = FolioError) -> None:
    """Check that a build is refused with one line, and that no reader finds any of it."""
    with pytest.raises(error, match=message) as caught:
        run_pull(address)
    assert_one_line(str(caught.value))
    assert [path.name for path in shards.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("address", ["{}", "file://{}"])
def test_pull_copies_a_folder(build: Build, shards: Path, address: str) -> None:
    url = address.format(build.folder)
    assert run_pull(url) == (shards / "own", True)
    assert file_bytes(shards / "own") == file_bytes(build.folder)
    assert list_all(shards)[0] == "own"  # and nothing hidden
    before = {path: path.stat().st_mtime_ns for path in (shards / "own").rglob("*")}
    assert run_pull(url) == (shards / "own", False) == run_pull(url, replace=True)
    assert {path: path.stat().st_mtime_ns for path in (shards / "own").rglob("*")} == before
    assert run_pull(url, "other") == (shards / "other", True)


def test_pull_flushes_every_file_before_the_build_has_its_name(
    build: Build, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[tuple[int, int]] = []  # the ranges that were flushed, one file after the other
    flushed: dict[str, bool] = {}  # whether the build had its name then

    def note_range(descriptor: int, begin: int, end: int) -> None:
        assert os.fstat(descriptor).st_size >= end
        ranges.append((begin, end))

    def note_flush(path: Path) -> None:
        flushed[path.name] = (shards / build.name).exists()

    monkeypatch.setattr("preprocess.sharing.pull.NUM_TRANSFERS", 1)
    monkeypatch.setattr("preprocess.sharing.checked_file.WRITE_BACK_BYTES", 400)
    monkeypatch.setattr("preprocess.shards.files.COPY_BLOCK_BYTES", 300)
    monkeypatch.setattr("preprocess.sharing.checked_file.start_writing_back", note_range)
    monkeypatch.setattr("preprocess.sharing.publish.sync_file", note_flush)
    run_pull(build.folder)
    sizes = {name: len(data) for name, data in file_bytes(build.folder).items() if name != MANIFEST}
    assert flushed == dict.fromkeys((Path(name).name for name in sizes), False)
    assert sum(end - begin for begin, end in ranges) == sum(sizes.values())
    assert all(begin in (0, last) for (_, last), (begin, _) in itertools.pairwise(ranges))
    assert any(end - begin == 600 for begin, end in ranges)  # two blocks of a file that is not whole yet


def test_pull_copies_from_a_web_server(served: FileServer, build: Build, shards: Path) -> None:
    assert run_pull(f"{served.url}/builds/own/") == (shards / "own", True)
    assert file_bytes(shards / "own") == file_bytes(build.folder)
    assert served.max_active > 1  # several at once
    served.requests.clear()
    assert run_pull(f"{served.url}/builds/own?token=x") == (shards / "own", False)
    assert {request.path for request in served.requests} == {f"/builds/own/{MANIFEST}?token=x"}  # nothing is moved


def test_pull_copies_from_a_server_without_ranges(python_server: str, build: Build, shards: Path) -> None:
    assert run_pull(python_server) == (shards / "own", True)
    assert file_bytes(shards / "own") == file_bytes(build.folder)


@pytest.mark.parametrize("has_ranges", [True, False])
def test_pull_continues_after_a_lost_connection(
    served: FileServer, build: Build, shards: Path, has_ranges: bool
) -> None:
    served.has_ranges = has_ranges
    served.files = {**served.files}
    served.faults = [Fault(), Fault(cut_after=100), Fault(cut_after=300), Fault(status=503)]
    served.faults = [Fault(is_probe_spared=False)] * 2 + served.faults[1:] if not has_ranges else served.faults
    run_pull(f"{served.url}/builds/own")
    assert file_bytes(shards / "own") == file_bytes(build.folder)
    if has_ranges:
        assert {100, 300} & {request.start for request in served.requests}


@pytest.mark.parametrize("has_ranges", [True, False])
def test_pull_continues_an_interrupted_one(served: FileServer, build: Build, shards: Path, has_ranges: bool) -> None:
    served.has_ranges = has_ranges
    work = shards / ".own.pull" / build.build_id
    files = file_bytes(build.folder)
    work.mkdir(parents=True)
    (work / "train-00000.bin").write_bytes(files["train-00000.bin"])  # whole
    (work / "train-00000.docs").write_bytes(flip_bit(files["train-00000.docs"], 9))  # damaged by a power failure
    (work / f".{LARGEST}.partial").write_bytes(files[LARGEST][:500])
    (work / ".val-00000.bin.partial").write_bytes(bytes(100))  # zeros after a power failure
    (work / ".val-00000.docs.partial").write_bytes(files["val-00000.docs"] + b"more")
    (shards / ".own.pull/of another build").mkdir()
    run_pull(f"{served.url}/builds/own")
    assert file_bytes(shards / "own") == files and list_all(shards)[0] == "own"
    starts: dict[str, list[int | None]] = {}
    for request in served.requests:
        starts.setdefault(request.path.removeprefix("/builds/own/"), []).append(request.start)
    assert "train-00000.bin" not in starts
    assert 500 in starts[LARGEST] and 100 in starts["val-00000.bin"]


def test_pull_that_is_stopped_continues(build: Build, shards: Path) -> None:
    with pytest.raises(Stopped):
        run_pull(build.folder, progress=StoppingProgress(stop_after=2_000))
    assert [path.name for path in shards.iterdir() if path.name != ".own.lock"] == [".own.pull"]
    rest = StoppingProgress(stop_after=1 << 40)
    run_pull(build.folder, progress=rest)
    assert file_bytes(shards / "own") == file_bytes(build.folder)
    total = sum(path.stat().st_size for path in build.folder.iterdir() if path.suffix in (".bin", ".docs", ".ends"))
    assert sum(rest.amounts) == total


def test_pull_refuses_a_flipped_bit_in_any_file(build: Build, shards: Path) -> None:
    files = file_bytes(build.folder)
    tokenizer = next(name for name in files if name.startswith("tokenizer/"))
    for name in (MANIFEST, "stats.json", tokenizer, LARGEST, "train-00002.ends", "val-00000.docs"):
        data = files[name]
        (build.folder / name).write_bytes(flip_bit(data, 8 * len(data) - 1))
        check_refused(build.folder, shards, "does not have the size and sha256 in its manifest|manifest.json")
        (build.folder / name).write_bytes(data)
        shutil.rmtree(shards / ".own.pull", ignore_errors=True)  # it has the files that were right
    run_pull(build.folder)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"1", lambda data: b""])
def test_pull_refuses_files_of_another_size(served: FileServer, shards: Path, change: Callable[[bytes], bytes]) -> None:
    path = f"/builds/own/{LARGEST}"
    served.files[path] = change(served.files[path])
    check_refused(f"{served.url}/builds/own", shards, f"{LARGEST}.*(has more than .* bytes|it ended after|sha256)")


def test_pull_stops_an_endless_answer(served: FileServer, shards: Path) -> None:
    served.files["/builds/own/val-00000.bin"] = bytes(50 << 20)
    check_refused(f"{served.url}/builds/own", shards, "val-00000.bin of .* has more than [0-9,]+ bytes, the size in")
    left = [path.stat().st_size for path in (shards / ".own.pull").rglob("*val-00000.bin*")]
    assert sum(left) < 10_000  # nothing was written


@pytest.mark.parametrize(("edit", "message"), [
    (lambda m: m["tokenizer"]["files"].update({"../evil": "0" * 64}), "tokenizer file '../evil', which is not a plain"),
    (lambda m: m["splits"]["val"]["shards"][0].update(file="/tmp/x.bin"), "it names the file '/tmp/x.bin', expected"),
    (lambda m: m["splits"]["val"]["shards"][0].update(sha256="0" * 64), "val-00000.bin of .* does not have the size"),
    (lambda m: m.update(stats_sha256="0" * 64), "stats.json of .* does not have the size and sha256"),
    (lambda m: m["splits"]["val"]["shards"][0].update(bytes=3), "gives val-00000.bin 3 bytes, expected"),
    (lambda m: m.update(name="../evil"), "is named '../evil', which cannot be used here; pass --name"),
    (lambda m: m.update(name="\x1b[31m"), "malformed|it has name"),
    (lambda m: m.update(version=2), "has version 2, this Folio reads version 1"),
])  # fmt: skip
def test_pull_refuses_forged_manifests(
    served: FileServer, shards: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = f"/builds/own/{MANIFEST}"
    served.files[path] = edit_manifest(served.files[path], edit)
    check_refused(f"{served.url}/builds/own", shards, message)
    assert not (shards.parent / "evil").exists()


@pytest.mark.parametrize(("path", "message"), [
    ("/none", r"/none/manifest\.json answered 404"),
    ("/builds", r"/builds/manifest\.json answered 404"),
    ("/builds/own/*", "may mean several folders; name one"),
])  # fmt: skip
def test_pull_explains_addresses_without_a_build(served: FileServer, shards: Path, path: str, message: str) -> None:
    check_refused(f"{served.url}{path}", shards, message)


def test_pull_explains_folders_without_a_build(shards: Path, tmp_path: Path) -> None:
    check_refused(tmp_path / "none", shards, r"none/manifest\.json does not exist; check the address, which is that of")
    check_refused("nonsense://x/y", shards, "nonsense://x/y/manifest.json has an unknown scheme", MisuseError)
    check_refused("http://127.0.0.1:9/x", shards, "no connection; go online")


def test_pull_replaces_another_build_only_if_it_is_told_to(
    build: Build, shards: Path, build_text: Callable[..., Build]
) -> None:
    whole = file_bytes(build.folder)
    shutil.copytree(build.folder, shards / "copy")
    other = build_text("Another text.\n\nAnd more.\n" * 20, name="other")
    shutil.copytree(other.folder, shards / "own")
    with pytest.raises(MisuseError, match=r"own holds another build .*; pass --replace, or choose another name"):
        run_pull(shards / "copy")
    assert file_bytes(shards / "own") == file_bytes(other.folder)
    run_pull(shards / "copy", replace=True)
    assert file_bytes(shards / "own") == whole


def test_pull_repairs_a_damaged_build(build: Build, shards: Path) -> None:
    folder, _ = run_pull(build.folder)
    path = folder / "train-00000.bin"
    path.write_bytes(flip_bit(path.read_bytes(), 5))
    assert run_pull(build.folder, replace=True) == (folder, True)
    assert file_bytes(folder) == file_bytes(build.folder)


def test_pull_copies_from_an_object_store(bucket: Bucket, build: Build, shards: Path) -> None:
    for name, data in file_bytes(build.folder).items():
        bucket.write(f"builds/x/{name}", data)
    assert run_pull(f"{bucket.url}/builds/x") == (shards / "own", True)
    assert file_bytes(shards / "own") == file_bytes(build.folder)
    assert run_pull(f"{bucket.url}/builds/x/") == (shards / "own", False)
    bucket.write("builds/x/val-00000.bin", flip_bit(file_bytes(build.folder)["val-00000.bin"], 0))
    with pytest.raises(ShardError, match=r"val-00000\.bin of .* does not have the size and sha256"):
        run_pull(f"{bucket.url}/builds/x", "other")
    check_address = f"{bucket.url}/none"
    with pytest.raises(FolioError, match=r"none/manifest\.json does not exist; check the bucket and the path"):
        run_pull(check_address)


@pytest.mark.parametrize("folder", ["", "builds/own/"])
def test_pull_copies_from_the_hub(hub: HubServer, build: Build, shards: Path, folder: str) -> None:
    files = {f"{folder}{name}": data for name, data in file_bytes(build.folder).items()}
    commit = hub.commit("ann/data", {**files, "README.md": b"# A card"})
    hub.commit("ann/data", {"README.md": b"# Empty"})
    assert run_pull(f"hf://datasets/ann/data@{commit}/{folder}") == (shards / "own", True)
    assert file_bytes(shards / "own") == file_bytes(build.folder)
    with pytest.raises(
        FolioError, match=r"manifest\.json of hf://datasets/ann/data/.* does not exist; check the address"
    ):
        run_pull(f"hf://datasets/ann/data/{folder}")
    with pytest.raises(FolioError, match="the hub has no dataset ann/none"):
        run_pull("hf://datasets/ann/none")
