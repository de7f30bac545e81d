"""Streams copy remote files when they reach them and keep their copies within a limit; estimates copy a few files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess.build.build import build
from preprocess.build.estimate import estimate_build, format_estimate
from preprocess.build.plan import make_plan, plan_estimate
from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.remote import http
from preprocess.inputs.remote.fetch import ListedFile
from preprocess.inputs.remote.on_demand import MAX_SAMPLE_BYTES, CopyingOpener, choose_sample
from preprocess.inputs.remote.remote_file import RemoteFile
from preprocess.recipes.catalog import load_recipe
from preprocess.stream import Retries, StreamCorpus, TokenStream, open_corpus
from tests.helpers.file_builds import QUIET
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer
from tests.preprocess.inputs.remote.test_remote_builds import make_lines, make_parquet

SETTINGS: dict[str, Any] = {"tokenizer": "byte", "dedup": False, "split": "threshold", "val_fraction": 0}
NAMES = [f"{i}.jsonl" for i in range(4)]


@pytest.fixture(autouse=True)
def one_file_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the files of the tests as large ones: read each alone, and copy only the next one ahead."""
    monkeypatch.setattr("preprocess.inputs.remote.on_demand.MAX_BYTES_AHEAD", 1)
    monkeypatch.setattr("preprocess.stream.reading.SMALL_FILE_BYTES", 1)


@pytest.fixture
def urls(server: FileServer) -> tuple[str, ...]:
    """Serve four files of 20 lines, each more than a block of a stream."""
    server.files = {f"/{name}": make_lines(name, 20) for name in NAMES}
    return tuple(f"{server.url}/{name}" for name in NAMES)


def open_urls(urls: tuple[str, ...], **settings: object) -> StreamCorpus:
    return open_corpus(None, inputs=urls, **{"log": [].append, **SETTINGS, **settings})


def list_copied(server: FileServer) -> list[str]:
    """Return the names of the files that were copied, or begun to be, each as often as it was."""
    return [request.path[1:] for request in server.requests if request.headers.get("Range") != "bytes=0-0"]


