"""Open input files as streams of decompressed bytes.

A file that is truncated, damaged, or changed since the build was planned raises an error. It is
never read as if it were a shorter file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile

BLOCK_BYTES = 8 << 20


@contextmanager
def open_stream(input_file: InputFile) -> Iterator[Any]:
    """Open a stream whose `read(n)` returns decompressed bytes.

    The file is checked before and after it is read. Raises FolioError if it has changed since the
    build was planned.
    """
    input_file.check_unchanged()
    if input_file.compression:
        # Arrow decompresses in bounded memory, reads files of several frames, and raises an error
        # if a frame is truncated.
        with pa.input_stream(input_file.path, compression=input_file.compression, buffer_size=1 << 20) as stream:
            yield stream
    else:
        with open(input_file.path, "rb", buffering=0) as file:
            yield file
    input_file.check_unchanged()


def read_blocks(input_file: InputFile, start: int, stop: int | None) -> Iterator[bytes]:
    """Yield the bytes from `start` to `stop`, or to the end, in blocks of at most BLOCK_BYTES.

    A compressed file can only be read whole: `start` is 0 and `stop` is None. Raises FolioError if
    the file has changed since the build was planned or cannot be decompressed.
    """
    with open_stream(input_file) as stream:
        if start:
            stream.seek(start)
        # Stop at the planned size: a file that grows while it is read would otherwise never end.
        num_left = None if input_file.compression else (input_file.size_bytes if stop is None else stop) - start
        while num_left is None or num_left > 0:
            try:
                block: bytes = stream.read(BLOCK_BYTES if num_left is None else min(BLOCK_BYTES, num_left))
            except OSError as e:
                if not input_file.compression:
                    raise
                raise FolioError(
                    f"{input_file.path} cannot be decompressed ({e}): it is truncated or not a "
                    f"{input_file.compression} file; copy it again"
                ) from e
            if not block:
                break
            yield block
            num_left = num_left - len(block) if num_left is not None else None
