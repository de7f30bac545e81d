"""Cleaning rules: each named, switchable, and counted by the documents it changed.

Detect first, mend only the rows that need it: on clean ASCII text all rules together cost a scan each and no copy.
A batch is looked at as one long run of bytes before any row is: NumPy does that at 3 to 15 GB/s, a regular expression at 0.6.
Their order is fixed (recipe.CLEANING_RULES) and makes the whole idempotent: mending line ends and dropping control
characters can uncover a byte order mark, and nothing after NFC can undo it. Only `html_entities` is not idempotent, as
`&amp;lt;` spells an entity's own spelling: it takes one layer off.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.documents import replace_column, text_buffers
from preprocess.recipes.schema import CLEANING_RULES

# C0 without tab and line feed, delete, and C1. Carriage returns are `line_ends`' business, which comes first.
CONTROL_CHARACTERS = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F\x{80}-\x{9F}]"

# White space at either end; a byte order mark behind white space counts as some, or trimming would uncover it.
OUTER_SPACE = r"\A[\s\p{Z}\x{85}\x{FEFF}]+|[\s\p{Z}\x{85}]+\z"


SCAN_BYTES = 1 << 18  # half of a core's second cache


def clean(batch: pa.RecordBatch, rules: tuple[str, ...]) -> tuple[pa.RecordBatch, dict[str, int]]:
    """`batch` with its texts cleaned by `rules`, and by rule the number of documents it changed."""
    texts, counts = batch.column("text"), {}
    for rule in CLEANING_RULES:
        if rule in rules:
            texts, counts[rule] = _RULES[rule](texts)
    return replace_column(batch, "text", texts), counts


def _mend(
    texts: pa.LargeStringArray, needs: pa.BooleanArray, mend: Callable[[pa.Array], pa.Array]
) -> tuple[pa.Array, int]:
    """`texts` with the rows of `needs` mended, and how many these are."""
    count = pc.sum(needs).as_py() or 0
    if not count:
        return texts, 0
    return pc.replace_with_mask(texts, needs, mend(texts.filter(needs))), count


def _count_bytes(texts: pa.LargeStringArray, is_meant: Callable[[np.ndarray], np.ndarray]) -> int:
    """How many bytes of all texts together `is_meant` picks, looked at in spans that stay in cache."""
    data, _ = text_buffers(texts)
    return sum(
        int(np.count_nonzero(is_meant(data[start : start + SCAN_BYTES]))) for start in range(0, len(data), SCAN_BYTES)
    )


def _has_control(texts: pa.LargeStringArray) -> bool:
    if _count_bytes(texts, lambda data: ((data < 0x20) & (data != 0x0A) & (data != 0x09)) | (data == 0x7F)):
        return True
    data, _ = text_buffers(texts)
    for start in range(0, len(data), SCAN_BYTES):
        # 0xC2 begins the characters from U+0080 to U+00BF, of which the first half are control characters.
        begins = start + np.flatnonzero(data[start : start + SCAN_BYTES] == 0xC2)
        if len(begins) and bool((data[begins + 1] < 0xA0).any()):
            return True
    return False


def _line_ends(texts: pa.LargeStringArray) -> tuple[pa.Array, int]:
    if not _count_bytes(texts, lambda data: data == 0x0D):
        return texts, 0
    return _mend(
        texts,
        pc.match_substring(texts, "\r"),
        lambda rows: pc.replace_substring(pc.replace_substring(rows, "\r\n", "\n"), "\r", "\n"),
    )


def _control_characters(texts: pa.LargeStringArray) -> tuple[pa.Array, int]:
    if not _has_control(texts):
        return texts, 0
    needs = pc.match_substring_regex(texts, CONTROL_CHARACTERS)
    return _mend(texts, needs, lambda rows: pc.replace_substring_regex(rows, CONTROL_CHARACTERS, ""))


def _byte_order_mark(texts: pa.LargeStringArray) -> tuple[pa.Array, int]:
    return _mend(texts, pc.starts_with(texts, "\ufeff"), lambda rows: pc.replace_substring_regex(rows, "^\ufeff+", ""))


def _nfc(texts: pa.LargeStringArray) -> tuple[pa.Array, int]:
    needs = np.zeros(len(texts), bool)
    for row in _rows_that_may_compose(texts):
        needs[row] = not unicodedata.is_normalized("NFC", texts[row].as_py())

    def normalize(rows: pa.Array) -> pa.Array:
        return pa.array([unicodedata.normalize("NFC", text) for text in rows.to_pylist()], pa.large_string())

    return _mend(texts, pa.array(needs), normalize)


def _rows_that_may_compose(texts: pa.LargeStringArray) -> np.ndarray:
    """Numbers of the rows with a character that NFC might touch, some that it does not among them.

    By the bytes that characters begin with: below U+0300, Cyrillic to U+047F, U+2002 to U+20BF, U+3000 to U+3029 and U+4000 to U+9FFF
    hold nothing that NFC changes, or that combines with what stands in front of it (tests/test_clean.py asks unicodedata).
    """
    data, boundaries = text_buffers(texts)
    found = []
    for start in range(0, len(data), SCAN_BYTES):
        chunk = data[start : start + SCAN_BYTES]
        suspects = start + np.flatnonzero((chunk >= 0xCC) & ((chunk & 0xFE) != 0xD0))
        suspects = suspects[(data[suspects] < 0xE4) | (data[suspects] > 0xE9)]
        if len(suspects):
            first, second, third = data[suspects], data[suspects + 1], data[np.minimum(suspects + 2, len(data) - 1)]
            is_general = (first == 0xE2) & (((second == 0x80) & (third >= 0x82)) | (second == 0x81) | (second == 0x82))
            is_ideographic = (first == 0xE3) & (second == 0x80) & (third <= 0xA9)
            found.append(suspects[~(is_general | is_ideographic)])
    return (
        np.unique(np.searchsorted(boundaries, np.concatenate(found), side="right") - 1)
        if found
        else np.empty(0, np.int64)
    )


def _mojibake(texts: pa.LargeStringArray) -> tuple[pa.Array, int]:
    from preprocess.stages.mojibake import fix

    needs, fixed = np.zeros(len(texts), bool), []
    for row in np.flatnonzero(~pc.string_is_ascii(texts).to_numpy(zero_copy_only=False)):
        text = texts[row].as_py()
        mended = fix(text)
        if mended != text:
            needs[row] = True
            fixed.append(mended)
    return _mend(texts, pa.array(needs), lambda _: pa.array(fixed, pa.large_string()))


def _html_entities(texts: pa.LargeStringArray) -> tuple[pa.Array, int]:
    needs = np.zeros(len(texts), bool)
    for row in np.flatnonzero(pc.match_substring_regex(texts, "&#?[0-9A-Za-z]").to_numpy(zero_copy_only=False)):
        text = texts[row].as_py()
        needs[row] = html.unescape(text) != text
    return _mend(texts, pa.array(needs), lambda rows: pa.array(map(html.unescape, rows.to_pylist()), pa.large_string()))


def _white_space(texts: pa.LargeStringArray) -> tuple[pa.Array, int]:
    """Runs of spaces and tabs become a space, more than one blank line becomes one, and lines end where their text does."""
    needs = pc.match_substring_regex(texts, r"[ \t]{2,}|\t|[ \t]\n|\n{3,}")

    def mend(rows: pa.Array) -> pa.Array:
        rows = pc.replace_substring_regex(rows, r"[ \t]+", " ")
        return pc.replace_substring_regex(pc.replace_substring(rows, " \n", "\n"), r"\n{3,}", "\n\n")

    return _mend(texts, needs, mend)


def _trim(texts: pa.LargeStringArray) -> tuple[pa.Array, int]:
    needs = pc.match_substring_regex(texts, OUTER_SPACE)
    return _mend(texts, needs, lambda rows: pc.replace_substring_regex(rows, OUTER_SPACE, ""))


_RULES = {
    "mojibake": _mojibake,
    "html_entities": _html_entities,
    "line_ends": _line_ends,
    "control_characters": _control_characters,
    "byte_order_mark": _byte_order_mark,
    "nfc": _nfc,
    "white_space": _white_space,
    "trim": _trim,
}
