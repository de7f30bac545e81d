"""Measure how well a tokenizer fits a language: tokens per word, bytes per token, coverage.

Every text is encoded once. In addition, every distinct word is encoded twice, alone and after a
space, because most tokenizers have different tokens for the two. In total this takes about twice
the time of encoding the texts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.documents import divide_texts, get_text_buffers
from preprocess.tokenizers.interface import Tokenizer
from preprocess.tokenizers.lost_characters import CharacterLoss, LossCounter

SLICE_BYTES = 8 << 20  # of text encoded at a time: the reference libraries make a Python object per token
MAX_CHARACTERS = 4_000_000  # of one document; the rest of it is not measured
MAX_BYTES = 32 << 20  # of the documents of one language; the words of a text take up to twenty times its size
HEADINGS = {
    "documents": "documents",
    "words": "words",
    "text_bytes": "bytes",
    "tokens": "tokens",
    "tokens_per_word": "tokens/word",
    "bytes_per_token": "bytes/token",
    "character_coverage": "characters covered",
    "byte_fallback": "in single bytes",
    "single_token_words": "words of one token",
}
Figures = dict[str, int | float | None]  # by the keys of HEADINGS
PERCENTAGES = ("character_coverage", "byte_fallback", "single_token_words")


def inspect_tokenizer(tokenizer: Tokenizer, texts_by_language: Mapping[str, pa.LargeStringArray]) -> dict[str, Figures]:
    """Return the figures in HEADINGS for each language: counts as int, ratios as float.

    A word is a run of characters that are not white space. `character_coverage` is the fraction of
    characters that are decoded to themselves (see lost_characters.py), and `byte_fallback` the
    fraction that are encoded byte by byte because they have no token. `single_token_words` is the
    fraction of words, counted as often as they occur, that are one token, either alone or with the
    space before them. A ratio with a denominator of 0 is None, and so is `byte_fallback` for a
    tokenizer without it. Of a document, the first MAX_CHARACTERS are measured, and of a language the
    documents until they have MAX_BYTES.

    Raises FolioError for a character that is missing from the alphabet of a `char` tokenizer.
    """
    return {language: _inspect_language(tokenizer, _limit(texts)) for language, texts in texts_by_language.items()}


def _limit(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return the first of D texts, shortened, until they have MAX_BYTES, but at least one."""
    if len(get_text_buffers(texts)[0]) <= MAX_CHARACTERS:
        return texts
    texts = pc.utf8_slice_codeunits(texts, 0, MAX_CHARACTERS)
    ends = get_text_buffers(texts)[1][1:]
    return texts.slice(0, max(int(np.searchsorted(ends, MAX_BYTES, side="right")), 1))


def format_inspection(inspection: Mapping[str, Figures]) -> list[str]:
    """Return the lines of a table with aligned columns and one row per language."""
    rows = [["language", *HEADINGS.values()]]
    rows += [
        [language, *(_format_figure(name, figures[name]) for name in HEADINGS)]
        for language, figures in inspection.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _format_figure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in PERCENTAGES:
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _inspect_language(tokenizer: Tokenizer, texts: pa.LargeStringArray) -> Figures:
    num_bytes = len(get_text_buffers(texts)[0])
    num_tokens, num_fallback_characters, loss = _count_tokens(tokenizer, texts)
    words, counts = _count_words(texts)
    is_single_token = _find_single_token_words(tokenizer, words)
    num_words = int(counts.sum())
    has_fallback = len(tokenizer.byte_fallback_ids) > 0
    return {
        "documents": len(texts),
        "words": num_words,
        "text_bytes": num_bytes,
        "tokens": num_tokens,
        "tokens_per_word": _ratio(num_tokens, num_words),
        "bytes_per_token": _ratio(num_bytes, num_tokens),
        "character_coverage": _ratio(loss.num_characters - loss.lost.total(), loss.num_characters),
        "byte_fallback": _ratio(num_fallback_characters, loss.num_characters) if has_fallback else None,
        "single_token_words": _ratio(int(counts[is_single_token].sum()), num_words),
    }


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None


def _count_tokens(tokenizer: Tokenizer, texts: pa.LargeStringArray) -> tuple[int, int, CharacterLoss]:
    """Return the numbers of tokens and of characters that byte fallback encodes, and the lost characters.

    Byte fallback gives one token per byte of a character, so tokens of first bytes are counted.
    """
    first_byte = {i: tokenizer.id_to_bytes[i][:1] for i in tokenizer.byte_fallback_ids}
    starts_character = np.zeros(tokenizer.vocab_size, bool)
    starts_character[[i for i, byte in first_byte.items() if byte and (byte[0] & 0xC0) != 0x80]] = True
    num_tokens = num_characters = 0
    loss_counter = LossCounter(tokenizer)
    for part in divide_texts(texts, SLICE_BYTES):
        ids, ends = tokenizer.encode(part)
        loss_counter.add(part, ids, ends)
        num_tokens += len(ids)
        num_characters += int(starts_character[ids].sum())
    return num_tokens, num_characters, loss_counter.measure()


def _count_words(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Return the distinct words, and how often each occurs: (W,) int64."""
    words = pc.list_flatten(pc.utf8_split_whitespace(texts))
    counted = pc.value_counts(words.filter(pc.not_equal(words, "")))
    return counted.field("values").cast(pa.large_string()), counted.field("counts").to_numpy(zero_copy_only=False)


def _find_single_token_words(tokenizer: Tokenizer, words: pa.LargeStringArray) -> np.ndarray:
    """Return which words are one token, alone or after a space: (W,) bool."""
    is_single = _count_tokens_of_each(tokenizer, words) == 1
    if tokenizer.kind == "char":  # a space is another token, or not in the alphabet
        return is_single
    empty, space = pa.scalar("", pa.large_string()), pa.scalar(" ", pa.large_string())
    spaced = pc.binary_join_element_wise(empty, words, space)  # " word"
    return is_single | (_count_tokens_of_each(tokenizer, spaced) == 1)


def _count_tokens_of_each(tokenizer: Tokenizer, texts: pa.LargeStringArray) -> np.ndarray:
    """Return the number of tokens of each text, (D,) int64."""
    ends = (tokenizer.encode(part)[1] for part in divide_texts(texts, SLICE_BYTES))
    return np.concatenate([np.empty(0, np.int64), *(np.diff(of_part, prepend=0) for of_part in ends)])
