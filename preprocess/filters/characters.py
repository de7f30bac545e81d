"""The kind of every character of a text, for the filters that count words and lines.

A kind is a combination of the bits below. It depends on the Unicode properties of Python's module
`unicodedata`, so the manifest stores the version of Unicode. Kinds are looked up in a table. A block of
256 characters of the table is filled when a text contains one of them, because most texts need few.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import numpy as np

SPACE = 1  # white space
WORD = 2  # a letter, digit or mark, which is part of a word
SINGLE = 4  # a letter of a script without spaces between words, which is a word by itself
JOINER = 8  # part of a word if a letter or digit is before and after it
ALPHA = 16  # a letter
SYMBOL = 32  # punctuation, as in SYMBOLS
TERMINAL = 64  # punctuation that ends a sentence
MARK = 128  # an accent, a vowel sign or an invisible joiner, which belongs to the character before it
UNKNOWN = 0xFFFF  # not looked up yet

JOINERS = ".'’"
# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Tai; kana and Chinese characters.
SINGLE_RANGES = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x1AAF), (0x3040, 0x30FF), (0x3100, 0x312F),
    (0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF), (0xAA60, 0xAADF), (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
# First and last code points of the punctuation marks that end a sentence, in any script: those with Unicode's property
# Sentence_Terminal (version 15), and three of Khmer. FineWeb's filters use the same.
TERMINAL_RANGES = """
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6
17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e
2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52
fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6
111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944
11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f
1da88
"""
# Punctuation and control characters. A word that has no other characters is a symbol. This list, with the marks that
# end a sentence, is the one that FineWeb's filters use.
SYMBOL_RANGES = """
0-8 b-1f 21-2f 3a-40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001-3002 3008-300d 3010-3011
ff01 ff05 ff08-ff09 ff0c ff0e ff11 ff1a-ff1b ff1f ff5e
"""
BLOCK = 256
NUM_CODE_POINTS = 0x110000


def parse_ranges(text: str) -> frozenset[int]:
    """Return the code points of ranges that are written like "21 2e 61d-61f"."""
    code_points: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        code_points.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(code_points)


TERMINALS = parse_ranges(TERMINAL_RANGES)
SYMBOLS = parse_ranges(SYMBOL_RANGES) | TERMINALS


def find_kind(code_point: int) -> int:
    """Return the kind of a character: a combination of the bits above."""
    character = chr(code_point)
    category = unicodedata.category(character)
    kind = 0
    if character.isspace():
        kind |= SPACE
    elif category[0] in "LMN" or category == "Cf":
        is_single = category[0] == "L" and any(first <= code_point <= last for first, last in SINGLE_RANGES)
        kind |= SINGLE if is_single else WORD
        kind |= 0 if category[0] in "LN" else MARK
    elif character in JOINERS:
        kind |= JOINER
    kind |= ALPHA if character.isalpha() else 0
    kind |= SYMBOL if code_point in SYMBOLS else 0
    return kind | (TERMINAL if code_point in TERMINALS else 0)


_table = np.full(NUM_CODE_POINTS, UNKNOWN, np.uint16)


def find_kinds(code_points: np.ndarray) -> np.ndarray:
    """Return the kinds of (N,) code points: (N,) uint8."""
    kinds = _table[code_points]
    while (is_unknown := kinds == UNKNOWN).any():
        block = int(code_points[np.argmax(is_unknown)]) // BLOCK
        _table[block * BLOCK : (block + 1) * BLOCK] = [find_kind(block * BLOCK + i) for i in range(BLOCK)]
        kinds = _table[code_points]
    return kinds.astype(np.uint8)


ASCII_KINDS = np.concatenate([find_kinds(np.arange(128)), np.zeros(128, np.uint8)])


class Characters(NamedTuple):
    """The characters of N bytes of UTF-8."""

    kinds: np.ndarray  # (N,) uint8: of each byte, the kind of its character
    wide_starts: np.ndarray  # (W,) int64: first bytes of the characters that are not ASCII
    wide_lengths: np.ndarray  # (W,) int64: their numbers of bytes
    wide_codes: np.ndarray  # (W,) uint32: their code points


def find_characters(data: np.ndarray) -> Characters:
    """Return the characters of valid UTF-8. `data`: (N,) uint8."""
    kinds = ASCII_KINDS[data]
    starts = np.flatnonzero(data >= 0xC0)
    lead = data[starts]
    lengths = 2 + (lead >= 0xE0).astype(np.int64) + (lead >= 0xF0)
    codes = (lead & (0xFF >> (lengths + 1)).astype(np.uint8)).astype(np.uint32)
    for i in range(1, 4):
        rows = np.flatnonzero(lengths > i)
        codes[rows] = codes[rows] << np.uint32(6) | (data[starts[rows] + i] & 0x3F)
    wide_kinds = find_kinds(codes)
    for i in range(4):
        rows = np.flatnonzero(lengths > i)
        kinds[starts[rows] + i] = wide_kinds[rows]
    return Characters(kinds, starts, lengths, codes)
