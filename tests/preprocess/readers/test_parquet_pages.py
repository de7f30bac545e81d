"""The sizes of rows that page headers promise."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.readers.parquet_metadata import Chunk, describe_chunks
from preprocess.readers.parquet_pages import (
    DATA_PAGE,
    DATA_PAGE_V2,
    Page,
    PageError,
    RowSizes,
    compute_row_sizes,
    find_dictionary,
    read_page_headers,
)

ENCODINGS = ["PLAIN", "RLE_DICTIONARY", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]


def make_texts(num_rows: int) -> list[str | None]:
    """Return texts of very different sizes; a few are null, and some are repeated."""
    generator = random.Random(num_rows)
    texts: list[str | None] = [f"{i} " * generator.choice([0, 1, 5, 5, 80, 1000]) for i in range(num_rows)]
    for i in range(num_rows):
        if i % 13 == 5:
            texts[i] = None
        elif i % 5 == 2:
            texts[i] = "shared " * 300
    return texts


def write(table: pa.Table, encoding: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    if encoding == "RLE_DICTIONARY":
        pq.write_table(table, file, data_page_size=2000, write_batch_size=16, **options)
    else:
        encodings = dict.fromkeys(table.column_names, encoding)
        pq.write_table(
            table,
            file,
            use_dictionary=False,
            column_encoding=encodings,
            data_page_size=2000,
            write_batch_size=16,
            **options,
        )
    return file


def read_pages(file: io.BytesIO) -> Iterator[tuple[Chunk, list[Page]]]:
    parquet = pq.ParquetFile(file)
    raw = io.BytesIO(file.getvalue())
    for chunk in describe_chunks(parquet, 0, list(range(len(parquet.schema)))):
        yield chunk, list(read_page_headers(raw, chunk, len(file.getvalue())))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_page_headers_have_all_values_and_bound_the_size_of_any_rows(
    encoding: str, version: str, compression: str
) -> None:
    texts = make_texts(700)
    options = {"data_page_version": version, "compression": compression, "dictionary_pagesize_limit": 20_000}
    ((chunk, pages),) = read_pages(write(pa.table({"text": texts}), encoding, **options))
    assert sum(page.num_values for page in pages if page.type in (DATA_PAGE, DATA_PAGE_V2)) == len(texts)
    assert len(pages) > 10 and (find_dictionary(pages) is not None) == (encoding == "RLE_DICTIONARY")
    bounds = compute_row_sizes(chunk, pages, len(texts))
    ends = np.concatenate([[0], np.cumsum([len(text or "") for text in texts])])
    for num_rows in (1, 2, 3, 17, 100, 699, 700, 10_000):
        n = min(num_rows, len(texts))
        assert bounds.max_bytes_of_rows(num_rows) >= (ends[n:] - ends[:-n]).max()


def test_sizes_of_plain_rows_are_not_much_overestimated() -> None:
    texts = ["x" * 100] * 5000
    ((chunk, pages),) = read_pages(write(pa.table({"text": texts}), "PLAIN"))
    bounds = compute_row_sizes(chunk, pages, len(texts))
    assert bounds.max_bytes_of_rows(5000) < 600_000 and bounds.max_bytes_of_rows(500) < 70_000


def test_numbers_take_their_width_even_in_a_dictionary() -> None:
    ((chunk, pages),) = read_pages(write(pa.table({"n": pa.array([7] * 1000, pa.int64())}), "RLE_DICTIONARY"))
    assert compute_row_sizes(chunk, pages, 1000).max_bytes_of_rows(100) == 800


def test_rows_of_lists_share_the_values_of_a_page() -> None:
    table = pa.table({"tags": [["a" * 50, "b" * 50]] * 1000})
    ((chunk, pages),) = read_pages(write(table, "PLAIN"))
    assert chunk.is_repeated and chunk.num_values == 2000
    bounds = compute_row_sizes(chunk, pages, 1000)
    assert 100_000 <= bounds.max_bytes_of_rows(1000) < 130_000


def test_row_sizes_of_blocks() -> None:
    sizes = RowSizes.concatenate([RowSizes.measured(np.array([1, 9, 2, 2, 5]), 2), RowSizes.uniform(10, 3)])
    assert sizes.num_rows.tolist() == [2, 2, 1, 10] and sizes.block_bytes.tolist() == [10, 4, 5, 30]
    assert sizes.max_bytes_of_rows(1) == 9 and sizes.max_bytes_of_rows(100) == 49
    assert sizes.after(4).num_rows.tolist() == [1, 10] and sizes.after(15).max_bytes_of_rows(3) == 0


def test_damaged_page_headers_are_errors() -> None:
    file = write(pa.table({"text": make_texts(300)}), "PLAIN")
    data = file.getvalue()
    (chunk,) = describe_chunks(pq.ParquetFile(file), 0, [0])
    for damaged in (bytes(len(data)), b"\x15" * len(data), data[: chunk.offset + 3], data[: chunk.offset + 500]):
        with pytest.raises(PageError, match=r"page header at byte|impossible size"):
            list(read_page_headers(io.BytesIO(damaged), chunk, len(damaged)))
    with pytest.raises(PageError, match="more values than the column"):
        list(read_page_headers(io.BytesIO(data), chunk._replace(num_values=5), len(data)))
    # A header that claims a list of 2**60 elements, and structs that are nested without end.
    for hostile in (b"\x19\xfc" + b"\xff" * 8 + b"\x0f", b"\x1c" * 100_000):
        with pytest.raises(PageError):
            list(read_page_headers(io.BytesIO(hostile), chunk._replace(offset=0), 1 << 20))
