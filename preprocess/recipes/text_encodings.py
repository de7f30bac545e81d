"""Names of text encodings, as users write them."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from preprocess.errors import MisuseError, shorten

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

AUTO = "auto"  # UTF-8, or UTF-16 and UTF-32 if the first bytes show it
# Codecs of Python that are not encodings of files, or that depend on the machine.
NOT_FOR_FILES = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem", "utf_7"}
# Without a byte order mark, these are the machine's own byte order.
BYTE_ORDERS = {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": "utf-8"}

# The encodings that are suggested. Of several that give the same text, the first is suggested.
LIKELY = [
    "cp1252", "cp1250", "cp1251", "koi8_r", "cp866", "iso8859_2", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257",
    "cp874", "cp850", "cp932", "euc_jp", "gb18030", "big5", "cp949",
]  # fmt: skip
JAPANESE = ("cp932", "euc_jp")  # charset-normalizer often takes them for Korean or Chinese
# Measured with 708 texts of 60 to 5,000 bytes in eight languages: of the suggestions, 6 are wrong, without these 102.
MIN_NON_ASCII_BYTES, MIN_KANA, MIN_LEAD, CHAOS_WEIGHT = 3, 0.25, 0.05, 3
MIN_CUT_BYTES = 1 << 12


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
    """Return what to do about a file that is not UTF-8, given its first bytes: "perhaps --encoding cp1251".

    Several encodings may give plausible text, most of all for a short head. The encoding is then
    said to be unclear, because text in a wrong encoding is damaged.
    """
    name = _guess_encoding(head)
    if not name:
        return "with --encoding NAME (its text does not show which it is)"
    return f"perhaps --encoding {name.replace('_', '-')}"


def _guess_encoding(head: bytes) -> str:
    """Return the name of the encoding of a text, or "" if it is not clear."""
    if sum(byte > 127 for byte in head) < MIN_NON_ASCII_BYTES:
        return ""
    for name in JAPANESE:
        if _count_kana(head, name) > MIN_KANA:
            return name
    found = _find_likely(head)
    if not found and len(head) >= MIN_CUT_BYTES:  # it is only the beginning of a file, and may end within a character
        found = _find_likely(head[:-1])
    return found


def _find_likely(head: bytes) -> str:
    """Return the name of the most likely encoding according to charset-normalizer, or "" if another is as likely."""
    from charset_normalizer import from_bytes

    found = sorted(from_bytes(head, cp_isolation=LIKELY), key=_rate, reverse=True)
    if not found or (len(found) > 1 and _rate(found[0]) - _rate(found[1]) < MIN_LEAD):
        return ""
    same_text = found[0].could_be_from_charset
    return next((name for name in LIKELY if name in same_text), found[0].encoding)


def _rate(match: CharsetMatch) -> float:
    """Return how plausible a decoded text is: how frequent its letters are in a language, and how few are odd."""
    return match.coherence - CHAOS_WEIGHT * match.chaos


def _count_kana(head: bytes, encoding: str) -> float:
    """Return the share of kana, which only Japanese has, among the characters that are not ASCII."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return 0.0
    others = [character for character in text if character > "\x7f"]
    return sum("\u3041" <= character <= "\u30ff" for character in others) / max(len(others), 1)
