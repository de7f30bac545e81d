"""Files of polars give the documents of their data frame, or are refused for the true reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError, MisuseError
from tests.helpers.file_builds import build_files, read_texts
from tests.preprocess.readers.written_by.helpers import ROWS, check_documents

polars = pytest.importorskip("polars")
FRAME = polars.DataFrame(ROWS)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quote_style", ["necessary", "always", "non_numeric"])
def test_csv_is_read(tmp_path: Path, separator: str, quote_style: Any) -> None:
    options = {"line_terminator": "\r\n", "include_bom": True} if quote_style == "always" else {}
    FRAME.write_csv(tmp_path / "a.csv", separator=separator, quote_style=quote_style, **options)
    check_documents(tmp_path, tmp_path / "a.csv")


@pytest.mark.parametrize(("compression", "suffix"), [("gzip", "gz"), ("zstd", "zst")])
def test_compressed_csv_and_json_are_read(tmp_path: Path, compression: Any, suffix: str) -> None:
    FRAME.write_csv(tmp_path / f"a.csv.{suffix}", compression=compression)
    check_documents(tmp_path, tmp_path / f"a.csv.{suffix}")
    FRAME.write_ndjson(tmp_path / f"a.ndjson.{suffix}", compression=compression)
    check_documents(tmp_path, tmp_path / f"a.ndjson.{suffix}")


@pytest.mark.parametrize("method", ["write_json", "write_ndjson"])
def test_json_is_read(tmp_path: Path, method: str) -> None:
    getattr(FRAME, method)(tmp_path / "a.json")
    check_documents(tmp_path, tmp_path / "a.json")


@pytest.mark.parametrize("compression", ["lz4", "uncompressed", "snappy", "gzip", "brotli", "zstd"])
def test_parquet_is_read(tmp_path: Path, compression: Any) -> None:
    FRAME.write_parquet(tmp_path / "a.parquet", compression=compression)
    check_documents(tmp_path, tmp_path / "a.parquet")


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
@pytest.mark.parametrize("method", ["write_ipc", "write_ipc_stream"])
def test_arrow_is_read(tmp_path: Path, compression: str, method: str) -> None:
    getattr(FRAME, method)(tmp_path / "a.arrow", compression=compression)
    check_documents(tmp_path, tmp_path / "a.arrow")


@pytest.mark.parametrize("method", ["write_ipc", "write_parquet"])
def test_categories_are_read_and_compared(tmp_path: Path, method: str) -> None:
    frame = FRAME.with_columns(polars.col("text").cast(polars.Categorical))
    frame = frame.with_columns(polars.lit("en").cast(polars.Categorical).alias("lang"))
    getattr(frame, method)(tmp_path / "a.arrow")
    check_documents(tmp_path, tmp_path / "a.arrow", where='lang == "en"')
    check_documents(tmp_path, tmp_path / "a.arrow", lang_column="lang")


@pytest.mark.parametrize("method", ["write_ipc", "write_parquet", "write_ndjson", "write_json"])
def test_structs_are_read(tmp_path: Path, method: str) -> None:
    getattr(FRAME.select(polars.struct("id", "text").alias("body")), method)(tmp_path / "a.json")
    check_documents(tmp_path, tmp_path / "a.json", text_column="body.text")


@pytest.mark.parametrize("method", ["write_ipc", "write_parquet", "write_ndjson", "write_json"])
@pytest.mark.parametrize("settings", [{"text_column": "turns.text"}, {"template": "{turns.text}"}], ids=str)
def test_text_in_the_structs_of_a_list_is_refused_with_advice(
    tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    frame = polars.DataFrame({"id": [1, 2], "turns": [[{"text": "a"}, {"text": "b"}], []]})
    getattr(frame, method)(tmp_path / "a.json")
    message = "column 'turns' of .*a.json has a list in each row, so 'turns.text' is not one text; make a row of each"
    with pytest.raises(MisuseError, match=message):
        build_files(tmp_path, tmp_path / "a.json", **settings)
    frame.explode("turns").write_ndjson(tmp_path / "b.jsonl")  # as the advice says
    assert read_texts(build_files(tmp_path, tmp_path / "b.jsonl", text_column="turns.text")) == ["a", "b"]


@pytest.mark.parametrize(("method", "error"), [("write_parquet", MisuseError), ("write_ndjson", FolioError)])
def test_column_of_lists_is_refused_with_advice(tmp_path: Path, method: str, error: type[Exception]) -> None:
    getattr(polars.DataFrame({"text": [["a", "b"], ["c"]]}), method)(tmp_path / "a.json")
    with pytest.raises(error, match=r"a list in each row, .*join the texts|array of strings; join its elements"):
        build_files(tmp_path, tmp_path / "a.json")
