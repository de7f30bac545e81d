"""The parts of pyarrow that read Arrow IPC files and streams.

Files of this kind are written by `save_to_disk` of Hugging Face datasets, by Feather and by polars.
The examiner (examiner.py) calls these functions in a child process first, because damaged files can
end the process or make it allocate any amount of memory. So this module imports no NumPy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from preprocess.recipes.nested import split_path

FILE_MAGIC = b"ARROW1"
FIRST_MESSAGE = 8  # its offset in a file; in a stream it is 0
# Fields of a message in FlatBuffers (Message.fbs and Schema.fbs of Arrow), by their number.
HEADER, COMPRESSION = 2, 3


@contextmanager
def open_arrow(path: str, names: set[str]) -> Iterator[ArrowFile]:
    """Open an Arrow file. Of its columns, only those in `names` are read.

    Arrow copies a record batch if only some of its columns are demanded. A file that is not compressed
    is therefore opened with all columns, which then are parts of the mapped file.
    """
    with pa.memory_map(path) as source:
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
        yield ArrowFile(schema, open_(source, options=options), is_stream)


def _is_compressed(source: pa.MemoryMappedFile) -> bool:
    """Return whether the first record batch of a file is compressed. pyarrow does not say."""
    source.seek(FIRST_MESSAGE)
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type == "record batch":
            metadata = message.metadata.to_pybytes()
            header = _find_field(metadata, struct.unpack_from("<I", metadata)[0], HEADER)
            batch = header + struct.unpack_from("<I", metadata, header)[0]
            return _find_field(metadata, batch, COMPRESSION) > 0
    return False


def _find_field(metadata: bytes, table: int, number: int) -> int:
    """Return the offset of a field of a FlatBuffers table, or 0 if the table does not have it."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    size, entry = struct.unpack_from("<H", metadata, fields)[0], 4 + 2 * number
    offset = struct.unpack_from("<H", metadata, fields + entry)[0] if entry < size else 0
    return table + offset if offset else 0


class ArrowFile:
    """An open Arrow file. A stream can only be read from its beginning."""

    def __init__(self, schema: pa.Schema, reader: Any, is_stream: bool) -> None:
        self.schema, self._reader, self.is_stream = schema, reader, is_stream

    def count_batches(self) -> int:
        """Return the number of record batches in a file. They are not read."""
        num_batches: int = self._reader.num_record_batches
        return num_batches

    def iter_batches(self, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the record batches from `start` to `stop`, of a stream all.

        The columns of a file that is not compressed are in the mapped file. Other batches are in memory.
        """
        if self.is_stream:
            yield from self._reader
        else:
            for i in range(start, self.count_batches() if stop is None else stop):
                yield self._reader.get_batch(i)
