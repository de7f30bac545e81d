"""Files and corpora for the tests of streams."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.stream import StreamCorpus, TokenStream, open_corpus

EOT = 256  # id of the byte tokenizer
WORDS = ["sea", "stone", "Привет", "light", "日本", "x"]


def make_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, rng.integers(1, 40))) for i in range(count)]


def write_parquet(path: Path, texts: list[str], *, row_group_size: int = 7, **columns: list[Any]) -> Path:
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=row_group_size)
    return path


def open_files(*paths: Path, log: Callable[[str], None] | None = None, **overrides: Any) -> StreamCorpus:
    settings = {
        "tokenizer": "byte",
        "dedup": False,
        "split": "threshold",
        "val_fraction": 0.2,
        "clean": (),
        **overrides,
    }
    return open_corpus(None, inputs=tuple(map(str, paths)), log=log or (lambda line: None), **settings)


def read_documents(stream: TokenStream) -> list[bytes]:
    """Return the documents in the blocks of a stream with tail "pad" and the byte tokenizer."""
    tokens = np.concatenate([np.empty(0, stream.dtype), *stream])
    tokens = tokens[: len(tokens) - stream.num_padded]
    assert not len(tokens) or tokens[-1] == EOT
    ends = np.flatnonzero(tokens == EOT)
    return [
        tokens[a + 1 : b].astype(np.uint8).tobytes()
        for a, b in zip([-1, *ends[:-1].tolist()], ends.tolist(), strict=True)
    ]


def write_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class FlakyFile:
    """A file whose reading fails once at each of some offsets."""

    def __init__(self, path: str, offsets: set[int]) -> None:
        self._file, self._offsets = io.FileIO(path), offsets

    def read(self, size: int = -1) -> bytes:
        begin = self._file.tell()
        for offset in sorted(self._offsets):
            if begin <= offset < begin + size:
                self._offsets.remove(offset)
                raise OSError(5, "Input/output error")
        return self._file.read(size)

    def __enter__(self) -> FlakyFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


FORMATS = {
    "parquet": lambda path, texts: write_parquet(path.with_suffix(".parquet"), texts),
    "jsonl": lambda path, texts: write_file(
        path.with_suffix(".jsonl"), "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
    ),
    "gzip": lambda path, texts: write_file(path.with_suffix(".txt.gz"), gzip.compress("\n".join(texts).encode())),
    "lines": lambda path, texts: write_file(path.with_suffix(".txt"), "\n".join(texts).encode()),
    "csv": lambda path, texts: write_file(
        path.with_suffix(".csv"), ("text\n" + "\n".join(f'"{t}"' for t in texts)).encode()
    ),
}
