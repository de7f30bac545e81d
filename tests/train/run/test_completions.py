"""completions.jsonl: what a run has written between its steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from train.run.completions import (
    MAX_CHARACTERS,
    MAX_ROW_BYTES,
    CompletionRow,
    append_completion,
    drop_completions,
    open_completions,
)


def test_rows_are_read_back_and_later_ones_are_dropped(tmp_path: Path) -> None:
    rows = [CompletionRow(step=step, text=f"line\n\u2028 {step}") for step in (5, 10, 15)]
    assert not list(open_completions(tmp_path))
    drop_completions(tmp_path, last_step=3)
    assert not list(tmp_path.iterdir())
    for row in rows:
        append_completion(tmp_path, row)
    assert list(open_completions(tmp_path)) == rows
    with open(tmp_path / "completions.jsonl", "ab") as file:
        file.write(b'{"step": 20, "te')  # a killed process
    drop_completions(tmp_path, last_step=10)
    append_completion(tmp_path, rows[2])
    assert list(open_completions(tmp_path)) == rows


@pytest.mark.parametrize(
    "row",
    [
        *({"step": step, "text": ""} for step in (-1, True, 10**15 + 1)),
        {"text": ""},
        {"step": 1, "text": 3},
        [],
        "no",
    ],
)
def test_other_lines_are_rejected(tmp_path: Path, row: object) -> None:
    good = json.dumps({"step": 1, "text": "a"})
    (tmp_path / "completions.jsonl").write_text(f"{json.dumps(row)}\n{good}\n")
    with pytest.raises(FolioError, match="line 1 .*completion.*delete the line"):
        list(open_completions(tmp_path))


def test_longest_text_that_is_written_can_be_read(tmp_path: Path) -> None:
    row = CompletionRow(step=1, text="\U0001f600" * (MAX_CHARACTERS + 9))  # 12 bytes of JSON each
    append_completion(tmp_path, row)
    assert (tmp_path / "completions.jsonl").stat().st_size <= MAX_ROW_BYTES
    [read] = open_completions(tmp_path)
    assert read.text == row.text[:MAX_CHARACTERS]
