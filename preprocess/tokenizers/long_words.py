"""Encode words of many megabytes with a byte-pair encoding, in little memory.

The problem: a text without spaces, such as a DNA sequence, or a text of spaces only, is one word
for a tokenizer. Encoding a word takes 25 times its size in memory, and the time grows faster than
the size.

The idea: a word is encoded in pieces. Two ids are *compatible* if encoding their bytes gives these
two ids again. If all neighbours in a sequence of ids are compatible, the sequence is the encoding
of its bytes. (Otherwise the encoder would merge across the border of two ids. The first such merge
would also be made if only these two ids were encoded, so they would not be compatible.) The ids of
a piece are an encoding. So if the last id of one piece and the first id of the next are compatible,
the ids of both pieces together are an encoding too. If they are not, an earlier border is tried.

The cost: 0.1 to 0.3 µs per byte with tiktoken, and 1 µs per word to find the long ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

LONG_WORD_BYTES = 1 << 20
PART_CHARACTERS = 1 << 22  # of the text between long words
MAX_PENDING_WORDS = 1000
PIECE_CHARACTERS = 1 << 16
NUM_UNCERTAIN_IDS = 16  # at the end of a piece, which often change with the text after it
MAX_BORDERS = 256  # that are tried between two pieces
SPACE = 0x20


class _Piece(NamedTuple):
    """A piece of a word, from character `start` to `end` of the text, and its ids."""

    start: int
    end: int
    ids: list[int]


class Part(NamedTuple):
    """A part of a text, from character `start` to `end`, that is encoded by itself."""

    start: int
    end: int
    is_word: bool


def may_have_long_word(data: np.ndarray) -> bool:
    """Return whether a text, UTF-8 as (N,) uint8, may have a word of LONG_WORD_BYTES or more.

    Such a word has no white space inside, or consists of white space.
    """
    size = LONG_WORD_BYTES // 2  # a long word fills one of these blocks
    blocks = (data[start : start + size] for start in range(0, len(data) - size + 1, size))
    return any(bool(block.min() > SPACE or block.max() <= SPACE) for block in blocks)


def split_at_long_words(text: str, pattern: str) -> Iterator[Part]:
    """Yield the parts of a text, in order: long words, and the text between them.

    `pattern` is a regular expression that matches one word. Which white space it matches may depend
    on the next character, so the text between long words ends after a word that does not end with
    white space. Words of white space before a long word are parts by themselves.
    """
    import regex  # re has no classes of characters such as \p{L}

    start = end = 0  # of the text between two long words, up to a word that does not end with white space
    spaces: list[Part] = []  # the words after it
    for match in regex.finditer(pattern, text):
        first, last = match.span()
        is_long = last - first > LONG_WORD_BYTES // 4  # a character has up to four bytes
        if not is_long and not text[last - 1].isspace():
            end = last
            spaces.clear()
        else:
            spaces.append(Part(first, last, is_word=True))
        if is_long or end - start > PART_CHARACTERS or len(spaces) > MAX_PENDING_WORDS:
            if end > start:
                yield Part(start, end, is_word=False)
            yield from spaces
            start = end = spaces[-1].end if spaces else end
            spaces.clear()
    if start < len(text):
        yield Part(start, len(text), is_word=False)


class WordEncoder:
    """An encoder of long words, which encodes a word in pieces."""

    def __init__(self, encoding: Any, id_to_bytes: Sequence[bytes]) -> None:
        """`encoding` is a tiktoken.Encoding for which every text is one word."""
        self._encoding, self._id_to_bytes = encoding, id_to_bytes

    def encode(self, text: str, start: int, end: int) -> Iterator[list[int]]:
        """Yield the ids of each piece of the word text[start:end]."""
        piece = self._encode_piece(text, start, end)
        while piece.end < end:
            num_ids, next_piece = self._find_border(text, piece, end)
            yield piece.ids[:num_ids]
            piece = next_piece
        yield piece.ids

    def _encode_piece(self, text: str, start: int, end: int) -> _Piece:
        piece_end = end if end - start < 2 * PIECE_CHARACTERS else start + PIECE_CHARACTERS
        return _Piece(start, piece_end, self._encoding.encode_ordinary(text[start:piece_end]))

    def _find_border(self, text: str, piece: _Piece, end: int) -> tuple[int, _Piece]:
        """Return the number of ids of `piece` to keep, and the piece after them.

        If no border is found, the number is 0, and the new piece is the rest of the word.
        """
        data = text[piece.start : piece.end].encode()
        ends = np.cumsum([len(self._id_to_bytes[i]) for i in piece.ids])  # of the ids in `data`
        starts_character = (np.frombuffer(data, np.uint8)[ends[:-1]] & 0xC0) != 0x80  # 0b10xxxxxx continues one
        candidates = 1 + np.flatnonzero(starts_character)[::-1]
        candidates = candidates[candidates <= max(len(piece.ids) - NUM_UNCERTAIN_IDS, 1)]
        for num_ids in candidates[:MAX_BORDERS].tolist():
            start = piece.start + len(data[: ends[num_ids - 1]].decode())
            next_piece = self._encode_piece(text, start, end)
            if self._are_compatible(piece.ids[:num_ids], next_piece.ids):
                return num_ids, next_piece
        return 0, _Piece(piece.start, end, self._encoding.encode_ordinary(text[piece.start : end]))

    def _are_compatible(self, left: list[int], right: list[int]) -> bool:
        """Return whether the last id of `left` and the first id of `right` are compatible.

        If they are parts of characters, the ids of the whole characters are compared.
        """
        num_left = num_right = 1
        while (before := self._join(left[-num_left:]))[0] & 0xC0 == 0x80:
            num_left += 1
        while not _is_complete(after := self._join(right[:num_right])):
            num_right += 1
        ids = self._encoding.encode_ordinary((before + after).decode())
        are_compatible: bool = ids == [*left[-num_left:], *right[:num_right]]
        return are_compatible

    def _join(self, ids: list[int]) -> bytes:
        return b"".join([self._id_to_bytes[i] for i in ids])


def _is_complete(data: bytes) -> bool:
    """Return whether UTF-8 that begins with a character also ends with one."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
