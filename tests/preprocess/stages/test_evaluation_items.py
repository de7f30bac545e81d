"""Reading evaluation items from files of all formats."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.stages.decontaminate import EvaluationIndex
from preprocess.stages.evaluation_items import build_index, find_evaluation_files

ROWS: list[dict[str, Any]] = [
    {"question": " ".join(f"q{i}w{k}" for k in range(15)), "subject": "history", "level": i} for i in range(30)
]
CHOICES = {"choices": ["a", "b"], "meta": {"source": " ".join(f"m{k}" for k in range(15))}}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            path.write_text("\n".join(lines) + "\n")
        case ".parquet":
            pq.write_table(table, path, row_group_size=7)
        case ".arrow":
            feather.write_feather(table, path, compression="uncompressed")
        case ".txt":
            path.write_text("".join(row["question"] + "\n" for row in rows))
        case ".gz":
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def index_files(*paths: Path) -> EvaluationIndex:
    recipe = load_recipe(None, inputs=("a.txt",), decontaminate=tuple(map(str, paths)))
    recipe, files = find_evaluation_files(recipe)
    assert recipe.decontaminate_sha256 == tuple(file.sha256 for file in files)
    return build_index(files)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.txt", "a.jsonl.gz"])
def test_items_of_all_formats_are_the_same(tmp_path: Path, name: str) -> None:
    rows = ROWS if name.endswith((".csv", ".txt")) else [row | CHOICES for row in ROWS]
    expected = index_files(write(tmp_path / "expected.txt", ROWS))
    found = index_files(write(tmp_path / name, rows))
    assert found.hashes.tolist() == expected.hashes.tolist() and found.items.tolist() == expected.items.tolist()
    assert (found.files[0].num_items, found.files[0].num_short) == (30, 0) and len(found.hashes) == 90


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_only_the_column_text_is_read_if_there_is_one(tmp_path: Path, suffix: str) -> None:
    rows = [{**row, "text": " ".join(f"t{i}{k}" for k in range(13))} for i, row in enumerate(ROWS)]
    assert len(index_files(write(tmp_path / f"a{suffix}", rows)).hashes) == 30


def test_items_of_several_files_are_numbered_one_after_another(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", ROWS[:10]), write(tmp_path / "b.txt", ROWS[10:])]
    index = index_files(*paths)
    assert [(file.name, file.num_items) for file in index.files] == [("a.jsonl", 10), ("b.txt", 20)]
    assert index.num_ngrams.tolist() == [3] * 30


def test_line_without_text_has_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\nshort\n" + ROWS[0]["question"])
    index = index_files(path)
    assert index.num_ngrams.tolist()[index.files[0].num_items - 1] == 3


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe1 " + ROWS[0]["question"].encode() + b"\xe9\n" * 2)
    assert index_files(path).files[0].num_short == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nope.txt", None, r"--decontaminate .*nope.txt does not exist; name a file"),
        ("folder", None, "--decontaminate .*folder is a folder; name a file"),
        ("pipe", None, "--decontaminate .*pipe is a pipe or a device; name a file"),
        ("a.html", "<html><p>text</p></html>", "must be a text file with one item in each line, or a JSON, CSV"),
        ("a.jsonl", '{"n": [1]}\n', "a.jsonl has no item with text; write the text of each item to a line"),
        ("a.txt", "", "a.txt has no item with text"),
    ],
)
def test_unusable_file_is_reported(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(MisuseError, match=message):
        index_files(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("items.txt", b"hello\0world\nmore\n", "items.txt may be UTF-16, or UTF-8 with NULs"),
        ("items.dat", b"some words\n", "the format of .*items.dat is not clear from its name"),
    ],
)
def test_unclear_file_is_reported_without_the_options_of_inputs(
    tmp_path: Path, name: str, data: bytes, found: str
) -> None:
    (tmp_path / name).write_bytes(data)
    recipe = load_recipe(None, inputs=("x.txt",), decontaminate=(str(tmp_path / name),))
    with pytest.raises(MisuseError, match=f"--decontaminate: .*{found}; convert it to UTF-8 with one item") as e:
        find_evaluation_files(recipe)
    assert "--encoding" not in str(e.value) and "--format" not in str(e.value)


def test_table_without_text_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"n": [1, 2], "b": 3}])
    with pytest.raises(MisuseError, match="a.parquet has no column of text, its columns are n, b; write the text"):
        index_files(path)


def test_damaged_file_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FolioError, match=r"a\.parquet"):
        index_files(path)
