"""The work directory of a build: the files of its tasks, from which an interrupted build continues.

It is `.NAME.work/KEY/` beside the build. KEY is a hash of everything that decides the work: recipe,
input files, versions. A changed recipe therefore has another work directory, and stale work is
never used. The files of partition 7 are

    part-00007.docs      the table of its documents
              .values    the distinct values that the table refers to
              .text      its texts; only if the tokenizer is trained on them
              .ids       the token ids of its documents
              .lengths   the number of tokens of each document
              .shingles, .num_shingles, .bands   for finding nearly equal documents (stages/near_dup.py)
              .lines     the hashes of its lines or paragraphs; only to remove repeated ones
              .overlaps  which evaluation items its documents contain (build/contamination.py)
              .mask      the loss mask, a byte for each token; only if there are chats
              .sides     train, val or dropped, for each document
              .rejects   its malformed records, if any
              .count.json, .count_lines.json, .prepare.json, .encode.json   the receipts of its tasks

and for all partitions near_groups.keys and near_groups.joined, the groups that near_dedup = "group" joins
(near_dedup/groups.py), and NAME-00007.rows, which tasks send to each other (shuffle.py).

A partition may have any number of documents, because a compressed file cannot be divided. So tables
are read in chunks of CHUNK_DOCUMENTS, which need a few megabytes. Pages of a mapped file count as
memory of the process until they are unmapped, so a chunk is mapped and not the whole file.

A file is used only if a receipt has its size and hash. So a build on one machine survives crashes
without calling fsync, which would be slow for so many files. A killed process leaves files without a
receipt, and their task runs again. After a power failure a receipt may be on the disk although the
data is not; then the hashes differ, and the task runs again as well.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import xxhash

from preprocess.build.receipts import (
    FileChecksum,
    PartitionReceipt,
    PartitionValues,
    read_receipt,
    write_receipt,
)
from preprocess.errors import format_quantity
from preprocess.progress import Progress
from preprocess.shards.files import HASH_CHUNK_BYTES, make_partial_path
from preprocess.shards.format import default_root

# One row per document. `hash`: of its content. `group`: of its group, whose documents are all on
# one side of the split. `author`, `city`, `lang`: indices into the partition's values. -1 means
# that the document has no author, city, year or language.
DOCUMENT_DTYPE = np.dtype(
    [
        ("hash", "u1", 16), ("group", "u1", 16), ("position", "<u8"), ("text_bytes", "<u4"), ("source", "<u4"),
        ("author", "<i4"), ("city", "<i4"), ("year", "<i4"), ("lang", "<i4"), ("side", "i1"), ("has_u2581", "?"),
    ]
)  # fmt: skip
NUM_SHINGLES_DTYPE = np.dtype("<u4")  # of a document
LENGTH_DTYPE = np.dtype("<u4")  # tokens of a document, control tokens included
DROPPED = -1  # the side of a document that is not in the build
CHUNK_DOCUMENTS = 1 << 16  # processed at once
REJECTS_SUFFIX = "rejects"  # of the file with a partition's malformed records
REJECTS_FILE = "refused.jsonl"  # malformed records of all partitions; remains after the build

Receipt = TypeVar("Receipt", bound=PartitionReceipt)


class Chunk(NamedTuple):
    """Consecutive documents of one partition."""

    partition: int
    first: int  # row in the partition's tables
    last: int  # exclusive

    @property
    def num_documents(self) -> int:
        return self.last - self.first


def iter_chunks(num_documents: list[int], max_documents: int | None = None) -> Iterator[Chunk]:
    """Yield all documents in reading order, in chunks of at most `max_documents`.

    `num_documents`: of each partition. `max_documents`: CHUNK_DOCUMENTS by default.
    """
    for partition, count in enumerate(num_documents):
        yield from cut_chunk(Chunk(partition, 0, count), max_documents)


def cut_chunk(chunk: Chunk, max_documents: int | None = None) -> Iterator[Chunk]:
    """Yield the documents of `chunk` in chunks of at most `max_documents`, by default CHUNK_DOCUMENTS."""
    step = max_documents or CHUNK_DOCUMENTS
    for first in range(chunk.first, chunk.last, step):
        yield Chunk(chunk.partition, first, min(first + step, chunk.last))


@dataclass(frozen=True)
class WorkDir:
    """The files of a work directory. Partitions are identified by their number."""

    path: Path
    is_durable: bool = False  # files are flushed to the disk before their receipt, as their machine may fail alone

    def file(self, partition: int, suffix: str) -> Path:
        """Return the path of a partition's file."""
        return self.path / f"part-{partition:05d}.{suffix}"

    @contextmanager
    def create_files(self, partition: int, *suffixes: str) -> Iterator[dict[str, HashedFile]]:
        """Yield a new file for each suffix. If the block succeeds they get their final names.

        If it fails they are deleted.
        """
        paths = {suffix: make_partial_path(self.file(partition, suffix)) for suffix in suffixes}
        files = {}
        try:
            for suffix, path in paths.items():
                files[suffix] = HashedFile(path)
            yield files
            for suffix, file in files.items():
                if self.is_durable:
                    file.sync()
                file.close()
                os.replace(paths[suffix], self.file(partition, suffix))
        finally:
            for suffix, file in files.items():
                file.close()
                paths[suffix].unlink(missing_ok=True)

    def write_receipt(self, partition: int, receipt: PartitionReceipt) -> None:
        """Record that a task is finished. Its files must have their final names already."""
        write_receipt(self.file(partition, f"{receipt.TASK}.json"), receipt)

    def read_receipt(self, partition: int, receipt_type: type[Receipt]) -> Receipt | None:
        """Return the receipt of a finished task, or None if it has none or its files have changed."""
        receipt = read_receipt(self.file(partition, f"{receipt_type.TASK}.json"), receipt_type)
        if receipt is None:
            return None
        for suffix, expected in receipt.files.items():
            path = self.file(partition, suffix)
            if not path.is_file() or path.stat().st_size != expected.size_bytes or hash_file(path) != expected.xxh3:
                return None
        return receipt

    def read_values(self, partition: int) -> PartitionValues:
        """Return the values that a partition's table of documents refers to."""
        return PartitionValues(**json.loads(self.file(partition, "values").read_bytes()))

    def map_documents(self, chunk: Chunk) -> np.ndarray:
        """Map the table of the documents in `chunk`: (D,) of DOCUMENT_DTYPE, read-only."""
        return _map_rows(self.file(chunk.partition, "docs"), DOCUMENT_DTYPE, chunk)

    def map_lengths(self, chunk: Chunk) -> np.ndarray:
        """Map the number of tokens of each document in `chunk`: (D,) uint32, read-only."""
        return _map_rows(self.file(chunk.partition, "lengths"), LENGTH_DTYPE, chunk)

    def map_num_shingles(self, chunk: Chunk) -> np.ndarray:
        """Map the number of shingles of each document in `chunk`: (D,) uint32, read-only."""
        return _map_rows(self.file(chunk.partition, "num_shingles"), NUM_SHINGLES_DTYPE, chunk)

    def map_bands(self, chunk: Chunk, num_bands: int) -> np.ndarray:
        """Map the bands of each document in `chunk`: (D, num_bands) uint64, read-only."""
        rows = Chunk(chunk.partition, chunk.first * num_bands, chunk.last * num_bands)
        return _map_rows(self.file(chunk.partition, "bands"), np.dtype("<u8"), rows).reshape(-1, num_bands)

    def create_sides(self, partition: int, num_documents: int) -> None:
        """Write the file of sides of a partition, with TRAIN for all documents."""
        with open(self.file(partition, "sides"), "wb") as file:
            file.truncate(num_documents)  # filled with zeros, and TRAIN is 0

    def sync_sides(self, partition: int) -> None:
        """Write the sides of a partition to the disk: other machines see changes of a mapped file only then."""
        with open(self.file(partition, "sides"), "rb") as file:
            os.fsync(file.fileno())

    def map_sides(self, chunk: Chunk) -> np.ndarray:
        """Map the side of each document in `chunk`, TRAIN, VAL or DROPPED: (D,) int8, writable."""
        return _map_rows(self.file(chunk.partition, "sides"), np.dtype(np.int8), chunk, mode="r+")


