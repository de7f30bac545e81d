"""The CSV reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from tests.helpers.file_builds import build_files, read_stats, read_texts


def test_read_csv_reads_quotes_and_rejects_rows_of_wrong_length(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"a, ""quoted""\nline"\n2\n3,plain,too,many\n4,NA\n5,last\n')
    result = build_files(tmp_path, path)
    assert (
        read_texts(result) == ['a, "quoted"\nline', "NA", "last"] and read_stats(result)["documents"]["malformed"] == 2
    )
    assert len((tmp_path / ".x.work/refused.jsonl").read_text().splitlines()) == 2
    path.write_text("text,text\na,b\n")
    with pytest.raises(MisuseError, match="has two columns of the same name"):
        build_files(tmp_path, path)
