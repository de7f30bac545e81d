"""Cutting records that are longer than `max_document_bytes`."""

from __future__ import annotations

import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.readers.record_blocks import find_cut, find_cut_in_file
from tests.helpers.file_builds import FEW_EXAMPLES, WORDS, build_files, read_stats, read_texts


def test_long_documents_are_cut_at_white_space_and_counted(tmp_path: Path) -> None:
    text = "".join(f"{w}-{i} \n" for i in range(20) for w in WORDS)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("short")
    result = build_files(tmp_path, tmp_path / "*.txt", max_document_bytes=500)
    parts = read_texts(result)
    assert "".join(parts) == text + "short" and all(len(p) <= 500 for p in parts)
    assert all(p[-1].strip() and q[0] == " " for p, q in itertools.pairwise(parts[:-1]))
    assert read_stats(result)["documents"]["read"] == len(parts)
    # A row of a table is cut in the same way.
    pq.write_table(pa.table({"text": [text, "short"]}), tmp_path / "rows.parquet")
    rows = build_files(tmp_path, tmp_path / "rows.parquet", max_document_bytes=500, name="rows")
    assert read_texts(rows) == parts and read_stats(rows)["mended"]["cut"] == len(parts) - 2


@pytest.mark.parametrize("size", [900, 5000])
def test_long_line_without_white_space_raises_or_is_skipped(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_text("first one\n" + "x" * size + "\nthird\nfourth")
    with pytest.raises(FolioError, match=r"a.txt: .* longer than max_document_bytes \(500\) .* --oversized skip"):
        build_files(tmp_path, tmp_path / "a.txt", document="line", max_document_bytes=500)
    result = build_files(tmp_path, tmp_path / "a.txt", document="line", max_document_bytes=500, oversized="skip")
    assert read_texts(result) == ["first one", "third", "fourth"] and read_stats(result)["documents"]["oversized"] == 1


@FEW_EXAMPLES
@given(
    st.lists(st.text("ab \n\ré=", max_size=90), min_size=2, max_size=6),
    st.sampled_from(["line", "paragraph", "separator", "file", "jsonl"]),
    st.integers(1, 70),
    st.sampled_from([1, 3, 17, 200]),
    st.integers(5, 40),
)
def test_long_records_are_cut_independently_of_blocks_and_partitions(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
    document: str,
    partition_bytes: int,
    block_bytes: int,
    max_document_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("x")
    path = folder / ("a.jsonl" if document == "jsonl" else "a.txt")
    if document == "jsonl":
        path.write_text(
            "\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in [*texts, "the end", "of all"]),
            encoding="utf-8",
        )
    else:
        path.write_bytes("=*=".join([*texts, "the end", "of all"]).encode())
    overrides: dict[str, Any] = {} if document == "jsonl" else {"document": document}
    if document == "separator":
        overrides["separator"] = "=*="
    results = []
    for partition, block in ((1 << 20, 1 << 20), (partition_bytes, block_bytes)):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition)
        monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", block)
        try:
            result = build_files(
                folder,
                path,
                max_document_bytes=max_document_bytes,
                oversized="skip",
                min_characters=2,
                name=f"b{block}",
                **overrides,
            )
        except FolioError as e:
            results.append(str(e).split(":")[0])
        else:
            counts = read_stats(result)
            results.append((read_texts(result), counts["documents"], counts["mended"], result.build_id))
    assert results[0] == results[1]


def test_find_cut_is_fast_in_a_megabyte_of_spaces() -> None:
    data = b"word " * 100 + b" " * 1_000_000 + b"more"
    begin = time.perf_counter()
    assert find_cut(data, len(data) - 10) == 499 and time.perf_counter() - begin < 1
    assert find_cut(b"x" * 1000, 500) == 0


@given(st.text("ab \n", max_size=60), st.integers(0, 9), st.integers(1, 30))
def test_find_cut_in_file_finds_the_same_cut(text: str, start: int, max_bytes: int) -> None:
    data = (text + "x").encode() * 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.readers.record_blocks.PROBE_BYTES", 3)
        patch.setattr("preprocess.readers.record_blocks.CUT_SEARCH_BYTES", 12)
        assert find_cut_in_file(io.BytesIO(data), max_bytes, start) == find_cut(data, max_bytes, start)
