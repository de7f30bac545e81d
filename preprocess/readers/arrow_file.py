"""The parts of pyarrow that read Arrow IPC files and streams.

Files of this kind are written by `save_to_disk` of Hugging Face datasets, by Feather and by polars.
The examiner (examiner.py) calls these functions in a child process first, because damaged files can
end the process or make it allocate any amount of memory. So this module imports no NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from preprocess.recipes.nested import split_path

FILE_MAGIC = b"ARROW1"


@contextmanager
def open_arrow(path: str, names: set[str]) -> Iterator[ArrowFile]:
    """Open an Arrow file. Of its columns, only those in `names` are read."""
    with pa.memory_map(path) as source:
        is_stream = source.read(len(FILE_MAGIC)) != FILE_MAGIC
        source.seek(0)
        open_ = pa.ipc.open_stream if is_stream else pa.ipc.open_file
        schema = open_(source).schema
        source.seek(0)
        columns = names | {split_path(name)[0] for name in names}
        included = [i for i, field in enumerate(schema) if field.name in columns]
        # An empty list means all fields.
        options = pa.ipc.IpcReadOptions(included_fields=included or list(range(len(schema)))[:1], use_threads=False)
        yield ArrowFile(schema, open_(source, options=options), is_stream)


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

        Their columns are in the mapped file unless they are compressed.
        """
        if self.is_stream:
            yield from self._reader
        else:
            for i in range(start, self.count_batches() if stop is None else stop):
                yield self._reader.get_batch(i)
