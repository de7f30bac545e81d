"""`preprocess export --format jsonl`: the text and the metadata of each document."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from preprocess.cli.main import main
from preprocess.errors import FolioError, MisuseError
from preprocess.exchange import tokens
from preprocess.exchange.jsonl import export_jsonl
from preprocess.shards.format import SPLITS, Build
from preprocess.tokenizers.decode_build import decode_document

LINES = [f"Документ {i} \x1b[31m <author_X> \u2028 end" for i in range(30)]


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_jsonl_has_every_document_with_its_metadata(
    build_text: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CHUNK_DOCUMENTS", 4)
    monkeypatch.setattr("preprocess.exchange.jsonl.SLICE_BYTES", 3)  # in the middle of characters
    text = "".join(f"{line}\n" for line in LINES)
    settings = {"split": "exact", "document": "line", "author": "Ann Lee", "year": 1998, "lang": "ru", "clean": ()}
    build = build_text(text, shard_tokens=300, **settings)
    paths = export_jsonl(build, tmp_path / "out", replace=False)
    assert [path.name for path in paths] == ["train.jsonl", "val.jsonl"]
    rows = [row for path in paths for row in read_lines(path)]
    assert sorted(row["position"] for row in rows) == list(range(len(LINES)))
    for row in rows:
        assert row == {
            "text": LINES[row["position"]],
            **{"author": "Ann_Lee", "city": None, "year": 1998, "language": "ru"},
            **{"source": build.manifest.sources[0]["name"], "position": row["position"]},
        }
    for split, path in zip(SPLITS, paths, strict=True):
        assert [row["position"] for row in read_lines(path)] == build.docs(split)["position"].tolist()


def test_jsonl_of_a_build_without_metadata_has_nulls(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text("one\ntwo\n", document="line", val_fraction=0, split="exact")
    (path,) = export_jsonl(build, tmp_path / "out", replace=False)
    rows = read_lines(path)
    assert [row["text"] for row in rows] == ["one", "two"]
    assert all(row[key] is None for row in rows for key in ("author", "city", "year", "language"))


def test_jsonl_is_read_by_a_build(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text("one\ntwo\nthree\n", document="line", val_fraction=0, split="exact")
    arguments = ["export", str(build.folder), "--format", "jsonl", "--output", str(tmp_path / "out")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    again = ["build", "--input", str(tmp_path / "out"), "--tokenizer", "byte", "--val-fraction", "0", "--workers", "1"]
    result = CliRunner().invoke(main, [*again, "--output", str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    assert Build(tmp_path / "again").docs("train")["hash"].tolist() == build.docs("train")["hash"].tolist()


def test_jsonl_keeps_existing_files_without_replace(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text()
    paths = export_jsonl(build, tmp_path / "out", replace=False)
    before = paths[0].read_bytes()
    with pytest.raises(MisuseError, match="exists already; pass --replace"):
        export_jsonl(build, tmp_path / "out", replace=False)
    assert export_jsonl(build, tmp_path / "out", replace=True) == paths and paths[0].read_bytes() == before


def test_jsonl_of_a_smaller_build_does_not_leave_validation_documents(
    build_text: Callable[..., Build], tmp_path: Path
) -> None:
    export_jsonl(build_text(), tmp_path / "out", replace=False)
    small = build_text("one\ntwo\n", document="line", val_fraction=0, split="exact", replace=True)
    with pytest.raises(MisuseError, match=r"val\.jsonl exists"):
        export_jsonl(small, tmp_path / "out", replace=True)


def test_a_document_of_too_much_text_is_refused(
    build_text: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids of 67 MB can stand for 4 GB of text."""
    build = build_text("word " * 50, document="file", val_fraction=0.0)
    monkeypatch.setattr("preprocess.tokenizers.decode_build.SUM_TOKENS", 100)
    for limit, is_refused in ((250, False), (249, True)):
        monkeypatch.setattr("preprocess.tokenizers.decode_build.MAX_TEXT_BYTES", limit)
        for decode in (
            lambda: export_jsonl(build, tmp_path / "out", replace=True),
            lambda: decode_document(build, "train", 0),
        ):
            with pytest.raises(FolioError, match="of 250 bytes of text") if is_refused else nullcontext():
                decode()
