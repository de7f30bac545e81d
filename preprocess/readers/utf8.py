"""Find and replace bytes that are not UTF-8, without a Python string of the whole text."""

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
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    replaced = bytearray()
    for start in range(0, len(data), SLICE_BYTES):
        replaced += decoder.decode(bytes(data[start : start + SLICE_BYTES])).encode()
    replaced += decoder.decode(b"", True).encode()
    return replaced
