"""Arrow IPC files and streams."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.find_inputs import find_input_files
from preprocess.inputs.input_files import Span
from preprocess.progress import Progress
from preprocess.readers.arrow import read_arrow
from preprocess.readers.arrow_file import open_arrow
from preprocess.readers.table_columns import convert_views
from preprocess.recipes.schema import Recipe
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files, read_stats, read_texts
from tests.preprocess.readers.helpers import describe

TEXTS = [f"text {i} " * (i % 5 + 1) for i in range(200)]
TYPES = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string()),
]  # fmt: skip


def write(path: Path, table: pa.Table, *, is_stream: bool, compression: str | None = None, rows: int = 30) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with new(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.mark.usefixtures("partition_sizes")
@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_text_of_every_type_is_read(tmp_path: Path, is_stream: bool, compression: str | None) -> None:
    (tmp_path / "in").mkdir()
    expected: list[str] = []
    for i, type_ in enumerate(TYPES):
        texts = TEXTS if not pa.types.is_dictionary(type_) else [f"text {i % 7}" for i in range(100)]
        table = pa.table({"unused": range(len(texts)), "text": pa.array(texts, type_), "n": [1.5] * len(texts)})
        write(tmp_path / "in" / f"{i}.arrow", table, is_stream=is_stream, compression=compression)
        expected += texts
    assert read_texts(build_files(tmp_path, tmp_path / "in", dedup=False)) == expected


@pytest.mark.parametrize("is_stream", [True, False])
def test_conditions_templates_and_metadata_work_as_for_parquet(tmp_path: Path, is_stream: bool) -> None:
    import pyarrow.parquet as pq

    rows = range(len(TEXTS))
    table = pa.table({
        "title": [f"title {i}" for i in rows], "body": TEXTS, "score": [i / 10 for i in rows],
        "lang": pa.array(["en" if i % 3 else "ru" for i in rows], pa.string_view()),
        "name": pa.array([f"Author {i % 4}" if i % 5 else None for i in rows]).dictionary_encode(),
    })  # fmt: skip
    write(tmp_path / "a.arrow", table, is_stream=is_stream)
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=50)
    settings: dict[str, Any] = {
        "where": 'lang == "en" and score < 15', "template": "{title}: {body}", "author_column": "name"
    }  # fmt: skip
    result = build_files(tmp_path, tmp_path / "a.arrow", **settings)
    expected = build_files(tmp_path, tmp_path / "b.parquet", name="b", **settings)
    assert read_texts(result) == read_texts(expected) and len(read_texts(result)) == 100
    assert read_stats(result)["authors"] == read_stats(expected)["authors"]


def test_arrow_file_is_known_under_any_name(tmp_path: Path) -> None:
    for is_stream in (True, False):
        write(tmp_path / "a.txt", pa.table({"text": TEXTS}), is_stream=is_stream)
        assert read_texts(build_files(tmp_path, tmp_path / "a.txt", name=f"x{is_stream}")) == TEXTS


def test_columns_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    twice = pa.table([["a", "b"], ["c", "d"], [1, 2], [1, 2]], ["text", "x", "id", "id"])
    write(tmp_path / "a.arrow", twice, is_stream=False)
    assert read_texts(build_files(tmp_path, tmp_path / "a.arrow")) == ["a", "b"]  # the doubled column is not used
    for settings, message in (
        ({"where": "id == 1"}, "has two columns of the same name, 'id'; rename one"),
        ({"text_column": "none"}, "has no column 'none', it has text, x, id, id"),
        ({"text_column": "id"}, "has two columns"),
    ):
        with pytest.raises(MisuseError, match=message) as error:
            build_files(tmp_path, tmp_path / "a.arrow", **settings)
        assert_one_line(str(error.value))


@pytest.mark.parametrize("is_stream", [True, False])
def test_invalid_utf8_follows_the_recipe(tmp_path: Path, is_stream: bool) -> None:
    column = pa.array([b"one", b"t\xffo", b"three"], pa.binary()).view(pa.string())
    write(tmp_path / "a.arrow", pa.table({"text": column}), is_stream=is_stream)
    with pytest.raises(FolioError, match="a.arrow is not UTF-8: byte 0xff"):
        build_files(tmp_path, tmp_path / "a.arrow")
    assert read_texts(build_files(tmp_path, tmp_path / "a.arrow", invalid_utf8="replace"))[1] == "t\ufffdo"


@pytest.mark.parametrize("is_stream", [True, False])
def test_damaged_files_are_one_line_or_read(tmp_path: Path, is_stream: bool) -> None:
    path = tmp_path / "a.arrow"
    write(path, pa.table({"text": TEXTS}), is_stream=is_stream)
    whole = path.read_bytes()
    source = random.Random(1)
    for i in range(16):
        damaged = bytearray(whole if i % 2 else whole[: source.randrange(20, len(whole))])
        for _ in range(source.randrange(1, 4) if i % 2 else 0):
            damaged[source.randrange(12, len(damaged))] ^= source.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            build_files(tmp_path, path, invalid_utf8="replace", name=f"b{i}")
        except FolioError as e:
            assert_one_line(str(e))


def test_one_batch_that_is_larger_than_a_slice_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.readers.arrow.SLICE_ROWS", 7)
    write(tmp_path / "a.arrow", pa.table({"text": TEXTS}), is_stream=False, rows=1000)
    assert read_texts(build_files(tmp_path, tmp_path / "a.arrow")) == TEXTS


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_values_in_structs_are_columns(tmp_path: Path, suffix: str) -> None:
    import pyarrow.parquet as pq

    rows = range(len(TEXTS))
    meta = [None if i % 7 == 0 else {"lang": "en" if i % 3 else "ru", "by": {"name": f"A{i % 4}"}} for i in rows]
    table = pa.table(
        {"doc": [{"text": text, "unused": 1} for text in TEXTS], "meta": meta, "meta.x": ["x"] * len(TEXTS)}
    )
    path = tmp_path / f"a.{suffix}"
    pq.write_table(table, path, row_group_size=50) if suffix == "parquet" else write(path, table, is_stream=False)
    settings = {"text_column": "doc.text", "author_column": "meta.by.name", "where": 'meta.lang == "en"'}
    result = build_files(tmp_path, path, **settings)
    kept = [i for i in rows if i % 7 and i % 3]
    assert read_texts(result) == [TEXTS[i] for i in kept]
    assert set(read_stats(result)["authors"]["author"]["documents_by_value"]) == {"A0", "A1", "A2", "A3"}
    template = build_files(tmp_path, path, name="t", template="{meta.x}{doc.text}", where="meta.lang == null")
    assert read_texts(template) == [f"x{TEXTS[i]}" for i in rows if i % 7 == 0]
    with pytest.raises(MisuseError, match="has no column 'doc.none', it has doc, meta, meta.x"):
        build_files(tmp_path, path, text_column="doc.none")
    with pytest.raises(MisuseError, match="column 'meta.by' of .* has type struct.*, expected text"):
        build_files(tmp_path, path, text_column="meta.by")


def share_value(value: bytes, num_rows: int) -> pa.Array:
    """Return a column of views of the same bytes, with an empty text, a short text and a null at its end."""
    views = b"".join(
        struct.pack("<i4sii", size, value[:4], 0, 0) if size > 12 else struct.pack("<i12s", size, value[:size])
        for size in (*[len(value)] * num_rows, 0, 4, 0)
    )
    valid = np.packbits([*[True] * (num_rows + 2), False], bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(views), pa.py_buffer(value)]
    return pa.Array.from_buffers(pa.string_view(), num_rows + 3, buffers)


def test_views_of_the_same_bytes_are_copied_a_few_at_a_time(tmp_path: Path) -> None:
    """The file has 1 MB, and its rows 500 MB."""
    text = b"word " * 200_000
    write(tmp_path / "a.arrow", pa.table({"text": share_value(text, 500)}), is_stream=False, rows=1000)
    recipe = Recipe(corpus="own", inputs=(str(tmp_path / "a.arrow"),))
    (file,) = find_input_files(recipe, None, Progress(quiet=True))
    pool = pa.default_memory_pool()
    num_bytes = num_rows = 0
    for records in read_arrow(file, Span(0), recipe):
        num_bytes += sum(map(len, records.columns["text"].drop_null().to_pylist()))
        num_rows += records.num_records
        assert pool.bytes_allocated() < 60e6
    assert (num_rows, num_bytes) == (503, 500 * len(text) + 4)


def test_long_value_of_a_view_is_not_copied(tmp_path: Path) -> None:
    column = share_value(b"word " * 4_000_000, 1)
    before = pa.total_allocated_bytes()
    converted = convert_views(column.slice(0, 1))
    assert pa.total_allocated_bytes() - before < 1e6
    assert converted.type == pa.large_binary() and converted[0].as_py() == b"word " * 4_000_000
    assert convert_views(column.slice(1, 1)).to_pylist() == [b""]
    assert convert_views(column.slice(2, 1)).to_pylist() == [b"word"]
    assert convert_views(column.slice(3, 1)).to_pylist() == [None]


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_large_batch_of_a_file_is_not_copied_unless_it_is_compressed(tmp_path: Path, compression: str | None) -> None:
    row = "x" * 1_000_000
    table = pa.table(
        {"unused": [row] * 8, "text": pa.array([row] * 8), "name": pa.array(["a"] * 8).dictionary_encode()}
    )
    write(tmp_path / "a.arrow", table, is_stream=False, compression=compression)
    before = pa.total_allocated_bytes()
    with open_arrow(str(tmp_path / "a.arrow"), {"text"}) as file:
        (batch,) = file.iter_batches()
        num_bytes = pa.total_allocated_bytes() - before
        assert batch.column("text").to_pylist() == [row] * 8
    assert num_bytes > 8_000_000 if compression else num_bytes < 100_000
    assert num_bytes < 15_000_000  # the column that is not used is not decompressed


def test_streams_one_after_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrows"
    write(path, pa.table({"text": TEXTS}), is_stream=True)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(FolioError, match=r"bytes follow the end of the stream, perhaps a second one"):
        build_files(tmp_path, path)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the pages of a mapped file are known on Linux only")
@pytest.mark.parametrize("is_stream", [False, True])
def test_pages_of_a_large_batch_are_released_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_stream: bool
) -> None:
    monkeypatch.setattr("preprocess.readers.arrow.RELEASE_BYTES", 1 << 20)
    monkeypatch.setattr("preprocess.readers.arrow.SLICE_ROWS", 1000)
    path = tmp_path / "a.arrow"
    write(path, pa.table({"text": ["x" * 1000] * 20_000}), is_stream=is_stream, rows=20_000)
    input_file, recipe = describe(path)
    sizes: list[int] = []
    for records in read_arrow(input_file, Span(0), recipe):
        assert records.columns["text"].to_pylist() == [b"x" * 1000] * 1000
        sizes.append(_measure_mapped_kb(path))
    assert len(sizes) == 20
    assert max(sizes) < 8_000


def _measure_mapped_kb(path: Path) -> int:
    """Return how many kilobytes of a mapped file count as memory of this process."""
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    [found] = [each for each in maps if each.partition("\n")[0].endswith(str(path))]
    resident = re.search(r"^Rss: +([0-9]+) kB", found, re.MULTILINE)
    assert resident
    return int(resident[1])
