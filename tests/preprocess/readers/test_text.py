"""The text reader: lines, paragraphs and separated texts."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.inputs import open_input
from preprocess.inputs.describe import describe_input_files
from preprocess.inputs.input_files import Span
from preprocess.readers.records import Rejects
from preprocess.readers.text import read_text
from preprocess.recipes.schema import Recipe
from tests.helpers.file_builds import WORDS, build_files, read_texts
from tests.helpers.memory import measure_peak_bytes
from tests.preprocess.readers.helpers import list_texts

TEXT = "".join(f"{w} one\r\n{w} two\n \t\n\n{w} three\n\n" for w in WORDS)


@pytest.mark.usefixtures("partition_sizes")
@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("line", [line for w in WORDS for line in (f"{w} one", f"{w} two", " \t", f"{w} three")]),
        ("paragraph", [part for w in WORDS for part in (f"{w} one\r\n{w} two", f"{w} three")]),
    ],
)
def test_read_text_splits_lines_and_paragraphs(tmp_path: Path, document: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    assert read_texts(build_files(tmp_path, tmp_path / "a.txt", document=document)) == expected


def old_mac(text: str) -> bytes:
    return text.replace("\n", "\r").encode()


@pytest.mark.usefixtures("partition_sizes")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.txt", old_mac),
        ("a.txt.gz", lambda text: gzip.compress(old_mac(text))),
        ("a.md", lambda text: text.replace("\n", "\r").encode("utf-16")),
    ],
)
def test_carriage_returns_of_old_macintoshes_end_lines(tmp_path: Path, name: str, make: Callable[[str], bytes]) -> None:
    (tmp_path / name).write_bytes(make("".join(f"{w} one\n{w} two\n\n\n" for w in WORDS)))
    lines = build_files(tmp_path, tmp_path / name, document="line")
    assert read_texts(lines) == [line for w in WORDS for line in (f"{w} one", f"{w} two")]
    paragraphs = build_files(tmp_path, tmp_path / name, document="paragraph")
    assert read_texts(paragraphs) == [f"{w} one\n{w} two" for w in WORDS]


@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_carriage_returns_in_files_with_line_feeds_end_no_line(tmp_path: Path, document: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"10%\r20%\r\r100%\r\n")
    (text,) = list_texts(tmp_path / "a.txt", document=document)
    assert text.rstrip("\r\n") == "10%\r20%\r\r100%"
    (tmp_path / "b.txt").write_bytes(b"one\rtwo\r\rthree")
    assert ("\n" in list_texts(tmp_path / "b.txt", document=document)[0]) == (document == "paragraph")


@pytest.mark.usefixtures("partition_sizes")
@pytest.mark.parametrize("separator", ["<|endoftext|>", "==", "---\n"])
def test_read_text_splits_at_separators(tmp_path: Path, separator: str) -> None:
    texts = [f"{w}\n{w} again" for w in WORDS]
    (tmp_path / "a.txt").write_text(f"\n{separator}\n".join(texts) + f"\n{separator}\n")
    assert read_texts(build_files(tmp_path, tmp_path / "a.txt", document="separator", separator=separator)) == texts


@pytest.mark.parametrize("block_bytes", [7, 14, 18, 30, 8 << 20])
def test_a_separator_that_overlaps_itself_is_found_from_the_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(open_input, "BLOCK_BYTES", block_bytes)
    (tmp_path / "a.txt").write_text("one\n-----\ntwo\n-----\nthree\n-----\nfour\n")
    result = build_files(tmp_path, tmp_path / "a.txt", document="separator", separator="---")
    assert read_texts(result) == ["one", "--\ntwo", "--\nthree", "--\nfour"]


def list_records(data: bytes, document: str, separator: bytes) -> list[bytes]:
    """Return the records of `data`, found line by line."""
    if document == "separator":
        texts = data.split(separator)
        return [text.strip(b"\r\n") for text in (texts if texts[-1].strip(b"\r\n") else texts[:-1])]
    lines = data.split(b"\n")
    lines = [line.removesuffix(b"\r") for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    if document == "line":
        return lines
    records, is_inside = [], False
    for raw in data.splitlines(keepends=True):
        if raw.strip():
            records.append(records.pop() + raw if is_inside else raw)
        is_inside = bool(raw.strip())
    return [record.removesuffix(b"\n").removesuffix(b"\r") for record in records]


PIECES = st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b" ", b"\t", b"\n\n", b"|", b"||", b"|\n"])


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(PIECES, min_size=1, max_size=20).map(b"".join),
    st.sampled_from(["line", "paragraph", "separator"]),
    st.sampled_from([b"|", b"|\n"]),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_windows_and_batches_change_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data, document, separator, window_bytes, max_records
) -> None:
    monkeypatch.setattr("preprocess.readers.text.WINDOW_BYTES", window_bytes)
    monkeypatch.setattr("preprocess.readers.text.MAX_RECORDS", max_records)
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    recipe = Recipe(corpus="x", format="text", document=document, separator=separator.decode())
    [input_file] = describe_input_files([("a.txt", str(path))], recipe, {}, num_threads=1).files
    batches = list(read_text(input_file, Span(0), recipe, Rejects(None)))
    texts = [text for records in batches for text in records.columns["text"].to_pylist()]
    assert texts == list_records(data, document, separator)
    assert all(0 < records.num_records <= max_records + window_bytes for records in batches)
    assert [records.first for records in batches] == [
        sum(records.num_records for records in batches[:i]) for i in range(len(batches))
    ]
    for records in batches:
        for text, offset in zip(records.columns["text"].to_pylist(), records.offsets.tolist(), strict=True):
            assert text in data[offset:]


@pytest.mark.parametrize("document", ["line", "paragraph", "separator", "file"])
def test_a_long_line_needs_a_few_times_its_size(tmp_path: Path, document: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * 2_000_000 + b"end\n")
    recipe = Recipe(corpus="x", format="text", document=document, separator="|")
    [input_file] = describe_input_files([("a.txt", path)], recipe, {}, num_threads=1).files

    def read() -> None:
        assert sum(records.num_records for records in read_text(input_file, Span(0), recipe, Rejects(None))) == 1

    assert measure_peak_bytes(read) < 5 * path.stat().st_size
