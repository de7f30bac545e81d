"""The parts of pyarrow that read Arrow IPC files and streams.

Files of this kind are written by `save_to_disk` of Hugging Face datasets, by Feather and by polars.
The examiner (examiner.py) calls these functions in a child process first, because damaged files can
end the process or make it allocate any amount of memory. So this module imports no NumPy.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from preprocess.recipes.nested import split_path

FILE_MAGIC = b"ARROW1"
FOOTER_SIZE = struct.Struct("<i")  # before the magic bytes at the end of a file
CONTINUATION = b"\xff\xff\xff\xff"  # before the length of a message; files of old versions do not have it
# Fields in FlatBuffers (File.fbs and Message.fbs of Arrow), by their number: of a footer, a message, a record batch.
BATCHES, HEADER, COMPRESSION = 3, 2, 3


@contextmanager
def open_arrow(path: str, names: set[str]) -> Iterator[ArrowFile]:
    """Open an Arrow file. Of its columns, only those in `names` are read.

    Arrow copies a record batch if only some of its columns are demanded. A file that is not compressed
    is therefore opened with all columns, which then are parts of the mapped file.
    """
    mapped = _map(path)
    with pa.BufferReader(mapped) as source:
        is_stream = source.read(len(FILE_MAGIC)) != FILE_MAGIC
        source.seek(0)
        open_ = pa.ipc.open_stream if is_stream else pa.ipc.open_file
        schema = open_(source).schema
        source.seek(0)
        columns = names | {split_path(name)[0] for name in names}
        is_mapped = not is_stream and not _is_compressed(source)
        source.seek(0)
        included = [i for i, field in enumerate(schema) if field.name in columns]
        # An empty list means all fields.
        fields = [] if is_mapped else included or list(range(len(schema)))[:1]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        yield ArrowFile(schema, open_(source, options=options), mapped, source if is_stream else None)


def _map(path: str) -> mmap.mmap | bytes:
    """Return the bytes of a file, mapped by Python: pyarrow cannot release the pages of a file that it maps."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""


def _is_compressed(source: pa.BufferReader) -> bool:
    """Return whether the first record batch of a file is compressed. pyarrow does not say.

    The place of the batch is in the footer. The messages before it need not be those of a stream: polars
    writes them otherwise. Raises struct.error if the footer is damaged.
    """
    end = source.size() - len(FILE_MAGIC) - FOOTER_SIZE.size
    size = FOOTER_SIZE.unpack(source.read_at(FOOTER_SIZE.size, end))[0]
    footer = source.read_at(size, end - size)
    batches = _find_field(footer, _follow(footer, 0), BATCHES)
    blocks = _follow(footer, batches) if batches else 0
    if not blocks or not struct.unpack_from("<I", footer, blocks)[0]:
        return False
    offset, metadata_bytes = struct.unpack_from("<qi", footer, blocks + 4)
    metadata = source.read_at(metadata_bytes, offset)
    root = 8 if metadata[:4] == CONTINUATION else 4  # after the length of the message
    header = _find_field(metadata, root + struct.unpack_from("<I", metadata, root)[0], HEADER)
    return _find_field(metadata, _follow(metadata, header), COMPRESSION) > 0


def _follow(data: bytes, offset: int) -> int:
    """Return where the reference at `offset` leads."""
    target: int = offset + struct.unpack_from("<I", data, offset)[0]
    return target


def _find_field(metadata: bytes, table: int, number: int) -> int:
    """Return the offset of a field of a FlatBuffers table, or 0 if the table does not have it."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    size, entry = struct.unpack_from("<H", metadata, fields)[0], 4 + 2 * number
    offset = struct.unpack_from("<H", metadata, fields + entry)[0] if entry < size else 0
    return table + offset if offset else 0


class ArrowFile:
    """An open Arrow file. A stream can only be read from its beginning."""

    def __init__(
        self, schema: pa.Schema, reader: Any, mapped: mmap.mmap | bytes, stream: pa.BufferReader | None
    ) -> None:
        """`mapped`: the file. `stream`: the bytes that `reader` reads, if they are a stream."""
        self.schema, self._reader, self._mapped, self._stream = schema, reader, mapped, stream

    @property
    def is_stream(self) -> bool:
        return self._stream is not None

    def count_batches(self) -> int:
        """Return the number of record batches in a file. They are not read."""
        num_batches: int = self._reader.num_record_batches
        return num_batches

    def release_pages(self) -> None:
        """Give the pages of the mapped file back to the system, which reads those that are needed again."""
        if hasattr(self._mapped, "madvise"):  # not on Windows
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def iter_batches(self, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the record batches from `start` to `stop`, of a stream all.

        The columns of a file that is not compressed are in the mapped file. Other batches are in memory. Raises
        ArrowInvalid if something follows a stream, as in streams that were written one after another: a reader
        ends after the first one.
        """
        if self._stream is not None:
            yield from self._reader
            if num_left := self._stream.size() - self._stream.tell():
                raise pa.ArrowInvalid(f"{num_left:,} bytes follow the end of the stream, perhaps a second one")
        else:
            for i in range(start, self.count_batches() if stop is None else stop):
                yield self._reader.get_batch(i)
