"""Rows that are difficult to write, and a check that a build of a file has their texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.file_builds import build_files, read_stats, read_texts

TEXTS = [
    'a "b", c', "two\nlines;\t|", "\r\nx\r\n", "C:\\", None, "", "é😀\u2028z", "'s'", '"', 'x""', " lead", "NaN",
    "null", "#c", '\\"', "e\\n", "0123", "2020-01-01", "<b>&amp;</b>", "\x1f\x7f", "\ufeffmark", ",", ';;"',
    "a,b\n\"c\",d\n",
]  # fmt: skip
ROWS: dict[str, list[Any]] = {"id": list(range(len(TEXTS))), "text": TEXTS}
DOCUMENTS = [text for text in TEXTS if text]  # null and empty texts are counted, and are not documents


def check_documents(folder: Path, *paths: Path, **settings: Any) -> None:
    """Build `paths`, and assert that the documents are DOCUMENTS, and that all rows were read."""
    result = build_files(folder, *paths, **settings)
    assert read_texts(result) == DOCUMENTS
    counts = read_stats(result)["documents"]
    assert counts["read"] == len(TEXTS) and counts["empty"] + counts.get("null_text", 0) == 2
