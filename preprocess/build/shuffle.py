"""Compare all documents of a build with each other, in tasks that each need a small part of them.

The problem: equal documents may be anywhere, but no task should read the tables of all documents,
and the tasks may run on several machines.

The idea, which is that of MapReduce (Dean and Ghemawat 2004): divide the documents into sections, and
their rows into buckets by a hash, so that equal rows are in the same bucket. A task per section
writes its rows to one file, ordered by bucket. A task per bucket reads its part of every file; if
the upper bits of the hash choose the bucket, the buckets are also in the order of the hashes. The
results go back to the sections in the same way. The rows of a reader are in the order of the
writers, so the result does not depend on the order of the tasks.

The cost: each row is written once and read once, and S sections and B buckets need S × B short
reads. So there are at most about MAX_SECTIONS sections and MAX_BUCKETS buckets (buckets.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from preprocess.build.buckets import get_max_piece_rows
from preprocess.build.engines.interface import Engine, Task
from preprocess.build.work_dir import Chunk, WorkDir, cut_chunk, iter_chunks
from preprocess.shards.files import make_partial_path

MIN_SECTION_DOCUMENTS = 1 << 20
BUFFER_ROWS = 1 << 20  # collected before they are written, so that each block is not too small
MAX_SECTIONS = 2048
PAGE_DOCUMENTS = 1 << 16  # whose sides, of one byte each, are whole pages of memory on any machine
EDGE_DTYPE = np.dtype("<i8")


class Section(NamedTuple):
    """Consecutive documents of a build, about as many as those of other sections."""

    number: int
    first_document: int  # counted across partitions, in reading order
    chunks: tuple[Chunk, ...]  # at most one per partition

    @property
    def num_documents(self) -> int:
        return sum(chunk.num_documents for chunk in self.chunks)

    def iter_chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Yield (number of the first document, chunk) for chunks of at most CHUNK_DOCUMENTS documents."""
        first_document = self.first_document
        for whole in self.chunks:
            for chunk in cut_chunk(whole):
                yield first_document, chunk
                first_document += chunk.num_documents


