"""Names of text encodings, as users write them."""

from __future__ import annotations

import codecs

from preprocess.errors import MisuseError, shorten

AUTO = "auto"  # UTF-8, or UTF-16 and UTF-32 if the first bytes show it
# Codecs of Python that are no encodings of files, or that depend on the machine.
NOT_FOR_FILES = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem", "utf_7"}
# Without a byte order mark, these are the machine's own byte order.
BYTE_ORDERS = {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": "utf-8"}


def find_codec(encoding: str) -> str:
    """Return the name of Python's codec for an encoding such as "cp1251" or "latin-1", "" for UTF-8.

    Raises MisuseError for an unknown encoding.
    """
    try:
        info = codecs.lookup(encoding)
    except (LookupError, ValueError) as e:
        raise MisuseError(_explain(encoding)) from e
    name = BYTE_ORDERS.get(info.name, info.name)
    if not info._is_text_encoding or name.replace("-", "_") in NOT_FOR_FILES or info.incrementaldecoder is None:
        raise MisuseError(_explain(encoding))
    return "" if name in ("utf-8", "ascii") else name


def _explain(encoding: str) -> str:
    return (
        f"encoding must be auto, utf-8, utf-16, cp1251, latin-1, shift_jis or another of Python's text encodings, got "
        f"{shorten(encoding)!r}"
    )


def suggest_encoding(head: bytes) -> str:
    """Return advice such as "perhaps --encoding cp1251" for a file that is not UTF-8, given its first bytes."""
    from charset_normalizer import from_bytes

    best = from_bytes(head).best()
    if best is None or best.encoding == "utf_8":
        return "for example --encoding cp1252"
    return f"perhaps --encoding {best.encoding.replace('_', '-')}"
