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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from preprocess.build.buckets import get_max_piece_rows
from preprocess.build.engines.interface import Engine, Task
from preprocess.build.receipts import make_partial_path
from preprocess.build.work_dir import Chunk, WorkDir, cut_chunk, iter_chunks

MIN_SECTION_DOCUMENTS = 1 << 20
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


def cut_sections(num_documents: list[int]) -> list[Section]:
    """Divide the documents of all partitions into sections. `num_documents`: of each partition.

    Two sections of one partition meet at a multiple of PAGE_DOCUMENTS, because their tasks may write to
    its file of sides on different machines, and a machine writes whole pages.
    """
    wanted = max(MIN_SECTION_DOCUMENTS, -(-sum(num_documents) // MAX_SECTIONS))
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
                yield lambda rows, readers: self._append(file, rows, readers)
                if self.work_dir.is_durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _append(self, file: BinaryIO, rows: np.ndarray, readers: np.ndarray) -> None:
        order = np.argsort(readers.astype(np.uint16), kind="stable")  # a radix sort, because of the 16 bits
        edges = np.zeros(self.num_readers + 1, EDGE_DTYPE)
        np.cumsum(np.bincount(readers, minlength=self.num_readers), out=edges[1:])
        file.write(edges.data)
        file.write(np.ascontiguousarray(rows[order]).data)

    def read(self, reader: int) -> Iterator[np.ndarray]:
        """Yield the rows of `reader` in pieces, in the order of the writers and of their calls.

        A piece is an array (N,) of at least one and at most `get_max_piece_rows()` rows.
        """
        parts: list[np.ndarray] = []
        num_rows, max_rows = 0, get_max_piece_rows()
        for writer in range(self.num_writers):
            for part in self._read_file(self._path(writer), reader, max_rows):
                if num_rows + len(part) > max_rows:
                    yield np.concatenate(parts)
                    parts, num_rows = [], 0
                parts.append(part)
                num_rows += len(part)
        if parts:
            yield np.concatenate(parts)

    def _read_file(self, path: Path, reader: int, max_rows: int) -> Iterator[np.ndarray]:
        head_bytes = (self.num_readers + 1) * EDGE_DTYPE.itemsize
        with open(path, "rb") as file:
            end, block = os.fstat(file.fileno()).st_size, 0
            while block < end:
                file.seek(block)
                edges = np.fromfile(file, EDGE_DTYPE, self.num_readers + 1)
                for start in range(int(edges[reader]), int(edges[reader + 1]), max_rows):
                    file.seek(block + head_bytes + start * self.dtype.itemsize)
                    yield np.fromfile(file, self.dtype, min(max_rows, int(edges[reader + 1]) - start))
                block += head_bytes + int(edges[-1]) * self.dtype.itemsize


def run_all(
    engine: Engine, label: str, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Call `function` with each of the `arguments` as tasks, and return the results in their order."""
    tasks = (Task(f"{label} {i}", function, each, key=i) for i, each in enumerate(arguments))
    results = {task.key: result for task, result in engine.run(tasks)}
    return [results[i] for i in range(len(arguments))]
