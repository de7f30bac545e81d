"""The cleaning rules. A recipe lists the rules to apply, and a build counts what each one changes.

The problem: almost all documents are clean, but a regular expression reads text at only 0.6 GB/s,
and rewriting a column copies every text in it.

The idea: first find out whether there is anything to do. The rules that are on by default scan the
bytes of a whole batch with NumPy (3 to 15 GB/s). If the scan finds a suspicious byte, a regular
expression finds the documents to change, and only these are rewritten. The cost for clean ASCII
text is one scan per rule and no copy. Long texts are cleaned in slices (slices.py), because a
Python string or a rewritten column takes several times their size.

The rules are applied in a fixed order (CLEANING_RULES in recipes/schema.py), so cleaning a text
twice gives the same result as cleaning it once: normalizing line ends and removing control
characters can uncover a byte order mark, so both come before its removal, and no rule after NFC can
produce text that is not in NFC. There are two exceptions: `html_entities` removes one layer of
escapes (`&amp;lt;` becomes `&lt;`), and `mojibake` guesses what the text was, of a text of more than
4 MB for parts of about this size.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.chats.marked_text import join_turns, split_turns
from preprocess.documents import get_text_buffers, replace_column, view_text
from preprocess.recipes.schema import CLEANING_RULES
from preprocess.stages.nfc import normalize_nfc
from preprocess.stages.slices import iter_groups, slice_texts

# New texts, and which of the D texts were changed: (D,) bool.
Cleaned = tuple[pa.LargeStringArray, np.ndarray]
Rule = Callable[[pa.LargeStringArray], Cleaned]
FindPartEnd = Callable[[pa.Buffer, int], int]  # from a text and the start of a part to the end of the part

# These rules need the whole text. The result of the others for a text is that of its slices, joined.
WHOLE_TEXT_RULES = ("mojibake", "trim")

# DEL, C1, and C0 except tab, line feed and carriage return (which the earlier rule `line_ends`
# converts).
CONTROL_CHARACTERS = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F\x{80}-\x{9F}]"

# White space at both ends. At the start, a byte order mark counts as white space: otherwise a text
# could start with a byte order mark after the space before it is removed.
OUTER_SPACE = r"\A[\s\p{Z}\x{85}\x{FEFF}]+|[\s\p{Z}\x{85}]+\z"

LINE_FEED, CARRIAGE_RETURN, TAB, DELETE = 0x0A, 0x0D, 0x09, 0x7F
SCAN_BYTES = 1 << 18  # half of a core's L2 cache

PART_BYTES = 1 << 20  # of a text that is rewritten as a Python string, which takes up to 36 times its size
# Bytes before which a text can be divided: ASCII characters are not combined with a character before
# them, and these characters are not inside of an HTML entity.
BEGINS_NFC_PART = re.compile(rb"[\x00-\x7F]")
BEGINS_HTML_PART = re.compile(rb"[&< \t\n\f]")
# ftfy repairs a text as a whole, in several copies. A longer text is repaired in parts of at least this size.
MOJIBAKE_PART_BYTES = 4 << 20
# A part ends with a line. If the line is long, the part ends between two ASCII characters, the second of which ftfy
# never takes for a piece of a garbled character, as it may take a space, `?` or a control character.
BEGINS_LINE = re.compile(rb"(?<=\n)")
BEGINS_MOJIBAKE_PART = re.compile(rb"(?<=[\n!-~])[!->@-~]")
LONG_NUMBER = re.compile("&#[0-9]{1000,}")  # `html.unescape` raises ValueError if a number has 4301 digits


def clean(
    batch: pa.RecordBatch, rules: tuple[str, ...], *, has_chats: bool = False
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """Apply `rules` to the texts of `batch`, and if it `has_chats` to each of their turns.

    Returns the new batch, and for each rule the number of documents that it changed. Raises
    MisuseError if the rule `mojibake` is used without the package ftfy.
    """
    if not has_chats:
        texts, changed = _clean_texts(batch.column("text"), rules)
        counts = {name: int(np.count_nonzero(is_changed)) for name, is_changed in changed.items()}
        return replace_column(batch, "text", texts), counts
    turns = split_turns(batch.column("text"))
    texts, changed = _clean_texts(turns.texts, rules)
    document = np.repeat(np.arange(batch.num_rows), np.diff(turns.firsts))  # of each turn
    counts = {name: len(np.unique(document[is_changed])) for name, is_changed in changed.items()}
    return replace_column(batch, "text", join_turns(dataclasses.replace(turns, texts=texts))), counts


def _clean_texts(
    texts: pa.LargeStringArray, rules: tuple[str, ...]
) -> tuple[pa.LargeStringArray, dict[str, np.ndarray]]:
    """Return the new texts, and for each rule which of the D texts it changed, (D,) bool."""
    changed = {}
    for name in CLEANING_RULES:
        if name in rules:
            apply = _RULES[name] if name in WHOLE_TEXT_RULES else partial(_apply_to_slices, _RULES[name])
            texts, changed[name] = apply(texts)
    return texts, changed


def _apply_to_slices(rule: Rule, texts: pa.LargeStringArray) -> Cleaned:
    """Apply `rule` to the slices of long texts, and join the results."""
    slices, first_slices = slice_texts(texts)
    if len(slices) == len(texts):
        return rule(texts)
    is_changed, sizes = np.zeros(len(slices), bool), np.empty(len(slices), np.int64)
    data, offsets = get_text_buffers(slices)
    new_data = bytearray()
    for start, stop in iter_groups(slices):
        group, is_changed[start:stop] = rule(slices.slice(start, stop - start))
        group_data, group_offsets = get_text_buffers(group)
        sizes[start:stop] = np.diff(group_offsets)
        if is_changed[start:stop].any() and not is_changed[:start].any():
            new_data += data[: offsets[start]].data  # nothing is copied before the first change
        if is_changed[:stop].any():
            new_data += group_data.data
    if not is_changed.any():
        return texts, np.zeros(len(texts), bool)
    ends = np.cumsum(sizes)[first_slices[1:] - 1]
    offsets_buffer = pa.py_buffer(np.append(0, ends))
    new_texts = pa.LargeStringArray.from_buffers(len(texts), offsets_buffer, pa.py_buffer(new_data))
    return new_texts, np.logical_or.reduceat(is_changed, first_slices[:-1])


def _replace_rows(
    texts: pa.LargeStringArray, is_changed: np.ndarray, rewrite: Callable[[pa.LargeStringArray], pa.Array]
) -> Cleaned:
    """Apply `rewrite` to the rows `is_changed`, (D,) bool. Return all texts, and `is_changed`."""
    if not is_changed.any():
        return texts, is_changed
    if is_changed.all():
        return rewrite(texts), is_changed
    mask = pa.array(is_changed)
    return pc.replace_with_mask(texts, mask, rewrite(texts.filter(mask))), is_changed


def _match_regex(texts: pa.LargeStringArray, pattern: str) -> np.ndarray:
    is_match: np.ndarray = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
    return is_match


def _change_nothing(texts: pa.LargeStringArray) -> Cleaned:
    return texts, np.zeros(len(texts), bool)


def _contains_byte(texts: pa.LargeStringArray, predicate: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Return whether `predicate` is true for any byte. It is applied to chunks that fit the cache."""
    data, _ = get_text_buffers(texts)
    return any(bool(predicate(data[start : start + SCAN_BYTES]).any()) for start in range(0, len(data), SCAN_BYTES))


