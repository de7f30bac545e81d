"""One text in the forms that each tool reads, and what each tool made of it: made and read outside the timing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROW_GROUP_BYTES = 16 << 20
DOCS = np.dtype(
    [("hash", "u1", 16), ("source", "<u4"), ("language", "<u4"), ("position", "<u8")]
)  # docs/shard_format.md
Key = tuple[int, int]  # source, position in it


@dataclass(frozen=True)
class Forms:
    """The same documents in one Parquet file, in a folder of two, and as two text files and as one."""

    parquet: Path
    halves: Path
    text: Path
    text_halves: tuple[Path, Path]
    num_documents: int
    num_bytes: int

    @property
    def files(self) -> list[Path]:
        return [self.parquet, self.text, *self.text_halves, *sorted(self.halves.iterdir())]


def make_forms(path: Path, folder: Path, *, max_bytes: int | None = None) -> Forms:
    """Of the documents of the Parquet file `path`, the first `max_bytes` or all; a line prefetcher ends each in the text files."""
    texts = _first(pq.ParquetFile(path), max_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    whole, halves = folder / "all.parquet", folder / "halves"
    halves.mkdir(exist_ok=True)
    middle = len(texts) // 2
    parts = (texts[:middle], texts[middle:])
    _write_parquet(whole, texts)
    for number, part in enumerate(parts):
        _write_parquet(halves / f"{number}.parquet", part)
        _write_text(folder / f"{number}.txt", part)
    text = folder / "all.txt"
    text.write_bytes(b"".join((folder / f"{number}.txt").read_bytes() for number in range(2)))
    return Forms(whole, halves, text, (folder / "0.txt", folder / "1.txt"), len(texts), _num_bytes(texts))


def _first(file: pq.ParquetFile, max_bytes: int | None) -> pa.LargeStringArray:
    found: list[pa.Array] = []
    left = max_bytes
    for batch in file.iter_batches(columns=["text"], batch_size=8192):
        column = batch.column(0).cast(pa.large_string())
        ends = np.cumsum(pc.binary_length(column).to_numpy())
        if left is not None and ends[-1] > left:
            found.append(column[: int(np.searchsorted(ends, left, side="right"))])
            break
        found.append(column)
        left = None if left is None else left - int(ends[-1])
    return pa.concat_arrays(found)


def _num_bytes(texts: pa.LargeStringArray) -> int:
    return pc.sum(pc.binary_length(texts)).as_py() or 0


def _write_parquet(path: Path, texts: pa.LargeStringArray) -> None:
    rows = max(1, len(texts) * ROW_GROUP_BYTES // max(1, _num_bytes(texts)))
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rows, store_schema=False)


def _write_text(path: Path, texts: pa.LargeStringArray) -> None:
    with open(path, "wb") as file:
        for begin in range(0, len(texts), 8192):
            file.writelines(text.encode() + b"\n" for text in texts[begin : begin + 8192].to_pylist())


def documents_of(parquet: Path) -> list[str]:
    return pq.read_table(parquet, columns=["text"]).column("text").to_pylist()


def split_at(tokens: np.ndarray, ends: Iterable[int]) -> Iterator[np.ndarray]:
    begin = 0
    for end in ends:
        yield tokens[begin:end]
        begin = end


def read_folio(build: Path) -> dict[Key, np.ndarray]:
    """Every document's tokens, wherever the split has put it."""
    manifest = json.loads((build / "manifest.json").read_bytes())
    found: dict[Key, np.ndarray] = {}
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            file = build / shard["file"]
            tokens = np.fromfile(file, manifest["dtype"])
            docs, ends = np.fromfile(file.with_suffix(".docs"), DOCS), np.fromfile(file.with_suffix(".ends"), "<u8")
            keys = zip(docs["source"].tolist(), docs["position"].tolist(), strict=True)
            found.update(zip(keys, split_at(tokens, ends.tolist()), strict=True))
    return dict(sorted(found.items()))


def read_nanogpt(folder: Path, eot: int) -> list[np.ndarray]:
    """Documents in the split's order: no text encodes to `eot`, so it ends each and stands nowhere else."""
    shards = [np.fromfile(folder / f"{name}.bin", "<u2") for name in ("train", "val")]
    return [part for tokens in shards for part in split_at(tokens, (np.flatnonzero(tokens == eot) + 1).tolist())]


def read_datatrove(folder: Path) -> list[np.ndarray]:
    """Documents in the shuffled order."""
    files = sorted((folder / "tokens").glob("*.ds"))
    return [
        part
        for file in files
        for part in split_at(np.fromfile(file, "<u2"), np.fromfile(f"{file}.index", "<u8").tolist())
    ]


def read_gigatoken(path: Path) -> list[np.ndarray]:
    """Documents in the files' order."""
    with np.load(path) as found:
        return list(split_at(found["ids"], found["ends"].tolist()))
