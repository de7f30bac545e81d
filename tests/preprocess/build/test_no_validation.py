"""Builds with `val_fraction` 0: all documents are for training, and the val split is empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.inspect_tokenizer import inspect_build
from preprocess.build.stats import format_stats
from preprocess.errors import FolioError
from preprocess.exchange.nanogpt import export_nanogpt
from preprocess.exchange.text import export_text
from preprocess.shards.format import Build
from preprocess.shards.leaks import count_leaks
from preprocess.stream import TokenStream
from tests.helpers.file_builds import build_files, read_stats, read_texts
from tests.preprocess.stream.helpers import open_files

LINES = [f"line {i}" for i in range(30)]
SETTINGS: list[dict[str, Any]] = [
    {"document": "line"},
    {"document": "line", "split": "threshold"},
    {"document": "line", "group_by": "source"},
    {"document": "passage", "passage_characters": 20, "split": "contiguous"},
]


def make_file(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    return tmp_path / "a.txt"


@pytest.mark.parametrize("settings", SETTINGS)
def test_all_documents_are_for_training(tmp_path: Path, settings: dict[str, Any]) -> None:
    build = build_files(tmp_path, make_file(tmp_path), val_fraction=0.0, **settings)
    val = build.manifest.splits["val"]
    assert (val.documents, val.tokens, val.text_bytes, list(val.shards)) == (0, 0, 0, [])
    assert "\n".join(read_texts(build)) == "\n".join(LINES)
    assert not len(build.docs("val")) and not list(tmp_path.glob("x/val-*"))


def test_one_document_is_enough_and_is_not_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = build_files(tmp_path, make_file(tmp_path), val_fraction=0.0)
    assert build.manifest.splits["train"].documents == 1 and "split at random" not in capsys.readouterr().err


def test_default_and_given_splits_still_need_validation_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "s": "train"}\n')
    with pytest.raises(FolioError, match="the validation side of own would be empty with the given split"):
        build_files(tmp_path, tmp_path / "a.jsonl", split="given", split_column="s")


def test_statistics_have_no_lengths_of_the_empty_split_and_no_nan(tmp_path: Path) -> None:
    build = build_files(tmp_path, make_file(tmp_path), val_fraction=0.0, document="line")
    data = (build.folder / "stats.json").read_bytes()
    assert list(read_stats(build)["tokens_per_document"]) == ["train"] and b"NaN" not in data
    json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    lines = format_stats(data)
    assert any(line.split()[:3] == ["val", "0", "0"] for line in lines)
    assert any(line.startswith("tokens per document of train") for line in lines)


def test_commands_that_read_builds_accept_the_empty_split(tmp_path: Path) -> None:
    build = build_files(tmp_path, make_file(tmp_path), val_fraction=0.0, document="line")
    assert inspect_build(Build(build.folder), 10)["unknown"]["documents"] == 10
    assert count_leaks(build).num_texts == 0
    export_text(build, tmp_path / "text", by_language=False, authors=False, replace=False)
    assert (tmp_path / "text/train.txt").read_text().count("line") == len(LINES)
    export_nanogpt(build, tmp_path / "nanogpt", replace=False)
    assert (tmp_path / "nanogpt/val.bin").stat().st_size == 0


def test_stream_without_validation_reads_all_documents_for_training(tmp_path: Path) -> None:
    corpus = open_files(make_file(tmp_path), document="line", val_fraction=0.0)
    assert not corpus.has_validation
    stream = TokenStream(corpus, block_size=4, stream_buffer=0)
    list(stream)
    assert stream.num_documents == len(LINES)
