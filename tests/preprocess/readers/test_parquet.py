"""The Parquet reader."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.build.plan import make_plan
from preprocess.documents import count_text_bytes
from preprocess.errors import FolioError, MisuseError
from preprocess.readers import read_span
from preprocess.readers.parquet import get_row_group_bytes
from preprocess.readers.partitions import make_partitions
from preprocess.readers.record_sizes import BATCH_BYTES
from preprocess.readers.records import Rejects
from preprocess.recipes.catalog import load_recipe
from tests.helpers.file_builds import QUIET, build_files, read_texts
from tests.preprocess.readers.helpers import count_arrow_memory, describe, iter_texts, list_texts


def test_parquet_column_of_wrong_type_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "list": [["a"], ["b"]]}), tmp_path / "a.parquet")
    with pytest.raises(MisuseError, match="column 'text' of .*a.parquet has type int64, expected text"):
        build_files(tmp_path, tmp_path / "a.parquet")
    with pytest.raises(MisuseError, match="column 'list' .* has a list in each row, .*explode"):
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
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(MisuseError, match="is a compressed Parquet file; decompress it"):
        build_files(tmp_path, tmp_path / "a.parquet.gz")


def test_rows_that_arrow_skips_are_an_error(tmp_path: Path) -> None:
    """With such small pages, the column begins with a page without values, at which Arrow stops."""
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    table = pa.table({"messages": [chat] * 3})
    pq.write_table(table, tmp_path / "a.parquet", data_page_size=1, row_group_size=1)
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_rows == 3
    with pytest.raises(FolioError, match=r"a.parquet cannot be read as Parquet \(0 of 1 rows .* row group 0\)"):
        build_files(tmp_path, tmp_path / "a.parquet", chat_columns="messages", val_fraction=0)


def test_parquet_column_with_a_dot_in_its_name_beside_a_nested_column(tmp_path: Path) -> None:
    rows = pa.table({"my.text": [f"t{i}" for i in range(40)], "meta": [{"a": i} for i in range(40)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=7)
    result = build_files(tmp_path, tmp_path / "a.parquet", text_column="my.text", where="`my.text` != 't3'")
    assert read_texts(result) == [f"t{i}" for i in range(40) if i != 3]
    plan = make_plan(
        load_recipe(None, inputs=(str(tmp_path / "a.parquet"),), tokenizer="byte", text_column="my.text"), None, QUIET
    )
    assert plan.partition_bytes()[0] > 40 * 2


SHARED = "You are a helpful assistant. " * 1000  # 29 kB


def make_shared(num_rows: int, others: list[str]) -> pa.DictionaryArray:
    """Return a column of `num_rows` values: SHARED again and again, and then `others`."""
    indices = np.zeros(num_rows, np.int32)
    indices[num_rows - len(others) :] = np.arange(1, len(others) + 1)
    return pa.DictionaryArray.from_arrays(pa.array(indices), [SHARED, *others])


PLAIN: dict[str, Any] = {"use_dictionary": False, "write_batch_size": 32}


@pytest.mark.parametrize(
    ("others", "options"),
    [
        ([], {}),
        ([f"{i} " * 1000 for i in range(1000)], {"dictionary_pagesize_limit": 100_000}),
        ([], {**PLAIN, "compression": "zstd"}),
        ([], {**PLAIN, "column_encoding": "DELTA_BYTE_ARRAY"}),
    ],
    ids=["dictionary", "dictionary, then plain", "compressed", "prefixes"],
)
def test_parquet_values_are_decoded_a_few_megabytes_at_a_time(
    others: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    path, num_rows = tmp_path / "a.parquet", 8000
    pq.write_table(pa.table({"text": make_shared(num_rows, others)}), path, row_group_size=num_rows, **options)
    assert path.stat().st_size < 6_000_000
    with count_arrow_memory() as pool:
        batches = [count_text_bytes(texts) for texts in iter_texts(path)]
    assert sum(map(len, batches)) == num_rows and sum(sizes.sum() for sizes in batches) > 200_000_000
    assert max(sizes.sum() for sizes in batches) <= BATCH_BYTES and pool.max_memory() < 90_000_000


def test_template_that_joins_a_shared_value_is_read_a_few_megabytes_at_a_time(tmp_path: Path) -> None:
    path, num_rows = tmp_path / "a.parquet", 8000
    rows = pa.table({"system": make_shared(num_rows, []), "text": [f"question {i}" for i in range(num_rows)]})
    pq.write_table(rows, path, row_group_size=num_rows)
    with count_arrow_memory() as pool:
        ends = [texts[-1].as_py()[-20:] for texts in iter_texts(path, template="{system}\n{text}\n{system}")]
    assert len(ends) > 50 and pool.max_memory() < 90_000_000


def test_many_tiny_rows_are_decoded_in_bounded_batches(tmp_path: Path) -> None:
    path, num_rows = tmp_path / "a.parquet", 2_000_000
    pq.write_table(pa.table({"text": pa.repeat("a", num_rows)}), path, row_group_size=num_rows)
    with count_arrow_memory() as pool:
        assert sum(map(len, iter_texts(path))) == num_rows
    assert pool.max_memory() < 60_000_000


def test_long_values_between_short_ones_are_decoded_in_bounded_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ["tiny"] * 50_000 + ["long " * 200_000] * 100 + ["tiny"] * 50_000
    pq.write_table(pa.table({"text": texts}), path, **{**PLAIN, "write_batch_size": 4}, compression="zstd")
    with count_arrow_memory() as pool:
        sizes = np.concatenate([count_text_bytes(texts) for texts in iter_texts(path)])
    assert sizes.tolist() == list(map(len, texts)) and pool.max_memory() < 120_000_000


@pytest.mark.parametrize("encoding", ["dictionary", "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_size_of_batches_changes_no_parquet_row(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [None if i % 11 == 3 else f"{i} " * (i % 40) if i % 3 else "shared " * 20 for i in range(1000)]
    names = [f"a{i % 5}" for i in range(1000)]
    options: dict[str, Any] = {"row_group_size": 300, "data_page_size": 500, "write_batch_size": 8}
    if encoding == "dictionary":
        options["dictionary_pagesize_limit"] = 2000  # the other texts are plain
    else:
        options |= {"use_dictionary": False, "column_encoding": {"text": encoding, "who": encoding}}
    pq.write_table(pa.table({"text": texts, "who": names}), tmp_path / "a.parquet", **options)
    overrides: dict[str, Any] = {"template": "{who}: {text} {who}", "where": "who != 'a1'"}
    expected = [f"{w}: {t} {w}" for w, t in zip(names, texts, strict=True) if t is not None and w != "a1"]
    for decoded_bytes, batch_bytes in ((32 << 20, 8 << 20), (5000, 1000), (1, 1)):
        monkeypatch.setattr("preprocess.readers.parquet_batches.DECODED_BYTES", decoded_bytes)
        monkeypatch.setattr("preprocess.readers.record_sizes.BATCH_BYTES", batch_bytes)
        monkeypatch.setattr("preprocess.readers.parquet_batches.MAX_BLOCKS", 1 << 20 if decoded_bytes > 5000 else 100)
        assert list_texts(tmp_path / "a.parquet", **overrides) == expected


def test_page_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["z " * 1_000_000] * 70}), path, use_dictionary=False, compression="zstd")
    with pytest.raises(FolioError, match=r"a.parquet: column 'text' has a page of 140,000,287 bytes .* fewer rows"):
        list_texts(path)


def test_more_pages_than_fit_into_memory_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 10}), path, use_dictionary=False, data_page_size=1, write_batch_size=1)
    monkeypatch.setattr("preprocess.readers.parquet_batches.MAX_PAGES", 10)
    assert list_texts(path) == ["a"] * 10
    monkeypatch.setattr("preprocess.readers.parquet_batches.MAX_PAGES", 9)
    with pytest.raises(FolioError, match=r"a.parquet: column 'text' has more than 9 pages .*; write the file again"):
        list_texts(path)


def test_parquet_row_that_is_too_long_is_an_error_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.readers.record_sizes.get_max_record_bytes", lambda recipe: 1000)
    path = tmp_path / "a.parquet"
    texts = ["short", "x" * 999, "y" * 1001, "last"]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=2)
    with pytest.raises(FolioError, match=r"a.parquet: row 2 has more than 1,000 bytes; .* --oversized skip"):
        list_texts(path)
    rejects = Rejects(None)
    assert list_texts(path, rejects, oversized="skip") == ["short", "x" * 999, "last"]
    assert rejects.counts["oversized"] == 1


def test_row_groups_of_a_shared_value_are_several_partitions(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": make_shared(4000, [])}), path, row_group_size=1000)
    input_file, recipe = describe(path)
    assert all(28_000_000 < size < 30_000_000 for size in get_row_group_bytes(input_file, recipe))
    assert len(make_partitions([input_file], recipe)) == 4


def test_damaged_parquet_metadata_that_ends_the_process_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), path, store_schema=False)
    data = path.read_bytes()
    # The schema, with the type of the column changed from BYTE_ARRAY to INT64.
    schema = b"\x15\x0c\x25\x02\x18\x04text"
    assert data.count(schema) == 1
    path.write_bytes(data.replace(schema, b"\x15\x04" + schema[2:]))
    with pytest.raises(FolioError, match=r"a.parquet cannot be read as Parquet .* copy it again") as e:
        build_files(tmp_path, path)
    assert "\n" not in str(e.value)


def test_parquet_column_names_that_are_twice_or_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [pa.array(["a", "b"]), pa.array(["c", "d"]), pa.array(["e", "f"])]
    pq.write_table(pa.Table.from_arrays(rows, ["text", "who", "who"]), path)
    assert list_texts(path) == ["a", "b"]
    with pytest.raises(MisuseError, match=r"a.parquet has two columns of the same name, 'who'; rename one"):
        list_texts(path, author_column="who")
    pq.write_table(pa.table({"text": ["a"], "name": ["b"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"name", b"n\xffme"))
    with pytest.raises(FolioError, match=r"a.parquet has a column whose name is not UTF-8; rename the column"):
        list_texts(path)


def make_chats(contents: list[str]) -> pa.Table:
    """Return a table with one chat per content, whose only message has it."""
    return pa.table({"messages": [[{"role": "user", "content": content}] for content in contents]})


@pytest.mark.parametrize("num_distinct", [3, 3_000])
def test_parquet_lists_of_short_values_are_read_in_large_batches(tmp_path: Path, num_distinct: int) -> None:
    contents = [f"{i % num_distinct} " + "word " * 100 for i in range(6_000)]
    pq.write_table(make_chats(contents), tmp_path / "a.parquet")
    recipe = load_recipe(None, inputs=(str(tmp_path / "a.parquet"),), chat_columns="messages", format="parquet")
    plan = make_plan(recipe, None, QUIET)
    rejects, (span,) = Rejects(None), plan.partitions[0].spans
    sizes = [r.num_records for r in read_span(plan.input_files[0], span, plan.recipe, rejects)]
    assert sum(sizes) == 6_000 and len(sizes) <= 4


def test_parquet_lists_that_share_long_values_are_read_in_little_memory(tmp_path: Path) -> None:
    pq.write_table(make_chats(["x" * 900_000] * 1_000), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    recipe = load_recipe(None, inputs=(str(tmp_path / "a.parquet"),), chat_columns="messages", format="parquet")
    plan = make_plan(recipe, None, QUIET)
    rejects, (span,) = Rejects(None), plan.partitions[0].spans
    num_records = 0
    for records in read_span(plan.input_files[0], span, plan.recipe, rejects):
        num_records += records.num_records
        assert sum(column.nbytes for column in records.columns.values()) < 64 << 20
        if num_records > 100:
            break


def test_files_one_after_another_are_refused(tmp_path: Path) -> None:
    path, table = tmp_path / "a.parquet", pa.table({"text": ["one", "two"], "n": [1, 2]})
    for options in ({}, {"write_page_index": True}, {"use_dictionary": False, "compression": "none"}):
        pq.write_table(table, path, **options)
        assert sorted(read_texts(build_files(tmp_path, path))) == ["one", "two"]
        path.write_bytes(path.read_bytes() * 2)
        with pytest.raises(FolioError, match="consists of several Parquet files, one after another; use"):
            build_files(tmp_path, path)
