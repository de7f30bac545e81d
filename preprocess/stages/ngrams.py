"""Find the words of many texts at once, and hash every sequence of n of them.

Nearly equal documents (near_dup.py) and evaluation items (decontaminate.py) are found by the sequences
of words that texts have in common. The two modules define words differently; a `WordRules` object
describes a definition.

The bytes of all texts are processed in windows, without a Python object for a text or a word. A word
becomes a 64-bit hash. The hash of a sequence of words w[0] … w[n - 1] is the mixed value of the
polynomial w[0] M^(n - 1) + … + w[n - 1] modulo 2^64. Because M is odd, it has an inverse, so the
polynomial is a difference of two cumulative sums, multiplied by a power of M. The cost does not
depend on n.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers
from preprocess.filters.spans import MULTIPLIER, PREFIX_MASKS
from preprocess.shards.permutation import mix64

WINDOW_BYTES = 1 << 18  # of text whose words are found at once
MAX_SEPARATOR_BYTES = 3
WORD_BYTES = 64  # a longer word is identified by its first bytes
INVERSE = np.uint64(pow(int(MULTIPLIER), -1, 1 << 64))
# First bytes of U+3000 to U+9FFF and of characters above U+FFFF, which are words by themselves.
IS_WORD_BY_ITSELF = np.zeros(256, bool)
IS_WORD_BY_ITSELF[0xE3:0xEA] = IS_WORD_BY_ITSELF[0xF0:0xF5] = True
THAI_LEAD, THAI_SECOND = 0xE0, (0xB8, 0xBB)  # first two bytes of Thai and Lao characters


@dataclass(frozen=True)
class WordRules:
    """The definition of the words of a text. Bytes from 0x80 are parts of longer characters."""

    characters: np.ndarray  # (256,) uint8: the byte of a word for each byte of text; 0 for a byte that separates words
    separators: tuple[bytes, ...]  # the longer characters that separate words, or the first bytes of such characters
    is_deleted: np.ndarray | None = None  # (256,) bool: bytes that are removed from a text before its words are found
    divides_scripts: bool = False  # each character of a script without spaces is a word


def _make_lower_case(separators: bytes) -> np.ndarray:
    """Return each byte with ASCII letters in lower case, and 0 for those in `separators`: (256,) uint8."""
    characters = np.arange(256, dtype=np.uint8)
    characters[ord("A") : ord("Z") + 1] += ord("a") - ord("A")
    characters[np.frombuffer(separators, np.uint8)] = 0
    return characters


# Words are runs of letters and digits. Scripts without spaces (Chinese, Japanese, Thai) have a word for each character.
LETTERS = WordRules(
    _make_lower_case(bytes(b for b in range(0x80) if not chr(b).isalnum())),
    separators=(b"\xc2", b"\xe2\x80"),  # U+0080 to U+00BF, U+2000 to U+203F
    divides_scripts=True,
)
# Words are separated by white space, as str.split() defines it, after ASCII punctuation is deleted.
SPACED = WordRules(
    np.maximum(_make_lower_case(b"\t\n\v\f\r\x1c\x1d\x1e\x1f "), np.arange(256) == 0).astype(np.uint8),
    separators=tuple(chr(c).encode() for c in range(0x80, 0x3001) if chr(c).isspace()),
    is_deleted=np.isin(np.arange(256), np.frombuffer(string.punctuation.encode(), np.uint8)),
)


def iter_words(
    texts: pa.LargeStringArray, rules: WordRules, num_words: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (words, documents, num_starts) for consecutive parts of D texts.

    `words`: (W,) uint64, a hash of each word. `documents`: (W,) int64, the index of its text.
    `num_starts`: how many sequences of `num_words` words begin in this part. They begin at the words
    0 … num_starts - 1, and are complete unless their text ends. The other words of this part are
    repeated at the beginning of the next one.
    """
    data, offsets = get_text_buffers(texts)
    if rules.is_deleted is not None:
        data, offsets = _delete(data, offsets, rules.is_deleted)
    words, documents = np.empty(0, np.uint64), np.empty(0, np.int64)
    for window_words, window_documents, is_last in _iter_windows(data, offsets, rules):
        words, documents = np.concatenate([words, window_words]), np.concatenate([documents, window_documents])
        num_starts = len(words) if is_last else max(len(words) - num_words + 1, 0)
        yield words, documents, num_starts
        words, documents = words[num_starts:], documents[num_starts:]


