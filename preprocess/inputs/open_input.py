"""Open input files as streams of decompressed bytes in UTF-8.

A file that is truncated, damaged, or changed since the build was planned raises an error. It is
never read as if it were a shorter file.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preprocess.inputs.archives import explain_damage, open_member
from preprocess.inputs.compressions import DecompressedStream, Stream
from preprocess.inputs.input_files import InputFile

BLOCK_BYTES = 8 << 20
INVALID = "invalid-utf8"  # the name of an error handler
codecs.register_error(INVALID, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


@contextmanager
def open_stream(input_file: InputFile) -> Iterator[Stream]:
    """Open a stream of the decompressed bytes of a file in UTF-8.

    The file is checked before and after it is read. Raises FolioError if it has changed since the
    build was planned.
    """
    input_file.check_unchanged()
    with _open_raw(input_file) as stream:
        decoded = decode_stream(stream, input_file.compression, input_file.encoding)
        yield _MacLineEndStream(decoded) if input_file.has_mac_line_ends else decoded
    input_file.check_unchanged()


def _open_raw(input_file: InputFile) -> Any:
    if input_file.member is None:
        return open(input_file.disk.path, "rb", buffering=0)
    return open_member(input_file.disk, input_file.archive, input_file.archive_compression, input_file.member)


def decode_stream(stream: Stream, compression: str, encoding: str) -> Stream:
    """Return the decompressed bytes of `stream`, in UTF-8."""
    decompressed: Stream = DecompressedStream(stream, compression) if compression else stream
    return _TranscodedStream(decompressed, encoding) if encoding else decompressed


def read_blocks(input_file: InputFile, start: int, stop: int | None) -> Iterator[bytes]:
    """Yield the bytes from `start` to `stop`, or to the end, in blocks of at most BLOCK_BYTES.

    A file that is not plain (`InputFile.is_plain`) can only be read whole: `start` is 0 and `stop` is
    None. Raises FolioError if the file has changed since the build was planned or cannot be
    decompressed.
    """
    if input_file.content is not None:
        if block := input_file.content[start:stop]:
            yield block
        return
    with open_stream(input_file) as stream:
        if start:
            stream.seek(start)  # type: ignore[attr-defined]
        # Stop at the planned size: a file that grows while it is read would otherwise never end.
        size_bytes = input_file.disk.size_bytes if input_file.is_plain else None
        num_left = size_bytes if stop is None else stop
        num_left = num_left - start if num_left is not None else None
        while num_left is None or num_left > 0:
            with explain_damage(input_file.path, input_file.describe_container()):
                block = stream.read(BLOCK_BYTES if num_left is None else min(BLOCK_BYTES, num_left))
            if not block:
                break
            yield block
            num_left = num_left - len(block) if num_left is not None else None


class _TranscodedStream:
    """The bytes of a stream in another encoding, as UTF-8, without a byte order mark.

    Bytes that are not valid in the encoding become a byte that is not valid in UTF-8, so the
    recipe's rule for invalid UTF-8 applies to them.
    """

    def __init__(self, stream: Stream, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(errors=INVALID)
        self._data = b""  # decoded, not yet returned
        self._is_first = True

    def read(self, num_bytes: int) -> bytes:
        while not self._data:
            block = self._stream.read(num_bytes // 4 + 1)
            text = self._decoder.decode(block, final=not block)
            if text and self._is_first:
                text, self._is_first = text.removeprefix("\ufeff"), False
            self._data = text.encode("utf-8", "surrogateescape")
            if not block:
                break
        data, self._data = self._data[:num_bytes], self._data[num_bytes:]
        return data


class _MacLineEndStream:
    """The bytes of a stream with a line feed in place of each carriage return."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def read(self, num_bytes: int) -> bytes:
        return self._stream.read(num_bytes).replace(b"\r", b"\n")
