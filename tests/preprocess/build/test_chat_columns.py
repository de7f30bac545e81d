"""The columns of chats that a build recognises: none that belongs to the chats is left out unnoticed."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.errors import MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.tokenizers.decode_build import decode_document
from tests.preprocess.build.helpers import run_build

WITHOUT_INPUT = {"instruction": "Add.", "output": "No."}
WITH_INPUT = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
PROMPT = "<|user_start|>Add.\n\n1 + 1<|user_end|><|assistant_start|>"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def build_all(folder: Path) -> list[str]:
    """Build the files in `folder`, and return the documents with their control tokens."""
    run_build(load_recipe(None, inputs=(str(folder),), tokenizer="byte", val_fraction=0.0), folder.parent / "build")
    build = Build(folder.parent / "build")
    documents = range(build.manifest.splits["train"].documents)
    return ["".join(part.as_text() for part in decode_document(build, "train", number)) for number in documents]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("suffix", "input_column", "reply"),
    [
        *((".jsonl", *columns) for columns in itertools.product(("input", "context"), ("output", "response"))),
        (".csv", "context", "output"),
        (".parquet", "input", "response"),
    ],
)
def test_the_input_of_an_instruction_is_read_under_every_name(
    folder: Path, suffix: str, input_column: str, reply: str
) -> None:
    write_rows(folder / f"a{suffix}", [{"instruction": "Add.", input_column: "1 + 1", reply: "2"}])
    assert build_all(folder) == [f"{PROMPT}2<|assistant_end|><|endoftext|>"]


@pytest.mark.parametrize("has_two_files", [False, True])
def test_an_input_that_appears_late_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, has_two_files: bool) -> None:
    rows = [*[WITHOUT_INPUT | {"output": str(number)} for number in range(100)], WITH_INPUT]
    if has_two_files:
        write_rows(folder / "a.jsonl", rows[:-1])
        write_rows(folder / "b.jsonl", rows[-1:])
    else:
        for module in ("json", "json_columns"):
            monkeypatch.setattr(f"preprocess.readers.{module}.HEAD_BYTES", 1000)
        write_rows(folder / "a.jsonl", rows)
    documents = build_all(folder)
    assert len(documents) == 101 and documents[-1].startswith(PROMPT)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_the_input_of_another_is_an_error(folder: Path, suffix: str) -> None:
    write_rows(folder / f"a{suffix}", [WITHOUT_INPUT])
    write_rows(folder / f"b{suffix}", [WITH_INPUT])
    with pytest.raises(MisuseError, match=rf"a{suffix} has no column 'input', .*--chat-columns"):
        build_all(folder)


def test_a_column_that_may_belong_to_the_chats_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    write_rows(folder / "a.jsonl", [{"messages": messages, "system": "Be kind.", "id": 1}] * 2)
    build_all(folder)
    assert "the chats are read without 1 column (system); " in capsys.readouterr().err
