"""The Parquet reader."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.build.plan import make_plan
from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.catalog import load_recipe
from tests.helpers.file_builds import QUIET, build_files, read_texts


def test_parquet_column_of_wrong_type_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "list": [["a"], ["b"]]}), tmp_path / "a.parquet")
    with pytest.raises(MisuseError, match="column 'text' of .*a.parquet has type int64, expected text"):
        build_files(tmp_path, tmp_path / "a.parquet")
    with pytest.raises(MisuseError, match="column 'list' .* expected text"):
        build_files(tmp_path, tmp_path / "a.parquet", text_column="list")


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_read_parquet_accepts_every_arrow_type_of_text(tmp_path: Path, type_: pa.DataType) -> None:
    texts = ["a", "b", "ü", "a", "c" * 5000]
    pq.write_table(
        pa.table({"text": pa.array(texts, pa.binary() if type_ == pa.binary() else pa.string()).cast(type_)}),
        tmp_path / "a.parquet",
    )
    assert read_texts(build_files(tmp_path, tmp_path / "a.parquet")) == texts


def test_damaged_or_compressed_parquet_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i} " * 50 for i in range(3000)]}), path, row_group_size=500)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"PAR1 nothing", b"", whole[:5000] + bytes(4000) + whole[9000:]):
        path.write_bytes(damaged)
        with pytest.raises(FolioError, match=r"a.parquet cannot be read as Parquet .* copy it again"):
            build_files(tmp_path, path)
    os.rename(path, tmp_path / "a.parquet.gz")
    with pytest.raises(MisuseError, match="is a compressed Parquet file"):
        build_files(tmp_path, tmp_path / "a.parquet.gz")


def test_parquet_column_with_a_dot_in_its_name_beside_a_nested_column(tmp_path: Path) -> None:
    rows = pa.table({"my.text": [f"t{i}" for i in range(40)], "meta": [{"a": i} for i in range(40)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=7)
    result = build_files(tmp_path, tmp_path / "a.parquet", text_column="my.text", where="`my.text` != 't3'")
    assert read_texts(result) == [f"t{i}" for i in range(40) if i != 3]
    plan = make_plan(
        load_recipe(None, inputs=(str(tmp_path / "a.parquet"),), tokenizer="byte", text_column="my.text"), None, QUIET
    )
    assert plan.partition_bytes()[0] > 40 * 2
