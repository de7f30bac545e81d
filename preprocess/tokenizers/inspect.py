"""How well a tokenizer fits a language: words, tokens, and what has no piece of its own.

Each text is encoded once, and each distinct word once bare and once after a space: about twice the work of encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.documents import text_buffers
from preprocess.tokenizers.interface import Tokenizer

SLICE_BYTES = 8 << 20  # encoded at a time: the reference libraries make a Python object of every token
HEADINGS = {
    "documents": "documents", "words": "words", "text_bytes": "bytes", "tokens": "tokens", "tokens_per_word": "tokens/word",
    "bytes_per_token": "bytes/token", "character_coverage": "characters covered", "single_token_words": "words of one token",
}  # fmt: skip
SHARES = ("character_coverage", "single_token_words")


def inspect(tokenizer: Tokenizer, texts_by_language: Mapping[str, pa.LargeStringArray]) -> dict[str, dict[str, Any]]:
    """For each language what HEADINGS names: counts are int, ratios float, or None where there is nothing to divide by.

    A word is a run of non-white-space. `character_coverage`: the share of characters outside the byte-fallback pieces
    and outside words with the unknown token; None for byte-level tokenizers, which have no characters of their own.
    `single_token_words`: the share of words, counted as often as they occur, that are one token, bare or with the space
    in front of them. Raises FolioError for a character that a `char` tokenizer does not know.
    """
    return {language: _inspect_language(tokenizer, texts) for language, texts in texts_by_language.items()}


def format_inspection(inspection: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of a table, a language each, columns aligned."""
    rows = [["language", *HEADINGS.values()]]
    rows += [
        [language, *(_format(name, figures[name]) for name in HEADINGS)] for language, figures in inspection.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _format(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in SHARES:
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _inspect_language(tokenizer: Tokenizer, texts: pa.LargeStringArray) -> dict[str, Any]:
    num_characters, num_bytes = pc.sum(pc.utf8_length(texts)).as_py() or 0, len(text_buffers(texts)[0])
    num_tokens, num_fallen_back = _count_tokens(tokenizer, texts)
    words, counts = _words(texts)
    lengths = pc.utf8_length(words).to_numpy(zero_copy_only=False)
    is_single, is_unknown = _look_at_words(tokenizer, words)
    num_words = int(counts.sum())
    num_uncovered = num_fallen_back + int((counts * lengths)[is_unknown].sum())
    return {
        "documents": len(texts),
        "words": num_words,
        "text_bytes": num_bytes,
        "tokens": num_tokens,
        "tokens_per_word": _ratio(num_tokens, num_words),
        "bytes_per_token": _ratio(num_bytes, num_tokens),
        "character_coverage": None
        if tokenizer.is_byte_level
        else _ratio(num_characters - num_uncovered, num_characters),
        "single_token_words": _ratio(int(counts[is_single].sum()), num_words),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _count_tokens(tokenizer: Tokenizer, texts: pa.LargeStringArray) -> tuple[int, int]:
    """Tokens, and characters that are spelled in byte-fallback pieces: each has one byte that starts it."""
    starts = [i for i in tokenizer.fallback_ids if tokenizer.pieces[i] and (tokenizer.pieces[i][0] & 0xC0) != 0x80]
    starts_character = np.zeros(tokenizer.vocab_size, bool)
    starts_character[starts] = True
    num_tokens = num_characters = 0
    for part in _slices(texts):
        ids, _ = tokenizer.encode(part)
        num_tokens += len(ids)
        num_characters += int(starts_character[ids].sum())
    return num_tokens, num_characters


def _words(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Distinct words and how often each occurs, (W,) int64."""
    words = pc.list_flatten(pc.utf8_split_whitespace(texts))
    counted = pc.value_counts(words.filter(pc.not_equal(words, "")))
    return counted.field("values").cast(pa.large_string()), counted.field("counts").to_numpy(zero_copy_only=False)


def _look_at_words(tokenizer: Tokenizer, words: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `words` are one token, and which hold the unknown one: (W,) bool each."""
    bare, is_unknown = _lengths(tokenizer, words)
    if tokenizer.kind == "char":  # a space is another token, or unknown
        return bare == 1, is_unknown
    spaced, _ = _lengths(
        tokenizer,
        pc.binary_join_element_wise(pa.scalar("", pa.large_string()), words, pa.scalar(" ", pa.large_string())),
    )
    return (bare == 1) | (spaced == 1), is_unknown


def _lengths(tokenizer: Tokenizer, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each text, (D,) int64, and whether one of them is the unknown token, (D,) bool."""
    lengths, unknown = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for part in _slices(texts):
        ids, ends = tokenizer.encode(part)
        boundaries = np.concatenate([[0], ends])
        is_unknown = np.zeros(len(ids), bool) if tokenizer.unk_id is None else ids == tokenizer.unk_id
        unknown_before = np.concatenate([[0], np.cumsum(is_unknown)])
        lengths.append(np.diff(boundaries))
        unknown.append(np.diff(unknown_before[boundaries]) > 0)
    return np.concatenate(lengths), np.concatenate(unknown)


def _slices(texts: pa.LargeStringArray) -> Iterator[pa.LargeStringArray]:
    """`texts` in runs of about SLICE_BYTES, at least one text each."""
    boundaries = text_buffers(texts)[1]
    begin = 0
    while begin < len(texts):
        end = max(begin + 1, int(np.searchsorted(boundaries, boundaries[begin] + SLICE_BYTES, side="right")) - 1)
        yield texts.slice(begin, end - begin)
        begin = end
