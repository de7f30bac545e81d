"""Read and write the token arrays of OLMo and OLMo-core: `.npy` with the tokens, `.csv.gz` with the documents.

In spite of its name, an `.npy` file here is not a NumPy file: it has no header, and the dtype is a setting of
OLMo's configuration. Each line of `.csv.gz` has the begin and the exclusive end of a document in
tokens, an id, the name of the source, and the document's number in it.

Layout: dolma, python/dolma/tokenizer/memmap_writer.py, and OLMo-core, olmo_core/data/utils.py.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.errors import FolioError, shorten
from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.read_tokens import ADVICE, read_documents
from preprocess.exchange.tokens import CHUNK_DOCUMENTS, iter_records, name_sources, write_array
from preprocess.inputs.token_files import TokenBatch, TokenFile, TokenIds, TokenNames
from preprocess.shards.files import open_regular_file
from preprocess.shards.format import SPLITS, Build, token_dtype
from preprocess.shards.manifest import ShardEntry

DOCUMENTS = ".csv.gz"
NAMES = TokenNames(".npy", (DOCUMENTS,))
MAX_ROW_BYTES = 1 << 16  # a row has several lines if a quoted value contains line feeds
# A line has about 100 bytes and a document hundreds of tokens. More is a file made to take time or memory.
MAX_CSV_BYTES_PER_TOKEN, MIN_CSV_LIMIT_BYTES = 256, 1 << 20


def export_olmo(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write each shard of a build to files such as `train/part-00000.npy` and `.csv.gz`, and return their paths.

    A token takes 2 bytes (`dtype: uint16` in OLMo's configuration), or 4 if the vocabulary has more than
    65,536 ids. Raises MisuseError like `prepare_output`, and FolioError if the build is damaged.
    """
    shards = {
        output / split / f"part-{number:05}.npy": entry
        for split in SPLITS
        for number, entry in enumerate(build.manifest.splits[split].shards)
    }
    paths = [file for path in shards for file in (path, path.with_suffix(".csv.gz"))]
    patterns = [f"{split}/{name}" for split in SPLITS for name in ("*.npy", "*.csv.gz")]
    prepare_output(output, paths, patterns=patterns, replace=replace)
    with write_together() as new, build.reading():
        for path, entry in shards.items():
            with new.open(path) as file:
                write_array(file, build.map_shard(entry).tokens)
            with new.open(path.with_suffix(".csv.gz")) as file:
                _write_documents(file, build, entry)
    return paths


def _write_documents(file: BinaryIO, build: Build, entry: ShardEntry) -> None:
    # Without a name and a time in its header, the file depends on the build only.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as compressed,
        io.TextIOWrapper(compressed, encoding="utf-8", errors="backslashreplace", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows(_iter_rows(build, entry))


def _iter_rows(build: Build, entry: ShardEntry) -> Iterator[tuple[int, int, str, str, int]]:
    """Yield begin, end, id, source and position of each document of a shard. The id is the content hash."""
    begin = 0
    for docs, ends in iter_records(build, entry):
        names = name_sources(build, docs)
        hashes = np.ascontiguousarray(docs["hash"])
        for end, digest, name, position in zip(ends.tolist(), hashes, names, docs["position"].tolist(), strict=True):
            yield begin, end, digest.tobytes().hex(), name, position
            begin = end


def read_olmo(files: list[TokenFile], ids: TokenIds) -> Iterator[TokenBatch]:
    """Yield the documents of `.npy` files. A token has 2 bytes, or 4 if there are more than 65,536 ids.

    Raises FolioError if a file is damaged or a document is too long.
    """
    for file in files:
        yield from read_documents(file, token_dtype(ids.vocab_size), _iter_lengths(file))


def _iter_lengths(file: TokenFile) -> Iterator[np.ndarray]:
    """Yield the lengths of the documents of a file: arrays (D,) int64."""
    path = Path(file.companions[DOCUMENTS].path)
    lengths: list[int] = []
    end = 0
    try:
        with open_regular_file(path) as raw, gzip.GzipFile(fileobj=raw, mode="rb") as compressed:
            lines = _Lines(path, compressed, max(MAX_CSV_BYTES_PER_TOKEN * file.tokens.size_bytes, MIN_CSV_LIMIT_BYTES))
            for number, row in enumerate(csv.reader(lines), start=1):
                lines.begin_row()
                end = _parse_row(path, number, row, end)
                lengths.append(end - int(row[0]))
                if len(lengths) == CHUNK_DOCUMENTS:
                    yield np.array(lengths, np.int64)
                    lengths = []
    except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as e:
        raise FolioError(f"{path} cannot be read as compressed CSV ({shorten(str(e))}); {ADVICE}") from e
    yield np.array(lengths, np.int64)


class _Lines:
    """The lines of compressed text, of which at most `max_bytes`, and MAX_ROW_BYTES after `begin_row`, can be read."""

    def __init__(self, path: Path, compressed: gzip.GzipFile, max_bytes: int) -> None:
        self._path, self._compressed, self._num_left = path, compressed, max_bytes
        self.begin_row()

    def begin_row(self) -> None:
        self._num_left_of_row = MAX_ROW_BYTES

    def __iter__(self) -> Iterator[str]:
        while line := self._compressed.readline(MAX_ROW_BYTES):
            self._num_left -= len(line)
            self._num_left_of_row -= len(line)
            if self._num_left < 0 or self._num_left_of_row <= 0:
                raise FolioError(f"{self._path} decompresses to more text than its documents can have; {ADVICE}")
            yield line.decode("utf-8", "backslashreplace")


def _parse_row(path: Path, number: int, row: list[str], begin: int) -> int:
    """Return the end of a document, which must begin at `begin`."""
    digits = [cell for cell in row[:2] if cell.isascii() and cell.isdigit() and len(cell) < 19]
    if len(digits) < 2 or int(digits[0]) != begin or int(digits[1]) <= begin:
        raise FolioError(
            f"{path}, line {number} begins with {shorten(','.join(row[:2]))!r}, expected the begin {begin} of a "
            f"document and a larger end; {ADVICE}"
        )
    return int(digits[1])
