"""Read the first bytes of a file and hash all of them, in one pass."""

from __future__ import annotations

import hashlib
import threading
from typing import IO, Any

from preprocess.inputs.archives import explain_damage
from preprocess.inputs.compressions import detect_compression
from preprocess.inputs.detect import HEAD_BYTES
from preprocess.inputs.open_input import decode_stream
from preprocess.shards.files import HASH_CHUNK_BYTES


class HashingStream:
    """The bytes of a stream, hashed as they are read."""

    def __init__(self, stream: IO[bytes], is_cancelled: threading.Event) -> None:
        self._stream, self._is_cancelled = stream, is_cancelled
        self._digest = hashlib.sha256()
        self._is_at_end = False  # the whole stream has been read

    def read(self, num_bytes: int) -> bytes:
        """Return up to `num_bytes` bytes, b"" at the end."""
        data = self._stream.read(num_bytes)
        self._digest.update(data)
        self._is_at_end = not data
        return data

    def hash_all(self) -> str:
        """Return the SHA-256 of the whole stream, or of a part of it if the work is cancelled."""
        while not (self._is_at_end or self._is_cancelled.is_set()):
            self.read(HASH_CHUNK_BYTES)
        return self._digest.hexdigest()


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


def read_head(stream: Any, path: str) -> tuple[str, bytes]:
    """Return the compression of a file, and its first bytes, decompressed."""
    head = _read_first(stream)
    compression = detect_compression(head)
    if compression:
        with explain_damage(path, f"a {compression} file"):
            head = _read_first(decode_stream(_Prefixed(head, stream), compression, ""))
    return compression, head


def _read_first(stream: Any) -> bytes:
    """Return HEAD_BYTES of a stream, or all of it if it is shorter. A small compressed block may be read alone."""
    head = b""
    while len(head) < HEAD_BYTES and (data := stream.read(HEAD_BYTES - len(head))):
        head += data
    return head