def _contains_control(texts: pa.LargeStringArray) -> bool:
    if _contains_byte(texts, lambda data: ((data < 0x20) & (data != LINE_FEED) & (data != TAB)) | (data == DELETE)):
        return True
    data, _ = get_text_buffers(texts)
    for start in range(0, len(data), SCAN_BYTES):
        # 0xC2 is the first byte of U+0080 to U+00BF. U+0080 to U+009F are control characters.
        first_bytes = start + np.flatnonzero(data[start : start + SCAN_BYTES] == 0xC2)
        if len(first_bytes) and bool((data[first_bytes + 1] < 0xA0).any()):
            return True
    return False


def _normalize_line_ends(texts: pa.LargeStringArray) -> Cleaned:
    if not _contains_byte(texts, lambda data: data == CARRIAGE_RETURN):
        return _change_nothing(texts)
    return _replace_rows(
        texts,
        pc.match_substring(texts, "\r").to_numpy(zero_copy_only=False),
        lambda rows: pc.replace_substring(pc.replace_substring(rows, "\r\n", "\n"), "\r", "\n"),
    )


def _remove_control_characters(texts: pa.LargeStringArray) -> Cleaned:
    if not _contains_control(texts):
        return _change_nothing(texts)
    is_changed = _match_regex(texts, CONTROL_CHARACTERS)
    return _replace_rows(texts, is_changed, lambda rows: pc.replace_substring_regex(rows, CONTROL_CHARACTERS, ""))