def hash_ngrams(
    words: np.ndarray, documents: np.ndarray, num_words: int, num_starts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each sequence of `num_words` words, and whether all of its words are of one text.

    `words`, `documents`: (W,), as `iter_words` yields them. The sequences begin at the first
    `num_starts` words. If a text ends within a sequence, zeros take the place of the missing words.
    Returns (num_starts,) uint64 and (num_starts,) bool.
    """
    powers, inverse_powers = _compute_powers(1 << max((len(words) + num_words).bit_length(), 16))
    sums = np.zeros(len(words) + 1, np.uint64)
    np.cumsum(words * inverse_powers[: len(words)], out=sums[1:])
    starts = np.arange(num_starts)
    is_whole = np.zeros(num_starts, bool)
    num_within = min(num_starts, max(len(words) - num_words + 1, 0))
    is_whole[:num_within] = documents[num_words - 1 : num_words - 1 + num_within] == documents[:num_within]
    ends = starts + num_words
    is_cut = np.flatnonzero(~is_whole)
    ends[is_cut] = np.searchsorted(documents, documents[is_cut], "right")
    hashes = (sums[ends] - sums[:num_starts]) * powers[num_words - 1 : num_words - 1 + num_starts]
    return mix64(hashes), is_whole


@functools.lru_cache(maxsize=4)  # for windows with different numbers of words; at most 4 MB each
def _compute_powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers 0 … count - 1 of MULTIPLIER and of INVERSE, modulo 2^64: (count,) uint64 each."""
    powers = []
    for base in (MULTIPLIER, INVERSE):
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        powers.append(np.cumprod(factors))
    return powers[0], powers[1]


def _delete(data: np.ndarray, offsets: np.ndarray, is_deleted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes and offsets of texts without the bytes that are deleted."""
    parts, new_offsets = [np.empty(0, np.uint8)], np.zeros(len(offsets), np.int64)
    num_kept = 0
    for start in range(0, len(data), WINDOW_BYTES):
        window = data[start : start + WINDOW_BYTES]
        is_kept = ~is_deleted[window]
        before = np.concatenate([[0], np.cumsum(is_kept)])
        first, last = np.searchsorted(offsets, (start, start + len(window)), "right")
        new_offsets[first:last] = num_kept + before[offsets[first:last] - start]
        parts.append(window[is_kept])
        num_kept += len(parts[-1])
    return np.concatenate(parts), new_offsets


def _iter_windows(
    data: np.ndarray, offsets: np.ndarray, rules: WordRules
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield (hashes, documents, is_last) for the words that begin in each window of the text.

    `data`, (N,) uint8, and `offsets`, (D + 1,) int64, as `get_text_buffers` returns them. `hashes`:
    (W,) uint64. `documents`: (W,) int64, the index of each word's document.
    """
    for start in range(0, max(len(data), 1), WINDOW_BYTES):
        stop = min(start + WINDOW_BYTES, len(data))
        # The window is extended, as a word may end after it, and a separator may begin before it.
        first, last = max(start - MAX_SEPARATOR_BYTES, 0), min(stop + WORD_BYTES + MAX_SEPARATOR_BYTES, len(data))
        characters = _find_characters(data[first:last], rules)
        document_starts = offsets[np.searchsorted(offsets, first) : np.searchsorted(offsets, last)] - first
        starts, lengths = _find_words(characters, document_starts, rules)
        in_window = slice(np.searchsorted(starts, start - first), np.searchsorted(starts, stop - first))
        starts, lengths = starts[in_window], lengths[in_window]
        num_words_before = np.searchsorted(starts, np.clip(offsets - first, 0, last - first))
        documents = np.repeat(np.arange(len(offsets) - 1), np.diff(num_words_before))
        yield hash_spans(characters, starts, lengths), documents, stop == len(data)


def _find_characters(data: np.ndarray, rules: WordRules) -> np.ndarray:
    """Return the bytes of text as they are in words, with 0 for those that separate words: (N,) uint8."""
    characters: np.ndarray = rules.characters[data]
    for lead in {prefix[0] for prefix in rules.separators}:
        found = np.flatnonzero(data == lead)
        if not len(found):
            continue
        num_bytes = 2 if lead < 0xE0 else 3
        is_separator = np.zeros(len(found), bool)
        for prefix in rules.separators:
            if prefix[0] == lead:
                is_separator |= _begins_with(data, found, prefix)
        for i in range(num_bytes):
            rest = found[is_separator] + i
            characters[rest[rest < len(data)]] = 0
    return characters


def _begins_with(data: np.ndarray, positions: np.ndarray, prefix: bytes) -> np.ndarray:
    """Return whether the bytes from each of (P,) positions on are `prefix`, whose first byte they have: (P,) bool."""
    is_equal = np.ones(len(positions), bool)
    for i, byte in enumerate(prefix[1:], start=1):
        is_equal &= data[np.minimum(positions + i, len(data) - 1)] == byte
    return is_equal


def _find_words(characters: np.ndarray, document_starts: np.ndarray, rules: WordRules) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts of the words, and their lengths in bytes, at most WORD_BYTES: (W,) int64 each.

    `characters`: (N,) uint8. `document_starts`: the offsets at which documents begin, all below N.
    """
    is_word = characters != 0
    is_start = is_word.copy()
    is_start[1:] &= ~is_word[:-1]
    if rules.divides_scripts:
        is_start |= IS_WORD_BY_ITSELF[characters]
        thai = np.flatnonzero(characters[:-1] == THAI_LEAD)
        is_start[thai[(characters[thai + 1] >= THAI_SECOND[0]) & (characters[thai + 1] <= THAI_SECOND[1])]] = True
    is_start[document_starts] = is_word[document_starts]
    is_last = is_word.copy()  # the last byte of a word is followed by a separator or by another word
    is_last[:-1] &= is_start[1:] | ~is_word[1:]
    starts, last_bytes = np.flatnonzero(is_start), np.flatnonzero(is_last)
    return starts, np.minimum(last_bytes - starts + 1, WORD_BYTES)


def hash_spans(characters: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return a hash of each range of bytes, such as a word: (W,) uint64. Eight bytes are read at a time."""
    padded = np.concatenate([characters, np.zeros(8, np.uint8)])
    eight_bytes = np.ndarray((len(characters) + 1,), "<u8", padded.data, strides=(1,))  # from each byte on
    hashes = mix64(eight_bytes[starts] & PREFIX_MASKS[np.minimum(lengths, 8)])
    position = 8
    rest = np.flatnonzero(lengths > position)
    while len(rest):
        part = eight_bytes[starts[rest] + position] & PREFIX_MASKS[np.minimum(lengths[rest] - position, 8)]
        hashes[rest] = mix64(hashes[rest] * MULTIPLIER + part)
        position += 8
        rest = rest[lengths[rest] > position]
    return hashes
