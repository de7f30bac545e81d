"""Files that DuckDB writes with COPY give the documents of their table."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.helpers.file_builds import build_files, read_texts
from tests.preprocess.readers.written_by.helpers import ROWS, check_documents

duckdb = pytest.importorskip("duckdb")


def copy_rows(path: Path, options: str) -> None:
    connection = duckdb.connect()
    connection.register("rows", pa.table(ROWS))
    connection.execute(f"copy (select * from rows order by id) to '{path}' ({options})")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("options", ["", ", force_quote *"])
def test_csv_is_read(tmp_path: Path, delimiter: str, options: str) -> None:
    copy_rows(tmp_path / "a.csv", f"format csv, header, delimiter '{delimiter}'{options}")
    check_documents(tmp_path, tmp_path / "a.csv")


@pytest.mark.parametrize("options", ["", ", array true"])
def test_json_is_read(tmp_path: Path, options: str) -> None:
    copy_rows(tmp_path / "a.json", f"format json{options}")
    check_documents(tmp_path, tmp_path / "a.json")


@pytest.mark.parametrize(("compression", "suffix"), [("gzip", "gz"), ("zstd", "zst")])
def test_compressed_csv_and_json_are_read(tmp_path: Path, compression: str, suffix: str) -> None:
    copy_rows(tmp_path / f"a.csv.{suffix}", f"format csv, header, compression {compression}")
    check_documents(tmp_path, tmp_path / f"a.csv.{suffix}")
    copy_rows(tmp_path / f"a.json.{suffix}", f"format json, compression {compression}")
    check_documents(tmp_path, tmp_path / f"a.json.{suffix}")


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "brotli", "lz4", "lz4_raw", "uncompressed"])
def test_parquet_is_read(tmp_path: Path, compression: str) -> None:
    version = ", parquet_version v2" if compression == "zstd" else ""
    copy_rows(tmp_path / "a.parquet", f"format parquet, compression {compression}{version}")
    check_documents(tmp_path, tmp_path / "a.parquet")


def test_csv_with_escaped_quotes_is_read(tmp_path: Path) -> None:
    texts = ['a "b", c', "two\nlines;\t|", "plain"]  # DuckDB escapes a backslash in quoted values only
    connection = duckdb.connect()
    connection.register("rows", pa.table({"id": [1, 2, 3], "text": texts}))
    connection.execute(f"copy rows to '{tmp_path}/a.csv' (header, escape '\\')")
    assert read_texts(build_files(tmp_path, tmp_path / "a.csv", escape="\\")) == texts
