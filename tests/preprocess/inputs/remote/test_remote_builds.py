"""Builds of remote files are those of local copies: through every command, after a kill, and of the hub's corpora."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.build.build import build
from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.stream.corpus import open_corpus
from preprocess.stream.token_stream import TokenStream
from tests.conftest import ROOT
from tests.helpers.file_builds import QUIET, build_files, read_texts
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer

Run = Callable[..., subprocess.CompletedProcess[str]]


def make_lines(name: str, num_lines: int = 50) -> bytes:
    return b"".join(json.dumps({"text": f"{name} {i}"}).encode() + b"\n" for i in range(num_lines))


FILES = {"a/b.jsonl": make_lines("b"), "a/c.jsonl.gz": gzip.compress(make_lines("c")), "z.txt": b"some text\n" * 9}


def read_shards(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".ends", ".docs")
    }


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Return a folder with FILES."""
    for name, data in FILES.items():
        (tmp_path / "copies" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copies" / name).write_bytes(data)
    return tmp_path / "copies"


def test_build_of_urls_is_that_of_local_copies(server: FileServer, local: Path, tmp_path: Path) -> None:
    server.files = {f"/data/{name}": data for name, data in FILES.items()}
    expected = build_files(tmp_path, local, name="local")
    urls = [f"{server.url}/data/{name}" for name in FILES]
    found = build_files(tmp_path, *reversed(urls), name="remote")
    assert read_shards(found.folder) == read_shards(expected.folder)
    assert found.manifest.build_id == expected.manifest.build_id
    sources = found.manifest.sources
    assert [source["url"] for source in sources] == urls
    assert [source["name"] for source in sources] == list(FILES) and all(source["version"] for source in sources)
    assert not any("url" in source for source in expected.manifest.sources)


@pytest.mark.parametrize("kind", ["store", "hub", "mirror"])
def test_skipped_files_of_a_remote_folder_are_reported_as_those_of_a_local_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "some/data/x/a.csv": b"text\none\ntwo\n",
        **{f"some/data/x/{name}": b"?" for name in ("LICENSE", "b.pdf", "c")},
    }
    for name, data in files.items():
        (tmp_path / "s3" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s3" / name).write_bytes(data)
    if kind == "hub":
        request.getfixturevalue("hub").commit("some/data", {name[10:]: data for name, data in files.items()})
    elif kind == "store":
        for name, data in files.items():
            request.getfixturevalue("memory").write(name, data)
    else:
        request.getfixturevalue("monkeypatch").setenv("PREPROCESS_MIRROR", str(tmp_path))
    url = {"store": "memory://bucket/some/data/x", "hub": "hf://datasets/some/data", "mirror": "s3://some/data/x"}[kind]
    warnings = []
    for entry in (url, str(tmp_path / "s3/some/data/x")):
        build(
            load_recipe(None, inputs=(entry,), tokenizer="byte", val_fraction=0.5),
            tmp_path / "b",
            name="b",
            replace=True,
            progress=Progress(),
        )
        warnings.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: skipped")])
    assert warnings == [["warning: skipped 2 files of unknown format: 1 .pdf, 1 no suffix"]] * 2


def test_build_is_kept_if_only_the_version_of_a_file_changes(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.jsonl"] = FILES["a/b.jsonl"]
    recipe = load_recipe(None, inputs=(f"{server.url}/a.jsonl",), tokenizer="byte")
    for etag, is_new in (('"one"', True), ('"two"', False)):
        server.headers["ETag"] = etag
        assert build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET) == is_new
    assert Build(tmp_path / "x").manifest.sources[0]["version"] == '"one"' and not list(verify(Build(tmp_path / "x")))


def test_build_reads_urls_and_local_files_together(server: FileServer, local: Path, tmp_path: Path) -> None:
    server.files["/b.jsonl"] = make_lines("remote")
    result = build_files(tmp_path, f"{server.url}/b.jsonl", local / "a/b.jsonl", (local / "z.txt").as_uri())
    names = [source["name"] for source in result.manifest.sources]
    assert names == ["a/b.jsonl", f"http/127.0.0.1:{server.http.server_port}/b.jsonl", "z.txt"]
    assert len(read_texts(result)) == 101


def test_stream_of_a_dataset_is_that_of_local_copies(hub: HubServer, local: Path) -> None:
    commit = hub.commit("some/data", {**FILES, "README.md": b"# A card"})
    found, expected = (
        open_corpus(None, inputs=(entry,), tokenizer="byte", dedup=False, split="threshold", log=lambda line: None)
        for entry in ("hf://datasets/some/data/**/*.jsonl*", str(local / "a"))
    )
    blocks = [np.concatenate(list(TokenStream(corpus, block_size=8))) for corpus in (found, expected)]
    assert np.array_equal(*blocks) and found.sha256 == expected.sha256
    assert [source["version"] for source in found.manifest().sources] == [commit, commit]


@pytest.mark.slow
def test_commands_read_urls(server: FileServer, preprocess: Run) -> None:
    server.files["/a.jsonl"] = make_lines("some words", 2_000)
    url = f"{server.url.replace('//', '//user:secret@')}/a.jsonl?token=secret"
    for command in (
        ("estimate", "--input", url, "--tokenizer", "byte"),
        ("build", "--input", url, "--tokenizer", "byte", "--name", "x"),
        ("tokenizer", "train", "--input", url, "--num-pieces", "300", "--output", "t"),
    ):
        done = preprocess(*command)
        assert done.returncode == 0 and "secret" not in done.stdout + done.stderr, done.stderr
    done = preprocess("build", "--input", f"{url}x", "--format", "synthetic")
    assert done.returncode == 2 and "secret" not in done.stderr


def test_builds_and_streams_store_no_credentials(
    server: FileServer, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """No login, query of a signed URL or token is in a build, a work folder, the cache or the output."""
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    hub.commit("some/data", FILES, token="hf_SECRET")
    damaged = FILES["a/b.jsonl"] + b'{"text": broken\n' + b'{"text": "\xff"}\n'
    server.files = {"/a.jsonl": FILES["a/b.jsonl"], "/damaged.jsonl": damaged, "/table.csv": b"a,b\n1,2\n"}
    base, query = server.url.replace("//", "//user:SECRET@"), "?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET"
    recipe = load_recipe(None, inputs=(f"{base}/a.jsonl{query}", "hf://datasets/some/data/a/b.jsonl"), tokenizer="byte")
    build(recipe, tmp_path / "x", name="x", replace=False, progress=Progress())
    skip = load_recipe(None, inputs=(f"{base}/damaged.jsonl{query}",), tokenizer="byte", invalid_utf8="skip")
    build(skip, tmp_path / "y", name="y", replace=False, progress=Progress())
    for path, match in (("damaged.jsonl", "is not UTF-8"), ("table.csv", "no column"), ("missing.jsonl", "404")):
        failing = load_recipe(None, inputs=(f"{base}/{path}{query}",), tokenizer="byte")
        with pytest.raises(FolioError, match=match) as error:  # the work folder stays
            build(failing, tmp_path / path, name="z", replace=False, progress=Progress())
        assert "SECRET" not in str(error.value)
    corpus = open_corpus(recipe, log=print, split="threshold", dedup=False)
    list(TokenStream(corpus, block_size=8))
    corpus.save_vocabulary(tmp_path / "vocabulary")
    output = capfd.readouterr()
    assert "SECRET" not in output.out + output.err and "copying" in output.err
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "stats.json"} <= {path.name for path in paths} and any(
        ".work" in str(path) for path in paths
    )
    for path in paths:
        data = path.read_bytes()
        data += gzip.decompress(data) if path.suffix == ".gz" else b""
        assert b"SECRET" not in data and "SECRET" not in str(path), path


KILLED = """
import sys
import preprocess.inputs.remote.transfer as transfer
transfer.SYNC_INTERVAL_S = 0.05
from preprocess.__main__ import main
main()
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_build_continues_a_copy_that_was_killed(
    server: FileServer, tmp_path: Path, remote_cache: Path, preprocess: Run, sent: signal.Signals
) -> None:
    data = make_lines("a line of a larger file", 30_000)
    server.files["/big.jsonl"], server.delay_s = data, 0.02
    arguments = ["build", "--input", f"{server.url}/big.jsonl", "--tokenizer", "byte", "--no-dedup", "--output", "x"]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (positions := list(remote_cache.rglob("*.position"))) or int(positions[0].read_bytes()) < len(data) // 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait(timeout=10) == (130 if sent == signal.SIGINT else -sent)  # long before all of it has arrived
    server.delay_s = 0
    done = preprocess(*arguments)
    assert done.returncode == 0, done.stderr
    start = server.requests[-1].start
    assert start is not None and len(data) // 4 <= start < len(data)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/big.jsonl").write_bytes(data)
    recipe = load_recipe(None, inputs=(str(tmp_path / "copy"),), tokenizer="byte", dedup=False)
    build(recipe, tmp_path / "y", name="y", replace=False, progress=QUIET)
    assert read_shards(tmp_path / "x") == read_shards(tmp_path / "y")
    assert not list(remote_cache.rglob("*.partial")) and not list(remote_cache.rglob("*.position"))


def make_parquet(*rows: dict[str, str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


TEXT = make_parquet({"text": "one"}, {"text": "two"}, {"text": "three"})
WEB = make_parquet(*({"text": f"text {i}", "language": "en"} for i in range(2_000)))
ANSWERS = make_parquet(
    *({"query": f"q{i}", "synthetic_reasoning": "r", "synthetic_answer": "a", "language": "en"} for i in range(2_000))
)
WIKITEXT = "b08601e04326c79dfdd32d625aee71d232d685c3"
# The names are those of the repositories on the hub, as far as they are documented.
CORPORA: dict[str, tuple[str, dict[str, bytes], int]] = {
    "tinystories": (
        "roneneldan/TinyStories",
        {
            "README.md": b"#",
            "TinyStories-train.txt": b"the same stories as text",
            "data/train-00000-of-00004-2d5a1467fff1081b.parquet": TEXT,
            "data/validation-00000-of-00001-869c898b519ad725.parquet": make_parquet({"text": "four"}),
        },
        4,
    ),
    "openwebtext": (
        "Skylion007/openwebtext",
        {"README.md": b"#", "plain_text/train-00000-of-00080.parquet": WEB, "openwebtext.py": b"code"},
        2_000,
    ),
    "wikitext-103": (
        "Salesforce/wikitext",
        {
            "wikitext-103-raw-v1/train-00000-of-00002.parquet": TEXT,
            "wikitext-103-raw-v1/validation-00000-of-00001.parquet": make_parquet({"text": "four"}),
            "wikitext-103-raw-v1/test-00000-of-00001.parquet": make_parquet({"text": "five"}),
            "wikitext-2-raw-v1/train-00000-of-00001.parquet": TEXT,
        },
        4,
    ),
    "fineweb-edu": (
        "HuggingFaceFW/fineweb-edu",
        {"sample/10BT/000_00000.parquet": WEB, "sample/100BT/000_00000.parquet": WEB, "data/x/0.parquet": WEB},
        2_000,
    ),
    "synth": ("PleIAs/SYNTH", {"README.md": b"#", "synth_001.parquet": ANSWERS}, 2_000),
}


@pytest.mark.parametrize("corpus", CORPORA)
def test_build_copies_a_corpus_from_the_hub(hub: HubServer, tmp_path: Path, corpus: str) -> None:
    repo, files, num_documents = CORPORA[corpus]
    commit = hub.commit(repo, files, commit=WIKITEXT if corpus == "wikitext-103" else "")
    build(load_recipe(corpus, tokenizer="byte"), tmp_path / "x", name="x", replace=False, progress=QUIET)
    manifest = Build(tmp_path / "x").manifest
    assert sum(split.documents for split in manifest.splits.values()) == num_documents
    assert {source["version"] for source in manifest.sources} == {commit}


def test_build_reads_a_corpus_of_the_hub_from_the_mirror(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, files, _ = CORPORA["tinystories"]
    hub.commit(repo, files)
    recipe = load_recipe("tinystories", tokenizer="byte")
    build(recipe, tmp_path / "hub", name="x", replace=False, progress=QUIET)
    expected = Build(tmp_path / "hub").manifest
    hub.requests.clear()
    for folder in ("hf/datasets/roneneldan/TinyStories/data", "tinystories"):
        mirror = tmp_path / folder.split("/")[0] / "mirror"
        (mirror / folder).mkdir(parents=True)
        for name, data in files.items():
            if name.startswith("data/"):
                (mirror / folder / Path(name).name).write_bytes(data)
        monkeypatch.setenv("PREPROCESS_MIRROR", str(mirror))
        build(recipe, mirror / "x", name="x", replace=False, progress=QUIET)
        assert Build(mirror / "x").manifest.build_id == expected.build_id and not hub.requests
