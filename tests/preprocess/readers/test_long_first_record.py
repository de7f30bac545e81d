"""JSON whose first megabyte is in the first record, before its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import MisuseError
from preprocess.readers import json_layout
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files, read_texts

FILLERS: dict[str, Any] = {
    "text": "x" * 1_500_000,
    "numbers": list(range(250_000)),
    "objects": [{"key": i, "body": "z" * 100} for i in range(12_000)],
    "object": {"text": "inner", "numbers": list(range(250_000))},
}
WRITERS: dict[str, Any] = {
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "one line": lambda rows: " ".join(map(json.dumps, rows)),
    "values": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
    "array": json.dumps,
    "field": lambda rows: json.dumps({"version": 1, "data": rows}),
    "late field": lambda rows: json.dumps({"comment": "y" * 1_200_000, "data": rows}),
}


@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("layout", WRITERS)
def test_text_after_the_first_megabyte_is_found(tmp_path: Path, filler: str, layout: str) -> None:
    rows = [{"filler": FILLERS[filler], "text": "one"}, {"filler": "", "text": "two"}, {"text": "three"}]
    (tmp_path / "a.json").write_text(WRITERS[layout](rows))
    assert read_texts(build_files(tmp_path, tmp_path / "a.json")) == ["one", "two", "three"]


def test_text_at_the_start_of_a_long_first_record_is_found(tmp_path: Path) -> None:
    rows = [{"text": "one", "filler": FILLERS["text"]}, {"text": "two"}]
    for layout in ("lines", "one line", "values"):
        (tmp_path / "a.json").write_text(WRITERS[layout](rows))
        assert read_texts(build_files(tmp_path, tmp_path / "a.json")) == ["one", "two"], layout


def test_objects_with_text_in_a_record_with_text_are_refused(tmp_path: Path) -> None:
    rows = [{"turns": [{"text": "z" * 100}] * 12_000, "text": "one"}, {"turns": [], "text": "two"}]
    (tmp_path / "a.jsonl").write_text(WRITERS["lines"](rows))
    with pytest.raises(MisuseError, match="not clear which are the records; pass --json-field turns if") as error:
        build_files(tmp_path, tmp_path / "a.jsonl")
    assert_one_line(str(error.value))


def test_search_for_the_text_ends_at_the_size_of_the_largest_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(json_layout, "get_max_record_bytes", lambda recipe: 1 << 21)
    scanned: list[int] = []
    list_fields = json_layout._list_fields
    monkeypatch.setattr(json_layout, "_list_fields", lambda text: scanned.append(len(text)) or list_fields(text))
    (tmp_path / "a.json").write_text(json.dumps({"filler": "x" * (5 << 20), "text": "one"}))
    with pytest.raises(Exception, match="one side would be empty"):
        build_files(tmp_path, tmp_path / "a.json")
    assert max(scanned) <= (1 << 21) + (1 << 18)