def wait_until_copied(server: FileServer, *names: str) -> None:
    deadline = time.monotonic() + 20
    while not set(names) <= set(list_copied(server)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def read_all(stream: TokenStream) -> np.ndarray:
    return np.concatenate(list(stream))


def test_stream_copies_a_file_when_it_reaches_it_and_one_ahead(server: FileServer, urls: tuple[str, ...]) -> None:
    corpus = open_urls(urls)
    assert list_copied(server) == []
    stream = TokenStream(corpus, block_size=8, stream_buffer=0)
    next(stream)
    wait_until_copied(server, "0.jsonl", "1.jsonl")
    time.sleep(0.05)
    assert sorted(list_copied(server)) == NAMES[:2]
    while stream.num_documents < 21:
        next(stream)
    wait_until_copied(server, "2.jsonl")
    assert sorted(list_copied(server)) == NAMES[:3]


def test_stream_begins_while_the_next_file_is_copied(server: FileServer, urls: tuple[str, ...]) -> None:
    server.files["/1.jsonl"] = make_lines("1.jsonl", 20_000)
    corpus = open_urls(urls)
    server.before_answer = lambda request: time.sleep(3 * request.path.endswith("/1.jsonl"))
    start = time.monotonic()
    next(TokenStream(corpus, block_size=8, stream_buffer=0))
    assert time.monotonic() - start < 2


def test_stream_of_urls_is_that_of_local_copies_in_each_epoch(
    server: FileServer, urls: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in NAMES:
        (tmp_path / "in" / name).write_bytes(server.files[f"/{name}"])
    local, remote = open_urls((str(tmp_path / "in"),)), open_urls(urls)
    assert local.sha256 == remote.sha256
    streams = [TokenStream(corpus, block_size=8, stream_buffer=50, epochs=3) for corpus in (local, remote)]
    assert np.array_equal(*map(read_all, streams))
    assert sorted(list_copied(server)) == NAMES  # once


@pytest.mark.parametrize("limit_files", [0.5, 1.5, 2.5])
def test_stream_deletes_old_copies(
    server: FileServer, urls: tuple[str, ...], remote_cache: Path, monkeypatch: pytest.MonkeyPatch, limit_files: float
) -> None:
    expected = read_all(TokenStream(open_urls(urls), block_size=8, stream_buffer=20, epochs=2))
    for path in remote_cache.rglob("*.jsonl"):
        path.unlink()
    server.requests.clear()
    size = len(server.files["/0.jsonl"])
    monkeypatch.setenv("FOLIO_STREAM_CACHE_GB", str(limit_files * size / 1e9))
    most = 0
    found = []
    for block in TokenStream(open_urls(urls), block_size=8, stream_buffer=20, epochs=2):
        found.append(block)
        most = max(most, len(list(remote_cache.rglob("*.jsonl"))))
    assert np.array_equal(np.concatenate(found), expected)
    assert most <= max(limit_files, 2)  # the file that is read and the next one are always kept
    assert set(list_copied(server)) == set(NAMES) and len(list_copied(server)) > len(NAMES)
    assert not list(remote_cache.rglob("*.partial"))


def test_stream_keeps_the_copies_that_a_build_has_read(
    server: FileServer, urls: tuple[str, ...], tmp_path: Path, remote_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all(TokenStream(open_urls(urls), block_size=8))
    assert len(list(remote_cache.rglob("*.streamed"))) == 4
    server.requests.clear()
    recipe = load_recipe(None, inputs=urls[:2], tokenizer="byte")
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    assert list_copied(server) == []
    monkeypatch.setenv("FOLIO_STREAM_CACHE_GB", "1e-9")
    server.files["/new.jsonl"] = make_lines("new", 20)
    read_all(TokenStream(open_urls((f"{server.url}/new.jsonl",)), block_size=8))
    assert sorted(path.name for path in remote_cache.rglob("*.jsonl")) == ["0.jsonl", "1.jsonl", "new.jsonl"]


def test_stream_copies_a_file_again_that_was_deleted_while_it_was_read(
    server: FileServer, urls: tuple[str, ...], remote_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another stream on this machine may delete the copies of this one."""
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 200)  # several spans in each file
    expected = read_all(TokenStream(open_urls(urls), block_size=8, stream_buffer=0))
    found = []
    for block in TokenStream(open_urls(urls), block_size=8, stream_buffer=0):
        found.append(block)
        if len(found) % 10 == 0:
            for path in remote_cache.rglob("*.jsonl"):
                path.unlink()
    assert np.array_equal(np.concatenate(found), expected)


def test_stream_resumes_without_the_files_before(server: FileServer, urls: tuple[str, ...], remote_cache: Path) -> None:
    stream = TokenStream(open_urls(urls), block_size=8, stream_buffer=10)
    while stream.num_documents < 65:
        next(stream)
    state = stream.state_dict()
    first = state["cursor"]["source"]
    assert first in (2, 3)
    expected = read_all(stream)
    for path in remote_cache.rglob("*.jsonl"):
        path.unlink()
    server.requests.clear()
    lines: list[str] = []
    corpus = open_urls(urls, log=lines.append)
    stream = TokenStream(corpus, block_size=8, stream_buffer=10)
    stream.load_state_dict(state)
    assert np.array_equal(read_all(stream), expected)
    assert sorted(list_copied(server)) == NAMES[first:] and not lines


def test_stream_warns_if_a_file_has_another_version_than_in_the_state(
    server: FileServer, urls: tuple[str, ...]
) -> None:
    stream = TokenStream(open_urls(urls), block_size=8)
    next(stream)
    state = stream.state_dict()
    server.files["/3.jsonl"] = server.files["/3.jsonl"].upper()  # of the same size
    lines: list[str] = []
    corpus = open_urls(urls, log=lines.append)
    TokenStream(corpus, block_size=8).load_state_dict(state)
    assert any("have other modification times or versions than when the state was saved" in line for line in lines)


def test_stream_waits_for_a_service_that_cannot_be_reached_for_a_while(
    server: FileServer, urls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    corpus = open_urls(urls, log=lines.append)
    real, num_failures = http.request, 0

    def fail(url: str, *arguments: object, **options: object) -> object:
        nonlocal num_failures
        num_failures += 1
        is_failing = num_failures <= 3
        return real(url.replace(str(server.http.server_port), "9") if is_failing else url, *arguments, **options)

    monkeypatch.setattr(http, "request", fail)
    next(TokenStream(corpus, block_size=8, stream_buffer=0, retries=Retries(5, 0.01)))
    assert num_failures > 3 and any("no connection" in line and "try 2 of 5" in line for line in lines)
    num_failures = -100
    with pytest.raises(FolioError, match="no connection; go online"):
        read_all(TokenStream(corpus, block_size=8, retries=Retries(2, 0.01)))


def test_stream_reports_a_broken_file_when_it_reaches_it(server: FileServer, urls: tuple[str, ...]) -> None:
    corpus = open_urls(urls)
    del server.files["/2.jsonl"]
    stream = TokenStream(corpus, block_size=8, stream_buffer=0)
    with pytest.raises(
        FolioError, match=r"/2\.jsonl answered 404 Not Found: the file does not exist; check the address"
    ):
        read_all(stream)
    assert stream.num_documents == 0  # the counters begin again after a failure


@pytest.mark.parametrize(("name", "data", "message"), [
    ("b.txt", make_parquet({"text": "x"}), "is a file of the format parquet, but its name is that of a text file"),
    ("b.jsonl", b"PK\x03\x04" + bytes(100), "is not a zip archive|an archive|cannot be read"),
    ("b.jsonl", b"<!doctype html><html>", "is an HTML page, expected jsonl"),
])  # fmt: skip
def test_stream_rejects_a_file_that_is_not_what_its_name_says(
    server: FileServer, name: str, data: bytes, message: str
) -> None:
    server.files = {"/a.jsonl": make_lines("a"), f"/{name}": data}
    stream = TokenStream(open_urls((f"{server.url}/a.jsonl", f"{server.url}/{name}")), block_size=8, stream_buffer=0)
    next(stream)
    with pytest.raises(FolioError, match=message):
        read_all(stream)


def test_stream_copies_files_whose_content_must_be_known_at_once(server: FileServer) -> None:
    server.files = {"/a.jsonl": make_lines("a"), "/b": make_lines("b"), "/c.jsonl": make_lines("c")}
    open_urls((f"{server.url}/a.jsonl", f"{server.url}/b"))
    assert list_copied(server) == ["b"]
    server.requests.clear()
    server.has_versions = False  # what is copied later may be another file
    open_urls((f"{server.url}/c.jsonl",))
    assert list_copied(server) == ["c.jsonl"]


def test_stream_finds_a_column_that_only_the_first_file_has(server: FileServer, remote_cache: Path) -> None:
    server.files = {"/a.jsonl": b'{"text": "a text", "lang": "en"}\n' * 9, "/b.jsonl": b'{"text": "another"}\n' * 9}
    urls = tuple(f"{server.url}{path}" for path in server.files)
    stream = TokenStream(open_urls(urls, lang_column="lang"), block_size=8, stream_buffer=0)
    while stream.num_documents < 10:
        next(stream)
    state, expected = stream.state_dict(), read_all(stream)
    for path in remote_cache.rglob("*.jsonl"):
        path.unlink()
    stream = TokenStream(open_urls(urls, lang_column="lang"), block_size=8, stream_buffer=0)
    stream.load_state_dict(state)
    assert np.array_equal(read_all(stream), expected)
    with pytest.raises(MisuseError, match="no column 'language'|column language"):
        next(TokenStream(open_urls(urls, lang_column="language"), block_size=8))


def test_streams_of_the_splits_copy_only_their_files(server: FileServer) -> None:
    names = ["train-0.jsonl", "train-1.jsonl", "validation-0.jsonl"]
    server.files = {f"/{name}": make_lines(name) for name in names}
    corpus = open_corpus(
        None, inputs=tuple(f"{server.url}/{name}" for name in names), log=[].append, tokenizer="byte", dedup=False,
        split="given", name_pattern="(?P<split>train|validation)-",
    )  # fmt: skip
    read_all(TokenStream(corpus, block_size=8, split="val"))
    assert list_copied(server) == names[2:]
    read_all(TokenStream(corpus, block_size=8))
    assert sorted(list_copied(server)) == names


def test_stream_of_many_small_files_copies_several_at_once(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.remote.on_demand.MAX_BYTES_AHEAD", 1 << 20)
    server.files = {f"/{i:03}.jsonl": make_lines(str(i), 2) for i in range(40)}
    server.delay_s = 0.01
    corpus = open_urls(tuple(f"{server.url}{path}" for path in server.files))
    read_all(TokenStream(corpus, block_size=8))
    assert server.max_active > 1 and len(list_copied(server)) == 40


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_stream_that_copies_ahead_continues_after_a_fork(server: FileServer, urls: tuple[str, ...]) -> None:
    stream = TokenStream(open_urls(urls), block_size=8, stream_buffer=0)
    server.before_answer = lambda request: time.sleep(0.2 * request.path.endswith("/1.jsonl"))
    next(stream)  # the second file is being copied
    pid = os.fork()
    if pid == 0:
        num_blocks = sum(1 for _ in stream)
        os._exit(0 if num_blocks else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("value", ["none", "0", "-1", "nan", "inf"])
def test_stream_rejects_an_invalid_limit_of_its_copies(
    urls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FOLIO_STREAM_CACHE_GB", value)
    with pytest.raises(
        MisuseError, match=f"FOLIO_STREAM_CACHE_GB must be a number of gigabytes above 0, got '{value}'"
    ):
        TokenStream(open_urls(urls), block_size=8)


def test_stream_explains_a_full_disk(urls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_urls(urls)
    full = type("Usage", (), {"free": 100})
    for module in ("shards.files", "inputs.remote.stream_copies"):
        monkeypatch.setattr(f"preprocess.{module}.shutil.disk_usage", lambda folder: full)
    with pytest.raises(FolioError, match=r"no space left on the disk: .* has 100 bytes free, the remote files have"):
        next(TokenStream(corpus, block_size=8))
    monkeypatch.undo()


def test_stream_reports_that_it_waits_for_a_copy(
    server: FileServer, urls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.inputs.remote.on_demand.LOG_AFTER_S", 0.01)
    lines: list[str] = []
    corpus = open_urls(urls, log=lines.append)
    server.before_answer = lambda request: time.sleep(0.2)
    next(TokenStream(corpus, block_size=8))
    size = len(server.files["/0.jsonl"])
    assert f"waiting for the copy of {urls[0]} ({size} bytes)" in lines


def test_estimate_copies_some_of_the_files(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    files = {f"data/{i:02}.parquet": make_parquet(*({"text": f"text {i} {j}"} for j in range(300))) for i in range(20)}
    hub.commit("some/data", files)
    recipe = load_recipe(None, inputs=("hf://datasets/some/data",), tokenizer="byte")
    size = len(files["data/00.parquet"])
    monkeypatch.setattr("preprocess.inputs.remote.on_demand.MAX_SAMPLE_BYTES", int(size * 2.5))
    plan = plan_estimate(recipe, None, QUIET)
    assert len(plan.input_files) == 3 and plan.num_files_left_out == 17
    assert len(hub.storage.requests) == 3
    sampled = estimate_build(plan, 200, workers=1)
    whole = estimate_build(make_plan(recipe, None, QUIET), 200, workers=1)
    for key in ("documents", "text_bytes", "tokens"):
        assert sampled["build"][key] == pytest.approx(whole["build"][key], rel=0.05)
    left_out = sampled["files"]["left_out_bytes"]
    assert sampled["files"] == {"read": 3, "left_out": 17, "left_out_bytes": left_out}
    assert (
        format_estimate(sampled)[0]
        == f"files       3 files were read; a build also copies 17 remote files ({left_out:,} bytes)"
    )
    assert whole["files"]["left_out"] == 0 and not format_estimate(whole)[0].startswith("files")


def test_choose_sample_chooses_all_files_if_a_size_is_unknown() -> None:
    sizes = [MAX_SAMPLE_BYTES, MAX_SAMPLE_BYTES, MAX_SAMPLE_BYTES]
    files = [ListedFile(RemoteFile(str(i), str(i), size, "1", ""), None) for i, size in enumerate(sizes)]
    assert len(choose_sample(files, 0)) == 1
    assert {choose_sample(files, seed)[0].file.name for seed in range(20)} == {"0", "1", "2"}
    unknown = ListedFile(RemoteFile("3", "3", None, "1", ""), None)
    assert choose_sample([*files, unknown], 0) == [*files, unknown]


def test_stream_explains_copies_that_are_always_deleted(
    server: FileServer, urls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CopyingOpener, "_wait", lambda self, file: Path("deleted"))
    with pytest.raises(FolioError, match=r"0\.jsonl was deleted 3 times before it could be read; set FOLIO_STREAM_C"):
        next(TokenStream(open_urls(urls), block_size=8))