def _map_rows(path: Path, dtype: np.dtype, chunk: Chunk, *, mode: Literal["r", "r+"] = "r") -> np.ndarray:
    if not chunk.num_documents:
        return np.empty(0, dtype)
    # asarray returns a plain ndarray; operations on its subclass np.memmap take longer.
    return np.asarray(np.memmap(path, dtype, mode, offset=chunk.first * dtype.itemsize, shape=(chunk.num_documents,)))


class HashedFile:
    """A file that is hashed while it is written. `pyarrow.PythonFile` can wrap it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `create_files`)
        self._path = path
        self._digest = xxhash.xxh3_64()
        self._size_bytes = 0

    def write(self, data: Any) -> int:
        """Write the bytes of an array or a bytes-like object, and return their number."""
        view = np.ascontiguousarray(data).view(np.uint8).data if isinstance(data, np.ndarray) else memoryview(data)
        try:
            self._file.write(view)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._path)) from e  # the error of a write does not name the file
        self._digest.update(view)
        self._size_bytes += view.nbytes
        return view.nbytes

    @property
    def checksum(self) -> FileChecksum:
        """The size and hash of what was written so far."""
        return FileChecksum(self._size_bytes, self._digest.hexdigest())

    @property
    def closed(self) -> bool:
        return self._file.closed

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        """Write the file to the disk, or to the server of a network file system."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def hash_file(path: Path) -> str:
    """Return the 64-bit XXH3 hash of a file's content, in hexadecimal."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return str(digest.hexdigest())


def get_work_root(output_dir: Path) -> Path:
    """Return the parent directory of the work directories of the build `output_dir`."""
    return output_dir.parent / f".{output_dir.name}.work"


def open_work_dir(output_dir: Path, key: str, *, is_durable: bool = False) -> WorkDir:
    """Return the work directory for `key`, which may contain the work of an interrupted build.

    The work directories of other keys are deleted. `is_durable` is as in `WorkDir`.
    """
    root = get_work_root(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.iterdir():
        if stale.name != key:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    path = root / key
    path.mkdir(exist_ok=True)
    for stale in list(path.rglob("*.partial")):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    return WorkDir(path, is_durable)


def delete_work(output_dir: Path, progress: Progress) -> None:
    """Delete the work directories of the build `output_dir`.

    The malformed and changed records are first saved in REJECTS_FILE, and a warning says so.
    """
    root = get_work_root(output_dir)
    if not root.is_dir():
        return
    if rejects := sorted(root.glob(f"*/part-*.{REJECTS_SUFFIX}")):
        with open(root / REJECTS_FILE, "wb") as out:
            for path in rejects:
                with open(path, "rb") as file:
                    shutil.copyfileobj(file, out)
        with open(root / REJECTS_FILE, "rb") as file:
            num_records = sum(1 for _ in file)
        was, them = ("was", "it") if num_records == 1 else ("were", "them")
        progress.warn(
            f"{format_quantity(num_records, 'record')} that could not be read, or {was} changed, {was} saved in "
            f"{root / REJECTS_FILE}; `preprocess rejects {_quote_name(output_dir)}` prints {them}"
        )
    for path in root.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    if not any(root.iterdir()):
        root.rmdir()


def _quote_name(output_dir: Path) -> str:
    """Return how a command line names the build `output_dir`."""
    is_in_root = output_dir.parent == default_root().resolve()
    return shlex.quote(output_dir.name if is_in_root else str(output_dir))
