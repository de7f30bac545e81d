"""Files of pandas give the documents of their data frame, or are refused for the true reason."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError, MisuseError
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files
from tests.preprocess.readers.written_by.helpers import ROWS, check_documents

pandas = pytest.importorskip("pandas")
FRAME = pandas.DataFrame(ROWS)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"index": False}, {"sep": ";"}, {"sep": "\t"}, {"sep": "|"}, {"quoting": csv.QUOTE_ALL},
        {"quoting": csv.QUOTE_NONNUMERIC, "sep": ";"}, {"lineterminator": "\r\n"}, {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
    ],
    ids=str,
)  # fmt: skip
def test_csv_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    FRAME.to_csv(tmp_path / "a.csv", **options)
    check_documents(tmp_path, tmp_path / "a.csv")


@pytest.mark.parametrize("doubles_quotes", [True, False])
def test_csv_with_an_escape_character_is_read(tmp_path: Path, doubles_quotes: bool) -> None:
    FRAME.to_csv(tmp_path / "a.csv", escapechar="\\", doublequote=doubles_quotes)
    check_documents(tmp_path, tmp_path / "a.csv", escape="\\")
    if not doubles_quotes:
        with pytest.raises(FolioError, match=r"closed in the middle of a value; .* pass --escape '\\'"):
            build_files(tmp_path, tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zip"])  # pandas needs another package for zst
def test_compressed_csv_and_json_are_read(tmp_path: Path, suffix: str) -> None:
    FRAME.to_csv(tmp_path / f"a.csv.{suffix}")
    check_documents(tmp_path, tmp_path / f"a.csv.{suffix}")
    FRAME.to_json(tmp_path / f"a.jsonl.{suffix}", orient="records", lines=True)
    check_documents(tmp_path, tmp_path / f"a.jsonl.{suffix}")


@pytest.mark.parametrize(
    "options",
    [
        {"orient": "records", "lines": True}, {"orient": "records"}, {"orient": "records", "indent": 2},
        {"orient": "records", "force_ascii": False}, {"orient": "table"},
    ],
    ids=str,
)  # fmt: skip
def test_json_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    FRAME.to_json(tmp_path / "a.json", **options)
    check_documents(tmp_path, tmp_path / "a.json", json_field="data" if options["orient"] == "table" else None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, FolioError, r"a row in each key, as pandas writes it by default; write it with to_json\(orient='records'"),
        ({"orient": "columns"}, FolioError, r"a row in each key, .* write it with to_json\(orient='records'"),
        ({"orient": "split"}, MisuseError, r"a whole table in one object, .*orient='split'\); write it with to_json"),
        ({"orient": "index"}, MisuseError, r"a whole table in one object, .*orient='index'\); write it with to_json"),
        ({"orient": "values"}, FolioError, "expected a JSON object, got array"),
    ],
    ids=str,
)
def test_json_of_another_layout_is_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    FRAME.to_json(tmp_path / "a.json", **options)
    with pytest.raises(error, match=message) as caught:
        build_files(tmp_path, tmp_path / "a.json")
    assert_one_line(str(caught.value))


@pytest.mark.parametrize("compression", [None, "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_parquet_is_read(tmp_path: Path, compression: str | None) -> None:
    FRAME.to_parquet(tmp_path / "a.parquet", compression=compression)
    check_documents(tmp_path, tmp_path / "a.parquet")


@pytest.mark.parametrize("dtype", ["category", "object"])
def test_columns_of_other_types_are_read(tmp_path: Path, dtype: str) -> None:
    FRAME.astype({"text": dtype}).to_parquet(tmp_path / "a.parquet")
    check_documents(tmp_path, tmp_path / "a.parquet")
    FRAME.astype({"text": dtype}).to_feather(tmp_path / "a.feather")
    check_documents(tmp_path, tmp_path / "a.feather")


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_is_read(tmp_path: Path, compression: str) -> None:
    FRAME.to_feather(tmp_path / "a.feather", compression=compression)
    check_documents(tmp_path, tmp_path / "a.feather")
