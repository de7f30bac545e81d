"""Small spans and chunks, so that small corpora have many of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.stream import StreamCorpus
from tests.preprocess.stream.helpers import (
    make_texts,
    open_files,
    write_parquet,
)


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 300)
    monkeypatch.setattr("preprocess.stream.encoding.CHUNK_BYTES", 100)


@pytest.fixture
def small_reads(small_spans: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", 200)
    monkeypatch.setattr("preprocess.readers.json.HEAD_BYTES", 200)


@pytest.fixture
def corpus(tmp_path: Path, small_spans: None) -> StreamCorpus:
    """A corpus of two files with several spans each."""
    return open_files(*(write_parquet(tmp_path / f"{i}.parquet", make_texts(60, seed=i)) for i in range(2)))
