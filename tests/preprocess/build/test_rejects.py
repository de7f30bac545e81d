"""What a build reports about records that it could not use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from tests.helpers.file_builds import build_files


def test_build_without_documents_reports_reasons_and_keeps_rejects(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('["a list"]\n{"text": 5}\n')
    with pytest.raises(FolioError, match="no document is left of own: 2 documents read; 2 malformed"):
        build_files(tmp_path, tmp_path / "a.jsonl")
    assert len((tmp_path / ".x.work/refused.jsonl").read_text().splitlines()) == 2
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n')
    with pytest.raises(FolioError, match="1 document read; 1 filtered"):
        build_files(tmp_path, tmp_path / "a.jsonl", where="n > 5")


def test_build_warns_about_rejected_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"body": "c"}, {"text": 7}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_files(tmp_path, tmp_path / "a.jsonl")
    err = capsys.readouterr().err
    assert "some documents were dropped or repaired: 1 malformed, 1 null text" in err
    assert "1 malformed record was skipped and saved in" in err
