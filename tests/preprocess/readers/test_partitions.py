"""The size of partitions changes no document and no position."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import FolioError
from tests.helpers.file_builds import FEW_EXAMPLES, build_files, read_texts


@FEW_EXAMPLES
@given(st.text("ab \n\r\té", max_size=200), st.sampled_from(["line", "paragraph", "separator"]), st.integers(1, 60))
def test_partition_size_does_not_change_text_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, document: str, partition_bytes: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode() + b"\nend one\n\nend two")
    separator = {"separator": "ab"} if document == "separator" else {}
    results = []
    for size in (1 << 20, partition_bytes):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", size)
        monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", max(size // 2, 1))
        try:
            results.append(read_texts(build_files(tmp_path, path, document=document, **separator)))
        except FolioError as e:  # the text is a single document
            assert "cannot be split" in str(e)
            results.append(["cannot be split"])
    assert results[0] == results[1]


def test_partition_size_does_not_change_positions_of_kept_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"{i} is long enough text" if i % 3 else "x", "lang": "en" if i % 5 else "fr"} for i in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ids = set()
    for size in (1 << 20, 1000, 3000):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", size)
        ids.add(build_files(tmp_path, tmp_path / "a.jsonl", min_characters=20, where='lang == "en"').build_id)
    assert len(ids) == 1
