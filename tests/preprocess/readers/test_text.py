"""The text reader: lines, paragraphs and separated texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.file_builds import WORDS, build_files, read_texts

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


@pytest.mark.usefixtures("partition_sizes")
@pytest.mark.parametrize("separator", ["<|endoftext|>", "==", "---\n"])
def test_read_text_splits_at_separators(tmp_path: Path, separator: str) -> None:
    texts = [f"{w}\n{w} again" for w in WORDS]
    (tmp_path / "a.txt").write_text(f"\n{separator}\n".join(texts) + f"\n{separator}\n")
    assert read_texts(build_files(tmp_path, tmp_path / "a.txt", document="separator", separator=separator)) == texts
