"""Files as streams of bytes, decompressed on the way; what is cut short or no such file at all is told, never passed over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile

BLOCK_BYTES = 8 << 20


@contextmanager
def opened(source: InputFile) -> Iterator[Any]:
    """A stream with `read(n)` of the decompressed content. Raises FolioError where the file changed since it was planned with."""
    source.check_unchanged()
    if source.compression:
        # Arrow's streams decompress in bounded memory, take files of several frames, and refuse one that ends in the middle of a frame.
        with pa.input_stream(source.path, compression=source.compression, buffer_size=1 << 20) as stream:
            yield stream
    else:
        with open(source.path, "rb", buffering=0) as file:
            yield file
    source.check_unchanged()


def blocks(source: InputFile, start: int, stop: int | None) -> Iterator[bytes]:
    """The bytes from `start` to `stop`, about BLOCK_BYTES at a time. Only a file that is not compressed has a `start` but 0."""
    with opened(source) as stream:
        if start:
            stream.seek(start)
        # No further than the file was long: one that grows while it is read would have no end.
        left = None if source.compression else (source.size_bytes if stop is None else stop) - start
        while left is None or left > 0:
            try:
                block: bytes = stream.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left))
            except OSError as e:
                if not source.compression:
                    raise
                raise FolioError(
                    f"{source.path} cannot be decompressed ({e}): it is cut short or no {source.compression} file; copy it again"
                ) from e
            if not block:
                break
            yield block
            left = left - len(block) if left is not None else None
