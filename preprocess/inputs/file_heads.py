"""Read the first bytes of files, decompressed, while the files are hashed."""

from __future__ import annotations

import hashlib
import re
import threading
from typing import IO, Any

from preprocess.inputs.archives import explain_damage
from preprocess.inputs.compressions import detect_compression
from preprocess.inputs.detect import HEAD_BYTES
from preprocess.inputs.open_input import decode_stream
from preprocess.shards.files import HASH_CHUNK_BYTES

LINE_END = re.compile(rb"[\r\n].", re.DOTALL)  # with the next byte, because a line feed may follow a carriage return
LINE_BLOCK_BYTES, MAX_LINE_HEAD_BYTES = 1 << 16, 1 << 20  # in which the first line end of a text is searched


class HashingStream:
    """The bytes of a stream, hashed as they are read."""

    def __init__(self, stream: IO[bytes], is_cancelled: threading.Event) -> None:
        self._stream, self._is_cancelled = stream, is_cancelled
        self._digest = hashlib.sha256()
        self._is_at_end = False

    def read(self, num_bytes: int) -> bytes:
        data = self._stream.read(num_bytes)
        self._digest.update(data)
        self._is_at_end = not data
        return data

    def hash_all(self) -> str:
        """Return the SHA-256 of the whole stream, or of a part of it if the work is cancelled."""
        while not (self._is_at_end or self._is_cancelled.is_set()):
            self.read(HASH_CHUNK_BYTES)
        return self._digest.hexdigest()


def read_head(stream: Any, path: str, has_lines: bool) -> tuple[str, bytes]:
    """Return the compression of a file, and its first bytes, decompressed. `has_lines`: with a line end."""
    head = _read_first(stream)
    compression = detect_compression(head)
    if not compression:
        return "", _read_to_line_end(head, stream) if has_lines else head
    with explain_damage(path, f"a {compression} file"):
        decompressed = decode_stream(_Prefixed(head, stream), compression, "")
        head = _read_first(decompressed)
        return compression, _read_to_line_end(head, decompressed) if has_lines else head


def _read_first(stream: Any) -> bytes:
    """Return HEAD_BYTES of a stream, or all of it if it is shorter. A small compressed block may be read alone."""
    head = b""
    while len(head) < HEAD_BYTES and (data := stream.read(HEAD_BYTES - len(head))):
        head += data
    return head


def _read_to_line_end(head: bytes, stream: Any) -> bytes:
    """Return `head` and the bytes of a stream that follow it up to its first line end, with HEAD_BYTES after it.

    At most MAX_LINE_HEAD_BYTES are searched.
    """
    data = bytearray(head)
    block = head
    while block and len(data) < MAX_LINE_HEAD_BYTES and not LINE_END.search(block):
        block = stream.read(LINE_BLOCK_BYTES)
        data += block
    return head if len(data) == len(head) else bytes(data) + _read_first(stream)


class _Prefixed:
    """A stream with bytes before it that were read from it."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self._head, self._stream = head, stream

    def read(self, num_bytes: int) -> bytes:
        if not self._head:
            data: bytes = self._stream.read(num_bytes)
            return data
        data, self._head = self._head[:num_bytes], self._head[num_bytes:]
        return data
