"""Decompress gzip, zstd, bzip2 and xz files in bounded memory.

A file may consist of several compressed streams, as `cat a.gz b.gz` makes them. Zeros between and
after them are skipped, as by gzip and xz themselves: tapes and some programs pad files with them. A
file that ends within a stream is an error, never a shorter file.

A file may also consist of a million small streams, one for each record. A decompressor copies the bytes
that follow its stream, so it gets only as many bytes as its stream had so far, and at first few.

A zstd file may begin with the dictionary that its frames need, as WARC files of the Internet Archive
do (specification "warc-zstd" of the IIPC).
"""

from __future__ import annotations

import bz2
import lzma
import re
import sys
import zlib
from typing import Any, Protocol

INPUT_BYTES = 1 << 20  # of compressed data that are read at once
MIN_STEP_BYTES = 1 << 9  # of compressed data that a decompressor gets at once, and at most half of what it has got
XZ_MEMORY_BYTES = 512 << 20  # `xz -9` needs 65 MB
MAX_ZSTD_WINDOW_LOG = 31  # `zstd --ultra --long=31`, which needs a window of 2 GB
ZSTD_MAGIC, ZSTD_DICTIONARY_MAGIC = b"\x28\xb5\x2f\xfd", b"\x37\xa4\x30\xec"
DICTIONARY_FRAME_MAGIC = b"\x5d\x2a\x4d\x18"  # of a frame with a dictionary; its size follows, uint32 little-endian
MAX_DICTIONARY_BYTES = 16 << 20  # the usual size is 100 kB
NOT_ZERO = re.compile(rb"[^\0]")
# The first bytes of a compressed file. Those of bzip2 continue with a digit and the start of a block.
MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    ZSTD_MAGIC: "zstd",
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
    if not head.startswith(tuple(MAGIC)):
        return ""
    return next(name for magic, name in MAGIC.items() if head.startswith(magic))


def is_cut_in_magic(head: bytes) -> bool:
    """Return whether a file, all of which is `head`, is the beginning of the first bytes of a compressed file."""
    return bool(head) and any(magic.startswith(head) for magic in MAGIC)


class DecompressedStream:
    """The decompressed bytes of a file that is compressed with `compression`."""

    def __init__(self, raw: Stream, compression: str) -> None:
        self._raw, self._compression = raw, compression
        self._input = b""
        self._start = 0  # of what was not decompressed yet, in `_input`
        self._step_bytes = MIN_STEP_BYTES
        self._dictionary: Any = None
        self._decompressor: Decompressor | None = None  # before the first read

    def read(self, num_bytes: int) -> bytes:
        """Return `num_bytes` bytes, or fewer at the end of the file.

        Raises EOFError if the file ends within a stream, ValueError if it is damaged, and
        MemoryError if it needs more memory than is allowed.
        """
        if self._decompressor is None:
            if self._compression == "zstd":
                self._read_dictionary()
            self._decompressor = _make_decompressor(self._compression, self._dictionary)
        parts: list[bytes] = []
        while num_bytes and (data := self._read_some(num_bytes)):
            parts.append(data)
            num_bytes -= len(data)
        return b"".join(parts)

    def _read_some(self, num_bytes: int) -> bytes:
        """Return at least one byte and at most `num_bytes`, b"" at the end of the file."""
        assert self._decompressor is not None
        while True:
            step = b""
            if self._decompressor.eof:
                if not self._find_next_stream(len(self._decompressor.unused_data)):
                    return b""
                self._decompressor = _make_decompressor(self._compression, self._dictionary)
                self._step_bytes = MIN_STEP_BYTES
            if self._decompressor.needs_input:
                step = self._take_step()
                if not step:
                    raise EOFError("it ends too early")
            if data := self._decompress(self._decompressor, step, num_bytes):
                return data

    def _take_step(self) -> bytes:
        """Return the next compressed bytes, b"" at the end of the file."""
        if self._start == len(self._input):
            self._input, self._start = self._raw.read(INPUT_BYTES), 0
        step = self._input[self._start : self._start + self._step_bytes]
        self._start += len(step)
        self._step_bytes = min(2 * self._step_bytes, INPUT_BYTES)
        return step

    def _read_dictionary(self) -> None:
        """Use the dictionary in the first frame, if there is one. The bytes that are read stay in `_input`."""
        self._read_input(8)
        size = int.from_bytes(self._input[4:8], "little")
        if not self._input.startswith(DICTIONARY_FRAME_MAGIC) or size > MAX_DICTIONARY_BYTES:
            return
        self._read_input(8 + size)
        content, zstd = self._input[8 : 8 + size], import_zstd()
        try:
            if content.startswith(ZSTD_MAGIC):
                content = zstd.ZstdDecompressor().decompress(content, MAX_DICTIONARY_BYTES)
            if content.startswith(ZSTD_DICTIONARY_MAGIC):
                self._dictionary = zstd.ZstdDict(content)
                _make_decompressor("zstd", self._dictionary)  # raises an error if it is damaged
        except Exception as e:
            raise ValueError(f"its dictionary is damaged: {e}") from e

    def _read_input(self, num_bytes: int) -> None:
        """Read until `_input` has `num_bytes`, or to the end of the file."""
        while len(self._input) < num_bytes and (block := self._raw.read(num_bytes - len(self._input))):
            self._input += block

    def _find_next_stream(self, num_unused: int) -> bool:
        """Skip zeros after a stream, and return whether another one follows.

        The last `num_unused` bytes that were taken from `_input` do not belong to the stream.
        """
        self._start -= num_unused
        while not (match := NOT_ZERO.search(self._input, self._start)):
            self._input, self._start = self._raw.read(INPUT_BYTES), 0
            if not self._input:
                return False
        self._start = match.start()
        return True

    def _decompress(self, decompressor: Decompressor, data: bytes, num_bytes: int) -> bytes:
        try:
            return decompressor.decompress(data, num_bytes)
        except Exception as e:  # the modules raise OSError, EOFError and errors of their own
            if isinstance(e, lzma.LZMAError) and "limit" in str(e):
                raise MemoryError(f"it needs more than {XZ_MEMORY_BYTES >> 20} MB of memory") from e
            raise ValueError(e) from e


def _make_decompressor(compression: str, dictionary: Any) -> Decompressor:
    """`dictionary`: of a zstd file, or None."""
    if compression == "gzip":
        return _GzipDecompressor()
    if compression == "bzip2":
        return bz2.BZ2Decompressor()
    if compression == "xz":
        return lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)
    zstd = import_zstd()
    decompressor: Decompressor = zstd.ZstdDecompressor(
        zstd_dict=dictionary, options={zstd.DecompressionParameter.window_log_max: MAX_ZSTD_WINDOW_LOG}
    )
    return decompressor


def import_zstd() -> Any:
    """Return the module for zstd: a part of Python from 3.14 on, and before that of backports."""
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
