"""Decode text, and find bytes that are not text, without a Python string of the whole text."""

from __future__ import annotations

import codecs

SLICE_BYTES = 1 << 20
Buffer = bytes | bytearray | memoryview


def find_invalid_utf8(data: Buffer) -> tuple[int, str] | None:
    """Return the offset of the first byte that is not UTF-8 and the reason, or None if all bytes are UTF-8."""
    start = 0
    while start < len(data):
        window = bytes(data[start : start + SLICE_BYTES])
        try:
            start += codecs.utf_8_decode(window, "strict", start + len(window) == len(data))[1]
        except UnicodeDecodeError as e:
            return start + e.start, e.reason
    return None


def replace_invalid_utf8(data: Buffer) -> bytearray:
    """Return `data` with U+FFFD in place of bytes that are not UTF-8."""
    return transcode(data, "utf-8")


def find_invalid(data: Buffer, codec: str) -> tuple[int, str] | None:
    """Return the offset of the first byte that is not valid in `codec` and the reason, or None if all bytes are."""
    decoder = codecs.getincrementaldecoder(codec)()
    for start in range(0, len(data) or 1, SLICE_BYTES):
        stop = min(start + SLICE_BYTES, len(data))
        try:
            decoder.decode(bytes(data[start:stop]), stop == len(data))
        except UnicodeDecodeError as e:
            return stop - len(e.object) + e.start, e.reason  # `e.object` begins in an earlier slice
    return None


def transcode(data: Buffer, codec: str, max_bytes: int | None = None) -> bytearray:
    """Return text in `codec` as UTF-8, with U+FFFD in place of bytes that are not valid.

    If the result has more than `max_bytes`, the rest of it is missing.
    """
    decoder = codecs.getincrementaldecoder(codec)("replace")
    text = bytearray()
    for start in range(0, len(data), SLICE_BYTES):
        text += decoder.decode(bytes(data[start : start + SLICE_BYTES])).encode("utf-8", "replace")
        if max_bytes is not None and len(text) > max_bytes:
            return text
    text += decoder.decode(b"", True).encode("utf-8", "replace")
    return text
