"""Beginnings of the binary files that are not read."""

from __future__ import annotations

from preprocess.inputs.detect import REFUSED_MAGIC

_REST = {b"%PDF-": b"1.7\n1 0 obj\n<<>>", b"{\\rtf": b"1\\ansi one}", b"GGUF": b"\x03\0\0\0"}  # after the first bytes
REFUSED_FILES = {magic: magic + _REST.get(magic, bytes(30)) for magic in REFUSED_MAGIC}  # by their first bytes
