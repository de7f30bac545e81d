"""Decompress gzip, zstd, bzip2 and xz files in bounded memory.

A file may consist of several compressed streams, as `cat a.gz b.gz` makes them. Zeros between and
after them are skipped, as by gzip and xz themselves: tapes and some programs pad files with them. A
file that ends within a stream is an error, never a shorter file.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from typing import Any, Protocol

INPUT_BYTES = 1 << 20  # of compressed data that are read at once
XZ_MEMORY_BYTES = 512 << 20  # `xz -9` needs 65 MB
MAX_ZSTD_WINDOW_LOG = 31  # `zstd --ultra --long=31`, which needs a window of 2 GB
# The first bytes of a compressed file. Those of bzip2 continue with a digit and the start of a block.
MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{bytes([first]) + b"\x2a\x4d\x18": "zstd" for first in range(0x50, 0x60)},  # a frame of the user's own data
    b"\xfd7zXZ\0": "xz",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    **{b"BZh%d\x17\x72\x45\x38\x50\x90" % level: "bzip2" for level in range(1, 10)},  # without contents
}


class Stream(Protocol):
    """A source of bytes."""

    def read(self, num_bytes: int, /) -> bytes:
        """Return up to `num_bytes` bytes, b"" at the end."""


class Decompressor(Protocol):
    """One compressed stream, as in the modules bz2 and lzma."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def detect_compression(head: bytes) -> str:
    """Return "gzip", "zstd", "bzip2" or "xz" for the first bytes of a file, or "" for any other file."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "")


class DecompressedStream:
    """The decompressed bytes of a file that is compressed with `compression`."""

    def __init__(self, raw: Stream, compression: str) -> None:
        self._raw, self._compression = raw, compression
        self._decompressor = _make_decompressor(compression)
        self._input = b""

    def read(self, num_bytes: int) -> bytes:
        """Return up to `num_bytes` bytes, b"" at the end of the file.

        Raises EOFError if the file ends within a stream, ValueError if it is damaged, and
        MemoryError if it needs more memory than is allowed.
        """
        while True:
            if self._decompressor.eof:
                if not self._find_next_stream():
                    return b""
                self._decompressor = _make_decompressor(self._compression)
            elif not self._input and self._decompressor.needs_input:
                self._input = self._raw.read(INPUT_BYTES)
                if not self._input:
                    raise EOFError("it ends too early")
            if data := self._decompress(num_bytes):
                return data

    def _find_next_stream(self) -> bool:
        """Skip zeros after a stream, and return whether another one follows."""
        self._input = self._decompressor.unused_data.lstrip(b"\0")
        while not self._input:
            block = self._raw.read(INPUT_BYTES)
            if not block:
                return False
            self._input = block.lstrip(b"\0")
        return True

    def _decompress(self, num_bytes: int) -> bytes:
        data, self._input = self._input, b""
        try:
            return self._decompressor.decompress(data, num_bytes)
        except Exception as e:  # the modules raise OSError, EOFError and errors of their own
            if isinstance(e, lzma.LZMAError) and "limit" in str(e):
                raise MemoryError(f"it needs more than {XZ_MEMORY_BYTES >> 20} MB of memory") from e
            raise ValueError(e) from e


def _make_decompressor(compression: str) -> Decompressor:
    if compression == "gzip":
        return _GzipDecompressor()
    if compression == "bzip2":
        return bz2.BZ2Decompressor()
    if compression == "xz":
        return lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)
    zstd = _import_zstd()
    decompressor: Decompressor = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: MAX_ZSTD_WINDOW_LOG}
    )
    return decompressor


def _import_zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


class _GzipDecompressor:
    """A gzip stream with the interface of `bz2.BZ2Decompressor`."""

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._decompressor.eof

    @property
    def needs_input(self) -> bool:
        return not self._decompressor.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decompressor.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decompressor.decompress(self._decompressor.unconsumed_tail + data, max_length)
