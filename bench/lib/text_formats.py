"""Write one text in the formats that the tools read, and read the tokens that each tool wrote.

Neither is part of what is timed. The readers are independent of Folio: they follow
docs/shard_format.md and the formats of the other tools.
"""

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
BATCH_DOCUMENTS = 8192
# An entry of Folio's .docs files.
DOCS_DTYPE = np.dtype([("hash", "u1", 16), ("source", "<u4"), ("language", "<u4"), ("position", "<u8")])
DocumentKey = tuple[int, int]  # the source, and the position in it


@dataclass(frozen=True)
class TextFiles:
    """The same documents as one Parquet file, as a folder of two, as one text file, and as two."""

    parquet: Path
    halves: Path  # the folder
    text: Path
    text_halves: tuple[Path, Path]
    num_documents: int
    num_bytes: int

    @property
    def files(self) -> list[Path]:
        return [self.parquet, self.text, *self.text_halves, *sorted(self.halves.iterdir())]


def write_text_files(path: Path, folder: Path, *, max_bytes: int | None = None) -> TextFiles:
    """Write the first `max_bytes` of the documents of the Parquet file `path`, or all, to `folder`.

    In the text files each document ends with a line feed.
    """
    texts = _read_texts(pq.ParquetFile(path), max_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    parquet, text, halves = folder / "all.parquet", folder / "all.txt", folder / "halves"
    halves.mkdir(exist_ok=True)
    middle = len(texts) // 2
    _write_parquet(parquet, texts)
    for number, half in enumerate((texts[:middle], texts[middle:])):
        _write_parquet(halves / f"{number}.parquet", half)
        _write_text(folder / f"{number}.txt", half)
    text.write_bytes(b"".join((folder / f"{number}.txt").read_bytes() for number in range(2)))
    return TextFiles(parquet, halves, text, (folder / "0.txt", folder / "1.txt"), len(texts), _count_bytes(texts))


def _read_texts(file: pq.ParquetFile, max_bytes: int | None) -> pa.LargeStringArray:
    columns: list[pa.Array] = []
    num_bytes_left = max_bytes
    for batch in file.iter_batches(columns=["text"], batch_size=BATCH_DOCUMENTS):
        column = batch.column(0).cast(pa.large_string())
        ends = np.cumsum(pc.binary_length(column).to_numpy())
        if num_bytes_left is not None and ends[-1] > num_bytes_left:
            columns.append(column[: int(np.searchsorted(ends, num_bytes_left, side="right"))])
            break
        columns.append(column)
        num_bytes_left = None if num_bytes_left is None else num_bytes_left - int(ends[-1])
    return pa.concat_arrays(columns)


def _count_bytes(texts: pa.LargeStringArray) -> int:
    return pc.sum(pc.binary_length(texts)).as_py() or 0


def _write_parquet(path: Path, texts: pa.LargeStringArray) -> None:
    num_rows = max(1, len(texts) * ROW_GROUP_BYTES // max(1, _count_bytes(texts)))
    pq.write_table(pa.table({"text": texts}), path, row_group_size=num_rows, store_schema=False)


def _write_text(path: Path, texts: pa.LargeStringArray) -> None:
    with open(path, "wb") as file:
        for begin in range(0, len(texts), BATCH_DOCUMENTS):
            file.writelines(text.encode() + b"\n" for text in texts[begin : begin + BATCH_DOCUMENTS].to_pylist())


def read_documents(parquet: Path) -> list[str]:
    """Return the texts of the Parquet file, in order."""
    texts: list[str] = pq.read_table(parquet, columns=["text"]).column("text").to_pylist()
    return texts


def split_at(tokens: np.ndarray, ends: Iterable[int]) -> Iterator[np.ndarray]:
    """Yield the parts of `tokens` that end at `ends`."""
    begin = 0
    for end in ends:
        yield tokens[begin:end]
        begin = end


def read_folio(build: Path) -> dict[DocumentKey, np.ndarray]:
    """Return each document's tokens in the order of the input, from both splits."""
    manifest = json.loads((build / "manifest.json").read_bytes())
    documents: dict[DocumentKey, np.ndarray] = {}
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            file = build / shard["file"]
            tokens = np.fromfile(file, manifest["dtype"])
            docs = np.fromfile(file.with_suffix(".docs"), DOCS_DTYPE)
            ends = np.fromfile(file.with_suffix(".ends"), "<u8")
            keys = zip(docs["source"].tolist(), docs["position"].tolist(), strict=True)
            documents.update(zip(keys, split_at(tokens, ends.tolist()), strict=True))
    return dict(sorted(documents.items()))


def read_nanogpt(folder: Path, eot_id: int) -> list[np.ndarray]:
    """Return each document's tokens, in the order of nanoGPT's split.

    No text is encoded to `eot_id`, so every occurrence of it is the end of a document.
    """
    shards = [np.fromfile(folder / f"{name}.bin", "<u2") for name in ("train", "val")]
    return [part for tokens in shards for part in split_at(tokens, (np.flatnonzero(tokens == eot_id) + 1).tolist())]


def read_datatrove(folder: Path) -> list[np.ndarray]:
    """Return each document's tokens, in datatrove's shuffled order."""
    return [
        part
        for file in sorted((folder / "tokens").glob("*.ds"))
        for part in split_at(np.fromfile(file, "<u2"), np.fromfile(f"{file}.index", "<u8").tolist())
    ]


def read_gigatoken(path: Path) -> list[np.ndarray]:
    """Return each document's tokens, in the order of the input."""
    with np.load(path) as arrays:
        return list(split_at(arrays["ids"], arrays["ends"].tolist()))
