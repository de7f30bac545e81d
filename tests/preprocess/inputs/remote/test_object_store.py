"""Files behind the file systems of fsspec."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.remote.fetch import FetchedFile, fetch_inputs
from preprocess.progress import Bar, Progress
from tests.helpers.buckets import Bucket

Fetch = Callable[..., list[FetchedFile]]
DATA = bytes(range(256)) * 40_000  # 10 MB
FILES = {"data/a.jsonl": b'{"text": "a"}\n', "data/sub/b.jsonl": b'{"text": "b"}\n', "data/README.md": b"# A card"}


def test_fetch_reads_files_folders_and_globs(bucket: Bucket, fetch: Fetch) -> None:
    for name, data in FILES.items():
        bucket.write(name, data)
    folder = fetch(f"{bucket.url}/data")
    assert [file.name.rpartition("bucket/")[2] for file in folder] == ["data/a.jsonl", "data/sub/b.jsonl"]
    assert [Path(file.path).read_bytes() for file in folder] == list(FILES.values())[:2]
    assert all(file.origin and file.origin.version for file in folder)
    assert folder[0].origin is not None and folder[0].origin.url.endswith("bucket/data/a.jsonl")
    assert fetch(f"{bucket.url}/data/") == folder == fetch(f"{bucket.url}/data/**/*.jsonl")
    assert fetch(f"{bucket.url}/data/*.jsonl") == fetch(f"{bucket.url}/data/a.jsonl") == folder[:1]


@pytest.mark.parametrize("name", ["a?.txt", "a[bc].txt", "a*.txt"])
def test_an_object_whose_name_is_a_glob_is_read_alone(bucket: Bucket, fetch: Fetch, name: str) -> None:
    for other in (name, "ab.txt", "ac.txt"):
        bucket.write(other, other.encode())
    assert [Path(file.path).read_bytes() for file in fetch(f"{bucket.url}/{name}")] == [name.encode()]


def test_fetch_reads_a_changed_object_anew(bucket: Bucket, fetch: Fetch) -> None:
    bucket.write("a.txt", b"old")
    [old] = fetch(f"{bucket.url}/a.txt")
    bucket.write("a.txt", b"new")
    [new] = fetch(f"{bucket.url}/a.txt")
    assert Path(old.path).read_bytes() == b"old" and Path(new.path).read_bytes() == b"new"


@pytest.mark.parametrize("name", ["missing.txt", "missing/*.txt", "data/*.csv"])
def test_fetch_reports_what_does_not_exist(bucket: Bucket, fetch: Fetch, name: str) -> None:
    bucket.write("data/a.txt", b"x")
    with pytest.raises(FolioError, match=r"(does not exist; check the bucket|matches no file of a known format)"):
        fetch(f"{bucket.url}/{name}")


class Stopped(Exception):
    pass


class StoppingProgress(Progress):
    """A Progress that stops the work after some bytes, and counts those that it is told of."""

    def __init__(self, stop_after: int) -> None:
        super().__init__(quiet=True)
        self.stop_after, self.amounts = stop_after, list[int]()

    @contextmanager
    def bar(self, label: str, *, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        yield self

    def update(self, amount: int, num_documents: int | None = None) -> None:
        self.amounts.append(amount)
        if sum(self.amounts) > self.stop_after:
            raise Stopped


def test_fetch_continues_an_object(bucket: Bucket, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.write("a.txt", DATA)
    monkeypatch.setattr("preprocess.inputs.remote.object_store.CHUNK_BYTES", 1 << 20)
    with pytest.raises(Stopped):
        fetch_inputs([f"{bucket.url}/a.txt"], "auto", StoppingProgress(4 << 20))  # after the fifth block
    rest = StoppingProgress(1 << 40)
    [file] = fetch_inputs([f"{bucket.url}/a.txt"], "auto", rest)
    assert Path(file.path).read_bytes() == DATA and rest.amounts[0] == 5 << 20
    assert sum(rest.amounts) == len(DATA)


def test_fetch_does_not_mix_two_versions_of_an_object(
    bucket: Bucket, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("a.txt", DATA)
    monkeypatch.setattr("preprocess.inputs.remote.object_store.CHUNK_BYTES", 1 << 20)
    progress = StoppingProgress(1 << 40)
    update = progress.update

    def change(amount: int, num_documents: int | None = None) -> None:
        if len(progress.amounts) == 3:
            bucket.write("a.txt", DATA[::-1])
        update(amount)

    monkeypatch.setattr(progress, "update", change)
    with pytest.raises(FolioError, match=r"a\.txt changed while it was downloaded"):
        fetch_inputs([f"{bucket.url}/a.txt"], "auto", progress)
    [file] = fetch(f"{bucket.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA[::-1]


@pytest.mark.parametrize(("url", "message"), [
    ("nonsense://bucket/a.txt", "nonsense://bucket/a.txt has an unknown scheme; expected https, hf, s3, gs or another"),
    ("gs://bucket/a.txt", "gs:// needs a library; install it with pip install 'folio-lm[gs]'"),
    ("oss://user:SECRET@bucket/a.txt", "oss:// needs a library; "),
])  # fmt: skip
def test_fetch_names_the_library_that_is_missing(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    for name in ("gcsfs", "ossfs"):
        monkeypatch.setitem(sys.modules, name, None)
    for scheme in ("gs", "oss"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(MisuseError) as error:
        fetch(url)
    assert str(error.value).startswith(message)


def test_fetch_explains_a_server_that_does_not_answer(fetch: Fetch) -> None:
    with pytest.raises(FolioError, match=r"ftp://127\.0\.0\.1:9/a\.txt: no connection; go online"):
        fetch("ftp://127.0.0.1:9/a.txt")


@pytest.mark.slow
def test_fetch_explains_a_rejected_request(s3: Bucket, fetch: Fetch) -> None:
    with pytest.raises(
        FolioError, match=r"s3://A bucket/a\.txt: the request is rejected \(ParamValidationError\); check"
    ):
        fetch("s3://A bucket/a.txt")
    with pytest.raises(FolioError, match=r"s3://another/a\.txt does not exist; check the bucket and the path"):
        fetch("s3://another/a.txt")


@pytest.mark.slow
def test_fetch_reads_a_public_bucket_without_credentials(
    s3: Bucket, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.write("a.txt", b"public")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    [file] = fetch("s3://bucket/a.txt")
    assert Path(file.path).read_bytes() == b"public"


@pytest.mark.slow
def test_fetch_reads_the_cache_without_the_object_store(
    s3: Bucket, fetch: Fetch, remote_cache: Path, capfd: pytest.CaptureFixture
) -> None:
    s3.write("a.txt", b"text")
    files = fetch("s3://bucket/a.txt")
    s3.close()
    assert fetch("s3://bucket/a.txt") == files
    output = capfd.readouterr().err
    assert "s3://bucket/a.txt: no connection; the copies in the cache are read" in output
    with pytest.raises(FolioError, match=r"s3://bucket/b\.txt: no connection; go online"):
        fetch("s3://bucket/b.txt")
    stored = b"".join(path.read_bytes() for path in remote_cache.rglob("*") if path.is_file())
    assert b"secret" not in stored + output.encode() + str(list(map(dataclasses.asdict, files))).encode()