def _remove_byte_order_mark(texts: pa.LargeStringArray) -> Cleaned:
    is_changed = pc.starts_with(texts, "\ufeff").to_numpy(zero_copy_only=False)
    return _replace_rows(texts, is_changed, lambda rows: pc.replace_substring_regex(rows, "^\ufeff+", ""))


def _rewrite_rows(
    texts: pa.LargeStringArray, rows: np.ndarray, rewrite: Callable[[str], str], find_part_end: FindPartEnd
) -> Cleaned:
    """Apply `rewrite` to the texts of `rows`, (R,) indices in ascending order. Long texts are rewritten in parts."""
    is_changed = np.zeros(len(texts), bool)
    new_texts: list[bytes | bytearray] = []
    for row in rows.tolist():
        new_text = _rewrite_text(view_text(texts, row), rewrite, find_part_end)
        if new_text is not None:
            is_changed[row] = True
            new_texts.append(new_text)
    return _replace_rows(texts, is_changed, lambda _: _to_array(new_texts))


def _rewrite_text(
    data: pa.Buffer, rewrite: Callable[[str], str], find_part_end: FindPartEnd
) -> bytes | bytearray | None:
    """Return the UTF-8 bytes of a text after `rewrite`, or None if they are the same."""
    end = find_part_end(data, 0)
    if end == data.size:
        text = str(data, "utf-8")
        new_text = rewrite(text)
        return new_text.encode() if new_text != text else None
    new_data, start = bytearray(), 0
    while start < data.size:
        new_data += rewrite(str(data[start:end], "utf-8")).encode()
        start, end = end, find_part_end(data, end)
    return None if data.equals(pa.py_buffer(new_data)) else new_data


def _find_part_end(data: pa.Buffer, start: int, begins_part: re.Pattern[bytes]) -> int:
    """Return the first match of `begins_part` at least PART_BYTES after `start`, or the size of `data`."""
    match = begins_part.search(data, start + PART_BYTES) if data.size - start > PART_BYTES else None
    return match.start() if match else data.size


def _find_mojibake_part_end(data: pa.Buffer, start: int) -> int:
    min_end = start + MOJIBAKE_PART_BYTES
    if data.size <= min_end:
        return int(data.size)
    match = BEGINS_LINE.search(data, min_end, min(min_end + MOJIBAKE_PART_BYTES, data.size))
    match = match or BEGINS_MOJIBAKE_PART.search(data, min_end)
    return match.start() if match else data.size


def _to_array(texts: Sequence[bytes | bytearray]) -> pa.LargeStringArray:
    data = texts[0] if len(texts) == 1 else b"".join(texts)
    offsets = np.cumsum([0, *map(len, texts)])
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(data))


def _normalize_nfc(texts: pa.LargeStringArray) -> Cleaned:
    return _rewrite_rows(
        texts, _find_nfc_candidates(texts), normalize_nfc, partial(_find_part_end, begins_part=BEGINS_NFC_PART)
    )