def cut_sections(num_documents: list[int], min_documents: int | None = None) -> list[Section]:
    """Divide the documents of all partitions into sections.

    `num_documents`: of each partition. `min_documents`: of a section, MIN_SECTION_DOCUMENTS by default. Two sections
    of one partition meet at a multiple of PAGE_DOCUMENTS, because their tasks may write to its file of sides on
    different machines, and a machine writes whole pages.
    """
    wanted = max(min_documents or MIN_SECTION_DOCUMENTS, -(-sum(num_documents) // MAX_SECTIONS))
    size = -(-wanted // PAGE_DOCUMENTS) * PAGE_DOCUMENTS
    sections: list[Section] = []
    chunks: list[Chunk] = []
    first_document = num_in_section = 0
    for chunk in iter_chunks(num_documents, size):
        if num_in_section + chunk.num_documents > size:
            sections.append(Section(len(sections), first_document, tuple(chunks)))
            first_document, chunks, num_in_section = first_document + num_in_section, [], 0
        chunks.append(chunk)
        num_in_section += chunk.num_documents
    return [*sections, Section(len(sections), first_document, tuple(chunks))] if chunks else sections


@dataclass(frozen=True)
class Shuffle:
    """Rows that each of several writers has for each of several readers, in one file per writer.

    As a context manager it deletes the files. A file consists of blocks. A block has, for each
    reader, where its rows begin, then the number of rows, then the rows.
    """

    work_dir: WorkDir
    name: str
    dtype: np.dtype
    num_writers: int
    num_readers: int

    def __enter__(self) -> Shuffle:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in range(self.num_writers):
            self._path(writer).unlink(missing_ok=True)

    def _path(self, writer: int) -> Path:
        return self.work_dir.path / f"{self.name}-{writer:05d}.rows"

    @contextmanager
    def open(self, writer: int) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
        """Yield a function that appends (N,) rows and the reader of each, (N,), to the file of `writer`.

        If the block succeeds the file gets its final name.
        """
        path = self._path(writer)
        partial = make_partial_path(path)
        try:
            with open(partial, "wb") as file:
                blocks = _BlockWriter(file, self.num_readers)
                yield blocks.append
                blocks.flush()
                if self.work_dir.is_durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def read(self, reader: int, writers: Iterable[int] | None = None) -> Iterator[np.ndarray]:
        """Yield the rows of `reader` in pieces, in the order of the writers and of their calls.

        `writers`: only their rows, by default those of all. Each piece is an array (N,) of
        `get_max_piece_rows()` rows, except the last one, which has at least one row.
        """
        parts: list[np.ndarray] = []
        num_rows, max_rows = 0, get_max_piece_rows()
        for writer in range(self.num_writers) if writers is None else writers:
            for part in self._read_file(self._path(writer), reader, max_rows):
                while num_rows + len(part) > max_rows:
                    num_fitting = max_rows - num_rows
                    yield np.concatenate([*parts, part[:num_fitting]])
                    part, parts, num_rows = part[num_fitting:], [], 0
                parts.append(part)
                num_rows += len(part)
        if num_rows:
            yield np.concatenate(parts)

    def read_all(self, reader: int, writers: Iterable[int] | None = None) -> np.ndarray:
        """Return the rows that `read` yields in one array, (N,)."""
        return np.concatenate([np.empty(0, self.dtype), *self.read(reader, writers)])

    def _read_file(self, path: Path, reader: int, max_rows: int) -> Iterator[np.ndarray]:
        head_bytes = (self.num_readers + 1) * EDGE_DTYPE.itemsize
        with open(path, "rb") as file:
            end, block = os.fstat(file.fileno()).st_size, 0
            while block < end:
                file.seek(block + reader * EDGE_DTYPE.itemsize)
                first, last = np.fromfile(file, EDGE_DTYPE, 2).tolist()
                for start in range(first, last, max_rows):
                    file.seek(block + head_bytes + start * self.dtype.itemsize)
                    yield np.fromfile(file, self.dtype, min(max_rows, last - start))
                file.seek(block + head_bytes - EDGE_DTYPE.itemsize)
                block += head_bytes + int(np.fromfile(file, EDGE_DTYPE, 1)[0]) * self.dtype.itemsize


class _BlockWriter:
    """Collects the rows of one writer and writes them in blocks."""

    def __init__(self, file: BinaryIO, num_readers: int) -> None:
        self._file, self._num_readers = file, num_readers
        self._buffer: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_buffered = 0

    def append(self, rows: np.ndarray, readers: np.ndarray) -> None:
        self._buffer.append((rows, readers))
        self._num_buffered += len(rows)
        if self._num_buffered >= BUFFER_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows in the buffer as one block."""
        if not self._num_buffered:
            return
        all_rows, all_readers = zip(*self._buffer, strict=True)
        rows, readers = (
            arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in (all_rows, all_readers)
        )
        self._buffer, self._num_buffered = [], 0
        dtype = np.uint16 if self._num_readers <= 1 << 16 else np.uint32  # 16 bits have a radix sort
        order = np.argsort(readers.astype(dtype), kind="stable")
        edges = np.zeros(self._num_readers + 1, EDGE_DTYPE)
        np.cumsum(np.bincount(readers, minlength=self._num_readers), out=edges[1:])
        self._file.write(edges.data)
        self._file.write(np.ascontiguousarray(rows[order]).data)


def run_all(
    engine: Engine, label: str, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Call `function` with each of the `arguments` as tasks, and return the results in their order."""
    tasks = (Task(f"{label} {i}", function, each, key=i) for i, each in enumerate(arguments))
    results = {task.key: result for task, result in engine.run(tasks)}
    return [results[i] for i in range(len(arguments))]