def _find_nfc_candidates(texts: pa.LargeStringArray) -> np.ndarray:
    """Return the indices of the rows that NFC may change: a superset, found from bytes alone.

    Characters in the following ranges are skipped, because NFC neither changes them nor combines
    them with the character before: below U+0300, Cyrillic to U+047F, U+2002 to U+20BF, U+3000 to
    U+3029 and U+4000 to U+9FFF. test_clean.py verifies this against unicodedata.
    """
    data, offsets = get_text_buffers(texts)
    found = []
    for start in range(0, len(data), SCAN_BYTES):
        chunk = data[start : start + SCAN_BYTES]
        # First bytes from U+0300 on, without 0xD0 and 0xD1 (U+0400 to U+047F) …
        suspects = start + np.flatnonzero((chunk >= 0xCC) & ((chunk & 0xFE) != 0xD0))
        # … and without 0xE4 to 0xE9 (U+4000 to U+9FFF).
        suspects = suspects[(data[suspects] < 0xE4) | (data[suspects] > 0xE9)]
        if len(suspects):
            first, second, third = data[suspects], data[suspects + 1], data[np.minimum(suspects + 2, len(data) - 1)]
            is_punctuation = (first == 0xE2) & (
                ((second == 0x80) & (third >= 0x82)) | (second == 0x81) | (second == 0x82)
            )  # U+2002 to U+20BF
            is_cjk_punctuation = (first == 0xE3) & (second == 0x80) & (third <= 0xA9)  # U+3000 to U+3029
            suspects = suspects[~(is_punctuation | is_cjk_punctuation)]
            found.append(np.unique(np.searchsorted(offsets, suspects, side="right") - 1))
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def _fix_mojibake(texts: pa.LargeStringArray) -> Cleaned:
    from preprocess.stages.mojibake import fix_mojibake

    rows = np.flatnonzero(~pc.string_is_ascii(texts).to_numpy(zero_copy_only=False))
    return _rewrite_rows(texts, rows, fix_mojibake, _find_mojibake_part_end)


def _unescape_html(texts: pa.LargeStringArray) -> Cleaned:
    rows = np.flatnonzero(_match_regex(texts, "&#?[0-9A-Za-z]"))
    return _rewrite_rows(texts, rows, _unescape_html_text, partial(_find_part_end, begins_part=BEGINS_HTML_PART))


def _unescape_html_text(text: str) -> str:
    return html.unescape(LONG_NUMBER.sub(_shorten_number, text))


def _shorten_number(match: re.Match[str]) -> str:
    """Return a reference to a character by a number of at most 8 digits; all numbers of 8 digits are invalid."""
    return "&#" + (match[0].removeprefix("&#").lstrip("0")[:8] or "0")


def _collapse_white_space(texts: pa.LargeStringArray) -> Cleaned:
    """Replace runs of spaces and tabs by one space, and runs of blank lines by one blank line.

    Spaces at the end of a line are removed.
    """

    def collapse(rows: pa.Array) -> pa.Array:
        rows = pc.replace_substring_regex(rows, r"[ \t]+", " ")
        return pc.replace_substring_regex(pc.replace_substring(rows, " \n", "\n"), r"\n{3,}", "\n\n")

    return _replace_rows(texts, _match_regex(texts, r"[ \t]{2,}|\t|[ \t]\n|\n{3,}"), collapse)


def _trim(texts: pa.LargeStringArray) -> Cleaned:
    is_changed = _match_regex(texts, OUTER_SPACE)
    return _replace_rows(texts, is_changed, lambda rows: pc.replace_substring_regex(rows, OUTER_SPACE, ""))


_RULES = {
    "mojibake": _fix_mojibake,
    "html_entities": _unescape_html,
    "line_ends": _normalize_line_ends,
    "control_characters": _remove_control_characters,
    "byte_order_mark": _remove_byte_order_mark,
    "nfc": _normalize_nfc,
    "white_space": _collapse_white_space,
    "trim": _trim,
}
